"""Attempts have the number of their tasks, and the seconds of these."""

from alembic import op

revision = "ledger_0002"
down_revision = "ledger_0001"

_COLUMNS = ("tasks INTEGER", *(f"{name}_seconds DOUBLE PRECISION" for name in ("task", "slowest", "median")))


def upgrade() -> None:
    """Add the columns, which are 0 for attempts before."""
    for column in _COLUMNS:
        op.execute(f"ALTER TABLE fleet_attempts ADD COLUMN {column} NOT NULL DEFAULT 0")
