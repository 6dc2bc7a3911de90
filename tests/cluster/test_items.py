"""Items with features on Spark: conversion, a training of two workers, and items that nobody has rated (R1)."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql.types import StructType

from mirrorspark.callbacks.mlflow.tracking_store import store_client
from mirrorspark.data_pipelines.conversion import convert
from mirrorspark.data_pipelines.features.item_rows import encoded_items
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, MultiValued, Numeric, Sparse
from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import SparseRows
from mirrorspark.recommending.item_index.refresh import refresh_index
from mirrorspark.recommending.recommendations import recommend
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.predictor import Predictor
from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.configuration.recipe import load_recipe
from mirrorspark.training.job.source_tables import recipe_table
from tests.cluster.test_main_job import run
from tests.unit.scoring.encoders import save_onnx_encoder

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from tests.cluster.test_main_job import Finished

pytestmark = pytest.mark.timeout(300)

ITEMS = FeatureSpec.of_items("sku", [MultiValued("tags", max_length=2), Numeric("price"), Sparse("words", size=9)])
SPEC = FeatureSpec((Categorical("user"), Categorical("product")), Label("product", "candidate"), ("id",), items=ITEMS)


@pytest.fixture
def purchases(spark: "SparkSession") -> "DataFrame":
    rows = [(n, f"u{n % 3}", n % 2 or 7, "train" if n < 20 else "validation" if n < 25 else "test") for n in range(30)]
    return spark.createDataFrame(rows, "id long, user string, product int, split string")


@pytest.fixture
def products(spark: "SparkSession") -> "DataFrame":
    rows = [
        (7, ["old"], 10.0, Vectors.sparse(9, [2, 8], [0.5, 1.0])),
        (12, ["new", "old"], 40.0, None),
        (1, None, 10.0, Vectors.dense(0, 2, 0, 0, 0, 0, 0, 0, 0)),
    ]
    columns = StructType.fromDDL("sku int, tags array<string>, price double")
    return spark.createDataFrame(rows, columns.add("words", VectorUDT()))


def test_items_are_fitted_to_their_table_and_found_by_the_id_of_the_candidate(
    purchases: "DataFrame", products: "DataFrame", tmp_path: Path
) -> None:
    fitted = convert(purchases, SPEC, tmp_path / "dataset", items=products).features
    # 7 and 1 were bought ten times each, and come in the order of their text.
    movies = fitted.vocabulary(SPEC.candidate)
    assert (movies.tokens.to_pylist(), movies.counts.to_pylist()) == (["1", "7", "12"], [10, 10, 0])
    assert fitted.items is not None
    assert fitted.items.features.vocabularies["tags"].tokens.to_pylist() == ["old", "new"]
    found = encoded_items(fitted.items)
    assert np.asarray(found["tags"]).tolist() == [[0, 0], [0, 0], [0, 0], [2, 0], [3, 2]]
    words = found["words"]
    assert isinstance(words, SparseRows)
    assert (words.row_lengths.tolist(), words.indices.tolist()) == ([0, 0, 1, 2, 0], [1, 2, 8])
    assert words.values.tolist() == [2.0, 0.5, 1.0]
    # The mean of 10, 40 and 10 is 20, their deviation the root of 200.
    assert np.asarray(found["price"])[2:] == pytest.approx([-(0.5**0.5), -(0.5**0.5), 2**0.5])


def test_a_spec_and_a_table_of_items_belong_together(
    purchases: "DataFrame", products: "DataFrame", tmp_path: Path
) -> None:
    with pytest.raises(ColumnError, match="the spec has items, but no table of items is given"):
        convert(purchases, SPEC, tmp_path / "dataset")
    with pytest.raises(ColumnError, match=r"the table of items lacks the columns \['price'\]"):
        convert(purchases, SPEC, tmp_path / "dataset", items=products.drop("price"))
    without = FeatureSpec(SPEC.features, SPEC.label, SPEC.keys)
    with pytest.raises(ColumnError, match="a table of items is given, but the spec has no items"):
        convert(purchases, without, tmp_path / "dataset", items=products)


# Films of even number are of war, the others comedies; films 13 and 14 of either have no rating.
FILMS = [(n, f"Film {n} ({1980 + n})", "War" if n % 2 == 0 else "Comedy") for n in range(1, 15)]


@pytest.fixture(scope="module")
def trained(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> tuple["Finished", "DataFrame"]:
    """Return a run of the recipe with items on two workers, and its users, of whom those of even number watch war."""
    output = tmp_path_factory.mktemp("items")
    data = output / "data"
    data.mkdir()
    pd.DataFrame(FILMS, columns=["movieId", "title", "genres"]).to_csv(data / "movies.csv", index=False)
    ratings = [
        (user, 1 + (user + 1) % 2 + 2 * ((user // 2 + place) % 6), 2.0 + 2 * (user % 2), place)
        for user in range(40)
        for place in range(5)
    ]
    columns = ["userId", "movieId", "rating", "timestamp"]
    pd.DataFrame(ratings, columns=columns).to_csv(data / "ratings.csv", index=False)
    flags = ("--epochs=12", "--learning-rate=0.01", "--global-batch-size=16", "--top-k=4", "--model.dropout=0")
    # The title once more, by an encoder of token ids.
    items = load_recipe("movielens_items")["items"]
    encoder = save_onnx_encoder(output / "encoder" / "model.onnx")
    words = {"kind": "sparse", "size": 9, "indices": "word_ids", "values": "weights"}
    features = items["features"] | {"plot": {"kind": "text_embedding", "encoder": str(encoder)}, "words": words}
    more = ", title AS plot, array(movieId % 9) AS word_ids, array(0.5D) AS weights FROM movies"
    items |= {"features": features, "sql": items["sql"].replace("FROM movies", more)}
    flags += (
        "--workers=2",
        f"--items={json.dumps(items)}",
        "--ranked-queries=1000",
        "--label={name: movie_id, kind: candidate, rating: rating}",
    )
    beside = "--baseline=[popularity, item_knn, {name: ease, l2: 5}, {name: als, rank: 4, iterations: 3}]"
    finished = run(output, "--recipe=movielens_items", f"--data={data}", *flags, beside)
    config = RunConfig.from_recipe("movielens_items", data=str(data), output=str(output))
    return finished, recipe_table(spark, config).where("split = 'test'").cache()


def fitting(lists: pd.DataFrame) -> int:
    """Return for how many users the best film is of the kind that they watch."""
    return sum(int(row.candidates[0]) % 2 == int(row.user_id) % 2 for row in lists.itertuples())


@pytest.mark.full
def test_a_movie_that_nobody_has_rated_is_recommended(
    spark: "SparkSession", trained: tuple["Finished", "DataFrame"]
) -> None:
    """S7, T4: the recipe with items, on two workers; Spark's lists are those of the training framework."""
    finished, users = trained
    assert finished.summary["parity"]["max"] <= 1e-5
    assert len(pq.read_table(finished.summary["scored_table"])) == 40
    # Users watch films of one kind, which popularity does not know.
    baseline = finished.summary["baseline"]
    recalls = {each["name"]: each["metrics"]["recall_at_1"] for each in (baseline, *baseline["others"])}
    assert list(recalls) == ["popularity", "item_knn", "ease_l2_5", "als_rank_4_iterations_3"]
    popularity, *others = recalls.values()
    assert min(others) >= 2 * popularity

    # R2: the two workers' lists after the best epoch are the recommendations of that epoch's model.
    client, run_id = store_client(finished.summary["tracking_uri"]), finished.summary["run_id"]
    losses, ndcgs = (
        [metric.value for metric in client.get_metric_history(run_id, name)] for name in ("val_loss", "val_ndcg_at_4")
    )
    assert len(ndcgs) == len(losses)
    ranked = ndcgs[losses.index(min(losses))]
    assert finished.summary["metrics"]["validation"]["ndcg_at_4"] == pytest.approx(ranked, abs=1e-6)

    # The second task: users of odd number rate every film 4, the others 2.
    errors = finished.summary["metrics"]["test"]
    assert 0 < errors["mae"] <= errors["rmse"] < 0.8
    history = client.get_metric_history(run_id, "val_rmse")
    assert finished.summary["metrics"]["validation"]["rmse"] == pytest.approx(
        history[losses.index(min(losses))].value, abs=1e-6
    )

    model = resolve("models:/movielens_items/1", finished.summary["tracking_uri"])
    new = spark.createDataFrame([("13",), ("14",)], "movie_id string")
    assert fitting(recommend(users, model, keys="user_id", k=1, available=new).toPandas()) >= 32


@pytest.mark.full
def test_a_new_catalogue_takes_the_alias_while_readers_run(
    spark: "SparkSession", trained: tuple["Finished", "DataFrame"], tmp_path: Path
) -> None:
    """R1: films added after the training are recommended, removed ones never; no read fails meanwhile."""
    finished, users = trained
    store, alias = finished.summary["tracking_uri"], "models:/movielens_items@shop"
    store_client(store).set_registered_model_alias("movielens_items", "shop", "1")
    columns = [
        (
            str(n),
            ["War" if n % 2 == 0 else "Comedy"],
            f"Film {n}",
            1980 + n,
            f"Film {n}  ({1980 + n})\n",
            [n % 9],
            [0.5],
        )
        for n in range(5, 23)
    ]
    texts = "id string, genres array<string>, title string, year int, plot string"
    films = spark.createDataFrame(columns, f"{texts}, word_ids array<int>, weights array<double>")
    row = users.limit(1).toArrow().to_pylist()[0]
    jobs: list[set[str]] = []
    labels: list[str] = []

    def read() -> None:
        found = recommend(users, alias, keys="user_id", k=2, tracking_uri=store).collect()
        jobs.append({one.model_version for one in found})
        predictor = Predictor(alias, tracking_uri=store)
        assert predictor.predict(row)["candidates"]
        labels.append(predictor.label)

    read()
    with ThreadPoolExecutor(1) as pool:
        swap = pool.submit(
            refresh_index,
            *(alias, films, tmp_path / "refreshed"),
            registered_model="movielens_items",
            alias="shop",
            tracking_uri=store,
            threads=1,
        )
        while not swap.done():
            read()
    refreshed = swap.result()
    read()
    # One version per job, the old one until the swap and the new one from then on.
    versions = [version for (version,) in jobs]
    new = refreshed.model_uri.removeprefix("models:/")
    assert versions == sorted(versions)
    assert (versions[0], versions[-1], labels[-1]) == ("movielens_items/1", new, new)
    assert (refreshed.catalogue.new, refreshed.catalogue.removed) == (8, 4)
    # The plots of the others differ in white space alone.
    assert refreshed.catalogue.changed == 0

    later = spark.createDataFrame([("21",), ("22",)], "movie_id string")
    lists = recommend(users, alias, keys="user_id", k=1, available=later, tracking_uri=store).toPandas()
    assert fitting(lists) >= 32
    every = recommend(users, alias, keys="user_id", k=18, tracking_uri=store).toPandas()["candidates"]
    assert {name for names in every for name in names} == {str(n) for n in range(5, 23)}
