"""Top-k layers against a full sort: exact always, ScaNN nearly, and never what is excluded or reserved (R1, R6)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from models.top_k import SCANN_LEAST_CANDIDATES, ExactTopK, ScannTopK

LOWEST = float(np.finfo(np.float32).min)


def tokens(count: int) -> list[str]:
    return [f"movie-{number}" for number in range(count)]


def vectors(rows: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def sorted_by_numpy(
    queries: np.ndarray, embeddings: np.ndarray, k: int, excluded: np.ndarray | None
) -> list[list[bytes]]:
    """Plain twin: sort every candidate of every query."""
    best = []
    for row, query in enumerate(queries):
        scores = embeddings[2:] @ query
        allowed = [i for i in range(len(scores)) if excluded is None or i + 2 not in excluded[row]]
        order = sorted(allowed, key=lambda i: -scores[i])[:k]
        best.append([f"movie-{i}".encode() for i in order])
    return best


@pytest.mark.parametrize("excluding", [False, True])
def test_exact_top_k_is_a_full_sort(excluding: bool) -> None:
    embeddings, queries = vectors(102, 8, seed=1), vectors(30, 8, seed=2)
    rng = np.random.default_rng(3)
    # Ids may repeat, and 0 is padding.
    excluded = rng.integers(0, 102, (30, 12)) if excluding else None
    found = ExactTopK(embeddings, tokens(100), k=10)(
        tf.constant(queries), None if excluded is None else tf.constant(excluded)
    )
    assert found["candidates"].numpy().tolist() == sorted_by_numpy(queries, embeddings, 10, excluded)
    scores = found["scores"].numpy()
    assert (scores.shape, scores.dtype) == ((30, 10), np.float32)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_reserved_ids_never_come_back_however_well_they_score() -> None:
    embeddings = np.array([[100.0], [100.0], [1.0], [2.0], [3.0]], np.float32)
    found = ExactTopK(embeddings, tokens(3), k=3)(tf.constant([[1.0]]), None)
    assert found["candidates"].numpy().tolist() == [[b"movie-2", b"movie-1", b"movie-0"]]
    assert found["scores"].numpy().tolist() == [[3.0, 2.0, 1.0]]


def test_where_exclusions_leave_too_few_the_rest_is_empty() -> None:
    embeddings = np.array([[9.0], [9.0], [1.0], [2.0], [3.0]], np.float32)
    found = ExactTopK(embeddings, tokens(3), k=3)(tf.constant([[1.0]]), tf.constant([[4, 2, 0]], tf.int64))
    assert found["candidates"].numpy().tolist() == [[b"movie-1", b"", b""]]
    assert found["scores"].numpy().tolist() == [[2.0, LOWEST, LOWEST]]


def test_no_query_and_no_exclusion_are_fine() -> None:
    index = ExactTopK(vectors(12, 4, seed=1), tokens(10), k=3)
    assert index(tf.zeros((0, 4)), tf.zeros((0, 5), tf.int64))["candidates"].shape == (0, 3)
    assert index(tf.zeros((2, 4)), tf.zeros((2, 0), tf.int64))["candidates"].shape == (2, 3)


@pytest.mark.parametrize("k", [0, 4])
@pytest.mark.parametrize("kind", [ExactTopK, ScannTopK])
def test_a_k_that_cannot_be_met_is_refused(kind: Callable[..., object], k: int) -> None:
    with pytest.raises(ValueError, match=f"k {k} cannot be met by 3 candidates; use 1 to 3"):
        kind(vectors(5, 4, seed=1), tokens(3), k)


def test_exact_top_k_is_part_of_a_saved_model(tmp_path: Path) -> None:
    embeddings, queries = vectors(22, 4, seed=1), tf.constant(vectors(3, 4, seed=2))
    module = tf.Module()
    module.index = ExactTopK(embeddings, tokens(20), k=5)
    spec = [tf.TensorSpec([None, 4], tf.float32), tf.TensorSpec([None, None], tf.int64)]
    module.search = tf.function(lambda *inputs: module.index(*inputs), input_signature=spec)
    excluded = tf.constant([[2], [3], [0]], tf.int64)
    expected = module.search(queries, excluded)["candidates"].numpy().tolist()
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    assert loaded.search(queries, excluded)["candidates"].numpy().tolist() == expected


@pytest.fixture(scope="module")
def scann() -> None:
    pytest.importorskip("scann", reason="scann is not installed: it has wheels for Linux on x86-64 alone")


@pytest.mark.usefixtures("scann")
def test_scann_finds_nine_in_ten_of_the_exact_candidates() -> None:
    embeddings, queries = vectors(1_002, 16, seed=1), tf.constant(vectors(100, 16, seed=2))
    # Leave out each query's best five, as one does with what a user has seen.
    best = np.argsort(-(queries.numpy() @ embeddings[2:].T), axis=1)[:, :5] + 2
    excluded = tf.constant(best, tf.int64)
    exact = ExactTopK(embeddings, tokens(1_000), k=10)(queries, excluded)["candidates"].numpy()
    found = ScannTopK(embeddings, tokens(1_000), k=10)(queries, excluded)
    candidates = found["candidates"].numpy()
    assert candidates.shape == exact.shape
    recall = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(candidates, exact, strict=True)])
    assert recall >= 0.9
    left_out = [{f"movie-{i - 2}".encode() for i in row} for row in best]
    assert not any(set(row) & forbidden for row, forbidden in zip(candidates, left_out, strict=True))
    assert (np.diff(found["scores"].numpy(), axis=1) <= 0).all()


@pytest.mark.usefixtures("scann")
def test_scann_leaves_empty_what_its_leaves_do_not_hold() -> None:
    # Three of the five leaves are searched, so not all of the 30 candidates are found.
    index = ScannTopK(vectors(32, 8, seed=1), tokens(30), k=30)
    found = index(tf.constant(vectors(4, 8, seed=2)), None)
    candidates, scores = found["candidates"].numpy(), found["scores"].numpy()
    assert (candidates == b"").any()
    assert ((candidates == b"") == (scores == LOWEST)).all()
    for row in candidates:
        real = [token for token in row if token]
        assert len(real) == len(set(real))


@pytest.mark.usefixtures("scann")
def test_scann_refuses_a_catalogue_that_it_cannot_be_trained_on() -> None:
    count = SCANN_LEAST_CANDIDATES - 1
    with pytest.raises(ValueError, match=f"cannot index {count} candidates, it needs 16; use the exact index"):
        ScannTopK(vectors(count + 2, 8, seed=1), tokens(count), k=5)
    ScannTopK(vectors(count + 3, 8, seed=1), tokens(count + 1), k=5)
