"""#55: the best of a network, classical recommenders and their blend by the lists of the validation rows."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.item_rows import with_items
from mirrorspark.data_pipelines.features.kinds import Vector
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.models.classical import Recommender
from mirrorspark.models.index.search import Queries
from mirrorspark.training.programs.recommenders.blending import scaled
from mirrorspark.training.results.evaluation import recommender_choice
from mirrorspark.training.results.evaluation.evaluate_run import compare_retrieval
from mirrorspark.training.results.evaluation.model_choice import BLEND, NETWORK
from mirrorspark.training.results.evaluation.recommender_choice import (
    ChosenRecommender,
    RecommenderChoice,
    choose_recommender,
    read_lists,
)
from mirrorspark.training.results.predictions import reference_predictions, traced
from mirrorspark.training.results.report.leaderboard import leaderboard_rows, leaderboard_table
from tests.unit.models.conftest import vocabulary
from tests.unit.training.test_evaluate_run import HandmadeDataset, block

ITEMS, K = 40, 5
VALUES = {NETWORK: 0.2, "popularity": 0.1, "ease_last_items_5": 0.3, "ease": 0.25, BLEND: 0.4}


def walks() -> Any:
    """Return rows whose movie often follows the last one of the history, which is excluded like the rest of it."""
    document = {
        "features": {
            "movie": {"kind": "categorical"},
            "recent": {"kind": "multi_valued", "max_length": 4, "vocabulary_of": "movie"},
        },
        "label": {"name": "movie", "kind": "candidate"},
        "keys": "row",
        "exclude": "seen",
    }
    random = np.random.default_rng(1)

    def rows(count: int) -> Any:
        steps = random.integers(1, 3, (count, 4)).cumsum(axis=1)
        path = (random.integers(0, ITEMS, (count, 1)) + np.pad(steps, ((0, 0), (1, 0)))) % ITEMS + 2
        recent = path[:, :4].copy()
        recent[np.arange(4) >= random.integers(0, 5, count)[:, None]] = 0
        return block(None, movie=path[:, 4], recent=recent, excluded=recent.tolist())

    spec = FeatureSpec.from_dict(document)
    return HandmadeDataset(spec, {"train": [rows(600)], "validation": [rows(80), rows(40)], "test": [rows(70)]})


@dataclass(frozen=True)
class DatasetWithItems(HandmadeDataset):
    """Has a vector of each movie, and two movies more that no row has."""

    @property
    def features(self) -> FittedFeatures:
        """The features with the table of items."""
        found = super().features
        names = found.vocabulary(self.spec.candidate).tokens.to_pylist()
        places = 2 * np.pi * np.array([*range(ITEMS), 7, 21]) / ITEMS
        vectors = np.stack([np.cos(places), np.sin(places)], axis=1)
        table = pa.table({"id": [*names, "new a", "new b"], "at": vectors.tolist()})
        assert self.spec.items is not None
        return with_items(found, FittedFeatures(self.spec.items, {"id": vocabulary(["movie 0"])}, {}), table)


def network_of(dataset: Any, quality: float) -> Any:
    """Return a network that knows the movies after the last one, by their places on a circle, and adds noise."""
    random = np.random.default_rng(2)
    angle = 2 * np.pi * np.arange(dataset.features.id_count(dataset.spec.candidate)) / ITEMS
    # The next movie is one or two steps further.
    here, ahead = (np.stack([np.cos(of), np.sin(of)], axis=1) for of in (angle, angle + 1.4 * 2 * np.pi / ITEMS))
    noise = (1 - quality) * random.normal(size=(len(angle), 6))
    table, queries = (tf.constant(np.concatenate([quality * of, noise], axis=1), tf.float32) for of in (here, ahead))

    def tower(ids: tf.Tensor) -> tf.Tensor:
        return tf.gather(table, ids)

    tower.input_dim = len(table)  # type: ignore[attr-defined]
    return SimpleNamespace(candidate_tower=tower, queries=queries)


def predict(model: Any, inputs: Any) -> Any:
    last = tf.math.count_nonzero(inputs["recent"], axis=1) - 1
    return tf.gather(model.queries, tf.gather(inputs["recent"], tf.maximum(last, 0), batch_dims=1))


ARCHITECTURE = SimpleNamespace(predict=predict, TASK="retrieval")


def challenged(
    folder: Path, quality: float, asked: list[Any], monitor: str = "val_loss", dataset: Any = None
) -> ChosenRecommender:
    dataset = dataset or walks()
    network: Any = network_of(dataset, quality)
    recommenders = [Recommender.parse(one) for one in asked]
    return choose_recommender(
        *(dataset, ARCHITECTURE, network, traced(ARCHITECTURE, network), recommenders),
        monitor=monitor,
        k=K,
        seed=1,
        folder=folder,
    )


SHORT: dict[str, Any] = {"name": "ease", "last_items": 2, "l2": 5}


@pytest.mark.parametrize(
    ("quality", "asked", "registered"),
    [
        (0.0, ["popularity", SHORT], (SHORT["name"], BLEND)),
        (0.7, ["popularity", SHORT, {"name": "ease", "l2": 5}, {"name": "item_knn", "last_items": 1}], (BLEND,)),
        (1.0, ["popularity"], (NETWORK,)),
    ],
)
def test_the_best_on_the_validation_rows_is_exported_as_numpy_lists_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quality: float, asked: list[Any], registered: tuple[str, ...]
) -> None:
    monkeypatch.setattr(recommender_choice, "_WEIGHTS", 30)  # of 40
    found = challenged(tmp_path, quality, asked)
    choice, dataset = found.choice, walks()
    assert choice.metric == f"recall_at_{K}"
    assert choice.registered.startswith(registered)
    assert choice.values[choice.registered] == max(choice.values.values())
    assert set(choice.values) == {NETWORK, BLEND, *choice.seconds}
    # A repeated export decides the same.
    again = challenged(tmp_path, quality, asked).choice
    assert (again.registered, again.values, again.weights) == (choice.registered, choice.values, choice.weights)
    assert RecommenderChoice.load(tmp_path).values == choice.values

    graph = traced(found.architecture, found.model)
    tables = {
        split: reference_predictions(found.architecture, found.model, graph, dataset, split, K)
        for split in ("validation", "test")
    }
    if choice.registered != NETWORK:
        (rows,) = dataset.splits["test"]
        queries = Queries(graph({"recent": tf.constant(rows.features["recent"])}), tf.constant(rows.excluded))
        best = found.model.index.search(queries, K, found.model.index.offsets())
        np.testing.assert_allclose(best.scores, np.array(tables["test"]["scores"].to_pylist()), atol=1e-5)
        of_one = found.model.index.search(queries.between(3, 4), K, found.model.index.offsets())
        np.testing.assert_array_equal(of_one.ids, best.ids[3:4])
    lists = {name: read_lists(tmp_path, name) for name in choice.others}
    verdict = compare_retrieval(dataset, tables, lists, K, None, choice.seconds)
    assert verdict.metrics["validation"][choice.metric] == pytest.approx(choice.values[choice.registered])
    board = leaderboard_table(leaderboard_rows(verdict, choice, name="two_tower", monitor="val_loss", seconds=9.0))
    assert set(board.index) == set(choice.values)
    assert board.loc[NETWORK, "seconds"] == 9
    assert board.loc[BLEND, "seconds"] >= 9
    assert board["registered"].idxmax() == choice.registered
    assert board["low"].notna().sum() == len(board) - 1


def test_a_recommender_that_reads_the_features_of_items_lists_those_that_nobody_has_had(tmp_path: Path) -> None:
    rows = walks()
    spec = replace(rows.spec, items=FeatureSpec.of_items("id", [Vector("at", size=2)]))
    dataset = DatasetWithItems(spec, rows.splits)
    found = challenged(tmp_path, 0.0, ["popularity", SHORT | {"new_item_weight": 9.0}], dataset=dataset)
    assert found.choice.loss == "new tables of items need a new training, or register='model'"
    _, ease = found.choice.seconds
    if found.choice.registered == ease:
        (block_of_rows,) = rows.splits["test"]
        inputs = {"recent": tf.constant(block_of_rows.features["recent"])}
        queries = Queries(found.architecture.predict(found.model, inputs), tf.constant(block_of_rows.excluded))
        lists = np.asarray(found.model.index.search(queries, K, found.model.index.offsets()).ids)
    else:
        lists = read_lists(tmp_path, ease)
    new = {ITEMS + 2, ITEMS + 3}
    assert new <= set(lists.ravel())
    assert not new & set(read_lists(tmp_path, "popularity").ravel())
    # A movie that nobody has had is listed next to the one in the same place, which by chance is there in an eighth.
    assert np.mean([7 + 2 in row for row in lists if ITEMS + 2 in row]) > 0.3


def test_the_monitored_metric_of_lists_decides(tmp_path: Path) -> None:
    choice = challenged(tmp_path, 0.7, ["item_knn"], "val_ndcg_at_3").choice
    assert choice.metric == "ndcg_at_3"
    assert list(choice.weights) == [NETWORK, "item_knn"]


def test_scores_of_a_row_are_scaled_by_its_mean_and_its_highest_one() -> None:
    scores = np.float32([[1, 2, 6, 3], [4, 4, 4, 4]])
    np.testing.assert_allclose(scaled(scores), [[-2 / 3, -1 / 3, 1, 0], [0, 0, 0, 0]], rtol=1e-6)


def test_a_choice_of_recommenders_names_the_parts_the_rivals_and_the_loss() -> None:
    weights = {NETWORK: 0.4, "ease_last_items_5": 0.3, "ease": 0.3}
    fits = {"popularity": 0.1, "ease_last_items_5": 2.0, "ease": 0.0}
    blend = RecommenderChoice(BLEND, "recall_at_20", VALUES, weights, fits)
    assert blend.in_words() == (
        "the blend (40% the network, 30% ease last items 5, 30% ease), better than ease last items 5 and the network "
        "on the validation rows (recall_at_20 0.4000 against 0.3000 and 0.2000)"
    )
    assert blend.others == ["popularity", "ease_last_items_5", "ease", NETWORK]
    equal = VALUES | {"ease_last_items_5": 0.4}
    single = RecommenderChoice("ease_last_items_5", "recall_at_20", equal, weights, fits, loss="it knows no new item")
    assert single.in_words() == (
        "ease last items 5, as good as or better than ease and the network and the blend on the validation rows "
        "(recall_at_20 0.4000 against 0.2500 and 0.2000 and 0.4000); it knows no new item"
    )
