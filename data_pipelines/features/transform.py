"""The transform from raw Arrow columns to model inputs, shared by conversion and scoring.

It has two steps, each with a table of one function per kind of feature: a feature's columns are read into one Arrow
array of a known type (:func:`data_pipelines.features.raw_columns.raw_column`), which is then encoded
(:class:`Encoder`). Fitting comes in between: it measures (:func:`measured_values`) and counts (:func:`counted_tokens`)
the arrays.

The exported model contains the same transform as graph operations (:mod:`models.serving.preprocessing`), with the same
bits as result.
"""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features import arithmetic
from mirrorspark.data_pipelines.features.embedded_columns import CONTENTS
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import (
    FIRST_VOCABULARY_ID,
    MISSING_ID,
    UNBOUNDED,
    Bucketed,
    Categorical,
    Date,
    EmbeddedFeature,
    Feature,
    ImageEmbedding,
    ListFeature,
    MeasuredFeature,
    MultiValued,
    Numeric,
    Ordinal,
    Sequence,
    Sparse,
    TargetEncoding,
    Text,
    TextEmbedding,
    TokenNumber,
    Vector,
    VectorFeature,
    VocabularyOwner,
)
from mirrorspark.data_pipelines.features.raw_columns import (
    RAW_TYPES,
    ColumnError,
    ColumnPlan,
    list_lengths,
    numeric_values,
    order_within_rows,
)
from mirrorspark.data_pipelines.features.text_rules import normalise, split_tokens, subwords


@dataclass(frozen=True)
class RaggedIds:
    """Lists of ids of varying length.

    Attributes:
        values: int64, the ids of all rows concatenated.
        row_lengths: int64 ``[batch]``, the number of ids in each row.
    """

    values: np.ndarray
    row_lengths: np.ndarray

    def cut(self, start: int, stop: int) -> "RaggedIds":
        """Return the rows from ``start`` up to, not including, ``stop``."""
        first, last = self.row_lengths[:start].sum(), self.row_lengths[:stop].sum()
        return RaggedIds(self.values[first:last], self.row_lengths[start:stop])

    def bucket(self, max_length: int) -> int:
        """Return the least power of two that the longest row fits in, from 1 to ``max_length``.

        Padding to it gives few shapes, and never twice the length that the rows need.
        """
        longest = int(self.row_lengths.max(initial=1))
        return min(1 << (longest - 1).bit_length(), max_length)

    def rows_within(self, size: int) -> int:
        """Return the number of first rows that take at most ``size`` bytes when padded to the longest of them.

        The result is at least 1.
        """
        longest = np.maximum.accumulate(self.row_lengths)
        sizes = longest * np.arange(1, len(longest) + 1) * np.dtype(np.int64).itemsize
        return max(1, int(np.searchsorted(sizes, size, side="right")))

    def padded(self, max_length: int) -> np.ndarray:
        """Return int64 ``[batch, max_length]``, rows padded with 0 on the right.

        With ``UNBOUNDED``, the length is that of the longest row.
        """
        if max_length == UNBOUNDED:
            max_length = int(self.row_lengths.max(initial=0))
        ids = np.full((len(self.row_lengths), max_length), MISSING_ID, np.int64)
        ids[np.arange(max_length) < self.row_lengths[:, None]] = self.values
        return ids

    def multi_hot(self, classes: int) -> np.ndarray:
        """Return float32 ``[batch, classes]``, 1 at the ids of each row, for the classes of a label."""
        packed = np.zeros((len(self.row_lengths), classes), np.float32)
        packed[np.repeat(np.arange(len(self.row_lengths)), self.row_lengths), self.values] = 1.0
        return packed


@dataclass(frozen=True)
class SparseRows:
    """Compressed sparse rows: the entries of all rows concatenated, in each row by rising index.

    Attributes:
        indices: int64 ``[entries]``, the columns.
        values: float32 ``[entries]``.
        row_lengths: int64 ``[batch]``, the number of entries in each row.
    """

    indices: np.ndarray
    values: np.ndarray
    row_lengths: np.ndarray

    def cut(self, start: int, stop: int) -> "SparseRows":
        """Return the rows from ``start`` up to, not including, ``stop``."""
        first, last = self.row_lengths[:start].sum(), self.row_lengths[:stop].sum()
        return SparseRows(self.indices[first:last], self.values[first:last], self.row_lengths[start:stop])

    def at(self, rows: np.ndarray) -> "SparseRows":
        """Return the rows with these numbers, in their order."""
        lengths = self.row_lengths[rows]
        # The place of each entry here, plus the distance of its row from there to here.
        moved = self.row_starts[rows] - (np.cumsum(lengths) - lengths)
        entries = np.arange(lengths.sum()) + np.repeat(moved, lengths)
        return SparseRows(self.indices[entries], self.values[entries], lengths)

    @property
    def row_starts(self) -> np.ndarray:
        """int64 ``[batch + 1]``: where each row begins, the index pointers of SciPy's ``csr_array``."""
        return np.concatenate([[0], np.cumsum(self.row_lengths)])


EncodedRows = np.ndarray | SparseRows
"""The rows of one feature, ``[rows, ...]``; lists are padded."""

Encoded = EncodedRows | RaggedIds


def rows_at(values: EncodedRows, rows: np.ndarray) -> EncodedRows:
    """Return the rows with these numbers, in their order."""
    return values.at(rows) if isinstance(values, SparseRows) else values[rows]


def non_finite(encoded: Encoded) -> int:
    """Return the number of infinite or NaN values of an encoded feature.

    Infinite values come from the table, or are too large for float32 after scaling.
    """
    values = encoded if isinstance(encoded, np.ndarray) else encoded.values
    return int(values.size - np.isfinite(values).sum())


class Encoder:
    """Encoder of raw columns as model inputs; built once per process, called per batch.

    Training rows are encoded by :class:`data_pipelines.features.target_encoding.TrainingEncoder`.
    """

    def __init__(self, fitted: FittedFeatures) -> None:
        self.fitted = fitted
        # Single rows have one schema, and checking their columns anew would take as long as finding their ids.
        self._planned: tuple[pa.Schema, dict[str, ColumnPlan]] = (pa.schema([]), {})

    def encode(self, table: pa.Table | pa.RecordBatch, features: Iterable[Feature] | None = None) -> dict[str, Encoded]:
        """Return the inputs of ``features`` (default: all of the spec) for the rows of ``table``.

        The type depends on the form of the feature: ``value`` float32 ``[batch]``, ``id`` int64 ``[batch]``, ``ids``
        :class:`RaggedIds`, ``sparse`` :class:`SparseRows`, ``vector`` float32 ``[batch, size]``.

        Raises:
            ColumnError: A column is absent, or has a type or a value that its feature cannot take.
        """
        schema, planned = table.schema, self._planned  # Replaced as a whole: other threads may encode other tables.
        if not schema.equals(planned[0]):
            planned = self._planned = (schema, {})
        return {
            feature.name: self._encoded(table, feature, planned[1])
            for feature in (self.fitted.spec.features if features is None else features)
        }

    def encode_padded(
        self, table: pa.Table | pa.RecordBatch, features: Iterable[Feature] | None = None
    ) -> dict[str, np.ndarray]:
        """Return the tensors for an exported model that takes encoded features.

        Like :meth:`encode`, with ``ids`` as int64 ``[batch, max_length]`` and the three parts of ``sparse`` under the
        names of :attr:`data_pipelines.features.kinds.Sparse.parts`.
        """
        _, tensors = next(self.padded_parts(table, features, max(1, table.num_rows)))
        return tensors

    def padded_parts(
        self,
        table: pa.Table | pa.RecordBatch,
        features: Iterable[Feature] | None,
        rows: int,
        any_length: Collection[str] = (),
        unbounded_bytes: int | None = None,
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Encode once, and yield for consecutive parts their number of rows and the tensors of :meth:`encode_padded`.

        A table without rows has one part.

        Args:
            table: The rows.
            features: See :meth:`encode`.
            rows: The rows of a part; the last one may have fewer.
            any_length: Features whose ``ids`` are padded part by part, to the length of :meth:`RaggedIds.bucket`.
            unbounded_bytes: The most bytes that ``ids`` of unbounded length take in a part: parts with a very long row
                have fewer rows, so that it does not make all others as long. By default there is no limit.
        """
        features = tuple(self.fitted.spec.features if features is None else features)
        encoded = self.encode(table, features)
        unbounded = [encoded[f.name] for f in features if isinstance(f, ListFeature) and f.max_length == UNBOUNDED]
        start = 0
        while start < max(1, table.num_rows):
            stop = min(start + rows, table.num_rows)
            if unbounded_bytes is not None:
                for ids in unbounded:
                    assert isinstance(ids, RaggedIds)  # noqa: S101 - lists are encoded so
                    stop = min(stop, start + ids.cut(start, stop).rows_within(unbounded_bytes))
            tensors: dict[str, np.ndarray] = {}
            for feature in features:
                is_any_length = feature.name in any_length
                tensors |= _padded(feature, encoded[feature.name], start, stop, is_any_length=is_any_length)
            yield stop - start, tensors
            start = max(stop, start + 1)

    def _encoded(
        self, table: pa.Table | pa.RecordBatch, feature: Feature, plans: MutableMapping[str, ColumnPlan]
    ) -> Encoded:
        plan = plans.get(feature.name)
        if plan is None or plan.feature is not feature:
            plan = plans[feature.name] = ColumnPlan.of(table.schema, feature)
        # Integers are tokens too. Converting them to text takes several times as everything else.
        if isinstance(feature, Categorical) and self.fitted.spec.hash_buckets(feature) is None:
            numbers = plan.integer_tokens(table)
            if numbers is not None:
                return self.fitted.vocabulary(feature).ids_of_integers(numbers)
        return self.encode_column(feature, plan.read(table))

    def encode_column(self, feature: Feature, column: pa.Array) -> Encoded:
        """Return the input of ``feature`` from the array of :func:`data_pipelines.features.raw_columns.raw_column`."""
        return _ENCODERS[type(feature)](self.fitted, feature, column)


def _padded(feature: Feature, encoded: Encoded, start: int, stop: int, *, is_any_length: bool) -> dict[str, np.ndarray]:
    """Return the tensors of some rows."""
    if isinstance(encoded, SparseRows):
        assert isinstance(feature, Sparse)  # noqa: S101 - nothing else is encoded so
        cut = encoded.cut(start, stop)
        return dict(zip(feature.parts, (cut.indices, cut.values, cut.row_lengths), strict=True))
    if isinstance(encoded, RaggedIds):
        assert isinstance(feature, ListFeature)  # noqa: S101 - nothing else is encoded so
        ids, length = encoded.cut(start, stop), feature.max_length
        # Without a maximum length, the longest row sets the length in any case.
        return {feature.name: ids.padded(ids.bucket(length) if is_any_length and length != UNBOUNDED else length)}
    return {feature.name: encoded[start:stop]}


def measured_values(feature: MeasuredFeature, column: pa.Array) -> np.ndarray:
    """Return float64 ``[rows]``, NaN for missing, after clip and logarithm, for means and quantiles.

    Args:
        feature: A feature of numbers.
        column: Its array from :func:`data_pipelines.features.raw_columns.raw_column`.
    """
    values = numeric_values(column)
    # Infinite and denormal numbers have defined results, so they need no warning.
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if isinstance(feature, Numeric):
            return np.asarray(arithmetic.measured(values, feature, arithmetic.NUMPY))
        return np.asarray(arithmetic.without_denormals(values, arithmetic.NUMPY))


def counted_tokens(feature: VocabularyOwner, column: pa.Array) -> pa.StringArray:
    """Return the tokens of all rows concatenated, without missing ones, for a vocabulary to count.

    Args:
        feature: A feature of tokens.
        column: Its array from :func:`data_pipelines.features.raw_columns.raw_column`.
    """
    tokens = _tokens(feature, column)
    flat = tokens.flatten() if pa.types.is_list(tokens.type) else tokens
    return flat.filter(pa.array(~is_missing(flat)))


def imputed_value(fitted: FittedFeatures, feature: Numeric) -> float:
    """Return the replacement for a missing value after clip and logarithm; both apply to the spec's own number."""
    if feature.impute == "mean":
        return fitted.imputed(feature)
    return _measured_number(feature)


@functools.cache
def _measured_number(feature: Numeric) -> float:
    return float(arithmetic.measured(np.array([feature.impute], np.float64), feature, arithmetic.NUMPY)[0])


def is_missing(tokens: pa.Array) -> np.ndarray:
    """Return bool ``[tokens]``, true for null or empty tokens."""
    return pc.equal(pc.binary_length(tokens), 0).fill_null(True).to_numpy(zero_copy_only=False)


# Encoding: raw arrays become model inputs.


def _encode_number(fitted: FittedFeatures, feature: Numeric, column: pa.Array) -> np.ndarray:
    missing = imputed_value(fitted, feature)
    offset, divisor = fitted.scaling(feature)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        values = measured_values(feature, column)
        bounds = fitted.bounds(feature)
        return np.asarray(arithmetic.standardised(values, missing, offset, divisor, arithmetic.NUMPY, bounds))


def _encode_target(fitted: FittedFeatures, feature: TargetEncoding, column: pa.StringArray) -> np.ndarray:
    return fitted.target_inputs[feature.name][token_ids(fitted, feature, column)]


def _encode_bucket(fitted: FittedFeatures, feature: Bucketed, column: pa.Array) -> np.ndarray:
    values = measured_values(feature, column)
    buckets = np.searchsorted(bucket_boundaries(fitted, feature), values, side="right")
    return np.where(np.isnan(values), MISSING_ID, buckets + FIRST_VOCABULARY_ID).astype(np.int64)


def bucket_boundaries(fitted: FittedFeatures, feature: Bucketed) -> np.ndarray:
    """Return float64 ``[buckets - 1]``, rising: the lower bound of each bucket but the first."""
    return np.asarray(arithmetic.without_denormals(fitted.boundaries(feature), arithmetic.NUMPY))


def _encode_token(fitted: FittedFeatures, feature: Categorical, column: pa.Array) -> np.ndarray:
    return token_ids(fitted, feature, column)


def _encode_tokens(fitted: FittedFeatures, feature: ListFeature, column: pa.Array) -> RaggedIds:
    tokens = _tokens(feature, column)
    flat, lengths = tokens.flatten(), list_lengths(tokens)
    present = ~is_missing(flat)
    kept_lengths = np.bincount(np.repeat(np.arange(len(lengths)), lengths)[present], minlength=len(lengths))
    return _cut(feature, token_ids(fitted, feature, flat)[present], kept_lengths)


def _encode_text(fitted: FittedFeatures, feature: Text, column: pa.Array) -> RaggedIds:
    if feature.ngrams is None:
        return _encode_tokens(fitted, feature, column)
    words = _tokens(feature, column)
    # Most words of a column come many times, and each is taken apart and hashed once.
    coded = words.flatten().dictionary_encode()
    parts = subwords(coded.dictionary, feature.ngrams)
    part_ids, counts = token_ids(fitted, feature, parts.flatten()), list_lengths(parts)
    place = coded.indices.to_numpy()
    first, count = (np.cumsum(counts) - counts)[place], counts[place]
    before = np.concatenate([[0], np.cumsum(count)])
    ids = part_ids[np.arange(before[-1]) + np.repeat(first - before[:-1], count)]
    row_ends = np.concatenate([[0], np.cumsum(list_lengths(words))])
    return _cut(feature, ids, np.diff(before[row_ends]))


def _cut(feature: ListFeature, ids: np.ndarray, row_lengths: np.ndarray) -> RaggedIds:
    """Truncate rows of ids to ``max_length`` at the side set by the feature."""
    position = np.arange(len(ids)) - np.repeat(np.cumsum(row_lengths) - row_lengths, row_lengths)
    if feature.truncate == "head":
        position += feature.max_length - np.repeat(row_lengths, row_lengths)
        keep = position >= 0
    else:
        keep = position < feature.max_length
    return RaggedIds(ids[keep], np.minimum(row_lengths, feature.max_length).astype(np.int64))


def _encode_sparse(fitted: FittedFeatures, feature: Sparse, column: pa.ListArray) -> SparseRows:
    lengths, (indices, numbers) = list_lengths(column), column.flatten().flatten()
    kept, values = indices.fill_null(0).to_numpy(zero_copy_only=False), numbers.to_numpy(zero_copy_only=False)
    absent = np.isnan(values)
    if indices.null_count:
        absent |= indices.is_null().to_numpy(zero_copy_only=False)
    if absent.any():
        rows = np.repeat(np.arange(len(lengths)), lengths)[~absent]
        lengths = np.bincount(rows, minlength=len(lengths)).astype(np.int64)
        kept, values = kept[~absent], values[~absent]
    # As unsigned numbers, negative ones are the largest.
    is_wrong = kept.view(np.uint64) >= feature.size
    if is_wrong.any():
        raise ColumnError(
            f"sparse feature '{feature.name}' has the index {int(kept[is_wrong.argmax()])}; its size is "
            f"{feature.size}: use indices from 0 to {feature.size - 1}, or a larger size"
        )
    with np.errstate(over="ignore", under="ignore"):
        wide = arithmetic.without_denormals(values, arithmetic.NUMPY, arithmetic.LEAST_FLOAT32)
        narrow = wide.astype(np.float32)
    order = order_within_rows(kept, lengths)
    if order is not None:
        kept, narrow = kept[order], narrow[order]
    return SparseRows(kept, narrow, lengths)


def _encode_vector(_: FittedFeatures, feature: VectorFeature, column: pa.ListArray) -> np.ndarray:
    numbers = column.flatten().to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore", under="ignore"):
        present = np.where(np.isnan(numbers), 0.0, numbers)
        wide = arithmetic.without_denormals(present, arithmetic.NUMPY, arithmetic.LEAST_FLOAT32)
        vectors = np.zeros((len(column), feature.size), np.float32)
        vectors[list_lengths(column) > 0] = wide.astype(np.float32).reshape(-1, feature.size)
    return vectors


def _encode_embedding(fitted: FittedFeatures, feature: EmbeddedFeature, column: pa.Array) -> np.ndarray:
    if not pa.types.is_list(column.type):
        if column.null_count < len(column):
            raise ColumnError(
                f"column '{feature.name}' has {CONTENTS[type(feature)]}s without vectors; score them with the model, "
                f"whose encoder gives the vectors, or embed them first"
            )
        column = pa.nulls(len(column), RAW_TYPES["values"])
    return _encode_vector(fitted, feature, column)


_ENCODERS: Mapping[type[Feature], Callable[[FittedFeatures, Any, pa.Array], Encoded]] = {
    Numeric: _encode_number,
    Ordinal: _encode_number,
    Date: _encode_number,
    TargetEncoding: _encode_target,
    TokenNumber: _encode_number,
    Bucketed: _encode_bucket,
    Categorical: _encode_token,
    MultiValued: _encode_tokens,
    Sequence: _encode_tokens,
    Text: _encode_text,
    Sparse: _encode_sparse,
    Vector: _encode_vector,
    TextEmbedding: _encode_embedding,
    ImageEmbedding: _encode_embedding,
}


def token_ids(fitted: FittedFeatures, feature: VocabularyOwner, tokens: pa.StringArray) -> np.ndarray:
    """Return int64 ``[tokens]``: 0 for missing, 1 for out of vocabulary, or else the id by vocabulary or hash."""
    buckets = fitted.spec.hash_buckets(feature)
    if buckets is None:
        return fitted.vocabulary(feature).ids(tokens)
    from mirrorspark.data_pipelines.features.farmhash import fingerprint64  # loads Numba

    hashed = (fingerprint64(tokens) % np.uint64(buckets)).astype(np.int64) + FIRST_VOCABULARY_ID
    return np.where(is_missing(tokens), MISSING_ID, hashed)


def _tokens(feature: VocabularyOwner, column: pa.Array) -> pa.Array:
    """Return the tokens in ``column``; a text is split into its tokens first."""
    return split_tokens(normalise(column), feature.pattern) if isinstance(feature, Text) else column
