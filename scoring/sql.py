"""The model as a SQL function, for those who score from SQL."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyspark.sql import SparkSession

from scoring.bad_rows import BadRows
from scoring.checks import ScoringError
from scoring.counters import Counters
from scoring.forms import AS_COLUMNS, Form
from scoring.loaded_model import DEFAULT_BATCH_SIZE
from scoring.model_uri import PinnedModel
from scoring.null_policy import NullRule
from scoring.scorer import OtherVersions
from scoring.udf import scorer_udf


def register_sql(
    spark: SparkSession,
    name: str,
    model: str | Path | PinnedModel,
    *,
    inputs: Sequence[str] | None = None,
    tracking_uri: str | None = None,
    outputs: Form | str = AS_COLUMNS,
    batch_size: int = DEFAULT_BATCH_SIZE,
    nulls: Mapping[str, NullRule] | None = None,
    bad_rows: BadRows = "fail",
    other_versions: OtherVersions = "refuse",
    evaluated_once: bool = True,
    counters: Counters | None = None,
) -> None:
    """Make the model the SQL function ``name`` of this session.

    It returns a struct of the outputs and ``model_version``. Columns are found by name in one struct, or given one by
    one in the order of ``inputs``::

        SELECT id, score(struct(*)).score FROM flights
        SELECT id, s.score, s.model_version FROM (SELECT id, score(carrier, distance) AS s FROM flights)

    The model is resolved now; register again to use what an alias points to later. A filter on a score, above it, does
    not make Spark compute it twice::

        SELECT * FROM (SELECT id, score(struct(*)) AS s FROM flights WHERE month = 1) WHERE s.score > 0.5

    Args:
        spark: The session.
        name: Name of the function; one that the session has already is replaced.
        model: URI of the model, or what :func:`scoring.model_uri.resolve` made of it.
        inputs: The model's inputs that are given, in this order; those left out are missing in every row. By default
            all, in the model's order.
        tracking_uri: MLflow store of the URI.
        outputs: The form of the scores, as for :func:`scoring.udf.scorer_udf`.
        batch_size: Rows per call of the model, unless it takes a number of its own.
        nulls: As there.
        bad_rows: As there.
        other_versions: As there.
        evaluated_once: As there.
        counters: As there.

    Raises:
        ModelNotFoundError: The URI leads to no model.
        ScoringError: ``name`` is no SQL name, or ``inputs`` does not fit the model.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise ScoringError(f"function name '{name}' is no SQL name; use letters, digits and underscores")
    udf = scorer_udf(
        spark,
        model,
        inputs=inputs,
        tracking_uri=tracking_uri,
        outputs=outputs,
        batch_size=batch_size,
        nulls=nulls,
        bad_rows=bad_rows,
        other_versions=other_versions,
        evaluated_once=evaluated_once,
        counters=counters,
    )
    spark.udf.register(name, udf)
