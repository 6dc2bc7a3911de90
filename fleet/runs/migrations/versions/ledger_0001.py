"""The initial schema: runs, models, microbatches, attempts and errors."""

from alembic import op

revision = "ledger_0001"
down_revision = None

_TABLES = (
    """CREATE TABLE fleet_runs (
        run_id TEXT PRIMARY KEY, output TEXT NOT NULL, fleet TEXT NOT NULL, models INTEGER NOT NULL,
        microbatches INTEGER NOT NULL, state TEXT NOT NULL, began DOUBLE PRECISION NOT NULL, ended DOUBLE PRECISION
    )""",
    """CREATE TABLE fleet_models (
        run_id TEXT, model TEXT, model_group TEXT NOT NULL, digest TEXT NOT NULL, state TEXT NOT NULL,
        PRIMARY KEY (run_id, model)
    )""",
    """CREATE TABLE fleet_microbatches (
        run_id TEXT, number INTEGER, model_group TEXT NOT NULL, step INTEGER NOT NULL, models INTEGER NOT NULL,
        "rows" BIGINT NOT NULL, state TEXT NOT NULL, owner TEXT NOT NULL, fence INTEGER NOT NULL,
        lease_until DOUBLE PRECISION NOT NULL, seconds DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (run_id, number)
    )""",
    """CREATE TABLE fleet_attempts (
        run_id TEXT, microbatch INTEGER, attempt INTEGER, owner TEXT NOT NULL, outcome TEXT NOT NULL,
        began DOUBLE PRECISION NOT NULL, seconds DOUBLE PRECISION NOT NULL, "rows" BIGINT NOT NULL,
        nulls BIGINT NOT NULL, bytes BIGINT NOT NULL, read_seconds DOUBLE PRECISION NOT NULL,
        score_seconds DOUBLE PRECISION NOT NULL, write_seconds DOUBLE PRECISION NOT NULL,
        tasks INTEGER NOT NULL DEFAULT 0, task_seconds DOUBLE PRECISION NOT NULL DEFAULT 0,
        slowest_seconds DOUBLE PRECISION NOT NULL DEFAULT 0, median_seconds DOUBLE PRECISION NOT NULL DEFAULT 0,
        model_seconds TEXT NOT NULL DEFAULT '',
        PRIMARY KEY (run_id, microbatch, attempt)
    )""",
    """CREATE TABLE fleet_errors (
        run_id TEXT, microbatch INTEGER, attempt INTEGER, model TEXT, model_group TEXT NOT NULL, step INTEGER NOT NULL,
        stage TEXT NOT NULL, error TEXT NOT NULL, message TEXT NOT NULL, traceback TEXT NOT NULL, "partition" INTEGER,
        "at" DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (run_id, microbatch, attempt, model)
    )""",
)


def upgrade() -> None:
    """Create the tables, in SQL that SQLite and PostgreSQL share."""
    for table in _TABLES:
        op.execute(table)
