"""Keeps what could not be opened after it was, for its call to tell; and by session why a session does not come."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

STATEMENTS = """
-- An event that was opened after all stays, so that it is counted once and its call can tell.
ALTER TABLE crypto.unread_event
    ADD COLUMN waiting boolean NOT NULL DEFAULT true,  -- is read again when its session comes
    ADD COLUMN opened_at timestamptz;

-- To-device messages that could not be opened: none ever can be later.
CREATE TABLE crypto.unread_message (
    homeserver_id smallint NOT NULL REFERENCES homeserver,
    identity      text NOT NULL,          -- as observations have it
    reason        text NOT NULL,
    noted_at      timestamptz NOT NULL,
    PRIMARY KEY (homeserver_id, identity)
);

-- Megolm sessions that are kept from the device: the code mostly comes before the events.
CREATE TABLE crypto.withheld_session (
    homeserver_id smallint NOT NULL REFERENCES homeserver,
    room_id       text NOT NULL,
    session_id    text NOT NULL,
    code          text NOT NULL,
    noted_at      timestamptz NOT NULL,
    PRIMARY KEY (homeserver_id, room_id, session_id)
);
INSERT INTO crypto.withheld_session
    SELECT homeserver_id, room_id, session_id, max(withheld_code), max(noted_at) FROM crypto.unread_event
    WHERE withheld_code IS NOT NULL GROUP BY homeserver_id, room_id, session_id;
ALTER TABLE crypto.unread_event DROP COLUMN withheld_code;
"""


def upgrade() -> None:
    """Add the columns and tables, and move the codes."""
    for statement in STATEMENTS.split(";\n"):
        if statement.strip():
            op.execute(statement)
