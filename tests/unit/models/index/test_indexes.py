"""Indexes against a full sort: exact always, the others nearly, and never what must not come back (R1, R2, R6)."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras

from mirrorspark.models.index import exact as exact_index
from mirrorspark.models.index.exact import ExactTopK
from mirrorspark.models.index.ivf import (
    RECALL_TARGET,
    InvertedLists,
    IvfTopK,
    inverted_lists,
    ivf_index,
    recall_by_lists,
)
from mirrorspark.models.index.scann import LEAST_CANDIDATES, ScannTopK
from mirrorspark.models.index.search import Best, Index, Queries, best_columns, recall
from tests.conftest import PATIENCE

LOWEST = float(np.finfo(np.float32).min)


def vectors(rows: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def whole_vectors(rows: int, dim: int, seed: int) -> np.ndarray:
    """Return small whole numbers: many scores are equal, and exact in every order of adding up."""
    return np.random.default_rng(seed).integers(-2, 3, (rows, dim)).astype(np.float32)


def clustered(rows: int, seed: int, clusters: int = 50, dim: int = 16) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(clusters, dim))
    return (centres[random.integers(0, clusters, rows)] + 0.5 * random.normal(size=(rows, dim))).astype(np.float32)


def queries(vectors: np.ndarray, excluded: np.ndarray | None = None) -> Queries:
    nothing = np.zeros((len(vectors), 0), np.int64)
    return Queries(tf.constant(vectors), tf.constant(nothing if excluded is None else excluded, tf.int64))


@functools.cache
def traced(index: Index) -> Callable[..., Best]:
    """Return the search as an exported model has it: k, the mask and any number of queries are inputs of one trace."""
    specs = (
        tf.TensorSpec([], tf.int32),
        tf.TensorSpec([None], tf.int64),
        tf.TensorSpec([None, index.exact.embeddings.shape[1]], tf.float32),
        tf.TensorSpec([None, None], tf.int64),
    )

    def search(k: tf.Tensor, ids: tf.Tensor, *parts: tf.Tensor) -> Best:
        return index.search(Queries(*parts), k, index.exact.offsets(ids))

    return tf.function(search, input_signature=specs, autograph=False)  # type: ignore[no-any-return]


def found_by(index: Index, asked: Queries, k: int, unavailable: np.ndarray | None = None) -> list[list[int]]:
    """Return the ids that ``index`` finds."""
    ids = tf.constant([] if unavailable is None else unavailable, tf.int64)
    best = traced(index)(tf.constant(k), ids, *asked)
    scores = best.scores.numpy()
    assert scores.shape == (len(asked.vectors), k)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert (best.ids.numpy()[scores == LOWEST] == 0).all()
    return [row[row_scores > LOWEST].tolist() for row, row_scores in zip(best.ids.numpy(), scores, strict=True)]


def sorted_by_numpy(
    embeddings: np.ndarray, asked: Queries, k: int, unavailable: np.ndarray | None = None
) -> list[list[int]]:
    """Plain twin: sort every candidate of every query; of equal ones the lower id comes first."""
    best = []
    for vector, excluded in zip(asked.vectors.numpy(), asked.excluded.numpy(), strict=True):
        forbidden = {0, 1, *excluded.tolist(), *([] if unavailable is None else unavailable.tolist())}
        scores = embeddings @ vector
        allowed = [number for number in range(len(embeddings)) if number not in forbidden]
        best.append(sorted(allowed, key=lambda number: (-scores[number], number))[:k])
    return best


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tiles so small that a hundred candidates are several blocks, and thirty queries several tiles."""
    monkeypatch.setattr(exact_index, "BLOCK_CANDIDATES", 32)
    monkeypatch.setattr(exact_index, "TILE_SCORES", 32 * 7)


@pytest.mark.parametrize("ids", [31, 32, 33, 64, 65, 102])
@pytest.mark.usefixtures("small_tiles")
def test_blocks_and_tiles_give_a_full_sort_with_equal_scores_by_id(ids: int) -> None:
    """R2: at every border of a block, for k above a block's size and above the catalogue's."""
    embeddings, random = whole_vectors(ids, 3, seed=1), np.random.default_rng(3)
    index, vectors = ExactTopK(embeddings), whole_vectors(30, 3, seed=2)
    # Ids may repeat, and 0 is padding.
    masked = queries(vectors, random.integers(0, ids, (30, 12))), random.integers(2, ids, ids // 3)
    for k in (1, 10, 40):
        for asked, unavailable in ((queries(vectors), None), masked):
            assert found_by(index, asked, k, unavailable) == sorted_by_numpy(embeddings, asked, k, unavailable), k


def test_one_block_gives_a_full_sort_with_equal_scores_by_id() -> None:
    embeddings, asked = whole_vectors(1_002, 3, seed=1), queries(whole_vectors(30, 3, seed=2))
    assert found_by(ExactTopK(embeddings), asked, 50) == sorted_by_numpy(embeddings, asked, 50)


@pytest.mark.parametrize("k", [1, 3, 16, 17, 128, 140])
def test_best_columns_are_those_of_one_pass(k: int) -> None:
    scores = np.random.default_rng(1).integers(0, 5, (200, 128)).astype(np.float32)
    found = best_columns(tf.constant(scores), k)
    expected = tf.math.top_k(scores, min(k, 128))
    assert found.ids.numpy()[:, :128].tolist() == expected.indices.numpy().tolist()
    assert found.scores.numpy()[:, :128].tolist() == expected.values.numpy().tolist()
    assert (found.scores.numpy()[:, 128:] == LOWEST).all()
    assert found.scores.shape == (200, k)


def test_reserved_ids_never_come_back_however_well_they_score() -> None:
    embeddings = np.array([[100.0], [100.0], [1.0], [2.0], [3.0]], np.float32)
    assert found_by(ExactTopK(embeddings), queries(np.ones((1, 1), np.float32)), 4) == [[4, 3, 2]]
    # Nor do the rows that make the groups whole: theirs would be the largest of these.
    assert found_by(ExactTopK(embeddings), queries(-np.ones((1, 1), np.float32)), 4) == [[2, 3, 4]]


def test_no_query_and_no_exclusion_are_fine() -> None:
    index = ExactTopK(vectors(12, 4, seed=1))
    nobody = Queries(tf.zeros((0, 4)), tf.zeros((0, 5), tf.int64))
    assert found_by(index, nobody, 3) == []
    assert index.search(nobody, 3, index.offsets()).ids.shape == (0, 3)


def test_an_exact_index_is_one_of_tensorflow_recommenders_with_its_values() -> None:
    """#53: from raw queries to identifiers, with exclusions, and as the candidates of its metric."""
    candidates, users = vectors(40, 4, seed=1), vectors(6, 4, seed=2)
    names = tf.constant([f"m{number}" for number in range(40)])
    table = tf_keras.layers.Embedding(6, 4, weights=[users])
    rows = tf.data.Dataset.from_tensor_slices((names, candidates)).batch(16)
    theirs = tfrs.layers.factorized_top_k.BruteForce(table, k=5).index_from_dataset(rows)
    ours = ExactTopK(query_model=table, k=5).index_from_dataset(rows)
    assert isinstance(ours, tfrs.layers.factorized_top_k.TopK)
    assert ours.is_exact()
    asked = tf.constant([3, 0, 5])
    seen = theirs(asked, k=2)[1]
    for call in (lambda index: index(asked), lambda index: index(asked, k=7)):
        np.testing.assert_allclose(call(ours)[0], call(theirs)[0], rtol=1e-6)
        assert call(ours)[1].numpy().tolist() == call(theirs)[1].numpy().tolist()
    assert ours(asked, k=50)[1].numpy().tolist() == ours(asked, k=40)[1].numpy().tolist()
    found = [index.query_with_exclusions(asked, seen)[1].numpy().tolist() for index in (ours, theirs)]
    assert found[0] == found[1]
    accuracies = []
    for index in (
        ExactTopK().index(candidates, names),
        tfrs.layers.factorized_top_k.BruteForce().index(candidates, names),
    ):
        metric = tfrs.metrics.FactorizedTopK(index, ks=(1, 5, 20))
        metric.update_state(users, candidates[:6], names[:6])
        accuracies.append([float(value) for value in metric.result()])
    assert accuracies[0] == accuracies[1]


def test_approximate_indexes_are_tensorflow_recommenders_too(exact: ExactTopK) -> None:
    """#53: they return ids, and say that they are not exact."""
    index = ivf_index(exact, vectors(50, 16, seed=3), 10)
    assert isinstance(index, tfrs.layers.factorized_top_k.TopK)
    assert not index.is_exact()
    asked = vectors(5, 16, seed=4)
    scores, ids = index(asked, k=10)
    best = index.search(queries(asked), 10, exact.offsets())
    np.testing.assert_array_equal(scores, best.scores)
    np.testing.assert_array_equal(ids, best.ids)
    with pytest.raises(NotImplementedError, match="IvfTopK is built from an ExactTopK"):
        index.index(asked)
    with pytest.raises(ValueError, match="the index has no candidates; call index"):
        ExactTopK().search(queries(asked), 1, tf.zeros([0]))


@pytest.fixture(scope="module")
def exact() -> ExactTopK:
    """Return 3,000 candidates around 50 centres."""
    return ExactTopK(clustered(3_002, seed=1))


@pytest.fixture(scope="module")
def ivf(exact: ExactTopK) -> IvfTopK:
    return ivf_index(exact, clustered(300, seed=2), 20)


@pytest.fixture(scope="module")
def scann(exact: ExactTopK) -> ScannTopK:
    pytest.importorskip("scann", reason="scann is not installed: it has wheels for Linux on x86-64 alone")
    return ScannTopK(exact, 20)


@pytest.fixture(params=["ivf", "scann"])
def nearly(request: pytest.FixtureRequest) -> Any:
    """Return each of the approximate indexes."""
    return request.getfixturevalue(request.param)


def test_nine_in_ten_of_the_best_are_found_without_what_is_masked(nearly: Index, exact: ExactTopK) -> None:
    """R1, R6: with each query's best five left out, and a tenth of the catalogue."""
    asked = clustered(200, seed=3)
    best = np.array(found_by(exact, queries(asked), 5))
    unavailable = np.arange(2, 3_002, 10)
    masked = queries(asked, best)
    found = found_by(nearly, masked, 20, unavailable)
    assert recall(np.array(found), np.array(found_by(exact, masked, 20, unavailable))) >= 0.9
    for row, excluded in zip(found, best, strict=True):
        assert len(set(row)) == 20
        assert not set(row) & {0, 1, *excluded.tolist(), *unavailable.tolist()}


@pytest.mark.parametrize("left", [7, 20, 100])
def test_lists_are_full_wherever_enough_is_left(nearly: Index, exact: ExactTopK, left: int) -> None:
    """R6: also where the parts that an index looks into hold hardly any of what is available."""
    unavailable = np.random.default_rng(4).permutation(np.arange(2, 3_002))[left:]
    asked = queries(clustered(50, seed=3))
    found = found_by(nearly, asked, 20, unavailable)
    assert [len(row) for row in found] == [min(20, left)] * 50
    # A row that lacks one of twenty gets the exact ones: all of them, where there are no more.
    if left <= 20:
        assert found == found_by(exact, asked, 20, unavailable)


@pytest.mark.parametrize("kind", ["ivf", "scann"])
def test_removed_candidates_are_in_no_index(exact: ExactTopK, kind: str) -> None:
    """R1: of 3,000 the even ones and the last hundred are removed."""
    removed = np.union1d(np.arange(2, 3_002, 2), np.arange(2_902, 3_002))
    fewer = ExactTopK(exact.embeddings[: exact.id_count].numpy(), removed)
    assert fewer.candidate_ids.tolist() == list(range(3, 2_902, 2))
    # A row may exclude a removed candidate.
    asked = queries(clustered(100, seed=3), np.full((100, 1), 3_001))
    best = found_by(fewer, asked, 20)
    assert best == found_by(exact, asked, 20, removed)
    if kind == "scann":
        pytest.importorskip("scann", reason="scann is not installed: it has wheels for Linux on x86-64 alone")
    index = ScannTopK(fewer, 20) if kind == "scann" else ivf_index(fewer, clustered(300, seed=2), 20)
    found = found_by(index, asked, 20)
    assert not {number for row in found for number in row} & {0, 1, *removed.tolist()}
    assert recall(np.array(found), np.array(best)) >= 0.9


def test_approximate_indexes_take_no_query(nearly: Index) -> None:
    assert found_by(nearly, Queries(tf.zeros((0, 16)), tf.zeros((0, 5), tf.int64)), 3) == []


def test_every_cell_searched_is_the_exact_search(exact: ExactTopK) -> None:
    made = inverted_lists(exact.embeddings[: exact.id_count].numpy(), seed=1)
    every = IvfTopK(exact, made, len(made.ids))
    random = np.random.default_rng(5)
    asked = queries(clustered(40, seed=3), random.integers(0, 3_002, (40, 30)))
    unavailable = random.integers(2, 3_002, 1_000)
    assert found_by(every, asked, 30, unavailable) == found_by(exact, asked, 30, unavailable)


def test_cells_hold_every_candidate_once_and_none_is_much_too_large(exact: ExactTopK) -> None:
    made = inverted_lists(exact.embeddings[: exact.id_count].numpy(), seed=1)
    assert sorted(made.ids[made.ids > 0].tolist()) == list(range(2, 3_002))
    # Twice the square root of 3,000 is 109; one and a half times 3,000 / 109 are 41, in whole groups of 32 at most 64.
    assert made.ids.shape[1] <= 64
    again = inverted_lists(exact.embeddings[: exact.id_count].numpy(), seed=1)
    assert (made.ids == again.ids).all()
    assert (made.centres == again.centres).all()


def test_equal_candidates_are_cut_into_cells_too() -> None:
    made = inverted_lists(np.ones((402, 4), np.float32), seed=1)
    assert sorted(made.ids[made.ids > 0].tolist()) == list(range(2, 402))
    # Twice the square root of 400 is 40: at most 15 in a list, in one group.
    assert made.ids.shape[1] == 32
    assert (made.ids > 0).sum(axis=1).max() <= 15


def test_recall_by_cells_is_the_share_of_the_best_in_the_nearest() -> None:
    ivf = InvertedLists(np.array([[1, 0], [0, 1], [-1, 0]], np.float32), np.array([[2, 3], [4, 0], [5, 0]]))
    asked = np.array([[3.0, 1.0], [0.0, 2.0]], np.float32)
    # Of the first query, the lists come in the order given; of the second the middle one, then the first.
    assert recall_by_lists(ivf, asked, np.array([[2, 4], [3, 5]])).tolist() == [0.25, 0.75, 1.0]


def test_the_cells_that_are_searched_reach_the_target_on_queries_of_their_own(ivf: IvfTopK, exact: ExactTopK) -> None:
    asked = queries(clustered(300, seed=2))
    reached = recall(np.array(found_by(ivf, asked, 20)), np.array(found_by(exact, asked, 20)))
    assert RECALL_TARGET <= reached < 1
    fewer = IvfTopK(exact, inverted_lists(exact.embeddings[: exact.id_count].numpy(), seed=1), 1)
    assert recall(np.array(found_by(fewer, asked, 20)), np.array(found_by(exact, asked, 20))) < reached


def test_recall_counts_what_was_found_in_any_order() -> None:
    assert recall(np.array([[3, 2, 9], [5, 6, 7]]), np.array([[2, 3], [4, 5]])) == 0.75


@pytest.fixture(params=[ExactTopK, IvfTopK])
def stock_index(request: pytest.FixtureRequest, exact: ExactTopK, ivf: IvfTopK) -> Any:
    """Return each index that needs no op but TensorFlow's."""
    return exact if request.param is ExactTopK else ivf


_PROGRAM = """
import sys
import numpy as np
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
given = np.load(sys.argv[2])
best = loaded.search(tf.constant(given["vectors"]), tf.constant(given["excluded"]), tf.constant(given["unavailable"]))
np.save(sys.argv[3], best[0].numpy())
assert not {"scann", "models", "tensorflow_recommenders"} & set(sys.modules)
"""


@pytest.mark.full
@pytest.mark.process
def test_a_process_without_scann_and_without_this_library_finds_the_same(stock_index: Index, tmp_path: Path) -> None:
    """R1: saved, and loaded by TensorFlow alone."""
    exact = stock_index.exact
    module = tf.Module()
    module.index = stock_index
    specs = [
        tf.TensorSpec([None, 16], tf.float32),
        tf.TensorSpec([None, None], tf.int64),
        tf.TensorSpec([None], tf.int64),
    ]
    module.search = tf.function(
        lambda vectors, excluded, ids: tuple(stock_index.search(Queries(vectors, excluded), 20, exact.offsets(ids))),
        input_signature=specs,
        autograph=False,
    )
    tf.saved_model.save(module, str(tmp_path / "saved"))
    random = np.random.default_rng(6)
    given = {
        "vectors": clustered(40, seed=3),
        "excluded": random.integers(0, 3_002, (40, 30)),
        "unavailable": random.integers(2, 3_002, 500),
    }
    np.savez(tmp_path / "given.npz", **given)
    arguments = [str(tmp_path / name) for name in ("saved", "given.npz", "found.npy")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments],
        env=environment | {"CUDA_VISIBLE_DEVICES": "-1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = found_by(stock_index, queries(given["vectors"], given["excluded"]), 20, given["unavailable"])
    assert np.load(tmp_path / "found.npy").tolist() == expected


_MEMORY = """
import resource
import numpy as np
import tensorflow as tf
from mirrorspark.models.index.exact import ExactTopK
from mirrorspark.models.index.search import Queries
random = np.random.default_rng(1)
index = ExactTopK(random.normal(size=(20_000, 8)).astype(np.float32))
queries = Queries(tf.constant(random.normal(size=(20_000, 8)), tf.float32), tf.zeros([20_000, 0], tf.int64))
search = tf.function(lambda *parts: index.search(Queries(*parts), 10, index.offsets()), autograph=False)
search(queries.vectors[:500], queries.excluded[:500])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
search(*queries)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.full
@pytest.mark.process
def test_an_exact_search_takes_no_memory_for_all_scores_at_once() -> None:
    """R2, R3: those of 20,000 queries and candidates take 1.6 GB."""
    threads = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY],
        env=os.environ | threads | {"CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE * 100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 400e6


@pytest.mark.usefixtures("scann")
def test_scann_refuses_a_catalogue_that_it_cannot_be_trained_on() -> None:
    count = LEAST_CANDIDATES - 1
    with pytest.raises(ValueError, match=f"cannot index {count} candidates, it needs 16; use the exact index"):
        ScannTopK(ExactTopK(vectors(count + 2, 8, seed=1)), 5)
    ScannTopK(ExactTopK(vectors(count + 3, 8, seed=1)), 5)
