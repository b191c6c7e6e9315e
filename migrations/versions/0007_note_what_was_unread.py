"""
Keeps what could not be opened after it was, for its call to tell; and by session why a session does not come.

And puts beside each call what an overview of many counts, so that it need not open their reports.
"""

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

-- What an overview counts; the index has all it takes.
ALTER TABLE call_session
    ADD COLUMN coverage text[] NOT NULL DEFAULT '{}',
    ADD COLUMN fallbacks integer NOT NULL DEFAULT 0;
UPDATE call_session SET
    coverage = ARRAY(SELECT jsonb_array_elements_text(report -> 'coverage')),
    fallbacks = jsonb_array_length(report -> 'fallbacks');
DROP INDEX call_session_started_at;
CREATE INDEX call_session_started_at ON call_session (homeserver_id, started_at)
    INCLUDE (verdict, evidence, coverage, fallbacks);
"""


def upgrade() -> None:
    """Add the columns and tables, and fill them from what there is."""
    for statement in STATEMENTS.split(";\n"):
        if statement.strip():
            op.execute(statement)
