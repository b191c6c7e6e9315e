"""Lets a finding belong to a room and to no call."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Drop the constraint, and index the few that have no call; a release before this one finds none of them."""
    op.execute("ALTER TABLE finding ALTER COLUMN call_id DROP NOT NULL")
    op.execute("CREATE INDEX finding_of_room ON finding (room_key, at) WHERE call_id IS NULL")
