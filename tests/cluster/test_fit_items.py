"""#52: one call makes a recommender with item features of a table of interactions and one of items."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

import mirrorspark as ms
from mirrorspark.data_pipelines.features.kinds import FeatureSpecError
from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.interactions import InteractionColumns, interaction_rows, user_histories
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.training.configuration import ConfigError
from mirrorspark.training.entry_points.fit_items import has_interactions, recommender_input
from mirrorspark.training.entry_points.fit_table import default_config

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.timeout(600)

COLUMNS = InteractionColumns("userId", "film", "at")


def ratings() -> pd.DataFrame:
    """Return 120 users who like the even or the odd ones of 40 films, and 10 films each of them."""
    rows = [
        {"userId": user, "film": (user % 2) + 2 * ((user * 7 + step * 3) % 19), "at": step, "stars": 3.5}
        for user in range(120)
        for step in range(10)
    ]
    return pd.DataFrame(rows)


def films() -> pd.DataFrame:
    """Return their kinds; nobody has met the films 38 and 39."""
    kinds = ["War|Drama", "Comedy|Children"]
    return pd.DataFrame({"film": range(40), "genres": [kinds[film % 2] for film in range(40)], "year": range(40)})


def test_interactions_become_rows_with_their_history_and_split(spark: "SparkSession") -> None:
    """The first of two meetings counts, rows without a user are left out, and a user of three spares none."""
    met = [
        (1, 10, 1),
        (1, 11, 2),
        (1, 10, 3),
        (1, 12, 4),
        (1, 13, 5),
        (2, 10, 1),
        (2, 12, 2),
        (2, 11, 3),
        (None, 10, 1),
    ]
    table = spark.createDataFrame(met, "userId int, film int, at int")
    rows = {row.interaction: row.asDict() for row in interaction_rows(table, COLUMNS).collect()}
    found = {key: (row["film"], row["recent_items"], row["seen_items"], row["split"]) for key, row in rows.items()}
    assert found == {
        "1-1": (10, [], [], "train"),
        "1-2": (11, [10], [], "train"),
        "1-3": (12, [10, 11], [10, 11], "validation"),
        "1-4": (13, [10, 11, 12], [10, 11, 12], "test"),
        "2-1": (10, [], [], "train"),
        "2-2": (12, [10], [], "train"),
        "2-3": (11, [10, 12], [], "train"),
    }
    users = {row.userId: (row.recent_items, row.seen_items) for row in user_histories(table, COLUMNS).collect()}
    assert users == {1: ([10, 11, 12, 13],) * 2, 2: ([10, 12, 11],) * 2}
    long = spark.range(60).selectExpr("1 AS userId", "int(id) AS film", "id AS at")
    (user,) = user_histories(long, COLUMNS).collect()
    assert (user.recent_items, len(user.seen_items)) == (list(range(10, 60)), 60)
    given = table.selectExpr("*", "'train' AS split")
    assert {row.split for row in interaction_rows(given, COLUMNS).collect()} == {"train"}


def test_windows_have_each_training_item_once_and_nothing_that_is_held_back(spark: "SparkSession") -> None:
    """#55."""
    table = spark.range(120).selectExpr("1 AS userId", "int(id) AS film", "id AS at")
    rows = {row.interaction: row for row in interaction_rows(table, COLUMNS, in_windows=True).collect()}
    assert sorted(rows, key=lambda key: int(key[2:])) == ["1-16", "1-67", "1-118", "1-119", "1-120"]
    train = [film for row in rows.values() if row.split == "train" for film in (*row.recent_items, row.film)]
    assert sorted(train) == list(range(118))
    assert rows["1-119"].recent_items == list(range(68, 118))
    # With splits of its own, too: an item that is tested between two training items is in no training history.
    split = table.selectExpr("*", "if(film % 3 = 1, 'test', 'train') AS split")
    rows = {row.film: row for row in interaction_rows(split, COLUMNS, in_windows=True).collect()}
    assert sorted(film for film in rows if film % 3 != 1) == [42, 119]
    assert not [film for film in (42, 119) for before in rows[film].recent_items if before % 3 == 1]
    assert rows[118].recent_items == list(range(68, 118))
    every = [row for row in interaction_rows(split, COLUMNS).collect() if row.split == "train"]
    assert len(every) == 80
    assert not [film for row in every for film in row.recent_items if film % 3 == 1]


def test_lists_of_items_become_a_row_for_each_or_one_row_of_all_that_is_held_out(spark: "SparkSession") -> None:
    """#55: a list has its order, the splits have theirs, and the first of two meetings counts."""
    met = [
        (1, [14, 10, 13], "test"),
        (1, [10, 11, None, 10], "train"),
        (1, [11, 12], "validation"),
        (2, [10], "train"),
        (2, None, "validation"),
        (3, [], "train"),
    ]
    columns = InteractionColumns("userId", "film")
    table = spark.createDataFrame(met, "userId int, film array<int>, split string")
    rows = {row.interaction: row.asDict() for row in interaction_rows(table, columns).collect()}
    found = {key: (row["film"], row["recent_items"], row["seen_items"], row["split"]) for key, row in rows.items()}
    assert found == {
        "1-1": ([10], [], [], "train"),
        "1-2": ([11], [10], [], "train"),
        "1-3": ([12], [10, 11], [10, 11], "validation"),
        "1-4": ([14, 13], [10, 11, 12], [10, 11, 12], "test"),
        "2-1": ([10], [], [], "train"),
    }
    users = {row.userId: row.seen_items for row in user_histories(table, columns).collect()}
    assert users == {1: [10, 11, 12, 14, 13], 2: [10]}
    # Without splits the last item of a user is the test, whatever list it was in.
    timed = spark.createDataFrame([(1, [12, 13], 2), (1, [10, 11], 1)], "userId int, film array<int>, at int")
    last = [(row.film, row.split) for row in interaction_rows(timed, COLUMNS).orderBy("film").collect()]
    assert last == [(10, "train"), (11, "train"), (12, "validation"), (13, "test")]


def lists_of_films() -> pd.DataFrame:
    """Return a row per user and split, of the interactions of :func:`ratings`."""
    split = pd.cut(ratings()["at"], [-1, 5, 7, 9], labels=["train", "validation", "test"]).astype(str)
    of_split = ratings().drop_duplicates(["userId", "film"]).assign(split=split)
    return of_split.groupby(["userId", "split"])["film"].agg(list).reset_index()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"items": films().rename(columns={"film": "Film"})},
            FeatureSpecError,
            "items has no column 'film'.*mean 'Film'",
        ),
        (
            {"items": films().astype({"film": str})},
            FeatureSpecError,
            "'film' holds whole numbers in the table and texts in",
        ),
        ({"items": films().astype({"film": float})}, FeatureSpecError, "'film' of items has the type double; .*Int64"),
        ({"items": pd.concat([films(), films().head(2)])}, ColumnError, "the item '0' has more than one row"),
        (
            {"items": films().assign(film=range(100, 140))},
            FeatureSpecError,
            r"none of the 38 items of the table is among",
        ),
        ({"exclude": ["yaer"]}, FeatureSpecError, r"exclude names \['yaer'\], which items do not have"),
        ({"user": "users"}, FeatureSpecError, "user: the table has no column 'users', only"),
        (
            {"table": ratings().rename(columns={"userId": "who"})},
            FeatureSpecError,
            r"no column of \['who', 'at', 'stars'\]",
        ),
        ({"table": ratings().assign(date=1, ts=2)}, FeatureSpecError, r"the columns \['date', 'ts'\] could be the"),
        (
            {"table": lists_of_films().assign(rated_at=lambda table: table["film"])},
            FeatureSpecError,
            r"the columns \['rated_at'\] have a list of times",
        ),
        (
            {"table": lists_of_films().assign(stars=1.0), "label": {"name": "film", "rating": "stars"}},
            FeatureSpecError,
            "label 'film' is a list of items, but the rating 'stars' is one of a row",
        ),
        (
            {"table": lists_of_films(), "items": films().astype({"film": str})},
            FeatureSpecError,
            "'film' holds whole numbers in the table and texts in",
        ),
    ],
)
def test_tables_that_do_not_belong_together_are_refused_in_a_line(
    spark: "SparkSession", changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {"table": ratings(), "items": films(), "user": None, "exclude": (), "label": "film"} | changes
    with pytest.raises(error, match=message):
        recommender_input(time=None, spark=spark, **given)


def test_columns_and_settings_are_inferred(spark: "SparkSession") -> None:
    table = ratings().rename(columns={"at": "rated_at"})
    found = recommender_input(table, "film", films(), user=None, time=None, exclude=("year",), spark=spark)
    assert found.columns == InteractionColumns("userId", "film", "rated_at")
    assert found.in_words() == "users 'userId', items 'film' with 1 feature, in the order of 'rated_at'"
    config = default_config(found.spec, rows=1000, slots=2, name="films", epochs=2)
    knn, *ease, slit, longer_slit, bspm = (
        {"name": name, "last_items": last}
        for name, lengths in (("item_knn", [10]), ("ease", [3, 5, 10, 15]), ("slit", [3, 10]), ("bspm", [5]))
        for last in lengths
    )
    baseline = ["popularity", knn, "item_knn", *ease, "ease", slit, longer_slit, bspm, "bspm"]
    assert (config.baseline, config.epochs, config.patience) == (baseline, 2, 3)
    assert (config.model["name"], config.register, config.monitor) == ("two_tower", "better", "val_recall_at_20")
    ordered = recommender_input(
        *(table, "film", films()), user=None, time=None, exclude=(), spark=spark, learns_histories=True
    )
    assert ordered.spec.label.history_items
    config = default_config(ordered.spec, rows=1000, slots=2, name="films", top_k=10)
    assert (config.model["name"], config.model["every_position"], config.epochs) == ("sasrec", True, 40)
    assert (config.monitor, config.register, config.patience) == ("val_recall_at_10", "better", 5)
    # SLIT, then EASE^R, and then BSPM, would take too long or too much memory.
    sizes = (15_000, 30_000, 60_000)
    many = [default_config(found.spec, rows=1000, slots=2, name="films", candidates=size) for size in sizes]
    assert [(len(one.baseline), one.register) for one in many] == [(10, "better"), (5, "better"), (2, "model")]
    asked: list[dict[str, Any]] = [{"baseline": "popularity"}, {"model": {"name": "two_tower"}}, {"register": "model"}]
    for given in asked:
        assert default_config(found.spec, rows=1000, slots=2, name="films", **given).register == "model"
    rated = recommender_input(
        *(table, {"name": "film", "rating": "stars"}, films()), user=None, time=None, exclude=(), spark=spark
    )
    of_ratings = default_config(rated.spec, rows=1000, slots=2, name="films")
    assert (of_ratings.register, of_ratings.monitor) == ("model", "val_loss")
    with pytest.raises(ConfigError, match=r"register better chooses among recommenders that score from a row's his"):
        default_config(rated.spec, rows=1000, slots=2, name="films", register="better").require_features(rated.spec)


def test_interactions_alone_are_the_table_of_a_recommender(spark: "SparkSession") -> None:
    """#55: nothing but the ids of items is known, and a rating is a feature of no row."""
    label = {"name": "film", "kind": "candidate"}
    assert has_interactions(ratings(), label)
    assert has_interactions(spark.createDataFrame(lists_of_films()), label)
    others = ratings().assign(user_id=1, tags=[["x"]] * len(ratings()))
    assert has_interactions(others, label, exclude=("user_id", "tags"))
    for table, other in (
        (ratings(), "film"),
        (ratings(), {"name": "film", "kind": "multi_class"}),
        (ratings().rename(columns={"userId": "who"}), label),
        (ratings().assign(user_id=1), label),
        (ratings().assign(recent_items=[[1]] * len(ratings())), label),
    ):
        assert not has_interactions(table, other)
    found = recommender_input(ratings(), label, None, user=None, time=None, exclude=("at",), spark=spark)
    assert found.columns == InteractionColumns("userId", "film", None)
    assert found.in_words() == "users 'userId', items 'film', in no order"
    assert found.items is None
    assert [feature.name for feature in found.spec.features] == ["film", "userId", "recent_items"]
    config = default_config(found.spec, rows=1000, slots=2, name="films")
    assert (config.model["embedding_dim"], config.epochs, config.register) == (32, 20, "better")
    with pytest.raises(FeatureSpecError, match=r"exclude names \['year'\], which the table does not have"):
        recommender_input(ratings(), label, None, user=None, time=None, exclude=("year",), spark=spark)


@pytest.mark.full
def test_one_call_makes_a_recommender_of_interactions_alone(spark: "SparkSession", tmp_path: Path) -> None:
    settings: dict[str, Any] = {"output": str(tmp_path), "workers": 1, "baseline": "ease", "epochs": 2, "top_k": 10}
    result = ms.fit(ratings(), label="film", user="userId", time="at", spark=spark, **settings)
    assert isinstance(result, ms.RecommenderResult)
    assert result.config.model["name"] == "sasrec"
    assert result.dataset.features.spec.label.history_items
    assert result.dataset.manifest.rows("train") == 120  # windows, of eight films each
    met = ratings().groupby("userId")["film"].agg(set)
    lists = result.recommend(k=8)
    assert all(len(row.candidates) == 8 and not met[row.userId] & set(row.candidates) for row in lists.itertuples())


@pytest.mark.full
def test_one_call_makes_a_recommender_with_lists_for_every_user(spark: "SparkSession", tmp_path: Path) -> None:
    settings: dict[str, Any] = {"output": str(tmp_path), "workers": 1, "learning_rate": 0.02, "top_k": 10}
    result = ms.fit(ratings(), label="film", items=films(), time="at", spark=spark, epochs=12, **settings)
    assert isinstance(result, ms.RecommenderResult)
    board = result.leaderboard
    assert len(board) == 14
    assert board["test_recall_at_10"].notna().all()
    (registered,) = board.index[board["registered"]]
    assert set(result.table.columns) == {"validation", "test", *board.index} - {registered}
    assert result.trained.chosen is not None
    assert result.trained.chosen in repr(result)
    assert len(repr(result).splitlines()) <= 10
    lists = result.recommend(k=8)
    assert list(lists.columns) == ["userId", "candidates", "scores", "model_version"]
    assert list(lists["userId"]) == list(range(120))
    met = ratings().groupby("userId")["film"].agg(set)
    assert all(not met[row.userId] & set(row.candidates) for row in lists.itertuples())
    same_kind = [sum(film % 2 == row.userId % 2 for film in row.candidates) for row in lists.itertuples()]
    # By chance a third: of the 30 films that a user has not met, 10 are of the kind.
    assert sum(same_kind) / (8 * len(lists)) > 0.7
    some = result.recommend([3, 777])
    assert list(some["userId"]) == [3, 777]
    assert [len(row) for row in some["candidates"]] == [10, 10]
    fresh = pd.DataFrame({"userId": [900] * 3, "film": [0, 2, 4], "at": [1, 2, 3]})
    (newcomer,) = result.recommend(fresh)["candidates"]
    assert not {0, 2, 4} & set(newcomer)
    assert sum(film % 2 == 0 for film in newcomer) >= 7
    with pytest.raises(
        ScoringError, match="k is 20, and the lists of this model have 1 to 10 items; give fit top_k=20"
    ):
        result.recommend(k=20)
    for wrong in ("u7", [], ["u7"], 7, [1.5]):
        with pytest.raises((ScoringError, ms.TableError)):
            result.recommend(wrong)
    with pytest.raises(ScoringError, match=r"the interactions have no columns \['at'\]"):
        result.recommend(fresh.drop(columns="at"))
    with pytest.raises(ScoringError, match=r"score takes rows with the items that a user met before.*result.recommend"):
        result.score(ratings())
    settings |= {"epochs": 12, "register": "model"}
    towers = ms.fit(ratings(), label="film", items=films(), time="at", spark=spark, **settings)
    assert towers.dataset.path == result.dataset.path
    assert towers.trained.chosen is None
    # A film that nobody has met is in some list, by its features.
    assert {38, 39} & {film for candidates in towers.recommend(k=8)["candidates"] for film in candidates}


@pytest.mark.full
def test_a_recommender_of_lists_is_measured_by_all_that_a_user_chose(spark: "SparkSession", tmp_path: Path) -> None:
    """#55."""
    settings: dict[str, Any] = {"output": str(tmp_path), "workers": 1, "learning_rate": 0.02, "top_k": 10}
    result = ms.fit(
        *(lists_of_films(), "film"),
        items=films(),
        spark=spark,
        epochs=2,
        baseline=["popularity", "item_knn"],
        monitor="val_recall@10",
        **settings,
    )
    assert isinstance(result, ms.RecommenderResult)
    counts = {split: result.dataset.manifest.rows(split) for split in ("train", "validation", "test")}
    # A window of the six films before the two of the validation.
    assert counts == {"train": 120, "validation": 120, "test": 120}
    # Two are held back, so that the first place is half of the recall at most.
    assert 0 < result.table["test"]["recall_at_1"] <= 0.5
    predictions = pq.read_table(result.trained.run_folder / "predictions" / "test.parquet")
    assert {len(films) for films in predictions["label"].to_pylist()} == {2}
    lists = result.recommend(k=8)
    met = ratings().groupby("userId")["film"].agg(set)
    assert all(not met[row.userId] & set(row.candidates) for row in lists.itertuples())
    fresh = pd.DataFrame({"userId": [900], "film": [[0, 2, 4]]})
    (newcomer,) = result.recommend(fresh)["candidates"]
    assert not {0, 2, 4} & set(newcomer)


def own_towers() -> Callable[[Any], Any]:
    """Return a function that builds a model of TensorFlow Recommenders; as a closure it travels by value."""

    def build(features: Any) -> Any:
        import tensorflow as tf
        import tensorflow_recommenders as tfrs
        import tf_keras

        class Films(tfrs.Model):
            def __init__(self) -> None:
                super().__init__()
                films = features.id_count(features.spec.candidate)
                self.liked = tf_keras.layers.Embedding(films, 16)
                self.film = tf_keras.layers.Embedding(films, 16)
                everything = tf.data.Dataset.range(2, films).batch(16).map(self.film)
                self.task = tfrs.tasks.Retrieval(metrics=tfrs.metrics.FactorizedTopK(everything, ks=(10,)))

            def compute_loss(self, inputs, training=False):  # type: ignore[no-untyped-def]
                ids = inputs["recent_items"]  # padded with 0, and empty in the first row of a user
                liked = self.liked(ids) * tf.cast(ids > 0, tf.float32)[:, :, tf.newaxis]
                return self.task(tf.reduce_mean(liked, axis=1), self.film(inputs["film"]), compute_metrics=not training)

        model = Films()
        model.compile(tf_keras.optimizers.Adagrad(0.5))
        return model

    return build


@pytest.mark.full
def test_a_users_own_towers_recommend_like_ours(spark: "SparkSession", tmp_path: Path) -> None:
    """#53: on two workers, with a metric of their own, exported with all indexes, compared and registered."""
    settings: dict[str, Any] = {"output": str(tmp_path), "workers": 2, "top_k": 10, "baseline": "popularity"}
    result = ms.fit(
        ratings(), label="film", items=films(), time="at", spark=spark, epochs=6, model=own_towers(), **settings
    )
    assert isinstance(result, ms.RecommenderResult)
    lists = result.recommend(k=8)
    same_kind = [sum(film % 2 == row.userId % 2 for film in row.candidates) for row in lists.itertuples()]
    assert sum(same_kind) / (8 * len(lists)) > 0.45  # by chance a third
    events = [json.loads(line) for line in (result.trained.run_folder / "events.jsonl").read_text().splitlines()]
    epochs = [event["logs"] for event in events if event["event"] == "epoch_end"]
    assert epochs[-1]["val_factorized_top_k/top_10_categorical_accuracy"] > 0.5
    assert epochs[-1]["loss"] < epochs[0]["loss"]
