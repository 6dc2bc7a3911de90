"""What stands in for the nulls of a column when a table is scored, and where none may be."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scoring.checks import ScoringError

FAIL: Literal["fail"] = "fail"

NullRule = str | float | bool
"""What stands in for a null; ``"fail"``: none may be."""


@dataclass(frozen=True)
class NullPolicy:
    """What stands in for a null, or that none may be.

    Attributes:
        values: Per column ``"fail"``, or the value that takes the place of a null. A null of any other column is what
            the model's features say: a missing value.
    """

    values: Mapping[str, NullRule] = field(default_factory=dict)

    def check(self, schema: pa.Schema) -> None:
        """Check the policy against the columns that the model reads.

        Raises:
            ScoringError: A column is none of those, or cannot hold the value.
        """
        names = set(schema.names)
        for name, value in self.values.items():
            if name not in names:
                raise ScoringError(
                    f"the null policy names '{name}', which the model does not read; it reads {schema.names}"
                )
            if value == FAIL:
                continue
            try:
                _as(value, schema.field(name).type)
            except (pa.ArrowException, TypeError, OverflowError) as error:
                raise ScoringError(
                    f"{value!r} cannot take the place of a null in column '{name}' of type {schema.field(name).type}: "
                    f"{error}"
                ) from error

    def faults(self, batch: pa.RecordBatch) -> dict[int, str]:
        """Return the numbers of the rows with a null where none may be, rising, and what is said of each."""
        found: dict[int, str] = {}
        for name, value in self.values.items():
            column = batch.column(name)
            if value == FAIL and column.null_count:
                rows = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist()
                found |= dict.fromkeys(rows, f"column '{name}' is null, which the null policy does not allow")
        return dict(sorted(found.items()))

    def filled(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows with their nulls filled, where a value is to take their place."""
        filled: dict[int, pa.Array] = {}
        for name, value in self.values.items():
            place = batch.schema.get_field_index(name)
            column = batch.column(place)
            if value != FAIL and column.null_count:
                scalar = _as(value, column.type)
                filled[place] = pc.fill_null(column.cast(scalar.type), scalar)
        if not filled:
            return batch
        # All at once: each column that is set takes a new list of all.
        columns = [filled.get(place, column) for place, column in enumerate(batch.columns)]
        fields = [field.with_type(column.type) for field, column in zip(batch.schema, columns, strict=True)]
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, batch.schema.metadata))


def _as(value: NullRule, type_: pa.DataType) -> pa.Scalar:
    """Return the value in a column's type; in its own where the column has none, since it is null in every row."""
    scalar = pa.scalar(value)
    return scalar if pa.types.is_null(type_) else scalar.cast(type_)
