"""The query of a row of a retrieval dataset, the model's inputs for ranking the candidates, and what it holds back."""

import numpy as np
import numpy.typing as npt

from mirrorspark.data_pipelines.dataset import block_format
from mirrorspark.data_pipelines.features import FeatureSpec, RaggedIds, SparseRows, kinds, mixed

Digests = npt.NDArray[np.uint64]


def query_digests(block: block_format.Block, spec: FeatureSpec, first_row: int) -> Digests:
    """Return a digest of the query of each row, uint64 ``[rows]``: equal for rows that ask for the same list.

    Such rows have equal query features and exclude the same candidates, whatever they hold back. Two queries of a
    million have the same digest by accident with a probability of 3e-8. A row whose label is a list holds back all that
    its user chose, and is a query of its own.

    Args:
        block: The rows, read with their keys, which come with the exclusions.
        spec: The features.
        first_row: The number of the block's first row in its split.
    """
    if spec.label.lists:
        return _mixed(np.arange(first_row, first_row + block.rows) + 1)
    digests = np.zeros(block.rows, np.uint64)
    for number, feature in enumerate(spec.query_features, start=1):
        digests += _mixed(_column_digests(block.features[feature.name]) + np.uint64(number))
    if block.excluded is not None:
        # The sum does not depend on the order in which the row has them.
        digests += _mixed(_mixed(block.excluded).sum(axis=1, dtype=np.uint64))
    return digests


def held_back_candidates(block: block_format.Block, spec: FeatureSpec) -> RaggedIds:
    """Return the ids of the candidates that each row holds back: those of its list, or else one.

    A candidate out of vocabulary is never recommended. Those in lists have the ids -2, -3 and so on, by which each of
    them counts; else all have the same id.

    Args:
        block: The rows, read with their keys, which come with the lists.
        spec: The features.
    """
    held_back = block.held_back or RaggedIds(
        np.asarray(block.features[spec.candidate.name]), np.ones(block.rows, np.int64)
    )
    unknown = kinds.OUT_OF_VOCABULARY_ID if block.held_back is None else -2 - np.arange(len(held_back.values))
    ids = np.where(held_back.values < kinds.FIRST_VOCABULARY_ID, unknown, held_back.values)
    return RaggedIds(ids, held_back.row_lengths)


def _column_digests(column: np.ndarray | SparseRows) -> Digests:
    if isinstance(column, SparseRows):
        entries = _mixed(column.indices << np.int64(32) ^ _bits(column.values))
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(entries, dtype=np.uint64)])
        return np.diff(sums[column.row_starts])
    values = (_bits(column) if column.dtype.kind == "f" else column.astype(np.int64)).reshape(len(column), -1)
    # Each place of a list has its own odd factor. The padding of lists, 0, adds nothing.
    factors = _mixed(np.arange(1, values.shape[1] + 1)) | np.uint64(1)
    return (_mixed(values) * factors).sum(axis=1, dtype=np.uint64)


def _bits(values: np.ndarray) -> npt.NDArray[np.int64]:
    """Return the bits of float32 numbers; those of 0 and -0 are equal."""
    return (np.asarray(values, np.float32) + np.float32(0)).view(np.uint32).astype(np.int64)


def _mixed(numbers: np.ndarray) -> Digests:
    """Return a number for each that depends on all of its bits, and is 0 for 0."""
    return mixed(np.ascontiguousarray(numbers).astype(np.int64).ravel()).reshape(numbers.shape)
