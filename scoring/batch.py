"""Score a DataFrame on Spark: rows stream through a model that each Python worker loads once."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import StructType

from data_pipelines.spark_schema import spark_schema_of
from scoring.bad_rows import BadRows
from scoring.call import ScoringCall
from scoring.checks import ScoringError
from scoring.counters import Counters, Tally
from scoring.forms import AS_COLUMNS, Form
from scoring.loaded_model import DEFAULT_BATCH_SIZE
from scoring.model_uri import PinnedModel
from scoring.null_policy import NullRule
from scoring.parquet_scan import Reader, map_rows
from scoring.regroup import regrouped
from scoring.row_count import RowCount
from scoring.scorer import OtherVersions, Scorer, Settings
from scoring.sent_columns import SentColumns

_LOGGER = logging.getLogger(__name__)


def score(
    df: DataFrame,
    model: str | Path | PinnedModel,
    *,
    keys: str | Sequence[str],
    tracking_uri: str | None = None,
    outputs: Form | str = AS_COLUMNS,
    batch_size: int = DEFAULT_BATCH_SIZE,
    with_version: bool = True,
    nulls: Mapping[str, NullRule] | None = None,
    bad_rows: BadRows = "fail",
    other_versions: OtherVersions = "refuse",
    extra_columns: Literal["ignore", "refuse"] = "ignore",
    reader: Reader = "auto",
    counters: Counters | None = None,
) -> DataFrame:
    """Return the keys of every row of ``df`` with the model's outputs and the version that gave them.

    The URI is resolved now: an alias that moves before the rows are computed changes nothing. Only the keys and the
    model's inputs are read; memory is bounded by batches of rows and ``batch_size``, not by partitions. Where ``df`` is
    nothing but columns of plain Parquet files, tasks read them past the JVM; the rows are then dealt to tasks by the
    files' row groups, in their order.

    Args:
        df: The table, with the keys and the model's raw columns.
        model: URI of the model, or what :func:`scoring.model_uri.resolve` made of it.
        keys: Columns that name a row; they pass through unchanged.
        tracking_uri: MLflow store of the URI; by default the one that MLflow is set to.
        outputs: The form of the scores, one of :mod:`scoring.forms`: a column for each output of the model, a struct,
            or labels with their scores.
        batch_size: Rows per call of the model, unless it takes a number of its own.
        with_version: Add the column ``model_version``, such as ``flights/3``.
        nulls: Per column what stands in for a null, or ``"fail"`` where none may be. Other columns' nulls are missing
            values to the model.
        bad_rows: What becomes of a row that cannot be scored, for an index that is too large, say. ``fail``: the job
            fails, and names it by its keys. ``mark``: its scores are null, and the column ``error`` says why.
        other_versions: ``refuse`` to score on executors whose libraries are not the model's (up to patches), or
            ``allow`` it.
        extra_columns: What to do about columns that are neither keys nor inputs of the model. ``ignore`` leaves them in
            the JVM; ``refuse`` is for models that must not be given more than their spec lists.
        reader: Who reads plain Parquet files, the tasks or Spark: see :data:`scoring.parquet_scan.Reader`.
        counters: Collects what the tasks say of themselves.

    Raises:
        ModelNotFoundError: The URI leads to no model.
        ScoringError: A key is missing, a column would stand in the result twice, there is one too many, the model's
            outputs cannot take the form, or the tasks are to read what they cannot.
        ColumnError: A raw column is missing, has a type that its feature cannot take, or holds tokens of another family
            of types (boolean, integer, string) than the training rows did.
    """
    settings = Settings.of(outputs, batch_size, with_version, nulls, bad_rows, other_versions)
    call = ScoringCall.of(model, tracking_uri, keys, settings)
    table = checked_table(df, call, extra_columns=extra_columns)
    _LOGGER.info("model %s reads the columns %s", call.pinned.label, table.columns)
    task = BatchTask(call.keys, call.scorer(df.sparkSession, counters=counters))
    return map_rows(table, task, scored_schema(table, call.keys, call.added), reader)


def checked_table(
    df: DataFrame, call: ScoringCall, *, extra_columns: Literal["ignore", "refuse"] = "ignore"
) -> DataFrame:
    """Return the keys of ``df`` and what the model reads of it, and nothing else.

    Raises:
        ScoringError: A key is missing, a column would stand in the result twice, there is one too many, or the settings
            do not fit.
        ColumnError: An input is missing, or has a type that the model cannot take.
    """
    columns, own = SentColumns.of(df.schema), call.columns
    call.check_names(columns.names)
    read = set(own)
    extra = [name for name in columns.names if name not in read]
    if extra and extra_columns == "refuse":
        raise ScoringError(
            f"the table has the columns {extra}, which the model's spec does not allow it to see; select {list(own)}"
        )
    call.check_types(columns.schema(call.directory.inputs.columns))
    return df.select(*(column_named(name) for name in own))


def column_named(name: str) -> Column:
    """Return the column of a table with exactly this name, dots and back-quotes in it included."""
    return F.col(f"`{name.replace('`', '``')}`")


def scored_schema(table: DataFrame, keys: Sequence[str], added: pa.Schema) -> StructType:
    """Return the columns of the scores of ``table``: its keys, and what a call adds."""
    return StructType([table.schema[name] for name in keys] + spark_schema_of(added).fields)


@dataclass(frozen=True)
class BatchTask:
    """The body of one Spark task of :func:`score`: batches of keys and raw columns become keys and outputs."""

    keys: tuple[str, ...]
    scorer: Scorer

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the rows in their order.

        Raises:
            RowCountError: Rows were lost on the way, or made up.
        """
        model, tally, rows = None, Tally(), RowCount()
        try:
            for batch in regrouped(rows.taken(batches)):
                # Only now: an empty partition has no use for the model.
                model = model or self.scorer.load(tally)
                yield from rows.given(self.scorer.scored_parts(model, batch, tally, self.keys))
            rows.check(self.scorer.settings.outputs)
        finally:
            # Spark may want no more rows before there are none.
            if model is not None:
                self.scorer.tell(tally)
