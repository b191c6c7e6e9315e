"""Adds `crypto.room.state_read_at`: whether the state that the device found in a room is recorded."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; rooms of before are read once, at the next start."""
    op.execute("ALTER TABLE crypto.room ADD COLUMN state_read_at timestamptz")
