"""Score a DataFrame on Spark: rows stream through a model that each Python worker loads once."""

import gc
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pyspark import Accumulator, TaskContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.pandas.functions import arrow_udf
from pyspark.sql.types import StringType, StructField, StructType

from data_pipelines.feature_kinds import Feature
from data_pipelines.raw_columns import ColumnError, is_vector, raw_column
from data_pipelines.spark_schema import sent_schema_of
from data_pipelines.tfrecord.arrow_schema import SchemaError
from scoring.loaded_model import DEFAULT_BATCH_SIZE, LoadedModel, load_once
from scoring.model_directory import ModelDirectory
from scoring.model_uri import PinnedModel, resolve
from scoring.shipping import ShippedModel, portable, ship
from scoring.token_families import check_token_families

VERSION_COLUMN = "model_version"

_LOGGER = logging.getLogger(__name__)


class ScoringError(ValueError):
    """A table, or a call, that the model cannot score; the message names the column and what to do."""


def score(
    df: DataFrame,
    model: str | Path | PinnedModel,
    *,
    keys: str | Sequence[str],
    tracking_uri: str | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    with_version: bool = True,
    extra_columns: Literal["ignore", "refuse"] = "ignore",
    loads: "Accumulator[int] | None" = None,
) -> DataFrame:
    """Return the keys of every row of ``df`` with the model's outputs and the version that gave them.

    The URI is resolved now: an alias that moves before the rows are computed changes nothing. Only the keys and the
    model's inputs leave the JVM; memory is bounded by Spark's Arrow batches and ``batch_size``, not by partitions.

    Args:
        df: The table, with the keys and the model's raw columns.
        model: URI of the model, or what :func:`scoring.model_uri.resolve` made of it.
        keys: Columns that name a row; they pass through unchanged.
        tracking_uri: MLflow store of the URI; by default the one that MLflow is set to.
        batch_size: Rows per call of the model.
        with_version: Add the column ``model_version``, such as ``flights/3``.
        extra_columns: What to do about columns that are neither keys nor inputs of the model. ``ignore`` leaves them in
            the JVM; ``refuse`` is for models that must not be given more than their spec lists.
        loads: Counts how often a Python worker loaded the model.

    Raises:
        ModelNotFoundError: The URI leads to no model.
        ScoringError: A key is missing, a column would stand in the result twice, or there is one too many.
        ColumnError: A raw column is missing, has a type that its feature cannot take, or holds tokens of another family
            of types (boolean, integer, string) than the training rows did.
    """
    _check_batch_size(batch_size)
    pinned = _pinned(model, tracking_uri)
    directory = ModelDirectory.open(pinned.path)
    key_names = (keys,) if isinstance(keys, str) else tuple(keys)
    outputs = _output_schema(directory, with_version=with_version)
    _check_columns(df, key_names, directory.inputs, outputs)
    wanted = tuple(dict.fromkeys([*key_names, *_columns(directory.inputs)]))
    extra = [name for name in df.columns if name not in wanted]
    if extra and extra_columns == "refuse":
        raise ScoringError(
            f"the table has the columns {extra}, which the model's spec does not allow it to see; select {list(wanted)}"
        )
    _LOGGER.info("model %s reads the columns %s", pinned.label, list(wanted))
    table = df.select(*(F.col(_quoted(name)) for name in wanted))
    _check_types(table.schema, directory.inputs, directory.features.column_types)
    task = BatchTask(
        keys=key_names,
        scorer=Scorer(ship(df.sparkSession, pinned), batch_size, with_version=with_version, loads=loads),
    )
    schema = StructType([table.schema[name] for name in key_names] + outputs.fields)
    return table.mapInArrow(portable(task), schema)


@dataclass(frozen=True)
class Scorer:
    """What a task needs to score a batch.

    Attributes:
        model: Where the model is.
        batch_size: Rows per call of the model.
        with_version: Whether the outputs end with the model's version.
        loads: Counts the loads of the model.
    """

    model: ShippedModel
    batch_size: int
    with_version: bool = True
    loads: "Accumulator[int] | None" = None

    def load(self) -> LoadedModel:
        """Return the model, from the cache of this process or its files."""
        context = TaskContext.get()
        loaded: list[LoadedModel] = []
        model = load_once(
            self.model.folder(),
            self.model.digest,
            threads=context.cpus() if context is not None else None,
            on_load=loaded.append,
        )
        if loaded:
            _spare_the_garbage_collector()
            if self.loads is not None:
                self.loads.add(1)
        return model

    def outputs(self, model: LoadedModel, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        """Return the output columns for the rows of ``batch``."""
        columns = model.score_arrow(batch, batch_size=self.batch_size)
        if self.with_version:
            columns[VERSION_COLUMN] = pa.repeat(self.model.label, batch.num_rows)
        return columns


def _spare_the_garbage_collector() -> None:
    """Take all objects that live now out of garbage collection.

    Spark's Python daemon collects after every task, and walks the 340,000 objects of TensorFlow each time: measured,
    an empty task takes 210 ms of CPU, and 2 ms when they are frozen.
    """
    # Frozen objects that refer to each other are never freed, so models that left the cache go first.
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class BatchTask:
    """The body of one Spark task of :func:`score`: batches of keys and raw columns become keys and outputs."""

    keys: tuple[str, ...]
    scorer: Scorer

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield one batch per batch, with its rows in their order."""
        model = None
        for batch in batches:
            if not batch.num_rows:
                continue
            # Only now: an empty partition has no use for the model.
            model = model or self.scorer.load()
            # Keys leave in the batch that they came in, so no row can get another's score.
            columns = {key: batch.column(key) for key in self.keys} | self.scorer.outputs(model, batch)
            yield pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def scorer_udf(
    spark: SparkSession,
    model: str | Path | PinnedModel,
    *,
    inputs: Sequence[str] | None = None,
    tracking_uri: str | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    with_version: bool = True,
) -> Any:
    """Return a vectorised UDF from raw columns to a struct of the model's outputs.

    Call it with one struct of columns, found by name (``score(struct(*))``), or with the columns one by one, in the
    order of ``inputs``. It is the Arrow form of an iterator pandas UDF: pandas would turn an integer column that has
    a null into floats, and with that the token ``"5"`` into ``"5.0"``, which no vocabulary knows.

    Args:
        spark: The session that will use it.
        model: URI of the model, or what :func:`scoring.model_uri.resolve` made of it.
        inputs: The model's inputs that are given, in this order; those left out are missing in every row. By default
            all, in the model's order: the spec's features without the label, then the exclusions where it has any.
        tracking_uri: MLflow store of the URI.
        batch_size: Rows per call of the model.
        with_version: End the struct with ``model_version``.

    Raises:
        ModelNotFoundError: The URI leads to no model.
        ScoringError: ``inputs`` names something that is no input of the model, or names one twice.
    """
    _check_batch_size(batch_size)
    pinned = _pinned(model, tracking_uri)
    directory = ModelDirectory.open(pinned.path)
    known = _columns(directory.inputs)
    names = known if inputs is None else tuple(inputs)
    if not set(names) <= set(known) or len(set(names)) < len(names) or not names:
        raise ScoringError(f"inputs {list(names)} must name some of the model's inputs, each once: {list(known)}")
    task = ColumnsTask(
        arguments=names,
        inputs=directory.inputs,
        scorer=Scorer(ship(spark, pinned), batch_size, with_version=with_version),
        column_types=directory.features.column_types,
    )
    run = portable(task)

    def score(columns: Iterator[pa.Array]) -> Iterator[pa.Array]:
        yield from run(columns)

    # The stub has no iterator form that tells it by the type hints alone.
    return arrow_udf(score, returnType=_output_schema(directory, with_version=with_version))  # type: ignore[call-overload]


@dataclass(frozen=True)
class ColumnsTask:
    """The body of the UDF: arrays of raw columns become arrays of structs of outputs.

    Attributes:
        arguments: What the arguments are, in their order, when they come one by one.
        inputs: The model's inputs; those that are no argument are missing in every row.
        scorer: Where the model is and how to call it.
        column_types: Types of the columns that the model was trained with, as the fitted features have them.
    """

    arguments: tuple[str, ...]
    inputs: tuple[Feature, ...]
    scorer: Scorer
    column_types: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, batches: Iterable[pa.Array | tuple[pa.Array, ...]]) -> Iterator[pa.StructArray]:
        """Yield one struct array per batch of arguments.

        Raises:
            ScoringError: The arguments are neither one struct nor as many as ``arguments``.
            ColumnError: A column is missing, or has a type that its feature cannot take or was not trained with.
        """
        model = None
        for given in batches:
            table = self._table(given)
            if model is None:
                # SQL tells the types of a call only here; a wrong one need not wait for TensorFlow.
                for feature in self.inputs:
                    raw_column(table.slice(0, 0), feature)
                check_token_families(table.schema, self.inputs, self.column_types)
                model = self.scorer.load()
            outputs = self.scorer.outputs(model, table)
            yield pa.StructArray.from_arrays(list(outputs.values()), names=list(outputs))

    def _table(self, given: pa.Array | tuple[pa.Array, ...]) -> pa.RecordBatch:
        arrays = given if isinstance(given, tuple) else (given,)
        # A vector is a struct as well: it is the column itself where the model takes one column.
        is_column = len(self.arguments) == 1 and is_vector(arrays[0].type)
        if len(arrays) == 1 and pa.types.is_struct(arrays[0].type) and not is_column:
            columns = dict(zip((field.name for field in arrays[0].type), arrays[0].flatten(), strict=True))
        elif len(arrays) == len(self.arguments):
            columns = dict(zip(self.arguments, arrays, strict=True))
        else:
            raise ScoringError(
                f"the scorer got {len(arrays)} arguments; give the {len(self.arguments)} columns "
                f"{list(self.arguments)} in this order, or one struct that has them"
            )
        absent = [name for name in _columns(self.inputs) if name not in self.arguments]
        columns |= dict.fromkeys(absent, pa.nulls(len(arrays[0])))
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _pinned(model: str | Path | PinnedModel, tracking_uri: str | None) -> PinnedModel:
    return model if isinstance(model, PinnedModel) else resolve(model, tracking_uri)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ScoringError(f"batch_size {batch_size} is below 1; use some thousands of rows")


def _output_schema(directory: ModelDirectory, *, with_version: bool) -> StructType:
    schema = StructType.fromDDL(directory.description.output_schema)
    assert isinstance(schema, StructType)  # noqa: S101 - a list of columns is one
    return StructType([*schema.fields, StructField(VERSION_COLUMN, StringType())]) if with_version else schema


def _check_columns(df: DataFrame, keys: tuple[str, ...], inputs: tuple[Feature, ...], outputs: StructType) -> None:
    if not keys:
        raise ScoringError("keys is empty; name the columns that identify a row, or its score belongs to no row")
    missing = [key for key in keys if key not in df.columns]
    if missing:
        raise ScoringError(f"key columns {missing} are missing; the table has {df.columns}")
    result = [*keys, *outputs.names]
    repeated = sorted({name for name in result if result.count(name) > 1})
    if repeated:
        raise ScoringError(f"the result would have the columns {repeated} twice; rename or leave out such keys")
    ambiguous = sorted(name for name in {*keys, *_columns(inputs)} if df.columns.count(name) > 1)
    if ambiguous:
        raise ScoringError(f"the table has the columns {ambiguous} twice; drop or rename one of each")
    absent = [feature for feature in inputs if not set(feature.columns) <= set(df.columns)]
    if absent:
        # The transform's own check, on a table of no rows, says it in the transform's words.
        raw_column(pa.schema([(name, pa.null()) for name in df.columns]).empty_table(), absent[0])


def _check_types(schema: StructType, inputs: tuple[Feature, ...], column_types: Mapping[str, str]) -> None:
    """Let the transform look at the types that Spark will send, on a table of no rows."""
    for feature in inputs:
        columns = StructType([schema[name] for name in feature.columns])
        try:
            sent = sent_schema_of(columns)
        except SchemaError as error:
            raise ColumnError(
                f"feature '{feature.name}' has the columns {columns.simpleString()}, which a {feature.kind} feature "
                f"cannot take; cast them or change the feature's kind"
            ) from error
        raw_column(sent.empty_table(), feature)
        check_token_families(sent, (feature,), column_types)


def _columns(inputs: Sequence[Feature]) -> tuple[str, ...]:
    """Return the columns that ``inputs`` are read from, each once."""
    return tuple(dict.fromkeys(name for feature in inputs for name in feature.columns))


def _quoted(name: str) -> str:
    return f"`{name.replace('`', '``')}`"
