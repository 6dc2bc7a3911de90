"""What a model reads of a table, as plain data that travels with a task: features, or columns as they are."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.feature_kinds import Feature
from data_pipelines.raw_columns import ColumnError, is_number, list_lengths, plain_column, raw_column
from scoring.token_families import check_token_families


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


@dataclass(frozen=True)
class _Kind:
    arrow: pa.DataType
    fits: Callable[[pa.DataType], bool]
    can_be_nan: bool = False


def _is_whole(column_type: pa.DataType) -> bool:
    return bool(pa.types.is_integer(column_type) or pa.types.is_boolean(column_type))


def _is_text(column_type: pa.DataType) -> bool:
    return bool(pa.types.is_string(column_type) or pa.types.is_large_string(column_type))


# By their name in Spark. What fits is cast, where that changes no value but rounds a number.
_KINDS: Mapping[str, _Kind] = {
    "boolean": _Kind(pa.bool_(), pa.types.is_boolean),
    "int": _Kind(pa.int32(), _is_whole),
    "bigint": _Kind(pa.int64(), _is_whole),
    "float": _Kind(pa.float32(), is_number, can_be_nan=True),
    "double": _Kind(pa.float64(), is_number, can_be_nan=True),
    "string": _Kind(pa.string(), _is_text),
}
COLUMN_TYPES = (*_KINDS, *(f"array<{name}>" for name in _KINDS))

Nulls = Literal["fail", "pass"]


@dataclass(frozen=True)
class Column:
    """A column that a model takes as it is.

    Attributes:
        name: Its name in the table.
        type: Spark's name of a type in ``COLUMN_TYPES``. Of an array all rows have the same length.
        nulls: What becomes of a missing value, where ``fill`` is None: ``fail`` refuses the rows, ``pass`` gives the
            model NaN, or None in a column of strings. By default ``pass`` for float and double, ``fail`` for all
            others. NaN is a missing number, as null is.
        fill: What stands in for a missing value.
    """

    name: str
    type: str
    nulls: Nulls | None = None
    fill: float | int | str | bool | None = None

    def __post_init__(self) -> None:
        if self.type not in COLUMN_TYPES:
            raise ColumnError(f"column '{self.name}': type '{self.type}' is unknown; use one of {list(COLUMN_TYPES)}")
        if self.nulls == "pass" and not (self._kind.can_be_nan or self.type == "string"):
            raise ColumnError(
                f"column '{self.name}': {self.type} has no value for null, so nulls cannot be 'pass'; use 'fail', give "
                f"a fill, or make it a double"
            )
        if self.fill is not None and not self._kind.fits(pa.scalar(self.fill).type):
            raise ColumnError(f"column '{self.name}': fill {self.fill!r} is no {self._element_type}; give one")

    @property
    def is_array(self) -> bool:
        """Whether a row has several values."""
        return self.type.startswith("array<")

    @property
    def _element_type(self) -> str:
        return self.type.removeprefix("array<").removesuffix(">")

    @property
    def _kind(self) -> _Kind:
        return _KINDS[self._element_type]

    def read(self, table: pa.Table | pa.RecordBatch) -> np.ndarray:
        """Return the column as the model takes it: ``[rows]``, or ``[rows, k]`` of an array.

        Raises:
            ColumnError: It is missing, of another type, has missing values that the model does not take, or lists of
                different lengths.
        """
        column = plain_column(table, self.name)
        if not (pa.types.is_null(column.type) or self._fits(column.type)):
            raise ColumnError(
                f"column '{self.name}' has type {column.type}, the model takes {self.type}; cast it in the query"
            )
        if not self.is_array:
            return self._values(column)
        values, length = self._elements(column)
        return self._values(values).reshape(len(column), length)

    def _fits(self, column_type: pa.DataType) -> bool:
        if not self.is_array:
            return self._kind.fits(column_type)
        is_list = any(
            check(column_type) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        )
        return is_list and (pa.types.is_null(column_type.value_type) or self._kind.fits(column_type.value_type))

    def _elements(self, column: pa.Array) -> tuple[pa.Array, int]:
        """Return the elements of all lists one after the other, and how many each list has."""
        self._refuse(column.null_count, len(column), "null", "no length can be told for them; leave out such rows")
        if pa.types.is_null(column.type):
            return column, 0
        lists = column.cast(pa.list_(column.type.value_type))
        lengths = list_lengths(lists)
        length = int(lengths.max(initial=0))
        self._refuse(
            int((lengths != length).sum()), len(column), f"fewer than {length} elements", "make them equally long"
        )
        return lists.flatten(), length

    def _values(self, column: pa.Array) -> np.ndarray:
        kind = self._kind
        try:
            # Unsafe in the sense that numbers are rounded to the precision that there is.
            values = column.cast(kind.arrow, safe=not kind.can_be_nan)
        except pa.ArrowInvalid as error:
            raise ColumnError(
                f"column '{self.name}' has a value that is no {self._element_type} ({error}); correct it, or package "
                f"the model with a wider type"
            ) from error
        missing = pc.is_null(values, nan_is_null=True)
        count = pc.sum(missing).as_py() or 0
        if count and self.fill is not None:
            values = pc.if_else(missing, pa.scalar(self.fill, kind.arrow), values)
        elif count and not self._passes_nulls:
            self._refuse(
                count,
                len(column),
                "null or NaN" if kind.can_be_nan else "null",
                "replace them in the query (coalesce), or package the model with a fill for the column",
            )
        return np.asarray(values.to_numpy(zero_copy_only=False))

    @property
    def _passes_nulls(self) -> bool:
        return self.nulls == "pass" if self.nulls is not None else self._kind.can_be_nan

    def _refuse(self, count: int, rows: int, what: str, mend: str) -> None:
        if count:
            raise ColumnError(
                f"column '{self.name}' ({self.type}) has {what} in {count} of {rows} rows, which the model does not "
                f"take: {mend}"
            )


@dataclass(frozen=True)
class Matrix:
    """The one array ``[rows, columns]`` that a model takes instead of one array per column.

    Attributes:
        name: Name of the model's input.
        type: Spark's name of the type of its values.
    """

    name: str
    type: str


@dataclass(frozen=True)
class ColumnInputs:
    """The inputs of a model of another library: columns as they are.

    Attributes:
        given: In the order of the model's inputs.
        matrix: Where it is one array that the model takes: the columns side by side, an array's elements among them.
    """

    given: tuple[Column, ...]
    matrix: Matrix | None = None

    def __post_init__(self) -> None:
        if not self.given:
            raise ColumnError("a model needs at least one column")
        repeated = sorted({name for name in self.columns if self.columns.count(name) > 1})
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
        """Read the columns of a table of no rows.

        Raises:
            ColumnError: A column is missing, or has another type.
        """
        no_rows = schema.empty_table()
        for column in self.given:
            column.read(no_rows)

    def parts(self, table: pa.Table | pa.RecordBatch, rows: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield the model's arrays for so many rows after the other; of a table without rows there is one part.

        Raises:
            ColumnError: As for :meth:`Column.read`.
        """
        arrays = {column.name: column.read(table) for column in self.given}
        if self.matrix is not None:
            gathered = np.column_stack(list(arrays.values()))
            arrays = {self.matrix.name: gathered.astype(_KINDS[self.matrix.type].arrow.to_pandas_dtype(), copy=False)}
        for start in range(0, max(1, table.num_rows), rows):
            yield {name: values[start : start + rows] for name, values in arrays.items()}
