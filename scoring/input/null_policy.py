"""Rules for nulls in the columns of a table that is scored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.scoring.errors import ScoringError

FAIL: Literal["fail"] = "fail"

NullRule = str | float | bool
"""Replacement for a null, or ``"fail"`` to reject nulls."""


@dataclass(frozen=True)
class NullPolicy:
    """Rules for nulls by column.

    Attributes:
        values: ``"fail"`` or a replacement for nulls, by column. In other columns a null is a missing value, treated as
            the model's features define.
    """

    values: Mapping[str, NullRule] = field(default_factory=dict)

    def check(self, schema: pa.Schema) -> None:
        """Check the policy against the columns that the model reads.

        Raises:
            ScoringError: The model does not read a column, or the column cannot hold the value.
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
                _scalar_as(value, schema.field(name).type)
            except (pa.ArrowException, TypeError, OverflowError) as error:
                raise ScoringError(
                    f"{value!r} cannot take the place of a null in column '{name}' of type {schema.field(name).type}: "
                    f"{error}"
                ) from error

    def row_errors(self, batch: pa.RecordBatch) -> dict[int, str]:
        """Return the error message by number of each row with a forbidden null, in ascending order."""
        found: dict[int, str] = {}
        for name, value in self.values.items():
            column = batch.column(name)
            if value == FAIL and column.null_count:
                rows = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist()
                found |= dict.fromkeys(rows, f"column '{name}' is null, which the null policy does not allow")
        return dict(sorted(found.items()))

    def filled(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows with nulls replaced where the policy has a value."""
        filled: dict[int, pa.Array] = {}
        for name, value in self.values.items():
            place = batch.schema.get_field_index(name)
            column = batch.column(place)
            if value != FAIL and column.null_count:
                scalar = _scalar_as(value, column.type)
                filled[place] = pc.fill_null(column.cast(scalar.type), scalar)
        if not filled:
            return batch
        # The batch is rebuilt once, because each replaced column would copy the list of columns.
        columns = [filled.get(place, column) for place, column in enumerate(batch.columns)]
        fields = [field.with_type(column.type) for field, column in zip(batch.schema, columns, strict=True)]
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, batch.schema.metadata))


NO_NULL_POLICY = NullPolicy()
"""Nulls are missing values, as the model's features define."""


def _scalar_as(value: NullRule, type_: pa.DataType) -> pa.Scalar:
    """Return the value in a column's type, or in its own if the column has the null type."""
    scalar = pa.scalar(value)
    return scalar if pa.types.is_null(type_) else scalar.cast(type_)
