"""Raw Arrow columns to model inputs: the one implementation that conversion and scoring share.

Two steps, each with a table of one function per kind of feature: a feature's columns are read into one Arrow array of a
known type (:func:`raw_column`), and that is encoded (:class:`Encoder`). Fitting stands in between: it measures
(:func:`measured_values`) and counts (:func:`counted_tokens`) what was read.

The exported model carries the same transform as graph operations (:mod:`models.preprocessing`), equal bit for bit.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines import arithmetic
from data_pipelines.farmhash import fingerprint64
from data_pipelines.features import (
    FIRST_VOCABULARY_ID,
    MISSING_ID,
    UNBOUNDED,
    Bucketed,
    Categorical,
    Feature,
    FeatureSpec,
    MeasuredFeature,
    MultiValued,
    Numeric,
    RawForm,
    Sequence,
    Sparse,
    Text,
    TokenFeature,
)
from data_pipelines.fitted import FittedFeatures
from data_pipelines.text import normalise, split_tokens

# Sorts before every time there is.
NO_TIME = -(2**63)

RAW_TYPES: Mapping[RawForm, pa.DataType] = {
    "number": pa.float64(),
    "token": pa.string(),
    "tokens": pa.list_(pa.string()),
    "times": pa.list_(pa.int64()),
    "indices": pa.list_(pa.int64()),
    "values": pa.list_(pa.float64()),
}
"""The Arrow type of each raw column that an exported model takes."""

# What Arrow calls the two sides of a map's entries.
_PAIR = pa.struct([("key", pa.int64()), ("value", pa.float64())])
_ENTRY = pa.struct([("index", pa.int64()), ("value", pa.float64())])


class ColumnError(ValueError):
    """A column that is absent or of a type the feature cannot take; the message says which and what to do."""


@dataclass(frozen=True)
class RaggedIds:
    """Ids of which every row has its own number.

    Attributes:
        values: int64, the ids of all rows one after the other.
        row_lengths: int64 ``[batch]``, how many of them belong to each row.
    """

    values: np.ndarray
    row_lengths: np.ndarray

    def cut(self, start: int, stop: int) -> "RaggedIds":
        """Return the rows from ``start`` up to, not including, ``stop``."""
        first, last = self.row_lengths[:start].sum(), self.row_lengths[:stop].sum()
        return RaggedIds(self.values[first:last], self.row_lengths[start:stop])

    def padded(self, max_length: int) -> np.ndarray:
        """Return int64 ``[batch, max_length]``, rows padded with 0 on the right.

        With ``UNBOUNDED`` the longest row sets the length.
        """
        if max_length == UNBOUNDED:
            max_length = int(self.row_lengths.max(initial=0))
        ids = np.full((len(self.row_lengths), max_length), MISSING_ID, np.int64)
        ids[np.arange(max_length) < self.row_lengths[:, None]] = self.values
        return ids

    def multi_hot(self, classes: int) -> np.ndarray:
        """Return float32 ``[batch, classes]``, 1 at the ids of each row: the packed classes of a label."""
        packed = np.zeros((len(self.row_lengths), classes), np.float32)
        packed[np.repeat(np.arange(len(self.row_lengths)), self.row_lengths), self.values] = 1.0
        return packed


@dataclass(frozen=True)
class SparseRows:
    """Compressed sparse rows: the entries of all rows one after the other, each row's by rising index.

    Attributes:
        indices: int64 ``[entries]``, columns.
        values: float32 ``[entries]``.
        row_lengths: int64 ``[batch]``, how many entries belong to each row.
    """

    indices: np.ndarray
    values: np.ndarray
    row_lengths: np.ndarray

    def cut(self, start: int, stop: int) -> "SparseRows":
        """Return the rows from ``start`` up to, not including, ``stop``."""
        first, last = self.row_lengths[:start].sum(), self.row_lengths[:stop].sum()
        return SparseRows(self.indices[first:last], self.values[first:last], self.row_lengths[start:stop])

    @property
    def row_starts(self) -> np.ndarray:
        """int64 ``[batch + 1]``: where each row begins, the index pointers of SciPy's ``csr_array``."""
        return np.concatenate([[0], np.cumsum(self.row_lengths)])


Encoded = np.ndarray | RaggedIds | SparseRows


class Encoder:
    """Turns raw columns into model inputs; built once per process, called per batch."""

    def __init__(self, fitted: FittedFeatures) -> None:
        self.fitted = fitted

    def encode(self, table: pa.Table | pa.RecordBatch, features: Iterable[Feature] | None = None) -> dict[str, Encoded]:
        """Return the inputs of ``features`` (default: all of the spec) for the rows of ``table``.

        By the form of the feature: ``value`` float32 ``[batch]``, ``id`` int64 ``[batch]``, ``ids``
        :class:`RaggedIds`, ``sparse`` :class:`SparseRows`.

        Raises:
            ColumnError: A column is absent or has a type or a value that its feature cannot take.
        """
        return {
            feature.name: self.encode_column(feature, raw_column(table, feature))
            for feature in (self.fitted.spec.features if features is None else features)
        }

    def encode_padded(
        self, table: pa.Table | pa.RecordBatch, features: Iterable[Feature] | None = None
    ) -> dict[str, np.ndarray]:
        """Return the tensors that an exported model takes when its caller has encoded the features.

        As :meth:`encode`, with ``ids`` as int64 ``[batch, max_length]`` and the three parts of ``sparse`` by the
        names that :attr:`data_pipelines.features.Sparse.parts` gives them.
        """
        tensors: dict[str, np.ndarray] = {}
        for feature in self.fitted.spec.features if features is None else features:
            encoded = self.encode_column(feature, raw_column(table, feature))
            if isinstance(encoded, SparseRows):
                assert isinstance(feature, Sparse)  # noqa: S101 - nothing else is encoded so
                parts = (encoded.indices, encoded.values, encoded.row_lengths)
                tensors |= zip(feature.parts, parts, strict=True)
            elif isinstance(encoded, RaggedIds):
                tensors[feature.name] = encoded.padded(feature.max_length)  # type: ignore[union-attr]
            else:
                tensors[feature.name] = encoded
        return tensors

    def encode_column(self, feature: Feature, column: pa.Array) -> Encoded:
        """Return the input of ``feature`` from what :func:`raw_column` read."""
        return _ENCODERS[type(feature)](self.fitted, feature, column)


def raw_column(table: pa.Table | pa.RecordBatch, feature: Feature) -> pa.Array:
    """Return what the table holds for ``feature``, as one array.

    Numbers (numeric, bucketed) as float64, a token or text as a string, tokens as a list of strings (a sequence's in
    time order), sparse vectors as a list of ``{index: int64, value: float64}``.

    Raises:
        ColumnError: A column is absent, its type cannot be read as the feature's kind, or two columns that belong
            together have lists of different lengths.
    """
    arrays = tuple(_read(table, feature).values())
    return _JOINS[type(feature)](feature, *arrays) if type(feature) in _JOINS else arrays[0]


def raw_inputs(table: pa.Table, spec: FeatureSpec) -> pa.Table:
    """Return the columns that a model takes when it scores, in the types of its raw signature; no other ones.

    Raises:
        ColumnError: A column is absent or cannot be read as its feature.
    """
    columns: dict[str, pa.Array] = {}
    for feature in (*spec.query_features, *([spec.excluded] if spec.excluded else [])):
        columns |= _read(table, feature)
    return pa.table(columns)


def raw_schema(features: Iterable[Feature]) -> pa.Schema:
    """Return the raw columns of ``features``, those that :func:`raw_inputs` gives, and their types."""
    return pa.schema({name: RAW_TYPES[form] for feature in features for name, form in feature.raw.items()})


def measured_values(feature: MeasuredFeature, column: pa.Array) -> np.ndarray:
    """Return float64 ``[rows]``, NaN for missing: what means and quantiles are taken of, after clip and logarithm.

    Args:
        feature: A feature of numbers.
        column: What :func:`raw_column` read for it.
    """
    values = numeric_values(column)
    # What is infinite or denormal has its defined result, and no warning.
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if isinstance(feature, Numeric):
            return np.asarray(arithmetic.measured(values, feature, arithmetic.NUMPY))
        return np.asarray(arithmetic.without_denormals(values, arithmetic.NUMPY))


def counted_tokens(feature: TokenFeature, column: pa.Array) -> pa.StringArray:
    """Return the tokens of all rows one after the other, without missing ones: what a vocabulary counts.

    Args:
        feature: A feature of tokens.
        column: What :func:`raw_column` read for it.
    """
    tokens = _tokens(feature, column)
    flat = tokens.flatten() if pa.types.is_list(tokens.type) else tokens
    return flat.filter(pa.array(~is_missing(flat)))


def numeric_values(column: pa.Array) -> np.ndarray:
    """Return float64 ``[rows]``, NaN where ``column`` is null."""
    # Unsafe, so that whole numbers above 2^53 are rounded as everywhere else instead of refused.
    numbers = column if column.type == pa.float64() else column.cast(pa.float64(), safe=False)
    return numbers.to_numpy(zero_copy_only=False)


def plain_column(table: pa.Table | pa.RecordBatch, name: str) -> pa.Array:
    """Return a column that is no feature (a label, a weight, a key) as one array.

    Raises:
        ColumnError: It is missing.
    """
    index = table.schema.get_field_index(name)
    if index < 0:
        raise ColumnError(f"column '{name}' is missing; the table has {table.schema.names}")
    column = table.column(index)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def imputed_value(fitted: FittedFeatures, feature: Numeric) -> float:
    """Return what stands in for a missing value after clip and logarithm; the spec's own number goes through both."""
    if feature.impute == "mean":
        return fitted.imputed(feature)
    return _measured_number(feature)


@functools.cache
def _measured_number(feature: Numeric) -> float:
    return float(arithmetic.measured(np.array([feature.impute], np.float64), feature, arithmetic.NUMPY)[0])


def is_missing(tokens: pa.Array) -> np.ndarray:
    """Return bool ``[tokens]``: true where the token is null or empty."""
    return pc.equal(pc.binary_length(tokens), 0).fill_null(True).to_numpy(zero_copy_only=False)


def is_number(column_type: pa.DataType) -> bool:
    """Return whether a column of this type can be read as numbers."""
    return any(
        check(column_type)
        for check in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    )


# Reading: the columns of a table become the raw columns of the exported model.


def _read(table: pa.Table | pa.RecordBatch, feature: Feature) -> dict[str, pa.Array]:
    """Return the raw columns of ``feature`` in their types."""
    # A caller of an exported model may give a vector as the two raw columns that it has been taken apart into.
    if (
        isinstance(feature, Sparse)
        and feature.columns == (feature.name,)
        and not set(feature.raw) <= {*table.schema.names}
    ):
        index_lists, value_lists = _vector_parts(feature, _column(table, feature, feature.name, _is_vector))
        return dict(zip(feature.raw, (index_lists, value_lists), strict=True))
    return {
        name: _RAW_CASTS[form](_column(table, feature, name, _RAW_CHECKS[form])) for name, form in feature.raw.items()
    }


def _column(
    table: pa.Table | pa.RecordBatch, feature: Feature, name: str, fits: Callable[[pa.DataType], bool]
) -> pa.Array:
    index = table.schema.get_field_index(name)
    if index < 0:
        raise ColumnError(
            f"column '{name}' ({feature.kind}) is missing; the table has {table.schema.names}: "
            f"add it or take the feature out of the spec"
        )
    column = table.column(index)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not (pa.types.is_null(column.type) or fits(column.type)):
        raise ColumnError(
            f"column '{name}' has type {column.type}, which a {feature.kind} feature cannot take; "
            f"cast it or change the feature's kind"
        )
    return column


def _is_token(column_type: pa.DataType) -> bool:
    return any(
        check(column_type)
        for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)
    )


def _is_time(column_type: pa.DataType) -> bool:
    return any(check(column_type) for check in (pa.types.is_integer, pa.types.is_timestamp, pa.types.is_date))


def _is_list_of(is_element: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    def fits(column_type: pa.DataType) -> bool:
        is_list = pa.types.is_list(column_type) or pa.types.is_large_list(column_type)
        return is_list and (pa.types.is_null(column_type.value_type) or is_element(column_type.value_type))

    return fits


def _is_vector(column_type: pa.DataType) -> bool:
    """Whether it is a map of numbers, or what Spark sends for its ML vectors."""
    if pa.types.is_map(column_type):
        return pa.types.is_integer(column_type.key_type) and is_number(column_type.item_type)
    return pa.types.is_struct(column_type) and [field.name for field in column_type] == [
        "type",
        "size",
        "indices",
        "values",
    ]


def _as_times(column: pa.Array) -> pa.Array:
    """Return lists of int64 that sort as the times do, whatever their unit."""
    lists = column.cast(pa.list_(column.type.value_type)) if _has_elements(column) else column.cast(RAW_TYPES["times"])
    times = lists.flatten()
    if pa.types.is_date32(times.type):
        times = times.cast(pa.int32())
    return _lists(_lengths(lists), times.cast(pa.int64()).fill_null(NO_TIME))


def _has_elements(column: pa.Array) -> bool:
    return not pa.types.is_null(column.type) and not pa.types.is_null(column.type.value_type)


_RAW_CHECKS: Mapping[RawForm, Callable[[pa.DataType], bool]] = {
    "number": is_number,
    "token": _is_token,
    "tokens": _is_list_of(_is_token),
    "times": _is_list_of(_is_time),
    "indices": _is_list_of(pa.types.is_integer),
    "values": _is_list_of(is_number),
}
_RAW_CASTS: Mapping[RawForm, Callable[[pa.Array], pa.Array]] = {
    form: lambda column, raw_type=raw_type: column if column.type == raw_type else column.cast(raw_type, safe=False)
    for form, raw_type in RAW_TYPES.items()
} | {"times": _as_times}


def _vector_parts(feature: Sparse, column: pa.Array) -> tuple[pa.ListArray, pa.ListArray]:
    """Return the lists of indices and of values in a column of maps or of Spark's vectors."""
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), RAW_TYPES["indices"]), pa.nulls(len(column), RAW_TYPES["values"])
    if pa.types.is_map(column.type):
        # Arrow's list functions take no maps, which are lists of pairs all the same.
        pairs = column.cast(pa.list_(_PAIR), safe=False)
        lengths, (indices, values) = _lengths(pairs), pairs.flatten().flatten()
        return _lists(lengths, indices), _lists(lengths, values)
    return _spark_vector_parts(feature, column)


def _spark_vector_parts(feature: Sparse, column: pa.StructArray) -> tuple[pa.ListArray, pa.ListArray]:
    """Take Spark's vectors apart; a dense one (type 1) has no indices, and its zeros are left out."""
    kinds, sizes, index_lists, value_lists = column.flatten()
    lengths, flat = _lengths(value_lists), value_lists.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
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
    return _lists(kept_lengths, pa.array(indices[kept])), _lists(kept_lengths, pa.array(flat[kept]))


def _in_time_order(feature: Sequence, tokens: pa.ListArray, times: pa.ListArray) -> pa.ListArray:
    """Return the tokens of every row, oldest first; of equal times in the order they have."""
    _check_lengths(feature, tokens, times)
    lengths, flat_times = _lengths(tokens), times.flatten().to_numpy(zero_copy_only=False)
    order = _order_within_rows(flat_times, np.repeat(np.arange(len(lengths)), lengths))
    return _lists(lengths, tokens.flatten() if order is None else tokens.flatten().take(pa.array(order)))


def _entries(feature: Sparse, indices: pa.ListArray, values: pa.ListArray) -> pa.ListArray:
    """Return both lists as one list of entries."""
    _check_lengths(feature, indices, values)
    return _lists(
        _lengths(indices), pa.StructArray.from_arrays([indices.flatten(), values.flatten()], fields=[*_ENTRY])
    )


_JOINS: Mapping[type[Feature], Callable[..., pa.Array]] = {Sequence: _in_time_order, Sparse: _entries}
"""How the raw columns of a feature that has two of them become one array."""


def _check_lengths(feature: Sequence | Sparse, one: pa.ListArray, other: pa.ListArray) -> None:
    lengths, others = _lengths(one), _lengths(other)
    wrong = np.flatnonzero(lengths != others)
    if len(wrong):
        names = " and ".join(f"'{name}'" for name in feature.columns)
        raise ColumnError(
            f"columns {names} of {feature.kind} feature '{feature.name}' have lists of {int(lengths[wrong[0]])} and "
            f"{int(others[wrong[0]])} elements in one row; they belong together: make them equally long"
        )


def _order_within_rows(values: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
    """Return the positions that sort ``values`` within each of ``rows`` (rising), stable; None where they are sorted.

    Most vectors and histories come sorted, and looking costs a hundredth of sorting.
    """
    if ((values[1:] >= values[:-1]) | (rows[1:] != rows[:-1])).all():
        return None
    return np.lexsort((values, rows))


def _lengths(column: pa.ListArray) -> np.ndarray:
    """Return int64 ``[rows]``; a null has length 0."""
    return pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


def _lists(lengths: np.ndarray, values: pa.Array) -> pa.ListArray:
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(starts), values)


# Encoding: what was read becomes what the model takes.


def _encode_number(fitted: FittedFeatures, feature: Numeric, column: pa.Array) -> np.ndarray:
    missing = imputed_value(fitted, feature)
    offset, divisor = fitted.scaling(feature)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        values = measured_values(feature, column)
        return np.asarray(arithmetic.standardised(values, missing, offset, divisor, arithmetic.NUMPY))


def _encode_bucket(fitted: FittedFeatures, feature: Bucketed, column: pa.Array) -> np.ndarray:
    values = measured_values(feature, column)
    buckets = np.searchsorted(bucket_boundaries(fitted, feature), values, side="right")
    return np.where(np.isnan(values), MISSING_ID, buckets + FIRST_VOCABULARY_ID).astype(np.int64)


def bucket_boundaries(fitted: FittedFeatures, feature: Bucketed) -> np.ndarray:
    """Return float64 ``[buckets - 1]``, rising: where each bucket but the first begins."""
    return np.asarray(arithmetic.without_denormals(fitted.boundaries(feature), arithmetic.NUMPY))


def _encode_token(fitted: FittedFeatures, feature: Categorical, column: pa.Array) -> np.ndarray:
    return token_ids(fitted, feature, column)


def _encode_tokens(fitted: FittedFeatures, feature: MultiValued | Sequence | Text, column: pa.Array) -> RaggedIds:
    tokens = _tokens(feature, column)
    flat, lengths = tokens.flatten(), _lengths(tokens)
    present = ~is_missing(flat)
    kept_lengths = np.bincount(np.repeat(np.arange(len(lengths)), lengths)[present], minlength=len(lengths))
    ids = token_ids(fitted, feature, flat)[present]
    position = np.arange(len(ids)) - np.repeat(np.cumsum(kept_lengths) - kept_lengths, kept_lengths)
    if feature.truncate == "head":
        position += feature.max_length - np.repeat(kept_lengths, kept_lengths)
        keep = position >= 0
    else:
        keep = position < feature.max_length
    return RaggedIds(ids[keep], np.minimum(kept_lengths, feature.max_length).astype(np.int64))


def _encode_sparse(fitted: FittedFeatures, feature: Sparse, column: pa.ListArray) -> SparseRows:
    lengths, (indices, numbers) = _lengths(column), column.flatten().flatten()
    values = numbers.to_numpy(zero_copy_only=False)
    present = indices.is_valid().to_numpy(zero_copy_only=False) & ~np.isnan(values)
    rows = np.repeat(np.arange(len(lengths)), lengths)[present]
    kept = indices.fill_null(0).to_numpy(zero_copy_only=False)[present]
    wrong = np.flatnonzero((kept < 0) | (kept >= feature.size))
    if len(wrong):
        raise ColumnError(
            f"sparse feature '{feature.name}' has the index {int(kept[wrong[0]])}; its size is {feature.size}: use "
            f"indices from 0 to {feature.size - 1}, or a larger size"
        )
    with np.errstate(over="ignore", under="ignore"):
        wide = arithmetic.without_denormals(values[present], arithmetic.NUMPY, arithmetic.LEAST_FLOAT32)
        narrow = wide.astype(np.float32)
    order = _order_within_rows(kept, rows)
    if order is not None:
        kept, narrow = kept[order], narrow[order]
    return SparseRows(kept, narrow, np.bincount(rows, minlength=len(lengths)).astype(np.int64))


_ENCODERS: Mapping[type[Feature], Callable[[FittedFeatures, Any, pa.Array], Encoded]] = {
    Numeric: _encode_number,
    Bucketed: _encode_bucket,
    Categorical: _encode_token,
    MultiValued: _encode_tokens,
    Sequence: _encode_tokens,
    Text: _encode_tokens,
    Sparse: _encode_sparse,
}


def token_ids(fitted: FittedFeatures, feature: TokenFeature, tokens: pa.StringArray) -> np.ndarray:
    """Return int64 ``[tokens]``: 0 for missing ones, else by hash, or by vocabulary with 1 for those not in it."""
    buckets = fitted.spec.hash_buckets(feature)
    if buckets is None:
        return fitted.vocabulary(feature).ids(tokens)
    hashed = (fingerprint64(tokens) % np.uint64(buckets)).astype(np.int64) + FIRST_VOCABULARY_ID
    return np.where(is_missing(tokens), MISSING_ID, hashed)


def _tokens(feature: TokenFeature, column: pa.Array) -> pa.Array:
    """Return the tokens that ``column`` holds: those of a text have still to be found in it."""
    return split_tokens(normalise(column), feature.pattern) if isinstance(feature, Text) else column
