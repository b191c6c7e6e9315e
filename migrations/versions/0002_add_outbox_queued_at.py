"""Adds when a row was put into the outbox: an event's own time may be hours before that, as a call's end is."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; it stays empty in rows of an earlier release, and a replica of one need not know it."""
    op.execute("ALTER TABLE outbox ADD COLUMN queued_at timestamptz")
