"""R2: recall and NDCG after an epoch are those of a full sort, whatever the ties, workers and rows of a query."""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.callbacks.early_stopping import AgreedEarlyStopping
from mirrorspark.data_pipelines.dataset.block_format import Block
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import RaggedIds
from mirrorspark.models import two_tower
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer
from mirrorspark.training.programs.keras_fit import rank_validation
from mirrorspark.training.programs.keras_fit.rank_validation import RankValidation, share_of_queries
from mirrorspark.training.protocol.outcomes.activity import Activity, Phase
from tests.unit.models.conftest import rating_features  # noqa: F401 - a fixture
from tests.unit.training.test_evaluate_run import RETRIEVAL_SPEC, HandmadeDataset, block


class Table:
    """A candidate tower of fixed vectors."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors, self.input_dim = vectors, len(vectors)

    def __call__(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.constant(self.vectors[ids.numpy()])


def logs_of(
    blocks: list[Block],
    users: np.ndarray,
    movies: np.ndarray,
    k: int,
    workers: int = 1,
    most: int | None = None,
    spec: FeatureSpec = RETRIEVAL_SPEC,
) -> dict[str, float]:
    """Return the logs of ``workers`` workers, whose sums meet in a list."""
    dataset: Any = HandmadeDataset(spec, {"validation": blocks})
    sent: list[np.ndarray] = []

    def gather(strategy: object, rows: np.ndarray) -> np.ndarray:
        sent.append(rows)
        return np.concatenate(sent)

    logs: dict[str, float] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_validation, "gather_over_ranks", gather)
        for rank in range(workers):
            ranked = RankValidation(
                lambda inputs: tf.gather(users, inputs["user"]),
                dataset,
                k=k,
                rank=rank,
                workers=workers,
                activity=Activity(),
                most_queries=most,
            )
            strategy = tf.distribute.get_strategy()
            ranked.set_model(SimpleNamespace(candidate_tower=Table(movies), distribute_strategy=strategy))
            # The last rank has received the sums of all others.
            with np.errstate(invalid="ignore"):
                ranked.on_epoch_end(0, logs)
    return logs


def by_full_sort(blocks: list[Block], users: np.ndarray, movies: np.ndarray, k: int) -> tuple[float, float]:
    """Plain twin: one sort of all scores per query."""
    wanted: dict[tuple[int, frozenset[int]], set[int]] = {}
    for part in blocks:
        assert part.excluded is not None
        for user, movie, seen in zip(part.features["user"], part.features["movie"], part.excluded, strict=True):
            wanted.setdefault((int(user), frozenset(seen) - {0}), set()).add(max(int(movie), 1))
    recalls, ndcgs = [], []
    for (user, seen), relevant in wanted.items():
        scores = movies @ users[user]
        order = [movie for movie in np.argsort(-scores, kind="stable") if movie >= 2 and movie not in seen][:k]
        recalls.append(len(relevant & set(order)) / len(relevant))
        gains = [1 / np.log2(2 + place) for place in range(k)]
        found = sum(gain for movie, gain in zip(order, gains, strict=False) if movie in relevant)
        ndcgs.append(found / sum(gains[: len(relevant)]))
    return float(np.mean(recalls)), float(np.mean(ndcgs))


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    movies=st.integers(1, 40),
    spread=st.integers(0, 2),
    k=st.integers(1, 45),
    workers=st.integers(1, 4),
)
def test_metrics_are_those_of_a_sort_of_all_scores(
    seed: int, rows: list[int], movies: int, spread: int, k: int, workers: int
) -> None:
    """Small whole numbers: products are exact in any order of summation, and many are equal."""
    rng = np.random.default_rng(seed)
    users = rng.integers(-spread, spread + 1, (6, 3)).astype(np.float32)
    vectors = rng.integers(-spread, spread + 1, (movies + 2, 3)).astype(np.float32)
    # The items that a user has seen are in any order, and padded to the block's width.
    seen = [rng.choice(np.arange(2, movies + 2), min(movies, user % 3), replace=False) for user in range(6)]
    blocks = []
    for width, count in enumerate(rows, 2):
        of_user = rng.integers(0, 6, count)
        excluded = np.zeros((count, width), np.int64)
        for row, user in enumerate(of_user):
            excluded[row, : len(seen[user])] = rng.permuted(seen[user])
        taken = rng.integers(0, movies + 2, count)
        blocks.append(block(None, excluded=excluded.tolist(), user=of_user, movie=taken))
    recall, ndcg = by_full_sort(blocks, users, vectors, k)
    found = logs_of(blocks, users, vectors, k, workers)
    assert found == {f"val_recall_at_{k}": pytest.approx(recall), f"val_ndcg_at_{k}": pytest.approx(ndcg)}


def test_a_row_with_a_list_is_ranked_once_for_all_of_its_items() -> None:
    """#55: by hand, with a row of the same features in another block."""
    users, movies = np.eye(2, 3, dtype=np.float32), np.array([[0, 0]] * 2 + [[4, 0], [3, 1], [2, 2], [1, 3]])
    movies = np.pad(movies, ((0, 0), (0, 1))).astype(np.float32)
    first = block(None, excluded=[[3], [0]], user=[0, 1], movie=[2, 5])
    second = block(None, excluded=[[3]], user=[0], movie=[5])
    blocks = [
        dataclasses.replace(first, held_back=RaggedIds(np.array([2, 4, 1, 1, 5]), np.array([4, 1]))),
        dataclasses.replace(second, held_back=RaggedIds(np.array([5, 5]), np.array([2]))),
    ]
    spec = dataclasses.replace(RETRIEVAL_SPEC, label=dataclasses.replace(RETRIEVAL_SPEC.label, lists=True))
    # User 0 gets 2 and 4 without the excluded 3: two of four, which fill the list, and none of one. User 1 gets 5.
    expected = {"val_recall_at_2": pytest.approx((2 / 4 + 1 + 0) / 3), "val_ndcg_at_2": pytest.approx((1 + 1 + 0) / 3)}
    for workers in (1, 2):
        assert logs_of(blocks, users, movies, k=2, workers=workers, spec=spec) == expected


@given(
    digests=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    workers=st.integers(1, 5),
    most=st.one_of(st.none(), st.integers(1, 12)),
)
def test_every_query_is_ranked_by_one_rank_with_all_of_its_rows(
    digests: list[int], workers: int, most: int | None
) -> None:
    """A limit leaves out whole queries, the same whatever the number of workers."""
    candidates, once = np.arange(2, len(digests) + 2), np.ones(len(digests), np.int64)
    found: dict[int, list[int]] = {}
    for rank in range(workers):
        share = share_of_queries(np.array(digests, np.uint64), candidates, once, rank, workers, most)
        query, relevant = share.relevant_to(0, len(share.first_rows))
        for number, row in enumerate(share.first_rows):
            assert digests[row] not in found
            found[digests[row]] = relevant[query == number].tolist()
    kept = sorted(set(digests))[:most]
    assert found == {digest: [2 + row for row, of in enumerate(digests) if of == digest] for digest in kept}


def test_ranking_is_a_validation_in_which_blocks_are_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    phases: list[Phase] = []
    activity = Activity(on_phase=phases.append)
    dataset: Any = HandmadeDataset(RETRIEVAL_SPEC, {"validation": [block(None, excluded=[[0]], user=[0], movie=[2])]})
    ones = np.ones((3, 1), np.float32)
    ranked = RankValidation(
        lambda inputs: tf.gather(ones, inputs["user"]), dataset, k=1, rank=0, workers=1, activity=activity
    )
    ranked.set_model(SimpleNamespace(candidate_tower=Table(ones), distribute_strategy=tf.distribute.get_strategy()))
    activity.enter("training")
    logs = {"loss": 0.5}
    ranked.on_epoch_end(0, logs)
    assert logs == {"loss": 0.5, "val_recall_at_1": 1.0, "val_ndcg_at_1": 1.0}
    assert (phases, activity.beats) == (["training", "validation", "training"], 3)


def ranking(model: tf_keras.Model, fitted: FittedFeatures) -> RankValidation:
    """Return the callback for a training on the three users and their movies."""
    dataset: Any = HandmadeDataset(fitted.spec, {"validation": [block(None, user=[2, 3, 4], movie=[2, 3, 4])]})
    predict = tf.function(functools.partial(two_tower.predict, model))
    return RankValidation(predict, dataset, k=2, rank=0, workers=1, activity=Activity())


def built(fitted: FittedFeatures, learning_rate: float, **settings: Any) -> tf_keras.Model:
    tf_keras.utils.set_random_seed(1)
    model = two_tower.build(two_tower.Settings(embedding_dim=4, **settings), fitted, seed=1)
    compile_model(model, two_tower.TASK, build_optimizer(OptimizerSettings("sgd", learning_rate)))
    return model


def rows() -> tf.data.Dataset:
    ids = tf.constant([2, 3, 4], tf.int64)
    return tf.data.Dataset.from_tensors(({"user": ids, "movie": ids}, tf.zeros(3), tf.ones(3)))


@pytest.mark.parametrize("is_mirrored", [False, True], ids=["plain", "mirrored"])
def test_a_training_stops_by_its_lists(rating_features: FittedFeatures, is_mirrored: bool) -> None:  # noqa: F811
    """R2, F6: logged metrics are there for all callbacks that come later, and for the history."""
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"]) if is_mirrored else tf.distribute.get_strategy()
    with strategy.scope():
        model = built(rating_features, 1e-9, hidden_units=())
    stopping = AgreedEarlyStopping("val_ndcg_at_2", mode="max", patience=1)
    history = model.fit(rows(), epochs=9, callbacks=[ranking(model, rating_features), stopping], verbose=0).history
    assert len(history["val_ndcg_at_2"]) == len(history["val_recall_at_2"]) == 2
    assert stopping.best == history["val_ndcg_at_2"][0] == history["val_ndcg_at_2"][1]


def test_ranking_changes_nothing_of_what_is_learnt(rating_features: FittedFeatures) -> None:  # noqa: F811
    """T6: it draws nothing and keeps nothing that a checkpoint would have to hold."""
    plain, ranked = (built(rating_features, 0.5, hidden_units=(8,), dropout=0.5) for _ in range(2))
    plain.fit(rows(), epochs=3, verbose=0)
    ranked.fit(rows(), epochs=3, callbacks=[ranking(ranked, rating_features)], verbose=0)
    for mine, other in zip(plain.variables, ranked.variables, strict=True):
        np.testing.assert_array_equal(mine.numpy(), other.numpy(), err_msg=mine.name)
