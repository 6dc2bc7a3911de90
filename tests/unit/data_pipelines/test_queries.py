"""Rows that ask for the same list have the same digest, and others another one."""

import dataclasses
from typing import Any

import numpy as np

from mirrorspark.data_pipelines.dataset.block_format import Block
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, MultiValued, Numeric, Sparse, Vector
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import SparseRows
from mirrorspark.data_pipelines.reading.queries import query_digests

SPEC = FeatureSpec(
    (
        Numeric("age"),
        Categorical("user"),
        MultiValued("watched", max_length=3, vocabulary_of="movie"),
        Sparse("words", size=9),
        Vector("face", size=2),
        Categorical("movie"),
    ),
    Label("movie", "candidate"),
    ("row",),
    exclude="seen",
)


def rows(seen: list[list[int]], **changed: Any) -> Block:
    """Return rows that differ in ``changed``, which has a column each."""
    count = len(seen)
    columns: dict[str, Any] = {
        "age": np.full(count, 0.5, np.float32),
        "user": np.full(count, 3),
        "watched": np.tile([2, 3, 0], (count, 1)),
        "words": SparseRows(np.tile([1, 4], count), np.tile(np.float32([1, 2]), count), np.full(count, 2)),
        "face": np.tile(np.float32([0, 1]), (count, 1)),
        "movie": np.full(count, 2),
    }
    return Block(columns | changed, None, np.ones(count, np.float32), {}, np.array(seen))


def test_a_query_is_all_that_a_model_reads_and_excludes_but_not_what_is_held_back() -> None:
    same = [
        rows([[4, 5, 0]] * 2, movie=np.array([2, 3])),
        rows([[5, 4]], age=np.float32([0.5]), face=np.float32([[-0.0, 1.0]])),
    ]
    others = [
        rows([[4, 6]]),
        rows([[4, 5]], age=np.float32([0.25])),
        rows([[4, 5]], user=np.array([0])),
        rows([[4, 5]], watched=np.array([[3, 2, 0]])),
        rows([[4, 5]], watched=np.array([[2, 3, 3]])),
        rows([[4, 5]], words=SparseRows(np.array([1, 5]), np.float32([1, 2]), np.array([2]))),
        rows([[4, 5]], words=SparseRows(np.array([1, 4]), np.float32([2, 1]), np.array([2]))),
        rows([[4, 5]], face=np.float32([[1, 0]])),
    ]
    digests = [query_digests(block, SPEC, 0).tolist() for block in (*same, *others)]
    assert digests[0] == [*digests[1], *digests[1]]
    assert len({digest for found in digests for digest in found}) == 1 + len(others)


def test_a_row_that_holds_back_a_list_is_a_query_of_its_own() -> None:
    """#55: as a user among users of the same, or no, history."""
    spec = dataclasses.replace(SPEC, label=Label("movie", "candidate", lists=True))
    blocks = (rows([[4, 5]] * 3), rows([[4, 5]] * 2))
    digests = [query_digests(block, spec, first).tolist() for block, first in zip(blocks, (0, 3), strict=True)]
    assert len({digest for found in digests for digest in found}) == 5


def test_sparse_rows_keep_their_entries() -> None:
    some = SparseRows(np.array([1, 4, 2]), np.float32([1, 2, 3]), np.array([2, 0, 1])).at(np.array([0, 2]))
    assert (some.indices.tolist(), some.values.tolist(), some.row_lengths.tolist()) == ([1, 4, 2], [1, 2, 3], [2, 1])
    none = SparseRows(np.array([1, 4, 2]), np.float32([1, 2, 3]), np.array([2, 0, 1])).at(np.array([1]))
    assert (none.indices.tolist(), none.row_lengths.tolist()) == ([], [0])
