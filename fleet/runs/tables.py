"""The tables of the ledger: their keys and columns, of the types that the migrations give them."""

from typing import Any

from sqlalchemy import Column, MetaData, Table

_METADATA = MetaData()


def _table(name: str, keys: str, others: str) -> Table:
    # A database may be shared with MLflow, which has a table "runs" of its own. Words of SQL, such as PARTITION, are
    # quoted.
    columns: list[Column[Any]] = [Column(key, primary_key=True, autoincrement=False) for key in keys.split()]
    return Table(f"fleet_{name}", _METADATA, *columns, *(Column(other, quote=True) for other in others.split()))


RUNS = _table("runs", "run_id", "output fleet models microbatches state began ended")
"""``state``: running, finished, failed, refused (too many models had failed before the first microbatch) or abandoned
(another run took its output)."""

MODELS = _table("models", "run_id model", "model_group digest state")
"""``state``: sound or failed. ``digest`` is empty for a model that could not be read."""

MICROBATCHES = _table(
    "microbatches", "run_id number", "model_group step models rows state owner fence lease_until seconds"
)
"""``state``: waiting, running, done or failed. ``fence`` counts the attempts; ``lease_until`` is a time of the ledger's
clock."""

ATTEMPTS = _table(
    "attempts",
    "run_id microbatch attempt",
    "owner outcome began seconds rows nulls bytes read_seconds score_seconds write_seconds"
    " tasks task_seconds slowest_seconds median_seconds model_seconds",
)
"""``outcome``: done, failed, superseded (another driver has taken the microbatch over) or stopped. ``model_seconds``: a
JSON list with the seconds of scoring of each model, in the order of the microbatch's; empty if there are none."""

ERRORS = _table(
    "errors",
    "run_id microbatch attempt model",
    "model_group step stage error message traceback partition at",
)
"""``microbatch`` is -1 for an error before the first one; ``model`` is empty for an error that concerns all models."""
