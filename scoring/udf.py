"""The model as a vectorised UDF: a column among others, and the body of the SQL function."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql.pandas.functions import arrow_udf

from data_pipelines.raw_columns import is_vector
from data_pipelines.repeated_names import repeated_names
from data_pipelines.spark_schema import spark_schema_of
from scoring.bad_rows import BadRows
from scoring.call import ScoringCall
from scoring.checks import ScoringError
from scoring.counters import Counters, Tally
from scoring.forms import AS_COLUMNS, Form
from scoring.inputs import Inputs
from scoring.loaded_model import DEFAULT_BATCH_SIZE, LoadedModel
from scoring.model_uri import PinnedModel
from scoring.null_policy import NullRule
from scoring.regroup import pieces
from scoring.scorer import OtherVersions, Scorer, Settings
from scoring.shipping import portable


def scorer_udf(
    spark: SparkSession,
    model: str | Path | PinnedModel,
    *,
    inputs: Sequence[str] | None = None,
    tracking_uri: str | None = None,
    outputs: Form | str = AS_COLUMNS,
    batch_size: int = DEFAULT_BATCH_SIZE,
    with_version: bool = True,
    nulls: Mapping[str, NullRule] | None = None,
    bad_rows: BadRows = "fail",
    other_versions: OtherVersions = "refuse",
    evaluated_once: bool = True,
    counters: Counters | None = None,
) -> Any:
    """Return a vectorised UDF from raw columns to a struct of the model's outputs.

    Call it with one struct of columns, found by name (``score(struct(*))``), or with the columns one by one, in the
    order of ``inputs``. It is the Arrow form of an iterator pandas UDF: pandas would turn an integer column that has
    a null into floats, and with that the token ``"5"`` into ``"5.0"``, which no vocabulary knows.

    Spark wants one array for each batch of rows that it sends (``spark.sql.execution.arrow.maxRecordsPerBatch``): the
    model's outputs are bounded as everywhere, but the scores of a batch, in their form, stand in memory together.

    Args:
        spark: The session that will use it.
        model: URI of the model, or what :func:`scoring.model_uri.resolve` made of it.
        inputs: The model's inputs that are given, in this order; those left out are missing in every row. By default
            all, in the model's order: the spec's features without the label, then the exclusions where it has any.
        tracking_uri: MLflow store of the URI.
        outputs: The form of the scores, one of :mod:`scoring.forms` that keeps rows; its columns become fields.
        batch_size: Rows per call of the model, unless it takes a number of its own.
        with_version: End the struct with ``model_version``.
        nulls: As for :func:`scoring.batch.score`.
        bad_rows: As there; with ``mark`` the struct has the field ``error``.
        other_versions: As there.
        evaluated_once: Spark computes a column anew wherever it is used: a filter on a score, above the scores, makes
            it call the model twice. With this it does not; but conditions on other columns then stay above the scores
            as well: put them below, or pass False where Spark is to move them.
        counters: Collects what the tasks say of themselves, in every query with the UDF; rows that Spark has computed
            twice count twice.

    Raises:
        ModelNotFoundError: The URI leads to no model.
        ScoringError: ``inputs`` names something that is no input of the model, or names one twice, or the form does
            not keep rows.
    """
    settings = Settings.of(outputs, batch_size, with_version, nulls, bad_rows, other_versions)
    if not settings.outputs.keeps_rows:
        raise ScoringError(
            f"the form {settings.outputs} does not give one value per row; use scoring.batch.score for it"
        )
    call = ScoringCall.of(model, tracking_uri, (), settings)
    known = call.directory.inputs.columns
    names = known if inputs is None else tuple(inputs)
    if not set(names) <= set(known) or len(set(names)) < len(names) or not names:
        raise ScoringError(f"inputs {list(names)} must name some of the model's inputs, each once: {list(known)}")
    if unknown := sorted(set(nulls or {}) - set(known)):
        raise ScoringError(f"the null policy names {unknown}, which the model does not read; it reads {list(known)}")
    run = portable(ColumnsTask(names, call.directory.inputs, call.scorer(spark, counters=counters)))

    def score(columns: Iterator[pa.Array]) -> Iterator[pa.Array]:
        yield from run(columns)

    # The stub has no iterator form that tells it by the type hints alone.
    udf = arrow_udf(score, returnType=spark_schema_of(call.added))  # type: ignore[call-overload]
    # What Spark takes for deterministic it computes once for a column and once more for a filter on it.
    return udf.asNondeterministic() if evaluated_once else udf


@dataclass(frozen=True)
class ColumnsTask:
    """The body of the UDF: arrays of raw columns become arrays of structs of outputs.

    Attributes:
        arguments: What the arguments are, in their order, when they come one by one.
        inputs: The model's inputs; those that are no argument are missing in every row.
        scorer: Where the model is and how to call it.
    """

    arguments: tuple[str, ...]
    inputs: Inputs
    scorer: Scorer

    def __call__(self, batches: Iterable[pa.Array | tuple[pa.Array, ...]]) -> Iterator[pa.StructArray]:
        """Yield one struct array per batch of arguments.

        Raises:
            ScoringError: The arguments are neither one struct nor as many as ``arguments``.
            ColumnError: A column is missing, or has a type that its feature cannot take or was not trained with.
            BadRowError: A row cannot be scored, and bad rows are not to be marked.
        """
        model, tally = None, Tally()
        try:
            for given in batches:
                table = self._table(given)
                if model is None:
                    # SQL tells the types of a call only here; a wrong one need not wait for TensorFlow.
                    self.inputs.check(table.schema)
                    self.scorer.settings.nulls.check(table.schema)
                    model = self.scorer.load(tally)
                yield self._scored(model, table, tally)
        finally:
            # Spark may want no more rows before there are none.
            if model is not None:
                self.scorer.tell(tally)

    def _scored(self, model: LoadedModel, table: pa.RecordBatch, tally: Tally) -> pa.StructArray:
        """Return the scores of a batch in one array, as Spark wants it, whose parts are scored one after the other."""
        parts = [part for rows in pieces(table) for part in self.scorer.scored_parts(model, rows, tally, ())]
        # Most batches are one part, which need not be copied.
        scored = pa.concat_batches(parts) if len(parts) > 1 else parts[0]
        return pa.StructArray.from_arrays(scored.columns, names=scored.schema.names)

    def _table(self, given: pa.Array | tuple[pa.Array, ...]) -> pa.RecordBatch:
        arrays = given if isinstance(given, tuple) else (given,)
        # A vector is a struct as well: it is the column itself where the model takes one column.
        is_column = len(self.arguments) == 1 and is_vector(arrays[0].type)
        if len(arrays) == 1 and pa.types.is_struct(arrays[0].type) and not is_column:
            columns = _fields(arrays[0])
        elif len(arrays) == len(self.arguments):
            columns = dict(zip(self.arguments, arrays, strict=True))
        else:
            raise ScoringError(
                f"the scorer got {len(arrays)} arguments; give the {len(self.arguments)} columns "
                f"{list(self.arguments)} in this order, or one struct that has them"
            )
        arguments = set(self.arguments)
        absent = [name for name in self.inputs.columns if name not in arguments]
        columns |= dict.fromkeys(absent, pa.nulls(len(arrays[0])))
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _fields(struct: pa.StructArray) -> dict[str, pa.Array]:
    names = [field.name for field in struct.type]
    repeated = repeated_names(names)
    if repeated:
        raise ScoringError(f"the struct has the columns {repeated} twice; leave one of each out")
    return dict(zip(names, struct.flatten(), strict=True))
