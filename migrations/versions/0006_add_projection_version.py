"""Adds `projection.version`: how often a room was projected, by which a replica notices the projections of another."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; a constant default rewrites no row."""
    op.execute("ALTER TABLE projection ADD COLUMN version bigint NOT NULL DEFAULT 0")
