"""
Notes of whom things of the service's device are: a Megolm session is had from each who hands it over.

A release before this one writes no Megolm sessions, places and withheld codes here: stop it first.
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

STATEMENTS = """
-- Whoever was given a session can hand it on as theirs: their claim stands beside the owner's, not before it.
ALTER TABLE crypto.megolm_session
    DROP CONSTRAINT megolm_session_pkey,
    ADD PRIMARY KEY (homeserver_id, room_id, session_id, owner);

-- Which event of a sender used an index, and when it was sent: copies are told from their original by that.
ALTER TABLE crypto.megolm_index ADD COLUMN owner text, ADD COLUMN event_at timestamptz;
UPDATE crypto.megolm_index AS place SET owner = (
    SELECT min(known.owner) FROM crypto.megolm_session AS known
    WHERE known.homeserver_id = place.homeserver_id AND known.session_id = place.session_id
);
DELETE FROM crypto.megolm_index WHERE owner IS NULL;
ALTER TABLE crypto.megolm_index
    ALTER COLUMN owner SET NOT NULL,
    DROP CONSTRAINT megolm_index_pkey,
    ADD PRIMARY KEY (homeserver_id, session_id, owner, index);

-- Empty: of before, and not known.
ALTER TABLE crypto.unread_event ADD COLUMN sender text NOT NULL DEFAULT '';
ALTER TABLE crypto.withheld_session
    ADD COLUMN sender text NOT NULL DEFAULT '',
    DROP CONSTRAINT withheld_session_pkey,
    ADD PRIMARY KEY (homeserver_id, room_id, session_id, sender);
ALTER TABLE crypto.olm_session ADD COLUMN sender text NOT NULL DEFAULT '';
CREATE INDEX olm_session_sender ON crypto.olm_session (homeserver_id, sender, used_at);
"""


def upgrade() -> None:
    """Add the columns and the keys; what stands in the tables stays, where it is known of whom it is."""
    for statement in STATEMENTS.split(";\n"):
        if statement.strip():
            op.execute(statement)
