"""What a table and a call have to be for a model to score them; told before a task starts."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from data_pipelines.feature_kinds import Feature
from data_pipelines.raw_columns import raw_column
from scoring.token_families import check_token_families


class ScoringError(ValueError):
    """A table, or a call, that the model cannot score; the message names the column and what to do."""


def check_batch_size(batch_size: int) -> None:
    """Refuse a number of rows that no call of the model can have."""
    if batch_size < 1:
        raise ScoringError(f"batch_size {batch_size} is below 1; use some thousands of rows")


def check_columns(names: Sequence[str], keys: Sequence[str], inputs: Sequence[Feature], outputs: Sequence[str]) -> None:
    """Check that a table has the keys and the inputs, and that the scored table can have all its columns.

    Args:
        names: The table's columns.
        keys: Columns that name a row.
        inputs: The model's inputs.
        outputs: Columns that stand behind the keys in the scored table.

    Raises:
        ScoringError: A key is missing, or a column would stand in the result twice, or stands in the table twice.
        ColumnError: An input is missing.
    """
    if not keys:
        raise ScoringError("keys is empty; name the columns that identify a row, or its score belongs to no row")
    missing = [key for key in keys if key not in names]
    if missing:
        raise ScoringError(f"key columns {missing} are missing; the table has {list(names)}")
    result = [*keys, *outputs]
    repeated = sorted({name for name in result if result.count(name) > 1})
    if repeated:
        raise ScoringError(f"the result would have the columns {repeated} twice; rename or leave out such keys")
    ambiguous = sorted(name for name in {*keys, *input_columns(inputs)} if list(names).count(name) > 1)
    if ambiguous:
        raise ScoringError(f"the table has the columns {ambiguous} twice; drop or rename one of each")
    absent = [feature for feature in inputs if not set(feature.columns) <= set(names)]
    if absent:
        # The transform's own check, on a table of no rows, says it in the transform's words.
        raw_column(pa.schema([(name, pa.null()) for name in names]).empty_table(), absent[0])


def check_types(schema: pa.Schema, inputs: Sequence[Feature], column_types: Mapping[str, str]) -> None:
    """Let the transform look at the types of the columns, on a table of no rows.

    Args:
        schema: The inputs' columns, as the tasks will get them.
        inputs: The model's inputs.
        column_types: Types of the columns that the model was trained with, as the fitted features have them.

    Raises:
        ColumnError: A column has a type that its feature cannot take, or tokens of another family than in training.
    """
    for feature in inputs:
        raw_column(schema.empty_table(), feature)
    check_token_families(schema, inputs, column_types)


def input_columns(inputs: Sequence[Feature]) -> tuple[str, ...]:
    """Return the columns that ``inputs`` are read from, each once."""
    return tuple(dict.fromkeys(name for feature in inputs for name in feature.columns))
