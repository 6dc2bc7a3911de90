"""#55: recommenders that read the features of items equal their plain twins, and know items that nobody has had."""

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from scipy.sparse import csr_array

from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.item_rows import with_items
from mirrorspark.data_pipelines.features.kinds import Categorical, MultiValued, Numeric, Sparse, Text, Vector
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.models.classical import Ease, Slit
from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.programs.recommenders import content as item_contents
from mirrorspark.training.programs.recommenders import item_models
from mirrorspark.training.programs.recommenders.content import ItemContent, item_content
from mirrorspark.training.programs.recommenders.item_models import ease, slit
from tests.unit.models.conftest import vocabulary
from tests.unit.training.test_recommenders import dataset, purchases

ITEMS = FeatureSpec.of_items(
    "id",
    [
        Categorical("genre"),
        MultiValued("words", max_length=3),
        Text("title", max_length=4),
        Numeric("stars"),
        Vector("poster", size=2),
        Sparse("plot", size=3, indices="plot_words", values="plot_weights"),
    ],
)


def content_of(rows: npt.NDArray[np.float32]) -> ItemContent:
    """Return content of which the first half of the columns are tokens."""
    unit, half = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-9), rows.shape[1] // 2
    return ItemContent(csr_array(unit[:, :half]), unit[:, half:])


def test_ease_regresses_the_features_of_items_together_with_the_users_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_models, "_ITEMS_AT_ONCE", 3)
    bought, rows = purchases(40, 10, seed=2), np.random.default_rng(4).random((10, 6), np.float32)
    found = ease(csr_array(bought), Ease(l2=5.0, content_weight=7.0, new_item_weight=0.0), content_of(rows))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    # Users of the features' own, who count as much as seven.
    stacked = np.vstack([bought, np.sqrt(7) * unit.T])
    expected = ease(csr_array(stacked), Ease(l2=5.0))
    had = bought.any(axis=0)
    np.testing.assert_allclose(found[:, had], expected[:, had], atol=1e-5)
    # Nobody has the others: they have the weights that are asked for.
    assert not had.all()
    assert not found[:, ~had].any()
    known = ease(csr_array(bought), Ease(l2=5.0, content_weight=7.0), content_of(rows))
    assert (known[:, ~had] != 0).any()
    assert not known.diagonal().any()
    plain = ease(csr_array(bought), Ease(l2=5.0, content_weight=0.0, new_item_weight=0.0), content_of(rows))
    np.testing.assert_allclose(plain, ease(csr_array(bought), Ease(l2=5.0)), atol=1e-6)


def test_new_items_have_the_mean_weights_of_the_items_with_the_nearest_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_contents, "_ITEMS_AT_ONCE", 2)
    monkeypatch.setattr(item_contents, "_NEIGHBOURS", 3)
    past, following = purchases(60, 9, seed=3), np.eye(9, dtype=np.float32)[np.arange(60) % 6]  # 6, 7, 8 never follow
    rows = np.random.default_rng(5).random((9, 4), np.float32)
    content = content_of(rows * (np.arange(9) < 8)[:, None])
    found = slit(csr_array(past), csr_array(following), Slit(l2=2.0, new_item_weight=1.5), content)
    alone = slit(csr_array(past), csr_array(following), Slit(l2=2.0, new_item_weight=0.0), content)
    assert not alone[:, 6:].any()
    np.testing.assert_array_equal(found[:, :6], alone[:, :6])
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for new in (6, 7):
        cosines = unit[:6] @ unit[new]
        nearest = np.argsort(-cosines)[:3]
        shares = cosines[nearest] ** 3 / (cosines[nearest] ** 3).sum()
        np.testing.assert_allclose(found[:, new], 1.5 * alone[:, nearest] @ shares, rtol=1e-4)
    # It has no content at all.
    assert not found[:, 8].any()


def test_the_cosine_of_items_is_the_mean_over_their_features_in_which_texts_count_twice() -> None:
    tokens = {"genre": ["war", "noir"], "words": ["x", "y"], "title": ["the", "storm", "ship"]}
    own = FittedFeatures(
        ITEMS,
        {"id": vocabulary(["a"]), **{name: vocabulary(of) for name, of in tokens.items()}},
        {"stars": NumericStatistics(3.0, 1.0, 1.0, 5.0, 3)},
    )
    table = pa.table(
        {
            "id": ["a", "b", "c", "new"],
            "genre": ["war", "noir", "war", None],
            "words": [["x"], ["x", "y"], [], ["y", "y"]],
            "title": ["The storm", "ship", "the ship", "storm"],
            "stars": [1.0, 5.0, 1.0, None],
            "poster": [[1.0, 0.0], [0.0, 2.0], [3.0, 4.0], None],
            "plot_words": [[0], [2, 1], [], [2, 2]],
            "plot_weights": [[2.0], [3.0, 4.0], [], [0.5, 0.5]],
        }
    )
    movies = Vocabulary(pa.array(["a", "b", "c"]), pa.array([3, 2, 1]))
    spec = dataclasses.replace(dataset(history=True).spec, items=ITEMS)
    found = item_content(with_items(FittedFeatures(spec, {"movie": movies}, {}), own, table))
    assert found is not None

    def rows(of_items: list[dict[str, int]], count: int) -> npt.NDArray[np.float64]:
        """Return tf-idf rows of length 1, with the number of items that have each token."""
        tokens = sorted({token for each in of_items for token in each})
        values = np.array([[each.get(token, 0) for token in tokens] for each in of_items], float)
        values *= np.log((1 + count) / (1 + np.count_nonzero(values, axis=0)))
        return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True).clip(min=1e-9))

    genre = rows([{"war": 1}, {"noir": 1}, {"war": 1}, {}], 4)
    words = rows([{"x": 1}, {"x": 1, "y": 1}, {}, {"y": 1}], 4)
    title = rows([{"the": 1, "storm": 1}, {"ship": 1}, {"the": 1, "ship": 1}, {"storm": 1}], 4)
    stars = rows([{"low": 1}, {"high": 1}, {"low": 1}, {}], 4)
    poster = np.array([[1, 0], [0, 1], [0.6, 0.8], [0, 0]])
    plot = np.array([[1, 0, 0], [0, 0.8, 0.6], [0, 0, 0], [0, 0, 1]])
    parts = ((1, genre), (1, words), (2, title), (1, stars), (1, poster), (1, plot))
    expected = sum(share * part @ part.T / 7 for share, part in parts)
    np.testing.assert_allclose(found.cosines(slice(None)), expected, atol=1e-6)
    np.testing.assert_allclose(found.cosines(np.array([3, 1])), expected[[3, 1]], atol=1e-6)
    assert item_content(dataset(history=True).features) is None


def test_a_run_with_features_of_items_takes_the_recommenders_that_read_them() -> None:
    def config(name: str) -> RunConfig:
        return RunConfig.from_recipe("movielens_items", data="anywhere", model={"name": name})

    for name in ("ease", "slit"):
        assert config(name).model["name"] == name
    with pytest.raises(ValueError, match="bspm"):
        config("bspm")
