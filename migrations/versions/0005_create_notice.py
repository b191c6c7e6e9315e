"""Creates the table of what was posted to the operator's room, so that nothing is posted twice."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table; a release before this one posts nothing and does not read it."""
    op.execute(
        """
        CREATE TABLE notice (
            homeserver_id smallint NOT NULL REFERENCES homeserver,
            notice_id     text NOT NULL,
            posted_at     timestamptz NOT NULL,
            PRIMARY KEY (homeserver_id, notice_id)
        )
        """
    )
