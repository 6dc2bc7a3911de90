"""What a model reads of a table, as plain data that travels with a task: features, or columns as they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.feature_kinds import Feature
from data_pipelines.raw_columns import ColumnError, is_number, list_lengths, plain_column, raw_column
from data_pipelines.repeated_names import repeated_names
from scoring.column_types import COLUMN_TYPES, ELEMENT_TYPES, ElementType, element_name, is_array
from scoring.token_families import check_token_families

Faults: TypeAlias = dict[int, str]
"""The numbers of rows that cannot be scored, rising, and what is wrong with each."""


class Inputs(Protocol):
    """The columns of a table that a model takes."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names, each once, in the model's order."""

    def check(self, schema: pa.Schema) -> None:
        """Look at the types of the columns, as the tasks will get them; more columns do no harm.

        Raises:
            ColumnError: A column is missing, or has a type that the model cannot take.
        """


@dataclass(frozen=True)
class FeatureInputs:
    """The inputs of a model that was trained here: columns that become features.

    Attributes:
        features: In the order of the model's inputs.
        column_types: Types of the columns that the model was trained with, as the fitted features have them.
    """

    features: tuple[Feature, ...]
    column_types: Mapping[str, str]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the features are read from."""
        return tuple(dict.fromkeys(name for feature in self.features for name in feature.columns))

    def check(self, schema: pa.Schema) -> None:
        """Let the transform look at the columns, on a table of no rows.

        Raises:
            ColumnError: A column is missing, has a type that its feature cannot take, or tokens of another family than
                in training.
        """
        no_rows = schema.empty_table()
        for feature in self.features:
            raw_column(no_rows, feature)
        check_token_families(schema, self.features, self.column_types)


Nulls = Literal["fail", "pass"]


@dataclass(frozen=True)
class Column:
    """A column that a model takes as it is, or decoded.

    Attributes:
        name: Its name in the table.
        type: One of :data:`scoring.column_types.COLUMN_TYPES`. Of an array all rows have the same length.
        nulls: What becomes of a missing value, where ``fill`` is None: ``fail`` refuses the row, ``pass`` gives the
            model NaN, or None in a column of strings or bytes. By default ``pass`` for float and double, ``fail`` for
            all others. NaN is a missing number, as null is.
        fill: What stands in for a missing value; of what is decoded, the number that its whole array is made of.
        decode: What makes an array of the model's input of each value of a ``binary`` column: ``image``,
            ``resized_image`` or ``numbers`` (:mod:`scoring.decoding`), or a function of the model's hooks.
    """

    name: str
    type: str
    nulls: Nulls | None = None
    fill: float | int | str | bool | None = None
    decode: str | None = None

    def __post_init__(self) -> None:
        if self.type not in COLUMN_TYPES:
            raise ColumnError(f"column '{self.name}': type '{self.type}' is unknown; use one of {list(COLUMN_TYPES)}")
        if self.decode is not None and self.type != "binary":
            raise ColumnError(f"column '{self.name}': what is decoded is binary, not {self.type}; give it as binary")
        if self.nulls == "pass" and not self._can_pass_nulls:
            raise ColumnError(
                f"column '{self.name}': {self._what} has no value for null, so nulls cannot be 'pass'; use 'fail', "
                f"give a fill, or make it a double"
            )
        if self.fill is not None and self.type == "binary" and self.decode is None:
            raise ColumnError(f"column '{self.name}': bytes have no fill; fill them in the query (coalesce)")
        if self.fill is not None and not self._has_a_fill:
            raise ColumnError(f"column '{self.name}': fill {self.fill!r} is no {self._filled_with}; give one")

    @property
    def is_array(self) -> bool:
        """Whether a row has several values."""
        return is_array(self.type)

    @property
    def element(self) -> str:
        """Spark's name of the type of its values."""
        return element_name(self.type)

    @property
    def _kind(self) -> ElementType:
        return ELEMENT_TYPES[self.element]

    @property
    def _what(self) -> str:
        return self.type if self.decode is None else "what is decoded"

    @property
    def _can_pass_nulls(self) -> bool:
        return self.decode is None and (self._kind.can_be_nan or self.type in ("string", "binary"))

    @property
    def _filled_with(self) -> str:
        return self.element if self.decode is None else "number"

    @property
    def _has_a_fill(self) -> bool:
        try:
            given = pa.scalar(self.fill).type
            if self.decode is not None:
                return is_number(given)
            return self._kind.fits(given) and self._stand_in().is_valid
        except (pa.ArrowException, OverflowError):
            return False

    def _stand_in(self) -> pa.Scalar:
        """Return ``fill`` in the type of the column's values."""
        return pa.scalar(self.fill).cast(self._kind.arrow, safe=not self._kind.can_be_nan)

    def check(self, table: pa.Table | pa.RecordBatch) -> None:
        """Look at the type of the column in ``table``, whatever rows that has.

        Raises:
            ColumnError: It is missing, or of another type.
        """
        self._column(table)

    def read(self, table: pa.Table | pa.RecordBatch, length: int | None = None) -> np.ndarray:
        """Return the column as the model takes it: ``[rows]``, or ``[rows, k]`` of an array.

        Args:
            table: Has the column.
            length: Elements of each row of an array; by default as many as most rows have.

        Raises:
            ColumnError: It is missing, of another type, or a row is at fault: it has missing values that the model does
                not take, a number that is too large for the type, or a list of another length.
        """
        values, faults = self.examined(table, length)
        if faults:
            raise ColumnError(next(iter(faults.values())))
        return values

    def examined(self, table: pa.Table | pa.RecordBatch, length: int | None = None) -> tuple[np.ndarray, Faults]:
        """Return what :meth:`read` does, or anything where rows are at fault; and which these are.

        Raises:
            ColumnError: The column is missing, or of another type.
        """
        column = self._column(table)
        values, faults = self._lists(column, length) if self.is_array else self._values(column)
        return values, dict(sorted(faults.items()))

    def _column(self, table: pa.Table | pa.RecordBatch) -> pa.Array:
        column = plain_column(table, self.name)
        if not (pa.types.is_null(column.type) or self._fits(column.type)):
            raise ColumnError(
                f"column '{self.name}' has type {column.type}, the model takes {self.type}; cast it in the query"
            )
        return column

    def _fits(self, column_type: pa.DataType) -> bool:
        if not self.is_array:
            return self._kind.fits(column_type)
        is_list = any(
            check(column_type) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        )
        return is_list and (pa.types.is_null(column_type.value_type) or self._kind.fits(column_type.value_type))

    def _lists(self, column: pa.Array, length: int | None) -> tuple[np.ndarray, Faults]:
        if pa.types.is_null(column.type):
            column = pa.nulls(len(column), pa.list_(self._kind.arrow))
        lists = column.cast(pa.list_(column.type.value_type))
        lengths, is_null = list_lengths(lists), lists.is_null().to_numpy(zero_copy_only=False)
        wanted = _most_common(lengths[~is_null]) if length is None else length
        faults = {
            int(row): self._fault(f"{lengths[row]} elements, where {wanted} are wanted", "make them equally long")
            for row in np.flatnonzero(~is_null & (lengths != wanted))
        }
        why_no_null = "no length can be told for it; leave out such rows"
        faults |= dict.fromkeys(np.flatnonzero(is_null).tolist(), self._fault("null", why_no_null))
        sound = np.delete(np.arange(len(lists)), list(faults))
        values, of_elements = self._values((lists.take(pa.array(sound)) if faults else lists).flatten())
        for place, message in of_elements.items():
            faults.setdefault(int(sound[place // wanted]), message)
        return values.reshape(len(sound), wanted), faults

    def _values(self, column: pa.Array) -> tuple[np.ndarray, Faults]:
        values, faults = self._cast(column)
        if self.fill is not None or not self._passes_nulls:
            missing = pc.is_null(values, nan_is_null=True)
            if self.fill is None:
                what = "null or NaN" if self._kind.can_be_nan else "null"
                mend = "replace it in the query (coalesce), or package the model with a fill for the column"
                faults |= dict.fromkeys(_places(missing), self._fault(what, mend))
            elif self.decode is None and pc.any(missing).as_py():
                values = pc.if_else(missing, self._stand_in(), values)
        return np.asarray(values.to_numpy(zero_copy_only=False)), faults

    def _cast(self, column: pa.Array) -> tuple[pa.Array, Faults]:
        """Return the values in the type of the column, and which of them it does not hold."""
        arrow, is_float = self._kind.arrow, self._kind.can_be_nan
        try:
            # Unsafe in the sense that numbers are rounded to the precision that there is.
            return column.cast(arrow, safe=not is_float), {}
        except pa.ArrowInvalid:
            limits = np.iinfo(arrow.to_pandas_dtype())
            outside = [
                (place, value)
                for place, value in enumerate(column.to_pylist())
                if value is not None and not limits.min <= value <= limits.max
            ]
        mend = "correct it, or package the model with a wider type"
        faults = {
            place: f"column '{self.name}' has a value that is no {self.element} ({value}); {mend}"
            for place, value in outside
        }
        return column.cast(arrow, safe=False), faults

    @property
    def _passes_nulls(self) -> bool:
        return self.nulls == "pass" if self.nulls is not None else self._kind.can_be_nan

    def _fault(self, what: str, mend: str) -> str:
        return f"column '{self.name}' ({self.type}) has {what}, which the model does not take: {mend}"


def _places(mask: pa.Array) -> list[int]:
    return np.flatnonzero(mask.to_numpy(zero_copy_only=False)).tolist() if pc.any(mask).as_py() else []


def _most_common(lengths: np.ndarray) -> int:
    """Return the length that most rows have; of lengths that as many have, the one that comes first."""
    found, firsts, counts = np.unique(lengths, return_index=True, return_counts=True)
    return int(found[np.lexsort((firsts, -counts))[0]]) if len(lengths) else 0


@dataclass(frozen=True)
class Matrix:
    """The one array that a model takes instead of one array per column.

    Attributes:
        name: Name of the model's input.
        type: Spark's name of the type of its values, or ``uint8``, which no column is of but what is decoded may be.
    """

    name: str
    type: str


@dataclass(frozen=True)
class ColumnInputs:
    """The inputs of a model of another library: columns as they are, or decoded.

    Attributes:
        given: In the order of the model's inputs.
        matrix: Where it is one array that the model takes: the columns side by side, an array's elements among them; or
            what one column is decoded to.
    """

    given: tuple[Column, ...]
    matrix: Matrix | None = None

    def __post_init__(self) -> None:
        if not self.given:
            raise ColumnError("a model needs at least one column")
        repeated = repeated_names(self.columns)
        if repeated:
            raise ColumnError(f"the columns {repeated} are given twice; name each once")
        if self.matrix is not None:
            other = [
                column.name for column in self.given if ("string" in column.type) != (self.matrix.type == "string")
            ]
            if other:
                raise ColumnError(f"the columns {other} are not what the model takes: one array of {self.matrix.type}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(column.name for column in self.given)

    def check(self, schema: pa.Schema) -> None:
        """Look at the columns' types.

        Raises:
            ColumnError: A column is missing, or has another type.
        """
        no_rows = schema.empty_table()
        for column in self.given:
            column.check(no_rows)
