"""The recipes that come with the installation, on their real data."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest

from mirrorspark.recommending.item_index.build import RefreshError
from mirrorspark.recommending.item_index.refresh import catalogue_of
from mirrorspark.recommending.recommendations import recommend
from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.job.source_tables import recipe_table
from mirrorspark.training.results.report.baselines import each_baseline
from tests.cluster.test_main_job import run

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.timeout(800)


def movielens_of(users: int, tmp_path: Path, shared_data: Path) -> Path:
    """Return a folder with the ratings of this number of users, and all movies."""
    data, source = tmp_path / "data", shared_data / "ml_latest_small"
    data.mkdir()
    header, *ratings = (source / "ratings.csv").read_text(encoding="utf-8").splitlines()
    some = [rating for rating in ratings if int(rating.split(",")[0]) <= users]
    (data / "ratings.csv").write_text("\n".join([header, *some]), encoding="utf-8")
    (data / "movies.csv").write_bytes((source / "movies.csv").read_bytes())
    return data


@pytest.mark.full
def test_flights_reaches_its_baseline(spark: "SparkSession", tmp_path: Path) -> None:
    """F1, F3: the multi-field model is no more than 0.01 AUC below gradient boosting on the same features."""
    finished = run(tmp_path, "--recipe=flights", "--workers=2", "--epochs=4")
    baseline = finished.summary["baseline"]
    assert baseline["name"] == "hist_gradient_boosting"
    assert finished.auc >= baseline["metrics"]["auc"] - 0.01
    assert finished.summary["dataset"]["rows"] == {"train": 244_737, "validation": 28_618, "test": 53_991}
    assert finished.summary["parity"]["max"] <= 1e-5


@pytest.mark.full
def test_movielens_beats_popularity(spark: "SparkSession", tmp_path: Path, shared_data: Path) -> None:
    """T1, S7, R1: two-tower retrieval recommends the held-back movie more often than the most popular ones would.

    Every index of its model recommends to all users, the approximate ones nearly what the exact one does.
    """
    data = shared_data / "ml_latest_small"
    beside = "--baseline=[popularity, item_knn, {name: ease, last_items: 15}, als]"
    finished = run(tmp_path, "--recipe=movielens", f"--data={data}", "--workers=2", beside)
    test = finished.summary["metrics"]["test"]
    popularity, *others = (finished.summary["baseline"], *finished.summary["baseline"]["others"])
    found = {each["name"]: round(each["metrics"]["recall_at_20"], 4) for each in others}
    print(f"movielens, recall@20: {found}")
    # Without the order of the history, EASE^R is the best of them by far.
    assert found["ease_last_items_15"] > 0.15
    assert min(found.values()) > popularity["metrics"]["recall_at_20"]
    popularity = popularity["metrics"]
    assert test["recall_at_20"] > popularity["recall_at_20"]
    assert test["ndcg_at_20"] > popularity["ndcg_at_20"]
    assert finished.summary["parity"]["max"] <= 1e-5

    table = pq.read_table(finished.summary["scored_table"]).to_pandas()
    assert len(table) == 610
    assert (table["candidates"].map(len) == 20).all()
    assert (table["candidates"].map(lambda movies: len(set(movies))) == 20).all()
    assert set(table["model_version"]) == {"movielens/1"}

    # The same lists for the same users by each index of the model, and by the exact one these very lists.
    model = resolve("models:/movielens/1", finished.summary["tracking_uri"])
    config = RunConfig.from_recipe("movielens", data=str(data), output=str(tmp_path))
    users = recipe_table(spark, config).where("split = 'test'").cache()
    indexes = ModelDirectory.open(model.path).description.indexes
    lists = {
        index: recommend(users, model, keys="interaction_id", k=20, index=index).toPandas().set_index("interaction_id")
        for index in indexes
    }
    exact = lists["exact"]["candidates"]
    assert exact.map(list).to_dict() == table.set_index("interaction_id")["candidates"].map(list).to_dict()
    assert {"exact", "ivf"} <= set(lists)
    for index, found in lists.items():
        assert found["candidates"].map(len).eq(20).all()
        shared = [len(set(found["candidates"][key]) & set(exact[key])) for key in exact.index]
        print(f"movielens, best 20 for {len(exact)} users: recall of {index} {np.mean(shared) / 20:.4f}")
        assert np.mean(shared) / 20 >= 0.9


@pytest.mark.full
@pytest.mark.parametrize(
    ("model", "workers"),
    [
        ("lstm_retrieval", 1),
        ("sasrec", 2),
        ("two_tower", 2),
        ("popularity", 1),
        ("item_knn", 1),
        ("bspm", 1),
        ("ease", 1),
        ("slit", 1),
        ("als", 1),
    ],
)
def test_movielens_is_learnt_from_the_order_as_well(
    spark: "SparkSession", tmp_path: Path, shared_data: Path, model: str, workers: int
) -> None:
    """F14: ragged histories from the table to the scores, which are those of the training framework."""
    users = 100
    data = movielens_of(users, tmp_path, shared_data)
    flags = (f"--model.name={model}", "--epochs=2", "--baseline=none")
    flags += ("--model.graph_layers=2",) if model == "two_tower" else ()
    finished = run(tmp_path, "--recipe=movielens", f"--data={data}", f"--workers={workers}", *flags)
    assert finished.summary["parity"]["max"] <= 1e-5
    assert finished.summary["metrics"]["test"]["recall_at_20"] > 0
    table = pq.read_table(finished.summary["scored_table"], columns=["candidates"]).to_pandas()
    assert len(table) == users
    assert table["candidates"].map(lambda movies: len(set(movies))).eq(20).all()


@pytest.mark.full
def test_a_blend_that_is_better_than_the_network_is_scored_by_spark_as_by_numpy(
    spark: "SparkSession", tmp_path: Path, shared_data: Path
) -> None:
    """#55: the run is chosen from the network and its baselines; ALS, which needs Spark, is compared alone."""
    baseline = "[popularity, {name: ease, last_items: 5}, {name: slit, last_items: 3}, als]"
    flags = ("--epochs=2", "--register=better", f"--baseline={baseline}")
    finished = run(tmp_path, "--recipe=movielens_items", f"--data={movielens_of(100, tmp_path, shared_data)}", *flags)
    assert finished.summary["parity"]["max"] <= 1e-5
    assert finished.summary["chosen"].startswith("the blend (")
    assert "als" not in finished.summary["chosen"]
    compared = [entry["name"] for entry in each_baseline(finished.summary["baseline"])]
    assert compared == ["popularity", "ease_last_items_5", "slit_last_items_3", "network", "als"]
    with pytest.raises(RefreshError, match="it is blend, which was better than the network on the validation rows"):
        catalogue_of(ModelDirectory.open(Path(finished.summary["run_folder"]) / "model"))
