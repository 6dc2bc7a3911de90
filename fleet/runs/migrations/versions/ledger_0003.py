"""Attempts have the seconds of each model."""

from alembic import op

revision = "ledger_0003"
down_revision = "ledger_0002"


def upgrade() -> None:
    """Add the column, which is empty for attempts before."""
    op.execute("ALTER TABLE fleet_attempts ADD COLUMN model_seconds TEXT NOT NULL DEFAULT ''")
