"""Reading of a table's columns as the raw columns of the exported model, each feature's as one array of a known type.

Conversion and scoring share it. :mod:`data_pipelines.features.transform` encodes the arrays.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.features.date_formats import days_of_texts
from mirrorspark.data_pipelines.features.embedded_columns import (
    CONTENTS,
    IMAGE,
    TEXT,
    VECTOR,
    embedded_content,
    embedded_type,
)
from mirrorspark.data_pipelines.features.kinds import (
    Date,
    EmbeddedFeature,
    Feature,
    ImageEmbedding,
    Ordinal,
    RawForm,
    Sequence,
    Sparse,
    TargetEncoding,
    TextEmbedding,
    TokenNumber,
    Vector,
    VectorFeature,
)
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.storage import meant as meant

# Between the values of several columns that group rows together.
GROUP_SEPARATOR = "\x1f"
# Beyond it a float64 does not hold every whole number.
LARGEST_WHOLE_NUMBER = 2.0**53
# Its numbers are exact in float64.
WHOLE_NUMBER = r"^-?[0-9]{1,15}$"

# Sorts before every time.
NO_TIME = -(2**63)

RAW_TYPES: Mapping[RawForm, pa.DataType] = {
    "number": pa.float64(),
    "token": pa.string(),
    "tokens": pa.list_(pa.string()),
    "date": pa.string(),
    "times": pa.list_(pa.int64()),
    "indices": pa.list_(pa.int64()),
    "values": pa.list_(pa.float64()),
    "bytes": pa.binary(),
}
"""The Arrow type of each raw column that an exported model takes."""

# Arrow's names for the two sides of a map's entries.
_PAIR = pa.struct([("key", pa.int64()), ("value", pa.float64())])
_ENTRY = pa.struct([("index", pa.int64()), ("value", pa.float64())])


class ColumnError(ClearError, ValueError):
    """A column that is absent or has a type that the feature cannot take; the message names it and the remedy."""


def raw_column(table: pa.Table | pa.RecordBatch, feature: Feature) -> pa.Array:
    """Return the table's values for ``feature`` as one array.

    Numbers (numeric, bucketed, the ranks of an ordinal feature, the days of a date) are float64, a token or text a
    string, tokens a list of strings (a sequence's in time order), sparse vectors a list of ``{index: int64, value:
    float64}``, and vectors, those of embedded texts included, a list of float64 that has the vector's size, or no
    element if the vector is missing. A text that is yet to be embedded is a string, an image bytes.

    Raises:
        ColumnError: A column is absent, its type cannot be read as the feature's kind, two related columns have lists
            of different lengths, or a vector has another length than the feature.
    """
    return ColumnPlan.of(table.schema, feature).read(table)


def raw_inputs(table: pa.Table, spec: FeatureSpec) -> pa.Table:
    """Return only the columns that a model takes for scoring, in the types of its raw signature.

    Embedded texts and images stay unchanged; :func:`data_pipelines.features.embedded_columns.as_contents` returns the
    contents from which they were made.

    Raises:
        ColumnError: A column is absent or cannot be read as its feature.
    """
    return planned_inputs(table, spec, column_plans(table.schema, spec.input_features))


def planned_inputs(table: pa.Table, spec: FeatureSpec, plans: "ColumnPlans") -> pa.Table:
    """Return the result of :func:`raw_inputs`, by plans for the table's schema."""
    columns: dict[str, pa.Array] = {}
    for feature in spec.input_features:
        columns |= plans[feature].raw(table)
    return pa.table(columns)


def plain_column(table: pa.Table | pa.RecordBatch, name: str) -> pa.Array:
    """Return a column that is not a feature (a label, a weight, a key) as one array.

    Raises:
        ColumnError: It is missing.
    """
    index = table.schema.get_field_index(name)
    if index < 0:
        names = table.schema.names
        raise ColumnError(f"column '{name}' is missing; the table has {names}{meant(name, names)}")
    column = table.column(index)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def is_list(column_type: pa.DataType) -> bool:
    """Return whether a type is one of lists, in any of Arrow's forms."""
    return any(check(column_type) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def numeric_values(column: pa.Array) -> np.ndarray:
    """Return float64 ``[rows]``, with NaN for nulls in ``column``."""
    # An unsafe cast, so that whole numbers above 2^53 are rounded as everywhere else, not refused.
    numbers = column if column.type == pa.float64() else column.cast(pa.float64(), safe=False)
    return numbers.to_numpy(zero_copy_only=False)


def is_number(column_type: pa.DataType) -> bool:
    """Return whether a column of this type can be read as numbers."""
    return any(
        check(column_type)
        for check in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    )


@dataclass(frozen=True)
class ColumnPlan:
    """The way in which a feature is read from tables of one schema, chosen and checked when the plan is made.

    Attributes:
        columns: The columns that are read, each with the way: the form of a raw column, ``vector`` for the two raw
            columns of sparse vectors in one, or ``embedded`` for embedded texts and images.
    """

    feature: Feature
    columns: Mapping[str, RawForm | Literal["vector", "embedded"]]

    @classmethod
    def of(cls, schema: pa.Schema, feature: Feature) -> "ColumnPlan":
        """Return the plan for ``feature`` in tables of ``schema``.

        Raises:
            ColumnError: A column is absent, or its type cannot be read as the feature's kind.
        """
        # A caller of an exported model may pass a vector as its two raw columns.
        if (
            isinstance(feature, Sparse)
            and feature.columns == (feature.name,)
            and any(schema.get_field_index(name) < 0 for name in feature.raw)
        ):
            _check_type(schema, feature, feature.name, is_vector)
            return cls(feature, {feature.name: "vector"})
        if isinstance(feature, EmbeddedFeature):
            content = CONTENTS[type(feature)]
            is_content = {TEXT: _is_text, IMAGE: _is_bytes}[content]
            found = _check_type(
                schema, feature, feature.name, lambda type_: is_content(type_) or embedded_content(type_) == content
            )
            is_embedded = embedded_content(found) == content
            return cls(feature, {feature.name: "embedded" if is_embedded else feature.raw_form})
        for name, form in feature.raw.items():
            _check_type(schema, feature, name, _RAW_CHECKS[form])
        return cls(feature, feature.raw)

    def read(self, table: pa.Table | pa.RecordBatch) -> pa.Array:
        """Return the feature's values as one array; see :func:`raw_column`.

        Raises:
            ColumnError: Two related columns have lists of different lengths, or a vector has another length than the
                feature.
        """
        arrays = tuple(self.raw(table).values())
        return _JOINS[type(self.feature)](self.feature, *arrays) if type(self.feature) in _JOINS else arrays[0]

    def integer_tokens(self, table: pa.Table | pa.RecordBatch) -> pa.Array | None:
        """Return the column of a categorical feature if it holds integers that fit into int64, or else None."""
        (name,) = self.columns
        column = plain_column(table, name)
        return column if pa.types.is_integer(column.type) and column.type != pa.uint64() else None

    def raw(self, table: pa.Table | pa.RecordBatch) -> dict[str, pa.Array]:
        """Return the feature's raw columns in their types."""
        feature = self.feature
        columns: dict[str, pa.Array] = {}
        for name, way in self.columns.items():
            column = plain_column(table, name)
            if way == "vector":
                assert isinstance(feature, Sparse)  # noqa: S101 - no other feature is planned so
                columns |= dict(zip(feature.raw, _vector_parts(feature, column), strict=True))
            elif way == "embedded":
                columns[name] = column.cast(embedded_type(CONTENTS[type(feature)]))
            else:
                columns[name] = _RAW_CASTS[way](column)
        if isinstance(feature, Vector):
            _check_size(feature, columns[feature.name])
        return columns


ColumnPlans = Mapping[Feature, ColumnPlan]


def column_plans(schema: pa.Schema, features: Iterable[Feature]) -> ColumnPlans:
    """Return the plan for each feature in tables of ``schema``.

    Raises:
        ColumnError: A column is absent, or its type cannot be read as its feature's kind.
    """
    return {feature: ColumnPlan.of(schema, feature) for feature in dict.fromkeys(features)}


def _check_type(schema: pa.Schema, feature: Feature, name: str, fits: Callable[[pa.DataType], bool]) -> pa.DataType:
    """Return the type of a column of ``feature``, which must be there and fit."""
    index = schema.get_field_index(name)
    if index < 0:
        raise ColumnError(
            f"column '{name}' ({feature.kind}) is missing; the table has {schema.names}{meant(name, schema.names)}: "
            f"add it (or, for a training, take the feature out of the spec)"
        )
    found = schema.field(index).type
    if not (pa.types.is_null(found) or fits(found)):
        article = "an" if feature.kind[0] in "aeiou" else "a"
        raise ColumnError(
            f"column '{name}' has type {found}, which {article} {feature.kind} feature cannot take; "
            f"cast it (or, for a training, change the feature's kind)"
        )
    return found


def _is_token(column_type: pa.DataType) -> bool:
    return any(
        check(column_type)
        for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)
    )


def _is_text(column_type: pa.DataType) -> bool:
    return pa.types.is_string(column_type) or pa.types.is_large_string(column_type)


def _is_bytes(column_type: pa.DataType) -> bool:
    return any(
        check(column_type) for check in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    )


def _is_time(column_type: pa.DataType) -> bool:
    return any(check(column_type) for check in (pa.types.is_integer, pa.types.is_timestamp, pa.types.is_date))


def _is_list_of(is_element: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    def fits(column_type: pa.DataType) -> bool:
        return is_list(column_type) and (pa.types.is_null(column_type.value_type) or is_element(column_type.value_type))

    return fits


def is_vector(column_type: pa.DataType) -> bool:
    """Return whether it is a map of numbers, or the struct of Spark's ML vectors."""
    if pa.types.is_map(column_type):
        return pa.types.is_integer(column_type.key_type) and is_number(column_type.item_type)
    return pa.types.is_struct(column_type) and [field.name for field in column_type] == [
        "type",
        "size",
        "indices",
        "values",
    ]


def _is_date(column_type: pa.DataType) -> bool:
    return _is_text(column_type) or any(check(column_type) for check in (pa.types.is_timestamp, pa.types.is_date))


def _as_dates(column: pa.Array) -> pa.Array:
    """Return dates as text in the order of ISO 8601; texts stay."""
    if _is_text(column.type) or pa.types.is_null(column.type):
        return column.cast(RAW_TYPES["date"])
    if pa.types.is_date(column.type):
        return column.cast(pa.timestamp("us")).cast(pa.string())
    zone = None if column.type.tz is None else "UTC"
    return column.cast(pa.timestamp("us", zone), safe=False).cast(pa.string())


def _as_times(column: pa.Array) -> pa.Array:
    """Return lists of int64 that sort like the times of any unit."""
    lists = column.cast(pa.list_(column.type.value_type)) if _has_elements(column) else column.cast(RAW_TYPES["times"])
    times = lists.flatten()
    if pa.types.is_date32(times.type):
        times = times.cast(pa.int32())
    return lists_of(list_lengths(lists), times.cast(pa.int64()).fill_null(NO_TIME))


def _has_elements(column: pa.Array) -> bool:
    return not pa.types.is_null(column.type) and not pa.types.is_null(column.type.value_type)


_RAW_CHECKS: Mapping[RawForm, Callable[[pa.DataType], bool]] = {
    "number": is_number,
    "token": _is_token,
    "tokens": _is_list_of(_is_token),
    "date": _is_date,
    "times": _is_list_of(_is_time),
    "indices": _is_list_of(pa.types.is_integer),
    "values": _is_list_of(is_number),
    "bytes": _is_bytes,
}
_RAW_CASTS: Mapping[RawForm, Callable[[pa.Array], pa.Array]] = {
    form: lambda column, raw_type=raw_type: column if column.type == raw_type else column.cast(raw_type, safe=False)
    for form, raw_type in RAW_TYPES.items()
} | {"times": _as_times, "date": _as_dates}


def _vector_parts(feature: Sparse, column: pa.Array) -> tuple[pa.ListArray, pa.ListArray]:
    """Return the lists of indices and of values in a column of maps or of Spark's vectors."""
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), RAW_TYPES["indices"]), pa.nulls(len(column), RAW_TYPES["values"])
    if pa.types.is_map(column.type):
        # Maps are lists of pairs, but Arrow's list functions do not take them.
        pairs = column.cast(pa.list_(_PAIR), safe=False)
        lengths, (indices, values) = list_lengths(pairs), pairs.flatten().flatten()
        return lists_of(lengths, indices), lists_of(lengths, values)
    return _spark_vector_parts(feature, column)


def _spark_vector_parts(feature: Sparse, column: pa.StructArray) -> tuple[pa.ListArray, pa.ListArray]:
    """Split Spark's vectors into lists; a dense one (type 1) has no indices, and its zeros are left out."""
    kinds, sizes, index_lists, value_lists = column.flatten()
    lengths, flat = list_lengths(value_lists), value_lists.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
    is_dense = pc.equal(kinds, 1).fill_null(False).to_numpy(zero_copy_only=False)
    found = np.where(is_dense, lengths, sizes.fill_null(feature.size).to_numpy(zero_copy_only=False))
    has_vector = column.is_valid().to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(has_vector & (found != feature.size))
    if len(wrong):
        raise ColumnError(
            f"column '{feature.name}' holds a vector of size {int(found[wrong[0]])}, the spec says {feature.size}; "
            f"correct one of them"
        )
    dense_entries = np.repeat(is_dense, lengths)
    indices = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    indices[~dense_entries] = index_lists.flatten().cast(pa.int64()).to_numpy(zero_copy_only=False)
    kept = ~dense_entries | (flat != 0)
    rows = np.repeat(np.arange(len(lengths)), lengths)[kept]
    kept_lengths = np.bincount(rows, minlength=len(lengths))
    return lists_of(kept_lengths, pa.array(indices[kept])), lists_of(kept_lengths, pa.array(flat[kept]))


def _in_time_order(feature: Sequence, tokens: pa.ListArray, times: pa.ListArray) -> pa.ListArray:
    """Return the tokens of every row, oldest first; tokens of equal time keep their order."""
    _check_lengths(feature, tokens, times)
    lengths, flat_times = list_lengths(tokens), times.flatten().to_numpy(zero_copy_only=False)
    order = order_within_rows(flat_times, lengths)
    return lists_of(lengths, tokens.flatten() if order is None else tokens.flatten().take(pa.array(order)))


def _entries(feature: Sparse, indices: pa.ListArray, values: pa.ListArray) -> pa.ListArray:
    """Return both lists as one list of entries."""
    _check_lengths(feature, indices, values)
    return lists_of(
        list_lengths(indices), pa.StructArray.from_arrays([indices.flatten(), values.flatten()], fields=[*_ENTRY])
    )


def _vectors(feature: EmbeddedFeature, column: pa.Array) -> pa.Array:
    """Return the vectors of embedded texts or images; a column that is yet to be embedded stays unchanged."""
    if embedded_content(column.type) is None:
        return column
    vectors = pc.struct_field(column, VECTOR).cast(RAW_TYPES["values"])
    _check_size(feature, vectors)
    return vectors


def _ranks(feature: Ordinal, tokens: pa.StringArray) -> pa.Array:
    return pc.index_in(tokens, pa.array(feature.order, pa.string())).cast(RAW_TYPES["number"])


def _days(feature: Date, texts: pa.StringArray) -> pa.Array:
    return pa.array(days_of_texts(texts, feature.order), RAW_TYPES["number"], from_pandas=True)


def _numbers_of_tokens(_: TokenNumber, tokens: pa.StringArray) -> pa.DoubleArray:
    is_number = pc.match_substring_regex(tokens, WHOLE_NUMBER).fill_null(False)
    return pc.if_else(is_number, tokens, None).cast(pa.float64())


def _grouping_tokens(feature: TargetEncoding, *columns: pa.Array) -> pa.StringArray:
    """Return the tokens of all columns as one; of a single column missing ones stay missing."""
    tokens = [
        _whole_number_tokens(column) if name in feature.numbers else column
        for name, column in zip(feature.of, columns, strict=True)
    ]
    if len(tokens) == 1:
        return tokens[0]
    return pc.binary_join_element_wise(*(column.fill_null("") for column in tokens), GROUP_SEPARATOR)


def _whole_number_tokens(column: pa.DoubleArray) -> pa.StringArray:
    numbers = column.to_numpy(zero_copy_only=False)
    whole = np.clip(np.where(np.isnan(numbers), 0.0, numbers), -LARGEST_WHOLE_NUMBER, LARGEST_WHOLE_NUMBER)
    return pa.array(whole.astype(np.int64), mask=np.isnan(numbers)).cast(pa.string())


_JOINS: Mapping[type[Feature], Callable[..., pa.Array]] = {
    Ordinal: _ranks,
    Date: _days,
    TargetEncoding: _grouping_tokens,
    TokenNumber: _numbers_of_tokens,
    Sequence: _in_time_order,
    Sparse: _entries,
    TextEmbedding: _vectors,
    ImageEmbedding: _vectors,
}
"""The functions that make the array of a feature from its raw columns, where it is not one of them as it is."""


def _check_lengths(feature: Sequence | Sparse, one: pa.ListArray, other: pa.ListArray) -> None:
    lengths, others = list_lengths(one), list_lengths(other)
    wrong = np.flatnonzero(lengths != others)
    if len(wrong):
        names = " and ".join(f"'{name}'" for name in feature.columns)
        raise ColumnError(
            f"columns {names} of {feature.kind} feature '{feature.name}' have lists of {int(lengths[wrong[0]])} and "
            f"{int(others[wrong[0]])} elements in one row; they belong together: make them equally long"
        )


def _check_size(feature: VectorFeature, column: pa.ListArray) -> None:
    lengths = list_lengths(column)
    wrong = lengths[(lengths != 0) & (lengths != feature.size)]
    if len(wrong):
        raise ColumnError(
            f"column '{feature.name}' holds a vector of {int(wrong[0])} numbers, the spec says {feature.size}; correct "
            f"one of them (a missing vector is null)"
        )


def order_within_rows(values: np.ndarray, lengths: np.ndarray) -> np.ndarray | None:
    """Return the positions that stably sort ``values`` within each row, or None if they are sorted.

    Most vectors and histories are already sorted, and checking costs a hundredth of sorting.

    Args:
        values: The values of all rows, concatenated.
        lengths: int64 ``[rows]``, the number of values in each row.
    """
    falls = values[1:] < values[:-1]
    starts = np.cumsum(lengths)[:-1]
    falls[starts[(starts > 0) & (starts < len(values))] - 1] = False
    if not falls.any():
        return None
    return np.lexsort((values, np.repeat(np.arange(len(lengths)), lengths)))


def list_lengths(column: pa.ListArray) -> np.ndarray:
    """Return int64 ``[rows]``; a null has length 0."""
    return pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


def lists_of(lengths: np.ndarray, values: pa.Array) -> pa.ListArray:
    """Return lists of the given lengths, none of them null."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(starts), values)
