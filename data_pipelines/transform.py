"""Raw Arrow columns to model inputs: the one implementation that conversion and scoring share.

The exported model carries the same transform as graph operations (:mod:`models.preprocessing`), equal bit for bit.
Numbers are computed in float64 and rounded once to float32, so that both sides round the same value.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.features import (
    FIRST_VOCABULARY_ID,
    MISSING_ID,
    OUT_OF_VOCABULARY_ID,
    UNBOUNDED,
    Categorical,
    Feature,
    FeatureSpec,
    MultiValued,
    Numeric,
)
from data_pipelines.fitted import FittedFeatures

ROW_LENGTHS_SUFFIX = "/row_lengths"


class ColumnError(ValueError):
    """A column that is absent or of a type the feature cannot take; the message says which and what to do."""


@dataclass(frozen=True)
class RaggedIds:
    """The ids of a multi-valued feature.

    Attributes:
        values: int64, the ids of all rows one after the other.
        row_lengths: int64 ``[batch]``, how many of them belong to each row.
    """

    values: np.ndarray
    row_lengths: np.ndarray

    def padded(self, max_length: int) -> np.ndarray:
        """Return int64 ``[batch, max_length]``, rows padded with 0 on the right.

        With ``UNBOUNDED`` the longest row sets the length.
        """
        if max_length == UNBOUNDED:
            max_length = int(self.row_lengths.max(initial=0))
        ids = np.full((len(self.row_lengths), max_length), MISSING_ID, np.int64)
        ids[np.arange(max_length) < self.row_lengths[:, None]] = self.values
        return ids


Encoded = np.ndarray | RaggedIds


class Encoder:
    """Turns raw columns into model inputs; built once per process, called per batch."""

    def __init__(self, fitted: FittedFeatures) -> None:
        self._fitted = fitted
        self._ids_by_vocabulary: dict[str, dict[str, int]] = {
            name: {token: id_ for id_, token in enumerate(vocabulary.tokens.to_pylist(), FIRST_VOCABULARY_ID)}
            | {"": MISSING_ID}
            for name, vocabulary in fitted.vocabularies.items()
        }

    def encode(
        self, table: pa.Table | pa.RecordBatch, features: tuple[Feature, ...] | None = None
    ) -> dict[str, Encoded]:
        """Return the inputs of ``features`` (default: all of the spec) for the rows of ``table``.

        Numeric: float32 ``[batch]``. Categorical: int64 ``[batch]``. Multi-valued: :class:`RaggedIds`.

        Raises:
            ColumnError: A column is absent or has a type that its feature cannot take.
        """
        return {
            feature.name: self._encode(feature, raw_column(table, feature))
            for feature in (self._fitted.spec.features if features is None else features)
        }

    def encode_padded(
        self, table: pa.Table | pa.RecordBatch, features: tuple[Feature, ...] | None = None
    ) -> dict[str, np.ndarray]:
        """Return what :meth:`encode` does, multi-valued features as int64 ``[batch, max_length]``."""
        lengths = {
            feature.name: feature.max_length
            for feature in (self._fitted.spec.features if features is None else features)
            if isinstance(feature, MultiValued)
        }
        return {
            name: column.padded(lengths[name]) if isinstance(column, RaggedIds) else column
            for name, column in self.encode(table, features).items()
        }

    def _encode(self, feature: Feature, column: pa.Array) -> Encoded:
        if isinstance(feature, Numeric):
            return self._encode_numeric(feature, column)
        if isinstance(feature, Categorical):
            return self._token_ids(feature, column)
        return self._encode_multi_valued(feature, column)

    def _encode_numeric(self, feature: Numeric, column: pa.Array) -> np.ndarray:
        values = numeric_values(column)
        offset, divisor = self._fitted.scaling(feature)
        filled = np.where(np.isnan(values), self._fitted.imputed(feature), values)
        return ((filled - offset) / divisor).astype(np.float32)

    def _token_ids(self, feature: Categorical | MultiValued, tokens: pa.Array) -> np.ndarray:
        # Looking up each distinct token once beats Arrow's index_in, which hashes the whole vocabulary per batch.
        encoded = tokens.dictionary_encode()
        ids = self._ids_by_vocabulary[self._fitted.spec.vocabulary_name(feature)]
        distinct = [ids.get(token, OUT_OF_VOCABULARY_ID) for token in encoded.dictionary.to_pylist()]
        return np.array([*distinct, MISSING_ID], np.int64)[encoded.indices.fill_null(len(distinct)).to_numpy()]

    def _encode_multi_valued(self, feature: MultiValued, column: pa.ListArray) -> RaggedIds:
        flat = column.flatten()
        lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        present = ~is_missing(flat)
        row_of_token = np.repeat(np.arange(len(lengths)), lengths)[present]
        kept_lengths = np.bincount(row_of_token, minlength=len(lengths)).astype(np.int64)
        ids = self._token_ids(feature, flat)[present]
        starts = np.repeat(np.cumsum(kept_lengths) - kept_lengths, kept_lengths)
        position = np.arange(len(ids)) - starts
        if feature.truncate == "head":
            position += feature.max_length - np.repeat(kept_lengths, kept_lengths)
            keep = position >= 0
        else:
            keep = position < feature.max_length
        return RaggedIds(ids[keep], np.minimum(kept_lengths, feature.max_length))


def numeric_values(column: pa.Array) -> np.ndarray:
    """Return float64 ``[rows]``, NaN where ``column`` is null."""
    # Unsafe, so that whole numbers above 2^53 are rounded as everywhere else instead of refused.
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def is_missing(tokens: pa.Array) -> np.ndarray:
    """Return bool ``[tokens]``: true where the token is null or empty."""
    return pc.equal(pc.binary_length(tokens), 0).fill_null(True).to_numpy(zero_copy_only=False)


def raw_column(table: pa.Table | pa.RecordBatch, feature: Feature) -> pa.Array:
    """Return the column of ``feature`` as the transform wants it: numbers, strings, or lists of strings.

    Raises:
        ColumnError: The column is absent, or its type cannot be read as the feature's kind.
    """
    index = table.schema.get_field_index(feature.name)
    if index < 0:
        raise ColumnError(
            f"column '{feature.name}' ({feature.kind}) is missing; the table has {table.schema.names}: "
            f"add it or take the feature out of the spec"
        )
    column = table.column(index)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not _fits(feature, column.type):
        raise ColumnError(
            f"column '{feature.name}' has type {column.type}, which a {feature.kind} feature cannot take; "
            f"cast it or change the feature's kind"
        )
    if isinstance(feature, Numeric):
        return column
    if isinstance(feature, Categorical):
        return column.cast(pa.string())
    return column.cast(pa.list_(pa.string()))


def raw_inputs(table: pa.Table, spec: FeatureSpec) -> pa.Table:
    """Return the columns that a model takes when it scores, in the types of its raw signature.

    Raises:
        ColumnError: A column is absent or cannot be read as its feature.
    """
    features = (*spec.query_features, *([spec.excluded] if spec.excluded else []))
    columns = {feature.name: raw_column(table, feature) for feature in features}
    numeric = [feature.name for feature in features if isinstance(feature, Numeric)]
    return pa.table(columns | {name: columns[name].cast(pa.float64()) for name in numeric})


def _fits(feature: Feature, column_type: pa.DataType) -> bool:
    if pa.types.is_null(column_type):
        return True
    if isinstance(feature, Numeric):
        return is_number(column_type)
    if isinstance(feature, Categorical):
        return _is_token(column_type)
    return (pa.types.is_list(column_type) or pa.types.is_large_list(column_type)) and (
        pa.types.is_null(column_type.value_type) or _is_token(column_type.value_type)
    )


def is_number(column_type: pa.DataType) -> bool:
    """Return whether a column of this type can be read as numbers."""
    return any(
        check(column_type)
        for check in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    )


def _is_token(column_type: pa.DataType) -> bool:
    return any(
        check(column_type)
        for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)
    )
