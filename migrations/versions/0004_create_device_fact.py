"""Creates the table of what the homeserver says of call devices: their platform, and whether they are cross-signed."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table; until a replica of this release asks, it is empty and every platform is unknown."""
    op.execute(
        """
        CREATE TABLE device_fact (
            homeserver_id smallint NOT NULL REFERENCES homeserver,
            user_id       text NOT NULL,
            device_id     text NOT NULL,
            platform      text NOT NULL,
            cross_signed  boolean,               -- NULL: could not be told
            fetched_at    timestamptz NOT NULL,
            PRIMARY KEY (homeserver_id, user_id, device_id)
        )
        """
    )
