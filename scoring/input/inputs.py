"""Input columns of a model, as plain data that is pickled with a task: features, or columns as they are."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features import kinds, raw_columns, repeated_names
from mirrorspark.scoring.input.column_types import COLUMN_TYPES, ELEMENT_TYPES, ElementType, element_name, is_array
from mirrorspark.scoring.input.restored_columns import restored_column, restored_type
from mirrorspark.storage import each_meant

TokenFamily = Literal["boolean", "integer", "string"]

_TOKEN_FORMS: frozenset[kinds.RawForm] = frozenset({"token", "tokens"})
_LIST = re.compile(r"(?:large_)?list<\w+: (?P<element>.+?)(?: not null)?>")
_FAMILIES: Mapping[str, TokenFamily] = {"bool": "boolean", "string": "string", "large_string": "string"}
_ONE: Mapping[TokenFamily, str] = {"boolean": "a boolean", "integer": "an integer", "string": "a string"}
_SQL_TYPES: Mapping[TokenFamily, str] = {"boolean": "BOOLEAN", "integer": "BIGINT", "string": "STRING"}

_RESTORED: Mapping[str, pa.DataType] = {"boolean": pa.bool_(), "integer": pa.int64()}
_Rows = TypeVar("_Rows", pa.Table, pa.RecordBatch)

RowErrors: TypeAlias = dict[int, str]
"""Error message by number of each row that cannot be scored, in ascending order."""


class Inputs(Protocol):
    """The columns of a table that a model takes."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names, each once, in the model's order."""

    def check(self, schema: pa.Schema) -> None:
        """Check the column types as the tasks will receive them; further columns are ignored.

        Raises:
            ColumnError: A column is missing, or has a type that the model does not accept.
        """


@dataclass(frozen=True)
class FeatureInputs:
    """The inputs of a model that was trained here: columns that become features.

    Attributes:
        features: Features in the order of the model's inputs.
        column_types: Arrow type by column at training, as recorded in the fitted features.
    """

    features: tuple[kinds.Feature, ...]
    column_types: Mapping[str, str]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the features are read from."""
        return tuple(dict.fromkeys(name for feature in self.features for name in feature.columns))

    def check(self, schema: pa.Schema) -> None:
        """Check the columns with the transform on an empty table.

        Raises:
            ColumnError: A column is missing, has a type that its feature does not accept, or has tokens of another
                family than in training.
        """
        _check_present(self._wanted(frozenset(schema.names)), schema.names)
        no_rows = without_nothing(schema.empty_table(), self.features)
        no_rows = as_trained(no_rows, trained_types(self.features, self.column_types))
        for feature in self.features:
            raw_columns.raw_column(no_rows, feature)
        check_token_families(no_rows.schema, self.features, self.column_types)

    def _wanted(self, given: frozenset[str]) -> list[str]:
        """Return the columns that the features are read from, where a vector may be given as its parts."""
        return [name for one in self.features for name in (one.raw if given >= one.raw.keys() else one.columns)]


def _check_present(names: Iterable[str], table: Sequence[str]) -> None:
    """Check that a table lacks at most one column, which the reader of that column names: several are named together.

    Raises:
        ColumnError: Several are missing.
    """
    known = set(table)
    missing = [name for name in dict.fromkeys(names) if name not in known]
    if len(missing) > 1:
        raise raw_columns.ColumnError(
            f"the columns {each_meant(missing, table)} are missing; the table has {list(table)}: add them"
        )


def trained_types(features: Sequence[kinds.Feature], column_types: Mapping[str, str]) -> dict[str, pa.DataType]:
    """Return the type of each column of numbers or booleans that are tokens, by the types of the fitted features."""
    forms = {name: form for feature in features for name, form in feature.raw.items()}
    plain = {
        name: _RESTORED[family]
        for name, family in trained_families(features, column_types).items()
        if family in _RESTORED
    }
    return {name: pa.list_(kind) if forms[name] == "tokens" else kind for name, kind in plain.items()}


def without_nothing(table: _Rows, features: Sequence[kinds.Feature]) -> _Rows:
    """Return a table in which columns of floats without any value have no type, unless their feature takes numbers.

    pandas, and SQL over its files, have such a column for texts, dates and lists of which all are missing.
    """
    for name in dict.fromkeys(name for one in features for name in one.columns if one.raw.get(name) != "number"):
        place = table.schema.get_field_index(name)
        if place >= 0 and _is_nothing(table.column(place)):
            table = table.set_column(place, name, pa.nulls(table.num_rows))
    return table


def _is_nothing(column: pa.Array | pa.ChunkedArray) -> bool:
    if not pa.types.is_floating(column.type):
        return False
    return bool(pc.all(pc.is_null(column, nan_is_null=True), min_count=0).as_py())


def as_trained(table: _Rows, types: Mapping[str, pa.DataType]) -> _Rows:
    """Return a table whose tokens have the types of :func:`trained_types` where missing values changed them in pandas.

    Raises:
        ColumnError: A value is none of the type in training, such as 2.5 among whole numbers.
    """
    for name, known in types.items():
        place = table.schema.get_field_index(name)
        if place >= 0 and restored_type(found := table.schema.field(place).type, known) != found:
            column = restored_column(name, raw_columns.plain_column(table, name), known)
            table = table.set_column(place, name, column)
    return table


def token_family(type_text: str) -> TokenFamily | None:
    """Return the token family of an Arrow type in text form, or of the elements of a list type.

    None means that the type holds no tokens, or only nulls.
    """
    in_list = _LIST.fullmatch(type_text)
    element = in_list["element"] if in_list else type_text
    return "integer" if re.fullmatch(r"u?int\d+", element) else _FAMILIES.get(element)


def trained_families(inputs: Sequence[kinds.Feature], column_types: Mapping[str, str]) -> dict[str, TokenFamily]:
    """Return the family of each token column that ``column_types`` of the fitted features has."""
    names = [name for feature in inputs for name, form in feature.raw.items() if form in _TOKEN_FORMS]
    families = {name: token_family(column_types[name]) for name in names if name in column_types}
    return {name: family for name, family in families.items() if family is not None}


def check_token_families(schema: pa.Schema, inputs: Sequence[kinds.Feature], column_types: Mapping[str, str]) -> None:
    """Reject columns whose tokens are written differently from those of the training rows.

    Args:
        schema: Columns to score, including those of ``inputs``.
        inputs: The model's inputs.
        column_types: Types recorded in the fitted features; other columns are not checked.

    Raises:
        ColumnError: The tokens would all be out of vocabulary, or be mistaken for others, without any other sign.
    """
    for name, trained in trained_families(inputs, column_types).items():
        index = schema.get_field_index(name)
        given_type = str(schema.field(index).type) if index >= 0 else ""
        given = token_family(given_type)
        if given not in (None, trained):
            raise raw_columns.ColumnError(
                f"column '{name}' has type {given_type}, the model was trained with "
                f"{column_types[name]}: as tokens {_ONE[given]} and {_ONE[trained]} differ (true is not 1, and 7 not "
                f"07); give {_ONE[trained]} as in training, in SQL by CAST({name} AS {_SQL_TYPES[trained]})"
            )


Nulls = Literal["fail", "pass"]


@dataclass(frozen=True)
class Column:
    """A column that a model takes as it is, or decoded.

    Attributes:
        type: One of :data:`scoring.input.column_types.COLUMN_TYPES`. Arrays have the same length in all rows.
        nulls: Treatment of missing values if ``fill`` is None: ``fail`` rejects the row, ``pass`` gives the model NaN,
            or None in a column of strings or bytes. The default is ``pass`` for float and double and ``fail`` for all
            others. NaN counts as missing, like null.
        fill: Replacement for a missing value; for a decoded column, the number that fills its array.
        decode: Decoder from values of a ``binary`` column to arrays of the model's input: ``image``, ``resized_image``
            or ``numbers`` (:mod:`scoring.input.decoding`), or a function of the model's hooks.
    """

    name: str
    type: str
    nulls: Nulls | None = None
    fill: float | int | str | bool | None = None
    decode: str | None = None

    def __post_init__(self) -> None:
        if self.type not in COLUMN_TYPES:
            raise raw_columns.ColumnError(
                f"column '{self.name}': type '{self.type}' is unknown; use one of {list(COLUMN_TYPES)}"
            )
        if self.decode is not None and self.type != "binary":
            raise raw_columns.ColumnError(
                f"column '{self.name}': a decoded column must be binary, not {self.type}; give it as binary"
            )
        if self.nulls == "pass" and not self._can_pass_nulls:
            raise raw_columns.ColumnError(
                f"column '{self.name}': {self._what} has no value for null, so nulls cannot be 'pass'; use 'fail', "
                f"give a fill, or make it a double"
            )
        if self.fill is not None and self.type == "binary" and self.decode is None:
            raise raw_columns.ColumnError(
                f"column '{self.name}': bytes have no fill; fill them in the query (coalesce)"
            )
        if self.fill is not None and not self._has_a_fill:
            raise raw_columns.ColumnError(
                f"column '{self.name}': fill {self.fill!r} is not of type {self._filled_with}; give one"
            )

    @property
    def is_array(self) -> bool:
        """True if the column has arrays."""
        return is_array(self.type)

    @property
    def element(self) -> str:
        """Spark's name for the type of its values."""
        return element_name(self.type)

    @property
    def _kind(self) -> ElementType:
        return ELEMENT_TYPES[self.element]

    @property
    def _what(self) -> str:
        return self.type if self.decode is None else "a decoded column"

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
                return raw_columns.is_number(given)
            return self._kind.fits(given) and self._stand_in().is_valid
        except (pa.ArrowException, OverflowError):
            return False

    def _stand_in(self) -> pa.Scalar:
        """Return ``fill`` in the type of the column's values."""
        return pa.scalar(self.fill).cast(self._kind.arrow, safe=not self._kind.can_be_nan)

    def check(self, table: pa.Table | pa.RecordBatch) -> None:
        """Check the type of the column in ``table``, but not its values.

        Raises:
            ColumnError: The column is missing or has another type.
        """
        self._column(table)

    def read(self, table: pa.Table | pa.RecordBatch, length: int | None = None) -> np.ndarray:
        """Return the column as the model takes it: ``[rows]``, or ``[rows, k]`` for arrays.

        Args:
            table: The table.
            length: Length of the arrays; by default the most common one.

        Raises:
            ColumnError: The column is missing or has another type, or a row is bad: it has missing values that the
                model does not accept, a number that is too large for the type, or a list of another length.
        """
        values, row_errors = self.examined(table, length)
        if row_errors:
            raise raw_columns.ColumnError(next(iter(row_errors.values())))
        return values

    def examined(self, table: pa.Table | pa.RecordBatch, length: int | None = None) -> tuple[np.ndarray, RowErrors]:
        """Return the result of :meth:`read` with undefined values in bad rows, and the bad rows.

        Raises:
            ColumnError: The column is missing or has another type.
        """
        column = self._column(table)
        values, row_errors = self._lists(column, length) if self.is_array else self._values(column)
        return values, dict(sorted(row_errors.items()))

    def _column(self, table: pa.Table | pa.RecordBatch) -> pa.Array:
        column = raw_columns.plain_column(table, self.name)
        if not self._fits(column.type) and _is_nothing(column):
            return pa.nulls(len(column))
        known = pa.list_(self._kind.arrow) if self.is_array else self._kind.arrow
        if not self._fits(column.type) and self.decode is None:
            column = restored_column(self.name, column, known)
        if not (pa.types.is_null(column.type) or self._fits(column.type)):
            raise raw_columns.ColumnError(
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

    def _lists(self, column: pa.Array, length: int | None) -> tuple[np.ndarray, RowErrors]:
        if pa.types.is_null(column.type):
            column = pa.nulls(len(column), pa.list_(self._kind.arrow))
        lists = column.cast(pa.list_(column.type.value_type))
        lengths, is_null = raw_columns.list_lengths(lists), lists.is_null().to_numpy(zero_copy_only=False)
        wanted = _most_common(lengths[~is_null]) if length is None else length
        row_errors = {
            int(row): self._message(f"{lengths[row]} elements, where {wanted} are wanted", "make them equally long")
            for row in np.flatnonzero(~is_null & (lengths != wanted))
        }
        why_no_null = "its length is unknown; leave out such rows"
        row_errors |= dict.fromkeys(np.flatnonzero(is_null).tolist(), self._message("null", why_no_null))
        good = np.delete(np.arange(len(lists)), list(row_errors))
        values, of_elements = self._values((lists.take(pa.array(good)) if row_errors else lists).flatten())
        for place, message in of_elements.items():
            row_errors.setdefault(int(good[place // wanted]), message)
        return values.reshape(len(good), wanted), row_errors

    def _values(self, column: pa.Array) -> tuple[np.ndarray, RowErrors]:
        values, row_errors = self._cast(column)
        if self.fill is not None or not self._passes_nulls:
            missing = pc.is_null(values, nan_is_null=True)
            if self.fill is None:
                what = "null or NaN" if self._kind.can_be_nan else "null"
                mend = "replace it in the query (coalesce), or package the model with a fill for the column"
                row_errors |= dict.fromkeys(_places(missing), self._message(what, mend))
            elif self.decode is None and pc.any(missing).as_py():
                values = pc.if_else(missing, self._stand_in(), values)
        return np.asarray(values.to_numpy(zero_copy_only=False)), row_errors

    def _cast(self, column: pa.Array) -> tuple[pa.Array, RowErrors]:
        """Return the values in the type of the column, and the values that it cannot hold."""
        arrow, is_float = self._kind.arrow, self._kind.can_be_nan
        try:
            # Unsafe means here that numbers are rounded to the precision of the type.
            return column.cast(arrow, safe=not is_float), {}
        except pa.ArrowInvalid:
            limits = np.iinfo(arrow.to_pandas_dtype())
            outside = [
                (place, value)
                for place, value in enumerate(column.to_pylist())
                if value is not None and not limits.min <= value <= limits.max
            ]
        mend = "correct it, or package the model with a wider type"
        row_errors = {
            place: f"column '{self.name}' has a value that is not of type {self.element} ({value}); {mend}"
            for place, value in outside
        }
        return column.cast(arrow, safe=False), row_errors

    @property
    def _passes_nulls(self) -> bool:
        return self.nulls == "pass" if self.nulls is not None else self._kind.can_be_nan

    def _message(self, what: str, mend: str) -> str:
        return f"column '{self.name}' ({self.type}) has {what}, which the model does not take: {mend}"


def _places(mask: pa.Array) -> list[int]:
    return np.flatnonzero(mask.to_numpy(zero_copy_only=False)).tolist() if pc.any(mask).as_py() else []


def _most_common(lengths: np.ndarray) -> int:
    """Return the most common length; of equally common ones, the one that occurs first."""
    found, firsts, counts = np.unique(lengths, return_index=True, return_counts=True)
    return int(found[np.lexsort((firsts, -counts))[0]]) if len(lengths) else 0


@dataclass(frozen=True)
class Matrix:
    """The one array that a model takes instead of one array per column.

    Attributes:
        name: Name of the model's input.
        type: Spark's name for the type of its values, or ``uint8`` for decoded arrays.
    """

    name: str
    type: str


@dataclass(frozen=True)
class ColumnInputs:
    """The inputs of a model of another library: columns as they are, or decoded.

    Attributes:
        given: Columns in the order of the model's inputs.
        matrix: The model's only array, if it takes one: the columns side by side, with the elements of arrays, or one
            decoded column.
    """

    given: tuple[Column, ...]
    matrix: Matrix | None = None

    def __post_init__(self) -> None:
        if not self.given:
            raise raw_columns.ColumnError("a model needs at least one column")
        repeated = repeated_names(self.columns)
        if repeated:
            raise raw_columns.ColumnError(f"the columns {repeated} are given twice; name each once")
        if self.matrix is not None:
            other = [
                column.name for column in self.given if ("string" in column.type) != (self.matrix.type == "string")
            ]
            if other:
                raise raw_columns.ColumnError(
                    f"the columns {other} do not fit the model, which takes one array of {self.matrix.type}"
                )

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(column.name for column in self.given)

    def check(self, schema: pa.Schema) -> None:
        """Check the types of the columns.

        Raises:
            ColumnError: A column is missing or has another type.
        """
        _check_present(self.columns, schema.names)
        no_rows = schema.empty_table()
        for column in self.given:
            column.check(no_rows)
