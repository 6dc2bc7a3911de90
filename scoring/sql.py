"""The model as a SQL function, for those who score from SQL."""

import re
from collections.abc import Sequence
from pathlib import Path

from pyspark.sql import SparkSession

from scoring.checks import ScoringError
from scoring.loaded_model import DEFAULT_BATCH_SIZE
from scoring.model_uri import PinnedModel
from scoring.udf import scorer_udf


def register_sql(
    spark: SparkSession,
    name: str,
    model: str | Path | PinnedModel,
    *,
    inputs: Sequence[str] | None = None,
    tracking_uri: str | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> None:
    """Make the model the SQL function ``name`` of this session.

    It returns a struct of the outputs and ``model_version``. Columns are found by name in one struct, or given one by
    one in the order of ``inputs``::

        SELECT id, score(struct(*)).score FROM flights
        SELECT id, s.score, s.model_version FROM (SELECT id, score(carrier, distance) AS s FROM flights)

    The model is resolved now; register again to use what an alias points to later. A filter on a score makes Spark
    compute it twice: write the scores to a table first.

    Args:
        spark: The session.
        name: Name of the function; one that the session has already is replaced.
        model: URI of the model, or what :func:`scoring.model_uri.resolve` made of it.
        inputs: The model's inputs that are given, in this order; those left out are missing in every row. By default
            all, in the model's order.
        tracking_uri: MLflow store of the URI.
        batch_size: Rows per call of the model.

    Raises:
        ModelNotFoundError: The URI leads to no model.
        ScoringError: ``name`` is no SQL name, or ``inputs`` does not fit the model.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise ScoringError(f"function name '{name}' is no SQL name; use letters, digits and underscores")
    spark.udf.register(name, scorer_udf(spark, model, inputs=inputs, tracking_uri=tracking_uri, batch_size=batch_size))
