"""R2: the best candidates by tiles are those that a sort of all scores begins with: ties, exclusions, short lists."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.training.results.evaluation import ranking
from mirrorspark.training.results.evaluation.ranking import best_candidates


def by_full_sort(
    queries: np.ndarray, candidates: np.ndarray, excluded: np.ndarray | None, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Plain twin: all scores of all rows at once, sorted as a whole."""
    scores = queries @ candidates.T
    scores[:, :2] = -np.inf
    if excluded is not None:
        np.put_along_axis(scores, excluded, -np.inf, axis=1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return best, np.take_along_axis(scores, best, axis=1)


def check_same(queries: np.ndarray, candidates: np.ndarray, excluded: np.ndarray | None, k: int) -> None:
    ids, scores = best_candidates(queries, candidates, excluded, k)
    expected_ids, expected_scores = by_full_sort(queries, candidates, excluded, k)
    assert (ids.dtype, scores.dtype) == (np.int64, np.float32)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected_scores)


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(0, 9),
    ids=st.integers(3, 40),
    spread=st.integers(0, 4),
    seen=st.one_of(st.none(), st.integers(0, 30)),
    tile=st.integers(1, 200),
    data=st.data(),
)
def test_tiles_give_what_a_sort_of_all_scores_begins_with(
    seed: int, rows: int, ids: int, spread: int, seen: int | None, tile: int, data: st.DataObject
) -> None:
    """Small whole numbers: products are exact in any order of summation, and many are equal."""
    rng = np.random.default_rng(seed)
    queries = rng.integers(-spread, spread + 1, (rows, 3)).astype(np.float32)
    candidates = rng.integers(-spread, spread + 1, (ids, 3)).astype(np.float32)
    # Padded with 0, and with repeats.
    excluded = None if seen is None else rng.integers(0, ids, (rows, seen))
    k = data.draw(st.integers(1, ids), label="k")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "TILE_SCORES", tile)
        check_same(queries, candidates, excluded, k)


def test_equal_candidates_are_ordered_by_id_also_at_the_end_of_the_list() -> None:
    candidates = np.array([[9.0], [9.0], [1.0], [2.0], [1.0], [2.0], [1.0]], np.float32)
    ids, scores = best_candidates(np.ones((1, 1), np.float32), candidates, None, 3)
    assert ids.tolist() == [[3, 5, 2]]
    assert scores.tolist() == [[2.0, 2.0, 1.0]]


def test_a_row_with_few_candidates_left_ends_with_minus_infinity() -> None:
    candidates = np.arange(6, dtype=np.float32)[:, np.newaxis]
    ids, scores = best_candidates(np.ones((1, 1), np.float32), candidates, np.array([[5, 3, 5, 0]]), 4)
    assert ids[0, :2].tolist() == [4, 2]
    assert scores.tolist() == [[4.0, 2.0, -np.inf, -np.inf]]


def test_scores_that_are_no_numbers_come_last() -> None:
    candidates = np.array([[0.0], [0.0], [1.0], [np.nan], [3.0], [np.nan], [2.0]], np.float32)
    for k in range(1, 8):
        check_same(np.ones((2, 1), np.float32), candidates, np.array([[2], [0]]), k)


def test_memory_is_that_of_a_tile_whatever_the_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """All scores would take 12 MB, and a sort of them 24 MB more."""
    monkeypatch.setattr(ranking, "TILE_SCORES", 1 << 16)
    rng = np.random.default_rng(1)
    queries = rng.normal(size=(300, 4)).astype(np.float32)
    candidates = rng.normal(size=(10_000, 4)).astype(np.float32)
    tracemalloc.start()
    try:
        best_candidates(queries, candidates, None, 10)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_500_000
