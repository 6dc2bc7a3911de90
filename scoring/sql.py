"""Registration of a model as a SQL function."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyspark.sql import SparkSession

from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input import NullRule
from mirrorspark.scoring.model.loading import DEFAULT_BATCH_SIZE
from mirrorspark.scoring.model.stored import PinnedModel
from mirrorspark.scoring.output import AS_COLUMNS, DEFAULT_COLUMNS, BadRows, Form
from mirrorspark.scoring.plan import ScoringPlan
from mirrorspark.scoring.task import Counters, OtherVersions, ScoringOptions
from mirrorspark.scoring.udf import check_keeps_rows, udf_as_planned
from mirrorspark.spark_session import on_running_session


@on_running_session
def register_sql(  # noqa: D417 - the others are those of scorer_udf
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
    trust: bool = False,
    evaluated_once: bool = True,
    counters: Counters | None = None,
) -> None:
    """Register the model as the SQL function ``name`` of this session.

    The function returns a struct of the outputs and ``model_version``. Its argument is one struct, whose fields are
    matched by name, or the columns one by one in the order of ``inputs``::

        SELECT id, score(struct(*)).score FROM flights
        SELECT id, s.score, s.model_version FROM (SELECT id, score(carrier, distance) AS s FROM flights)

    The model is resolved by this call; register again after an alias has moved. A filter on a score in an outer query
    does not make Spark compute the score twice::

        SELECT * FROM (SELECT id, score(struct(*)) AS s FROM flights WHERE month = 1) WHERE s.score > 0.5

    Args:
        spark: The session.
        name: Name of the function; an existing function of the session is replaced.
        model: URI of the model, or the result of :func:`scoring.model.stored.resolve`.
        inputs: The inputs of the model that are passed, in this order; the others are missing values in every row. By
            default all, in the model's order.

    The other arguments are those of :func:`scoring.scorer_udf`.

    Raises:
        ModelNotFoundError: The URI does not lead to a model.
        ScoringError: ``name`` is not a valid SQL name, or ``inputs`` does not fit the model.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise ScoringError(f"function name '{name}' is not an SQL name; use letters, digits and underscores")
    options = ScoringOptions.of(outputs, batch_size, DEFAULT_COLUMNS, nulls, bad_rows, other_versions)
    check_keeps_rows(options.outputs)
    plan = ScoringPlan.of(model, (), options, tracking_uri, trust=trust)
    udf = udf_as_planned(spark, plan, inputs, evaluated_once=evaluated_once, counters=counters)
    spark.udf.register(name, udf)
