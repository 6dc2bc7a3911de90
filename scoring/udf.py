"""The model as a vectorised UDF: a column among others, and the body of the SQL function."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql.pandas.functions import arrow_udf

from data_pipelines.feature_kinds import Feature
from data_pipelines.raw_columns import is_vector, raw_column
from scoring.checks import ScoringError, check_batch_size, input_columns
from scoring.loaded_model import DEFAULT_BATCH_SIZE
from scoring.model_directory import ModelDirectory
from scoring.model_uri import PinnedModel
from scoring.scorer import Scorer, output_schema, pinned_model
from scoring.shipping import portable, ship
from scoring.token_families import check_token_families


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
    check_batch_size(batch_size)
    pinned = pinned_model(model, tracking_uri)
    directory = ModelDirectory.open(pinned.path)
    known = input_columns(directory.inputs)
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
    return arrow_udf(score, returnType=output_schema(directory, with_version=with_version))  # type: ignore[call-overload]


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
        absent = [name for name in input_columns(self.inputs) if name not in self.arguments]
        columns |= dict.fromkeys(absent, pa.nulls(len(arrays[0])))
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
