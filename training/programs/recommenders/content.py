"""The content of items: rows of weights from their features, and the weights of items that nobody has had."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, diags_array, hstack  # type: ignore[import-untyped]

from mirrorspark.data_pipelines.features import EncodedRows, FittedFeatures, ItemTable, SparseRows, item_rows, kinds
from mirrorspark.scoring.output import keep_best

# Words distinguish an item more than a genre or a year does. Twice was better than once, half and four times on
# validation rows (docs/quality.md).
_WEIGHT_OF_TEXTS = 2.0

# Number of equal shares of the items that a number is divided into: items of one share have it in common.
_SHARES_OF_NUMBERS = 20

# Items that a new one takes its weights from, each by its cosine to this power.
_NEIGHBOURS = 20
_SHARPNESS = 3

_ITEMS_AT_ONCE = 1_000

Numbers = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ItemContent:
    """Rows whose products are the cosines of items; their length is 1 where an item has all features.

    Attributes:
        tokens: Sparse float32 ``[items, tokens]``.
        vectors: float32 ``[items, any]``.
    """

    tokens: Any
    vectors: Numbers

    def cosines(self, items: slice | npt.NDArray[np.int64]) -> Numbers:
        """Return the cosines of some items with all, float32 ``[some, items]``."""
        of_tokens = (self.tokens[items] @ self.tokens.T).toarray()
        return np.asarray(of_tokens + self.vectors[items] @ self.vectors.T, np.float32)


def item_content(fitted: FittedFeatures) -> ItemContent | None:
    """Return the content of all candidates by the table of items; None without one.

    Each feature of an item is a row of length 1: its tokens by their inverse document frequencies (tf-idf), numbers as
    tokens of twenty equal shares, vectors and sparse features as they are. A cosine is the mean of those of the
    features, in which texts count twice. A feature that an item lacks counts as 0: the others alone say less than all
    together.
    """
    if fitted.items is None:
        return None
    rows, features = item_rows.encoded_items(fitted.items), fitted.items.features.spec.query_features
    weights = [_WEIGHT_OF_TEXTS if isinstance(of, kinds.Text | kinds.TextEmbedding) else 1.0 for of in features]
    none = np.zeros((fitted.id_count(fitted.spec.candidate) - kinds.FIRST_VOCABULARY_ID, 0), np.float32)
    tokens, vectors = [csr_array(none)], [none]
    for feature, weight in zip(features, weights, strict=True):
        own, length = _weights(feature, rows[feature.name], fitted.items), np.sqrt(weight / sum(weights))
        if feature.form == "vector":
            vectors.append(own * _scales(own, length)[:, None])
        else:
            tokens.append(diags_array(_scales(own, length)) @ own)
    return ItemContent(hstack(tokens, format="csr", dtype=np.float32), np.concatenate(vectors, axis=1))


def _weights(feature: kinds.Feature, values: EncodedRows, items: ItemTable) -> Any:
    """Return the weights of a feature's tokens, sparse ``[items, tokens]``, or a vector as it is, ``[items, size]``."""
    if isinstance(values, SparseRows):
        assert isinstance(feature, kinds.Sparse)  # noqa: S101 - nothing else is encoded so
        parts = values.values, values.indices, values.row_starts
        return csr_array(parts, (len(values.row_lengths), feature.size))[kinds.FIRST_VOCABULARY_ID :]
    values = values[kinds.FIRST_VOCABULARY_ID :]
    if feature.form == "vector":
        return values
    if feature.form == "value":
        values = _shares(values, item_rows.known_values(items, feature)[kinds.FIRST_VOCABULARY_ID :])
    return _tf_idf(values)


def _scales(rows: Any, length: float) -> Numbers:
    """Return the factors that give rows this length, float32 ``[rows]``; 0 for a row of zeros."""
    lengths = np.sqrt(np.asarray((rows * rows).sum(axis=1)))
    return np.divide(length, lengths, out=np.zeros_like(lengths), where=lengths > 0).astype(np.float32)


def weights_of_new_items(weights: Numbers, is_new: npt.NDArray[np.bool_], content: ItemContent) -> Numbers:
    """Return the weights of all items for new ones: the means of those for the items with the nearest content.

    A mean is by the cosines to the third power. An item without content has weights of 0.

    Source: Gantner et al. 2010, "Learning Attribute-to-Feature Mappings for Cold-Start Recommendations", of which this
    is the mapping by nearest neighbours, here of weights between items.

    Args:
        weights: float32 ``[items, items]``.
        is_new: ``[items]``, true for those without weights of their own.
        content: The features of the items.

    Returns:
        float32 ``[items, new items]``.
    """
    new = np.flatnonzero(is_new)
    parts = [_shares_of_neighbours(new[start : start + _ITEMS_AT_ONCE], is_new, content) for start in _starts(len(new))]
    shares = np.concatenate([np.zeros((0, _NEIGHBOURS), np.float32), *(part[1] for part in parts)])
    neighbours = np.concatenate([np.zeros((0, _NEIGHBOURS), np.int64), *(part[0] for part in parts)])
    of_new = np.repeat(np.arange(len(new)), _NEIGHBOURS)
    means = csr_array((shares.ravel(), (neighbours.ravel(), of_new)), (len(weights), len(new)))
    found = np.empty((len(weights), len(new)), np.float32)
    for start in _starts(len(weights)):
        found[start : start + _ITEMS_AT_ONCE] = weights[start : start + _ITEMS_AT_ONCE] @ means
    return found


def _starts(items: int) -> range:
    return range(0, items, _ITEMS_AT_ONCE)


def _shares_of_neighbours(
    some: npt.NDArray[np.int64], is_new: npt.NDArray[np.bool_], content: ItemContent
) -> tuple[npt.NDArray[np.int64], Numbers]:
    """Return the nearest items that are not new, and their shares in the mean, each ``[some, neighbours]``."""
    cosines = content.cosines(some)
    # The kernel passes over NaN.
    cosines[:, is_new] = np.nan
    cosines[cosines <= 0] = np.nan
    places, counts = np.zeros((len(some), _NEIGHBOURS), np.int64), np.zeros(len(some), np.int64)
    keep_best(cosines.ravel(), np.arange(len(some) + 1) * cosines.shape[1], places, counts)
    powers = np.where(np.arange(_NEIGHBOURS) < counts[:, None], cosines.ravel()[places] ** _SHARPNESS, 0)
    total = powers.sum(axis=1, keepdims=True)
    shares = np.divide(powers, total, out=np.zeros_like(powers), where=total > 0)
    return places % cosines.shape[1], shares


def _tf_idf(ids: npt.NDArray[np.int64]) -> Any:
    """Return the inverse document frequency of each item's tokens, sparse float32 ``[items, tokens]``.

    Args:
        ids: ``[items]`` or ``[items, any]``; missing tokens and those out of vocabulary do not count.
    """
    ids = ids.reshape(len(ids), -1)
    item, place = np.nonzero(ids >= kinds.FIRST_VOCABULARY_ID)
    tokens, token = np.unique(ids[item, place], return_inverse=True)
    pairs = np.unique(item * max(len(tokens), 1) + token)
    item, token = np.divmod(pairs, max(len(tokens), 1))
    idf = np.log((1 + len(ids)) / (1 + np.bincount(token, minlength=len(tokens)))).astype(np.float32)
    return csr_array((idf[token], (item, token)), (len(ids), len(tokens)))


def _shares(numbers: Numbers, is_known: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return ids of the equal shares of the items that known numbers are in; 0 for the others."""
    if not is_known.any():
        return np.zeros(len(numbers), np.int64)
    boundaries = np.unique(np.quantile(numbers[is_known], np.arange(1, _SHARES_OF_NUMBERS) / _SHARES_OF_NUMBERS))
    ids = np.searchsorted(boundaries, numbers, side="right") + kinds.FIRST_VOCABULARY_ID
    return np.where(is_known, ids, 0)
