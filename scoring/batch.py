"""Score a DataFrame on Spark: rows stream through a model that each Python worker loads once."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pyspark import Accumulator
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import StructType

from data_pipelines.feature_kinds import Feature
from data_pipelines.raw_columns import ColumnError
from data_pipelines.spark_schema import sent_schema_of
from data_pipelines.tfrecord.arrow_schema import SchemaError
from scoring.checks import ScoringError, check_batch_size, check_columns, check_types, input_columns
from scoring.loaded_model import DEFAULT_BATCH_SIZE
from scoring.model_directory import ModelDirectory
from scoring.model_uri import PinnedModel
from scoring.regroup import regrouped
from scoring.scorer import Scorer, output_schema, pinned_model
from scoring.shipping import portable, ship

_LOGGER = logging.getLogger(__name__)


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
    check_batch_size(batch_size)
    pinned = pinned_model(model, tracking_uri)
    directory = ModelDirectory.open(pinned.path)
    key_names = (keys,) if isinstance(keys, str) else tuple(keys)
    outputs = output_schema(directory, with_version=with_version)
    check_columns(df.columns, key_names, directory.inputs, outputs.names)
    wanted = tuple(dict.fromkeys([*key_names, *input_columns(directory.inputs)]))
    extra = [name for name in df.columns if name not in wanted]
    if extra and extra_columns == "refuse":
        raise ScoringError(
            f"the table has the columns {extra}, which the model's spec does not allow it to see; select {list(wanted)}"
        )
    _LOGGER.info("model %s reads the columns %s", pinned.label, list(wanted))
    table = df.select(*(F.col(_quoted(name)) for name in wanted))
    check_types(_sent_schema(table.schema, directory.inputs), directory.inputs, directory.features.column_types)
    task = BatchTask(
        keys=key_names,
        scorer=Scorer(ship(df.sparkSession, pinned), batch_size, with_version=with_version, loads=loads),
    )
    schema = StructType([table.schema[name] for name in key_names] + outputs.fields)
    return table.mapInArrow(portable(task), schema)


@dataclass(frozen=True)
class BatchTask:
    """The body of one Spark task of :func:`score`: batches of keys and raw columns become keys and outputs."""

    keys: tuple[str, ...]
    scorer: Scorer

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the rows in their order."""
        model = None
        for batch in regrouped(batches):
            # Only now: an empty partition has no use for the model.
            model = model or self.scorer.load()
            # Keys leave in the batch that they came in, so no row can get another's score.
            columns = {key: batch.column(key) for key in self.keys} | self.scorer.outputs(model, batch)
            yield pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _sent_schema(schema: StructType, inputs: Sequence[Feature]) -> pa.Schema:
    """Return the inputs' columns as Spark will send them."""
    sent: dict[str, pa.Field] = {}
    for feature in inputs:
        columns = StructType([schema[name] for name in feature.columns])
        try:
            sent |= {field.name: field for field in sent_schema_of(columns)}
        except SchemaError as error:
            raise ColumnError(
                f"feature '{feature.name}' has the columns {columns.simpleString()}, which a {feature.kind} feature "
                f"cannot take; cast them or change the feature's kind"
            ) from error
    return pa.schema(list(sent.values()))


def _quoted(name: str) -> str:
    return f"`{name.replace('`', '``')}`"
