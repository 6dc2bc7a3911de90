"""Classical recommenders equal their plain twins, and rank as models are ranked."""

import dataclasses
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import tensorflow as tf
from scipy.sparse import csr_array

from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.models import catalog
from mirrorspark.models.classical import ALS, BSPM, Ease, Recommender, Slit, check_recommenders, items_apart
from mirrorspark.models.index.search import Queries
from mirrorspark.models.settings import ModelSettingsError
from mirrorspark.training.programs.recommenders import item_models, lists
from mirrorspark.training.programs.recommenders.als import fold_in
from mirrorspark.training.programs.recommenders.fitting import fit, largest, load, save, scores_of
from mirrorspark.training.programs.recommenders.interactions import Interactions
from mirrorspark.training.programs.recommenders.item_models import bspm, ease, item_knn, slit
from mirrorspark.training.programs.recommenders.lists import best, recommended
from mirrorspark.training.programs.recommenders.popularity import popularity
from tests.unit.training.test_evaluate_run import HandmadeDataset, block

# Four users of three items.
BOUGHT = csr_array(np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 1]], np.float32))


def purchases(users: int, items: int, seed: int) -> npt.NDArray[np.float32]:
    """Return ones at random places; some users and items have none."""
    rng = np.random.default_rng(seed)
    return (rng.random((users, items)) < rng.random(items) / 2).astype(np.float32)


def test_cosines_are_users_in_common_by_the_shrunk_product_of_norms() -> None:
    cosines = item_knn(BOUGHT, neighbours=2, shrinkage=1.0).toarray()
    # Items 0, 1 and 2 have 3, 2 and 2 users; two have had 0 and 1, one 0 and 2, one 1 and 2.
    expected = [[0, 2 / (6**0.5 + 1), 1 / (6**0.5 + 1)], [2 / (6**0.5 + 1), 0, 1 / 3], [1 / (6**0.5 + 1), 1 / 3, 0]]
    np.testing.assert_allclose(cosines, expected, rtol=1e-6)


def test_of_equally_near_items_the_lower_ones_are_the_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_models, "_ITEMS_AT_ONCE", 2)
    same = csr_array(np.ones((3, 5), np.float32))
    neighbours = item_knn(same, neighbours=2, shrinkage=0.0)
    assert neighbours.indices.reshape(5, 2).tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]


def test_nearest_neighbours_agree_with_their_plain_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_models, "_ITEMS_AT_ONCE", 7)
    bought = purchases(50, 20, seed=1)
    found = item_knn(csr_array(bought), neighbours=4, shrinkage=3.0)
    users = bought.sum(axis=0)
    cosines = bought.T @ bought / (np.sqrt(np.outer(users, users)) + 3)
    np.fill_diagonal(cosines, 0)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :4]
    expected = np.zeros_like(cosines)
    np.put_along_axis(expected, nearest, np.take_along_axis(cosines, nearest, axis=1), axis=1)
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-5)


def test_ease_is_a_ridge_regression_of_each_item_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # X'X + I of two items that both users have had is [[3, 2], [2, 3]]; each is 2/3 of the other.
    np.testing.assert_allclose(
        ease(csr_array(np.ones((2, 2), np.float32)), Ease(l2=1.0)), [[0, 2 / 3], [2 / 3, 0]], rtol=1e-6
    )

    monkeypatch.setattr(item_models, "_ITEMS_AT_ONCE", 3)
    bought = purchases(40, 10, seed=2)
    found = ease(csr_array(bought), Ease(l2=5.0))
    for item in range(10):
        others = np.delete(bought, item, axis=1).astype(np.float64)
        weights = np.linalg.solve(others.T @ others + 5 * np.eye(9), others.T @ bought[:, item])
        np.testing.assert_allclose(np.delete(found[:, item], item), weights, atol=1e-5)
        assert found[item, item] == 0


def test_slit_is_a_ridge_regression_of_the_next_item_on_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_models, "_ITEMS_AT_ONCE", 3)
    past, following = purchases(60, 7, seed=3), np.eye(7, dtype=np.float32)[np.arange(60) % 7]
    expected = np.linalg.solve(past.T @ past + 2.0 * np.eye(7), past.T @ following)
    np.testing.assert_allclose(slit(csr_array(past), csr_array(following), Slit(l2=2.0)), expected, atol=1e-5)


def test_a_user_is_folded_in_by_the_least_squares_over_all_items() -> None:
    settings = ALS(rank=3, l2=0.1, alpha=4.0)
    factors = np.random.default_rng(3).normal(size=(6, 3)).astype(np.float32)
    histories = csr_array(np.array([[1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0]], np.float32))
    # Equation 4 of Hu et al.: confidence 1 + alpha of an item that the user has had, 1 of all others.
    confidence = np.diag(1 + 4.0 * histories.toarray()[0])
    matrix = factors.T @ confidence @ factors + 0.1 * 3 * np.eye(3)
    expected = np.linalg.solve(matrix, factors.T @ confidence @ histories.toarray()[0])
    np.testing.assert_allclose(fold_in(histories, factors, settings), [expected, np.zeros(3)], rtol=1e-4)


FEATURES = {
    "movie": {"kind": "categorical"},
    "user": {"kind": "categorical"},
    "town": {"kind": "categorical"},
    "recent": {"kind": "multi_valued", "max_length": 3, "vocabulary_of": "movie"},
}
VOCABULARIES = {
    "movie": Vocabulary(pa.array(["a", "b", "c", "d"]), pa.array([3, 2, 1, 1])),
    "user": Vocabulary(pa.array(["u", "v", "w"]), pa.array([2, 2, 1])),
    "town": Vocabulary(pa.array(["x"]), pa.array([5])),
}


def dataset(*, history: bool, history_items: bool = False) -> Any:
    """Return rows of the users u and v, of an unknown one, and test rows; ids 2 to 5 are the movies a to d."""
    columns = [name for name in FEATURES if history or name != "recent"]
    spec = FeatureSpec.from_dict(
        {
            "features": {name: FEATURES[name] for name in columns},
            "label": {"name": "movie", "kind": "candidate", "history_items": history_items},
            "keys": "row",
            "exclude": "seen",
        }
    )

    def rows(excluded: list[list[int]] | None = None, **features: Any) -> Any:
        kept = {name: values for name, values in features.items() if name in columns}
        return block(None, excluded=excluded, town=[2] * len(features["user"]), **kept)

    train = [
        rows(movie=[2, 3], user=[2, 2], recent=[[0, 0, 0], [2, 0, 0]]),
        rows(movie=[2, 1, 4, 2], user=[3, 3, 1, 0], recent=[[3, 0, 0], [2, 3, 0], [2, 0, 0], [1, 5, 0]]),
    ]
    test = [rows([[2, 0], [3, 2], [0, 0]], movie=[3, 4, 2], user=[2, 3, 1], recent=[[2, 0, 0], [1, 3, 2], [0, 0, 0]])]
    return HandmadeDataset(spec, {"train": train, "test": test}, VOCABULARIES)


def test_a_user_has_had_the_candidates_and_the_histories_of_his_rows() -> None:
    found = Interactions(dataset(history=True))
    assert (found.user, found.history, found.items) == ("user", "recent", 4)
    # u and v have had a and b, w nothing; rows of unknown users follow, each by its place among all rows.
    expected = np.zeros((3 + 6, 4), np.float32)
    expected[[0, 0, 1, 1], [0, 1, 0, 1]] = 1
    expected[3 + 4, [2, 0]] = 1
    expected[3 + 5, [0, 3]] = 1
    assert found.matrix.toarray().tolist() == expected.tolist()
    # The ids of the known users and their movies, for a graph.
    assert found.pairs.tolist() == [[2, 2, 3, 3], [2, 3, 2, 3]]


@pytest.mark.parametrize(
    ("history", "last_items", "expected"),
    [
        (True, 0, [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]),
        # The last two of the second row, whose first item is not known, and the last one.
        (True, 2, [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]),
        (True, 1, [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]),
        # Without a history, what u and v have had in the training rows; the third user is not known.
        (False, 0, [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_a_row_is_scored_from_its_history_or_else_from_its_users_rows(
    history: bool, last_items: int, expected: list[list[int]]
) -> None:
    interactions = Interactions(dataset(history=history))
    (rows,) = interactions.dataset.blocks("test")
    assert interactions.histories(rows, last_items).toarray().tolist() == expected


def test_the_steps_of_training_rows_are_their_histories_and_their_candidates() -> None:
    past, following = (part.toarray().tolist() for part in Interactions(dataset(history=True)).steps(1))
    none, a, b, c, d = [0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]
    assert past == [none, a, b, b, a, d]
    assert following == [a, b, a, none, c, a]
    # Where histories are training rows, too, their items follow those before them; no step leads to an unknown item.
    given = dataset(history=True, history_items=True)
    past, following = (part.toarray().tolist() for part in Interactions(given).steps(1))
    assert list(zip(past, following, strict=True)) == [
        *((none, a), (none, a), (a, b)),
        *((none, b), (b, a), (none, a), (a, b), (none, a), (a, c), (none, d), (d, a)),
    ]
    past, _ = (part.toarray().tolist() for part in Interactions(given).steps())
    assert past[4:6] == [b, none]
    assert past[-1] == d


@pytest.mark.parametrize("name", ["item_knn", "ease"])
def test_the_best_are_listed_but_those_that_a_row_excludes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "TILE_SCORES", 4)  # a row at a time
    spark: Any = None
    found = recommended(Recommender(name), Interactions(dataset(history=True)), 3, 1, spark)
    # The first row has had a, which two have had with b, one with c and one with d: equal ones by their id. The second
    # has had b, too, which has gone with a alone. The third has no history, so that all are equal.
    assert [sorted(row) for row in found.tolist()] == [[3, 4, 5], [-1, 4, 5], [2, 3, 4]]
    assert found[[0, 1, 2], [0, 2, 0]].tolist() == [3, -1, 2]
    if name == "item_knn":  # The inverse of EASE^R is equal but for its rounding.
        assert found[:2].tolist() == [[3, 4, 5], [4, 5, -1]]


def test_popularity_is_a_recommender_like_the_others() -> None:
    spark: Any = None
    found = recommended(Recommender("popularity"), Interactions(dataset(history=True)), 3, 1, spark)
    # In candidates of training rows a is there three times, b and c once; d, in histories only, comes last.
    assert found.tolist() == [[3, 4, 5], [4, 5, -1], [2, 3, 4]]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("popularity", {}),
        ("item_knn", {"neighbours": 3}),
        ("bspm", {"neighbours": 9, "dimensions": 4}),
        ("ease", {"last_items": 2}),
        ("slit", {"last_items": 2}),
        ("als", {"rank": 4}),
    ],
)
def test_a_graph_recommends_what_numpy_does(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R2, T4: histories repeat items, have unknown ones, or none at all; the graph works in tiles."""
    monkeypatch.setattr("mirrorspark.models.index.row_sums.TILE_SCORES", 200)
    rng, items = np.random.default_rng(8), 37
    features = {"movie": {"kind": "categorical"}, "recent": FEATURES["recent"] | {"max_length": 6}}
    document = {"features": features, "label": {"name": "movie", "kind": "candidate"}, "keys": "row"}
    spec = FeatureSpec.from_dict(document)
    movies = Vocabulary(pa.array([f"m{n}" for n in range(items)]), pa.array([1] * items))
    recent = rng.integers(1, items + 2, (30, 6))
    recent[np.arange(6) >= rng.integers(0, 7, 30)[:, None]] = 0
    recent[0, :3] = recent[0, 0]
    rows = block(None, movie=rng.integers(2, items + 2, 30), recent=recent)
    given: Any = HandmadeDataset(spec, {"train": [rows]}, {"movie": movies})
    interactions = Interactions(given)
    asked, spark = Recommender(name, options), SimpleNamespace()
    factors = rng.normal(size=(items, 4)).astype(np.float32)
    monkeypatch.setattr("mirrorspark.training.programs.recommenders.fitting.item_factors", lambda *_: factors)
    arrays = fit(asked, interactions, 1, cast(Any, spark))

    architecture: Any = catalog.architecture(name)
    model = architecture.build(asked.settings, given.features, arrays)
    excluded = np.where(rng.random((30, 5)) < 0.5, rng.integers(2, items + 2, (30, 5)), 0)
    for ids in (recent, recent[:, :0]):
        queries = Queries(architecture.predict(model, {"recent": tf.constant(ids)}), tf.constant(excluded))
        found = model.index.search(queries, 9, model.index.offsets())
        histories = interactions.histories(
            dataclasses.replace(rows, features={"recent": ids}), 2 if options.get("last_items") else 0
        )
        expected, scores = best(scores_of(name, asked.settings, arrays), histories, excluded, 9)
        np.testing.assert_allclose(found.scores, scores, rtol=1e-6, atol=1e-6)
        is_apart = np.abs(np.diff(scores, axis=1, prepend=np.inf, append=-np.inf)).clip(max=1) > 1e-5
        is_sure = is_apart[:, 1:] & is_apart[:, :-1]
        assert is_sure.any() or name == "popularity" or not ids.size
        np.testing.assert_array_equal(np.where(is_sure, found.ids, 0), np.where(is_sure, expected, 0))
        if name in ("popularity", "item_knn", "bspm"):  # Their sums are exact, and so are ties.
            np.testing.assert_array_equal(found.ids, expected)


def test_blurring_and_sharpening_agree_with_their_plain_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_models, "_FILTERED_AT_ONCE", 7)
    bought = purchases(50, 20, seed=1).astype(np.float64)
    of_user, of_item = bought.sum(axis=1, keepdims=True), bought.sum(axis=0)
    graph = bought / np.sqrt(of_user * of_item).clip(min=1e-9)
    blur = graph.T @ graph
    first = np.linalg.svd(graph)[2][:3]
    low_pass = first.T @ first * np.sqrt(of_item) / np.sqrt(of_item)[:, None].clip(min=1e-9)
    scores, step = blur + 0.4 * low_pass, 1e-4
    for _ in range(10_000):  # dx/dt = -xP up to 1, by small steps
        scores = scores - step * scores @ blur
    np.fill_diagonal(scores, 0)
    settings = BSPM(neighbours=19, dimensions=3, low_pass_weight=0.4, sharpening=1.0)
    # One large step of the Runge-Kutta method is not exact.
    np.testing.assert_allclose(bspm(csr_array(bought.astype(np.float32)), settings, 1).toarray(), scores, atol=0.01)

    largest = bspm(csr_array(bought.astype(np.float32)), dataclasses.replace(settings, neighbours=5), 1).toarray()
    assert (np.count_nonzero(largest, axis=1) <= 5).all()
    is_kept = largest != 0
    assert (np.abs(largest).max(axis=1) >= np.where(is_kept, 0, np.abs(scores)).max(axis=1) - 0.02).all()

    # There are fewer users than dimensions, and none in the rows of zeros.
    few, settings = bought[:4].astype(np.float32), dataclasses.replace(settings, dimensions=15)
    padded = np.vstack([few, np.zeros((90, 20), np.float32)])
    np.testing.assert_allclose(
        bspm(csr_array(padded), settings, 1).toarray(), bspm(csr_array(few), settings, 1).toarray(), atol=1e-6
    )


def test_the_largest_weights_of_each_item_score_as_all_of_them_where_the_rest_is_small() -> None:
    weights = np.float32([[0, 3, -1e-9], [-2, 1e-9, 1], [1e-9, 0, 4]])
    kept, histories = largest({"weights": weights}, 2), csr_array(np.eye(3, dtype=np.float32))
    assert kept["columns"].reshape(3, 2)[1].tolist() == [0, 2]
    np.testing.assert_allclose(scores_of("ease", None, kept)(histories), weights, atol=1e-8)
    assert largest({"weights": weights}, 3)["weights"] is weights
    assert "counts" in largest({"counts": weights[0]}, 2)


def test_what_a_recommender_has_learnt_is_kept_by_its_content(tmp_path: Path) -> None:
    arrays = {"factors": np.arange(6, dtype=np.float32).reshape(3, 2)}
    path = save(arrays, tmp_path, "als")
    assert save(arrays, tmp_path, "als") == path
    assert save({"factors": arrays["factors"] + 1}, tmp_path, "als") != path
    np.testing.assert_array_equal(load(path)["factors"], arrays["factors"])


def test_recommenders_that_cannot_be_fitted_are_refused_before_the_training() -> None:
    many = SimpleNamespace(spec=dataset(history=False).spec, vocabulary=lambda _: range(39_123))
    fitted: Any = many
    check_recommenders([Recommender("item_knn"), Recommender("als")], fitted)
    with pytest.raises(ModelSettingsError, match=r"39,123 x 39,123 items, which takes 5\.7 GB and more"):
        check_recommenders([Recommender("ease")], fitted)
    with pytest.raises(ModelSettingsError, match="baseline 'slit' learns which item follows those of a row's history"):
        check_recommenders([Recommender("slit")], fitted)
    with pytest.raises(ModelSettingsError, match="last_items 15 takes the last items of a row's history, and no"):
        check_recommenders([Recommender("als", {"last_items": 15})], fitted)
    label = dataclasses.replace(many.spec.label, lists=True)
    apart: Any = SimpleNamespace(spec=dataclasses.replace(many.spec, label=label), user=None)
    assert "so item_knn, ease_l2_9 learn little; add the user as a feature" in str(
        items_apart([Recommender("slit"), Recommender("item_knn"), Recommender("ease", {"l2": 9})], apart)
    )
    assert items_apart([Recommender("popularity")], apart) is None
    apart.user = "customer"
    assert items_apart([Recommender("item_knn")], apart) is None


COUNTS = [0, 2, 0, 3, 0, 2, 0, 0, 1]  # by count, ties by number: 3, 1, 5, 8, 0, 2, 4, 6, 7


def test_popularity_ranks_by_count_with_ties_by_number_and_items_without_rows_last() -> None:
    assert popularity(COUNTS, k=6).tolist() == [[3, 1, 5, 8, 0, 2]]


def test_popularity_leaves_out_what_each_row_has_seen() -> None:
    seen = [[], [3], [1, 8, 8, -1], [99, 5, 3]]
    assert popularity(COUNTS, k=2, seen=seen).tolist() == [[3, 1], [1, 5], [3, 5], [1, 8]]


def test_popularity_fills_lists_that_run_out() -> None:
    assert popularity([2, 3, 1], k=3, seen=[[1], [0, 1, 2]]).tolist() == [[0, 2, -1], [-1, -1, -1]]


def test_popularity_agrees_with_its_plain_twin_on_random_input() -> None:
    generator = np.random.default_rng(9)
    interactions = generator.zipf(1.3, 3_000) % 60
    by_item = np.bincount(interactions).astype(np.float32)
    seen = [generator.integers(0, 70, generator.integers(0, 40)) for _ in range(300)]
    counts = Counter(interactions.tolist())
    ranked = sorted(range(by_item.size), key=lambda item: (-counts[item], item))
    expected = []
    for items in seen:
        left = [item for item in ranked if item not in set(items.tolist())][:25]
        expected.append(left + [-1] * (25 - len(left)))
    assert popularity(by_item, k=25, seen=seen).tolist() == expected


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ([0, 0], {"k": 2}, "all counts are 0"),
        ([1], {"k": 0}, "k is 0"),
        ([1], {"k": 1, "seen": [["a"]]}, "seen items are <U1; use integers"),
    ],
)
def test_popularity_refuses_bad_input(counts: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        popularity(counts, **options)
