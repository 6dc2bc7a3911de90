"""What a table and a call have to be for a model to score them; told before a task starts."""

from collections.abc import Sequence

import pyarrow as pa

from data_pipelines.repeated_names import repeated_names
from scoring.inputs import Inputs


class ScoringError(ValueError):
    """A table, or a call, that the model cannot score; the message names the column and what to do."""


def check_keys(names: Sequence[str], keys: Sequence[str]) -> None:
    """Check that a table has the columns that name a row.

    Raises:
        ScoringError: One is missing, or there is none.
    """
    if not keys:
        raise ScoringError("keys is empty; name the columns that identify a row, or its score belongs to no row")
    missing = [key for key in keys if key not in names]
    if missing:
        raise ScoringError(f"key columns {missing} are missing; the table has {list(names)}")


def check_columns(names: Sequence[str], keys: Sequence[str], inputs: Inputs, outputs: Sequence[str]) -> None:
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
    check_keys(names, keys)
    repeated = repeated_names([*keys, *outputs])
    if repeated:
        raise ScoringError(f"the result would have the columns {repeated} twice; rename or leave out such keys")
    wanted = {*keys, *inputs.columns}
    ambiguous = [name for name in repeated_names(names) if name in wanted]
    if ambiguous:
        raise ScoringError(f"the table has the columns {ambiguous} twice; drop or rename one of each")
    if not wanted <= set(names):
        # A column of no type fits everything, so that the inputs say in their words which one is missing.
        inputs.check(pa.schema([(name, pa.null()) for name in names]))
