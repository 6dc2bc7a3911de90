"""Scoring of a table. Spark streams rows through a model that each Python worker loads once."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from mirrorspark.data_pipelines import any_table, memory_tables
from mirrorspark.scoring.input import NullRule, Reader, map_rows
from mirrorspark.scoring.memory import score_in_memory, session_to_score
from mirrorspark.scoring.model.loading import DEFAULT_BATCH_SIZE
from mirrorspark.scoring.model.stored import PinnedModel
from mirrorspark.scoring.output import AS_COLUMNS, DEFAULT_COLUMNS, BadRows, Form
from mirrorspark.scoring.plan import ExtraColumns, ScoringPlan
from mirrorspark.scoring.task import Counters, OtherVersions, RowCount, Scorer, ScoringCounts, ScoringOptions, regrouped
from mirrorspark.spark_session import naming_lost_session

_LOGGER = logging.getLogger(__name__)


@naming_lost_session
def score(
    table: Any,
    model: str | Path | PinnedModel,
    *,
    keys: str | Sequence[str] = (),
    tracking_uri: str | None = None,
    outputs: Form | str | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    with_columns: str | Sequence[str] = DEFAULT_COLUMNS,
    nulls: Mapping[str, NullRule] | None = None,
    bad_rows: BadRows = "fail",
    other_versions: OtherVersions = "refuse",
    trust: bool = False,
    extra_columns: ExtraColumns = "ignore",
    reader: Reader = "auto",
    counters: Counters | None = None,
    spark: SparkSession | None = None,
) -> Any:
    """Return the keys, the model's outputs and the model version for every row of a table.

    The URI is resolved by this call: an alias that moves before the rows are computed changes nothing. Only the keys
    and the model's inputs are read. A table in memory is scored at once, up to 100,000 rows in this process; all others
    by Spark when the result is used. Memory is then bounded by batches of rows and ``batch_size``, not by partitions.
    If a DataFrame of Spark only selects columns of plain Parquet files, the tasks read the files without the JVM; each
    task then gets row groups of the files, in order.

    Args:
        table: The table, with the keys and the model's raw columns, in a form of :func:`data_pipelines.read_table`: a
            Spark, pandas or Polars DataFrame, a PyArrow table, the name of a table, or the path of files.
        model: URI of the model, or the result of :func:`scoring.model.stored.resolve`.
        keys: Columns that identify a row; they pass through unchanged. A table in memory needs none, as its scores have
            the order of its rows, and the index of pandas, whose names may be keys, too.
        tracking_uri: Address of the MLflow store; by default the one that MLflow is configured with.
        outputs: The form of the scores, one of :mod:`scoring.output.forms`: a column for each output of the model, a
            struct, or labels with their scores. By default the classes of a model that was trained here become columns
            (:class:`scoring.output.Named`), up to 200 of them; other models have a column for each output.
        batch_size: Rows per call of the model, unless the model has a fixed number.
        with_columns: Columns after the scores, out of :data:`scoring.output.ADDED_COLUMNS`.
        nulls: The value that replaces nulls, by column, or ``"fail"`` to reject them. Nulls of other columns are
            missing values to the model.
        bad_rows: Treatment of a row that cannot be scored, such as one with an index that is too large. ``fail``: the
            job fails and names the row by its keys. ``mark``: its scores are null, and the column ``error`` gives the
            reason.
        other_versions: ``refuse`` or ``allow`` scoring on executors whose library versions differ from the model's
            (beyond patch versions).
        trust: Whether Python code that the model brings may run here and on the executors: hooks, code in a file of
            tf-keras, and MLflow models of other libraries. Models that were packaged in this process need no consent,
            nor do others, which bring none.
        extra_columns: Treatment of columns that are neither keys nor inputs of the model. ``ignore`` leaves them in the
            JVM; ``refuse`` is for models that must not see more than their spec lists.
        reader: Reader of plain Parquet files, the tasks or Spark: see :data:`scoring.input.Reader`.
        counters: Collects the counters of the tasks.
        spark: The session for a path, a name or a large table in memory; by default the active one, or a local one.

    Returns:
        A pandas or Polars DataFrame or a PyArrow table for one of these, in its order, else a DataFrame of Spark.

    Raises:
        TableError: ``table`` is not a table, or cannot be read.
        ModelNotFoundError: The URI does not lead to a model.
        UntrustedModelError: The model brings Python code, and ``trust`` is False.
        ScoringError: A key is missing, the result would have a column twice, ``extra_columns`` refuses a column, the
            model's outputs do not fit the form, or ``reader="tasks"`` is given for rows that tasks cannot read.
        ColumnError: A raw column is missing, has a type that its feature does not accept, or holds tokens of another
            type family (boolean, integer, string) than the training rows.
    """
    form = AS_COLUMNS if outputs is None else outputs
    options = ScoringOptions.of(form, batch_size, with_columns, nulls, bad_rows, other_versions)
    plan = ScoringPlan.of(model, keys, options, tracking_uri, reader, trust=trust)
    plan = plan.with_named_labels() if outputs is None else plan

    def by_tasks(df: DataFrame, plan: ScoringPlan) -> DataFrame:
        return score_as_planned(df, plan, extra_columns=extra_columns, counters=counters)

    if memory_tables.is_in_memory(table):
        return score_in_memory(table, plan, by_tasks, extra_columns=extra_columns, counters=counters, spark=spark)
    if not hasattr(table, "sparkSession"):
        table = any_table.read_table(session_to_score(spark), table)
    return by_tasks(table, plan)


def score_as_planned(
    df: DataFrame, plan: ScoringPlan, *, extra_columns: ExtraColumns = "ignore", counters: Counters | None = None
) -> DataFrame:
    """Score ``df`` by a plan; returns and raises the same as :func:`score`."""
    table = plan.table(df, extra_columns=extra_columns)
    _LOGGER.info("model %s reads the columns %s", plan.pinned.label, table.columns)
    task = BatchTask(plan.keys, plan.scorer(df.sparkSession, counters=counters))
    return map_rows(table, task, plan.schema(table), plan.reader)


@dataclass(frozen=True)
class BatchTask:
    """Body of a Spark task of :func:`score`. It maps batches of keys and raw columns to keys and outputs."""

    keys: tuple[str, ...]
    scorer: Scorer

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the rows in their order.

        Raises:
            RowCountError: The number of rows changed on the way.
        """
        model, counts, rows = None, ScoringCounts(), RowCount()
        try:
            for batch in regrouped(rows.count_input(batches)):
                # The model is loaded here and not earlier because an empty partition does not need it.
                model = model or self.scorer.load(counts)
                yield from rows.count_output(self.scorer.scored_parts(model, batch, counts, self.keys))
            rows.check(self.scorer.options.outputs)
        finally:
            # Spark may stop reading before the last row, for a LIMIT for example.
            if model is not None:
                self.scorer.report(counts)
