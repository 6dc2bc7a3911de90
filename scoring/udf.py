"""A model as a vectorised UDF, which is also the body of the SQL function."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import SparkSession

from mirrorspark.data_pipelines.features import raw_columns, repeated_names
from mirrorspark.data_pipelines.spark import portable, spark_schema_of
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input import Inputs, NullRule
from mirrorspark.scoring.model.loading import DEFAULT_BATCH_SIZE, LoadedModel
from mirrorspark.scoring.model.stored import PinnedModel
from mirrorspark.scoring.output import AS_COLUMNS, DEFAULT_COLUMNS, BadRows, Form
from mirrorspark.scoring.plan import ScoringPlan
from mirrorspark.scoring.task import Counters, OtherVersions, Scorer, ScoringCounts, ScoringOptions, pieces
from mirrorspark.spark_session import on_running_session, versions


@on_running_session
def scorer_udf(  # noqa: D417 - the others are those of score
    spark: SparkSession,
    model: str | Path | PinnedModel,
    *,
    inputs: Sequence[str] | None = None,
    tracking_uri: str | None = None,
    outputs: Form | str = AS_COLUMNS,
    batch_size: int = DEFAULT_BATCH_SIZE,
    with_columns: str | Sequence[str] = DEFAULT_COLUMNS,
    nulls: Mapping[str, NullRule] | None = None,
    bad_rows: BadRows = "fail",
    other_versions: OtherVersions = "refuse",
    trust: bool = False,
    evaluated_once: bool = True,
    counters: Counters | None = None,
) -> Any:
    """Return a vectorised UDF from raw columns to a struct of the model's outputs.

    Call it with one struct, whose fields are matched by name (``score(struct(*))``), or with the columns one by one in
    the order of ``inputs``. It is the Arrow form of an iterator pandas UDF: pandas would turn an integer column that
    has a null into floats, and so the token ``"5"`` into ``"5.0"``, which no vocabulary has.

    Spark needs one array per batch of rows that it sends (``spark.sql.execution.arrow.maxRecordsPerBatch``). The
    model's outputs are bounded as everywhere, but the formed scores of a batch are in memory together.

    Args:
        spark: The session that will use the UDF.
        model: URI of the model, or the result of :func:`scoring.model.stored.resolve`.
        inputs: The inputs of the model that are passed, in this order; the others are missing values in every row. By
            default all, in the model's order: the spec's features without the label, then the exclusions if it has any.
        outputs: The form of the scores, one of :mod:`scoring.output.forms` that has one result per row.
        evaluated_once: Keep Spark from computing a score twice. Spark recomputes a column wherever it is used, so an
            outer filter on a score would call the model twice. With True, Spark also leaves conditions on other columns
            in the outer query: write them in the inner query, or pass False to let Spark move them.
        counters: Collects the counters of the tasks of every query with the UDF; rows that Spark computes twice count
            twice.

    The other arguments are those of :func:`scoring.score`; columns of its scores are fields of the struct.

    Raises:
        ModelNotFoundError: The URI does not lead to a model.
        ScoringError: ``inputs`` names an unknown input or names one twice, or the form does not have one result per
            row.
    """
    options = ScoringOptions.of(outputs, batch_size, with_columns, nulls, bad_rows, other_versions)
    check_keeps_rows(options.outputs)
    plan = ScoringPlan.of(model, (), options, tracking_uri, trust=trust)
    return udf_as_planned(spark, plan, inputs, evaluated_once=evaluated_once, counters=counters)


def check_keeps_rows(form: Form) -> None:
    """Reject a form that a column of a query cannot have.

    Raises:
        ScoringError: It does not have one result per row.
    """
    if not form.keeps_rows:
        raise ScoringError(f"the form {form} does not give one value per row; use mirrorspark.score for it")


def udf_as_planned(
    spark: SparkSession,
    plan: ScoringPlan,
    inputs: Sequence[str] | None,
    *,
    evaluated_once: bool,
    counters: Counters | None,
) -> Any:
    """Return the UDF of a plan; returns and raises the same as :func:`scorer_udf`."""
    known = plan.inputs.columns
    names = known if inputs is None else tuple(inputs)
    if not set(names) <= set(known) or len(set(names)) < len(names) or not names:
        raise ScoringError(f"inputs {list(names)} must name some of the model's inputs, each once: {list(known)}")
    if unknown := sorted(set(plan.options.nulls.values) - set(known)):
        raise ScoringError(f"the null policy names {unknown}, which the model does not read; it reads {list(known)}")
    run = portable(ColumnsTask(names, plan.inputs, plan.scorer(spark, counters=counters)))

    def score(columns: Iterator[pa.Array]) -> Iterator[pa.Array]:
        yield from run(columns)

    udf = versions.arrow_udf(score, spark_schema_of(plan.results))
    # Spark computes a deterministic UDF once for the column and once more for a filter on it.
    return udf.asNondeterministic() if evaluated_once else udf


@dataclass(frozen=True)
class ColumnsTask:
    """Body of the UDF. It maps arrays of raw columns to arrays of structs of outputs.

    Attributes:
        arguments: Column names of the arguments if they are passed one by one.
        inputs: The model's inputs; the ones without an argument are missing values in every row.
    """

    arguments: tuple[str, ...]
    inputs: Inputs
    scorer: Scorer

    def __call__(self, batches: Iterable[pa.Array | tuple[pa.Array, ...]]) -> Iterator[pa.StructArray]:
        """Yield one struct array per batch of arguments.

        Raises:
            ScoringError: The arguments are neither one struct nor as many as ``arguments``.
            ColumnError: A column is missing, or has a type that its feature does not accept or was not trained with.
            BadRowError: A row cannot be scored, and bad rows are not marked.
        """
        model, counts = None, ScoringCounts()
        try:
            for given in batches:
                table = self._table(given)
                if model is None:
                    # In SQL the types of a call are known only here. They are checked before TensorFlow is loaded.
                    self.inputs.check(table.schema)
                    self.scorer.options.nulls.check(table.schema)
                    model = self.scorer.load(counts)
                yield self._scored(model, table, counts)
        finally:
            # Spark may stop reading before the last row, for a LIMIT for example.
            if model is not None:
                self.scorer.report(counts)

    def _scored(self, model: LoadedModel, table: pa.RecordBatch, counts: ScoringCounts) -> pa.StructArray:
        """Score a batch part by part and return one array, which Spark requires."""
        parts = [part for rows in pieces(table) for part in self.scorer.scored_parts(model, rows, counts, ())]
        # Most batches have one part, which is not copied.
        scored = pa.concat_batches(parts) if len(parts) > 1 else parts[0]
        return pa.StructArray.from_arrays(scored.columns, names=scored.schema.names)

    def _table(self, given: pa.Array | tuple[pa.Array, ...]) -> pa.RecordBatch:
        arrays = given if isinstance(given, tuple) else (given,)
        # A vector is a struct too. For a model with one column it is the column itself.
        is_column = len(self.arguments) == 1 and raw_columns.is_vector(arrays[0].type)
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
