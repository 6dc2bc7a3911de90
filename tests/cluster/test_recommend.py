"""Recommendations on Spark: the model's own lists by every index, without what is seen or not available (R3, R6)."""

import importlib.util
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyspark.ml.recommendation import ALS
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from scipy.sparse import csr_array

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.memory_tables import TableError
from mirrorspark.models import classical
from mirrorspark.recommending.candidate_types import candidate_type, common_type
from mirrorspark.recommending.recommendations import recommend, unavailable_ids
from mirrorspark.recommending.reranking.cascade import rank_candidates
from mirrorspark.recommending.reranking.reranker import rerank
from mirrorspark.recommending.routing.package import package_router
from mirrorspark.recommending.routing.router import Route, Router
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.model.loading.loaded import DEFAULT_BATCH_SIZE, PART_BYTES, LoadedModel, Search
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.task.counts import Counters
from mirrorspark.training.programs.recommenders.als import fold_in, item_factors
from tests.unit.scoring.exported_models import export_flights, export_histories, export_movies, movies_features

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.timeout(300)

HAS_SCANN = importlib.util.find_spec("scann") is not None
# Our IVF index is searched where ScaNN is not installed.
INDEXES = ["exact", *([pytest.param("ivf", marks=pytest.mark.full), "scann"] if HAS_SCANN else ["ivf"])]
MOVIES = [f"m{number}" for number in range(40)]
ROWS = pa.table(
    {
        "user": ["u0", "u1", "nobody", "u0"],
        "history": pa.array([["m1"], [], None, ["m3", "m4"]], pa.list_(pa.string())),
        "seen": pa.array([["m1", "m2"], None, [], MOVIES[:38]], pa.list_(pa.string())),
        "row": [0, 1, 2, 3],
    }
)


@pytest.fixture(scope="module")
def movies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_movies(tmp_path_factory.mktemp("export") / "movies", scann=HAS_SCANN)


@pytest.fixture(scope="module")
def rows(spark: "SparkSession") -> "DataFrame":
    ddl = "user string, history array<string>, seen array<string>, row bigint"
    return spark.createDataFrame([tuple(row.values()) for row in ROWS.to_pylist()], ddl).repartition(2)


def lists(frame: "DataFrame") -> list[list[str]]:
    """Return the candidates of the rows in their order."""
    found = frame.orderBy("row").collect()
    assert [row.row for row in found] == ROWS["row"].to_pylist()
    for row in found:
        assert len(row.candidates) == len(row.scores) == len(set(row.candidates))
        assert row.scores == sorted(row.scores, reverse=True)
    return [row.candidates for row in found]


def whole_lists(model: Path) -> list[list[str]]:
    """Return all candidates for each row, best first, found one by one: each is then seen."""
    model_of_one = LoadedModel(model)
    best: list[list[str]] = []
    for place in range(ROWS.num_rows):
        seen = list(ROWS["seen"][place].as_py() or [])
        found: list[str] = []
        while len(seen) < len(MOVIES):
            row = ROWS.slice(place, 1).set_column(2, "seen", pa.array([seen], pa.list_(pa.string())))
            found.append(model_of_one.score_arrow(row)["candidates"][0][0].as_py())
            seen.append(found[-1])
        best.append(found)
    return best


@pytest.mark.parametrize("index", INDEXES)
def test_lists_hold_the_best_that_are_available_and_not_seen(rows: "DataFrame", movies: Path, index: str) -> None:
    """R6: a masked candidate never appears, and lists are full where enough is left: the last user has seen 38."""
    every = whole_lists(movies)
    available = MOVIES[:30]
    expected = [[movie for movie in row if movie in available and movie != "m7"][:12] for row in every]
    assert [len(row) for row in expected] == [12, 12, 12, 0]
    recommended = recommend(rows, movies, keys="row", k=12, index=index, available=available, unavailable=["m7"])
    assert recommended.columns == ["row", "candidates", "scores", "model_version"]
    found = lists(recommended)
    if index == "exact":
        assert found == expected
    assert [len(row) for row in found] == [12, 12, 12, 0]
    assert all(set(row) <= set(available) - {"m7"} for row in found)
    assert not set(found[0]) & {"m1", "m2"}


@pytest.mark.full
def test_a_user_is_folded_in_as_spark_computes_those_of_the_training(spark: "SparkSession") -> None:
    """R2: so that rows of users who came later, and those of the training, get the scores of Spark's model."""
    settings = classical.ALS(rank=4, iterations=1, l2=0.1, alpha=5.0)
    bought = (np.random.default_rng(5).random((30, 12)) < 0.3).astype(np.float32)
    # The last item and the first user have nothing.
    bought[:, 11] = bought[0] = 0
    matrix = csr_array(bought)
    found = fold_in(matrix, item_factors(matrix, settings, 7, spark), settings)
    users, items = matrix.nonzero()
    pairs = pd.DataFrame({"user": users, "item": items, "rating": 1.0})
    sparks = ALS(rank=4, maxIter=1, regParam=0.1, alpha=5.0, implicitPrefs=True, seed=7)
    factors = sparks.fit(spark.createDataFrame(pairs)).userFactors.toPandas()
    expected = np.zeros((30, 4))
    expected[factors["id"]] = np.stack(factors["features"].to_list())
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert not found[0].any()


def test_lists_may_be_longer_and_shorter_than_the_model_was_exported_with(rows: "DataFrame", movies: Path) -> None:
    every = whole_lists(movies)
    assert lists(recommend(rows, movies, keys="row", k=40)) == every
    assert lists(recommend(rows, movies, keys="row", k=3)) == [row[:3] for row in every]


def test_available_candidates_come_from_a_table_and_unknown_ones_are_counted(
    spark: "SparkSession", rows: "DataFrame", movies: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stock = spark.createDataFrame([(None,), ("unseen",), ("m1",), ("m5",), ("new",)], "movie string")
    with caplog.at_level(logging.WARNING):
        found = lists(recommend(rows, movies, keys="row", k=3, available=stock))
    assert [set(row) for row in found] == [{"m5"}, {"m1", "m5"}, {"m1", "m5"}, set()]
    assert "the model does not know 3 of 5 available candidates: ['new', 'unseen', None]" in caplog.text
    assert "only 2 candidates are available: no row gets the 3 that are wanted" in caplog.text
    assert lists(recommend(rows, movies, keys="row", k=3, available=stock.toPandas())) == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k 0 cannot be met by the model's 40 candidates; use 1 to 40"),
        ({"k": 41}, "k 41 cannot be met"),
        ({"index": "hnsw"}, r"holds no index 'hnsw', it holds \['exact', 'ivf'"),
        ({"available": []}, "none of the model's 40 candidates is available"),
        ({"available": [1, "m7"]}, "the available candidates are of several types"),
        ({"available": ["new"]}, "none of the model's 40 candidates is available"),
        ({"unavailable": MOVIES}, "none of the model's 40 candidates is available"),
        ({"unavailable": "m7"}, "the unavailable candidates are 'm7', one text; give a list of tokens"),
        ({"keys": "id"}, r"key columns \['id'\] are missing"),
    ],
)
def test_invalid_arguments_of_recommend_are_refused_before_a_task_starts(
    rows: "DataFrame", movies: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ScoringError, match=message):
        recommend(rows, movies, **{"keys": "row", "k": 3} | arguments)


def test_candidates_of_another_type_or_column_are_refused(
    spark: "SparkSession", rows: "DataFrame", movies: Path
) -> None:
    for others in (spark.range(3), pd.DataFrame({"id": MOVIES})):
        with pytest.raises(
            TableError, match=r"of unavailable candidates lacks the columns \['movie'\]; it has \['id'\]"
        ):
            recommend(rows, movies, keys="row", k=3, unavailable=others)
    with pytest.raises(ColumnError, match="column 'movie'"):
        recommend(rows, movies, keys="row", k=3, available=spark.createDataFrame([(1.5,)], "movie double"))


def test_candidates_that_were_whole_numbers_are_such_numbers_and_may_be_given_as_numbers_or_texts(
    rows: "DataFrame", movies: Path, tmp_path: Path
) -> None:
    """#55: in a router, too, and in a table in memory; a catalogue of texts may be given as numbers as well."""
    model = export_movies(tmp_path / "numbers", scann=False, prefix="")
    found = recommend(rows, model, keys="row", k=3, available=[3, 5, 8])
    assert found.schema["candidates"].simpleString() == "candidates:array<bigint>"
    assert [set(row) for row in lists(found)] == [{3, 5, 8}] * 4
    models = {"numbers": model}
    folder = package_router(Router((Route("numbers"),)), tmp_path / "router", models=models)
    here = recommend(ROWS, folder, keys="row", k=3, available=["3", "5", "8"], unavailable=[8])
    assert here["candidates"].type == pa.list_(pa.int64())
    assert [set(row) for row in here["candidates"].to_pylist()] == [{3, 5}] * 4
    assert candidate_type(ModelDirectory.open(movies).features) == "string"
    texts = replace(movies_features(""), column_types={"movie": "string"})
    assert unavailable_ids(texts, 1, range(38), None).tolist() == [40, 41]
    # A key of the items that is a text makes texts of all.
    items = replace(movies_features("m"), column_types={"movie": "int64"})
    assert candidate_type(items) == "string"
    assert [common_type(one) for one in (["bigint"] * 2, ["bigint", "string"])] == ["bigint", "string"]


@pytest.mark.full
def test_a_model_that_scores_is_refused(rows: "DataFrame", tmp_path: Path) -> None:
    with pytest.raises(ScoringError, match="is not a retrieval model, it has no candidates to recommend; use score"):
        recommend(rows, export_flights(tmp_path / "flights", seed=1), keys="row", k=3)


@pytest.mark.full
def test_a_router_fuses_the_lists_of_its_models(rows: "DataFrame", movies: Path, tmp_path: Path) -> None:
    """R9: by 1 / (60 + place) with weights, over more candidates than are shown; other routes keep their list."""
    table = rows.withColumn("watched", F.col("history"))
    models = {"towers": movies, "sequence": export_histories(tmp_path / "sequence")}
    router = Router(
        (Route("sequence", "row", values=(3,)), Route("both")),
        blends={"both": {"towers": 1.0, "sequence": 0.5}},
        blend_depth=20,
    )
    folder = package_router(router, tmp_path / "router", models=models)
    parts = {
        name: lists(recommend(table, model, keys="row", k=20, unavailable=["m7"])) for name, model in models.items()
    }
    found = recommend(table, folder, keys="row", k=12, unavailable=["m7"])
    assert found.columns == ["row", "candidates", "scores", "model", "reason", "model_version"]
    assert [row.model for row in found.orderBy("row").collect()] == ["both", "both", "both", "sequence"]
    for place, fused in enumerate(lists(found)):
        gains: dict[str, float] = {}
        for name in ("towers", "sequence") if place < 3 else ("sequence",):
            for rank, movie in enumerate(parts[name][place], start=1):
                gains[movie] = gains.get(movie, 0) + router.blends["both"][name] / (60 + rank)
        assert fused == sorted(gains, key=lambda movie: -gains[movie])[:12]

    # There are fewer candidates than places. The model without that column still recommends items that a row has seen.
    few = recommend(table, folder, keys="row", k=12, available=["m1", "m5"])
    assert [set(row) for row in lists(few)] == [{"m1", "m5"}] * 4
    with pytest.raises(
        ScoringError, match=r"none of the candidates of the models \['sequence', 'towers'\] is available"
    ):
        recommend(table, folder, keys="row", k=3, available=["unknown"])
    with pytest.raises(ScoringError, match="k 0 is below 1"):
        recommend(table, folder, keys="row", k=0)


def test_a_row_that_cannot_be_served_is_marked_and_has_no_lists(
    spark: "SparkSession", rows: "DataFrame", movies: Path
) -> None:
    counters = Counters(spark)
    options = {"keys": "row", "k": 3, "nulls": {"seen": "fail"}, "bad_rows": "mark", "counters": counters}
    # Sorted here: Spark would compute the rows twice, to find the ranges of its sort.
    found = sorted(recommend(rows, movies, **options).collect(), key=lambda row: row.row)
    assert [row.candidates is None for row in found] == [row.scores is None for row in found]
    assert [row.candidates is None for row in found] == [False, True, False, False]
    assert "seen" in found[1].error
    assert [len(row.candidates) for row in found if row.candidates is not None] == [3, 3, 2]
    assert (counters.value.rows, counters.value.bad_rows) == (4, 1)


@pytest.mark.full
def test_lists_are_re_ranked_on_spark_as_in_arrow(spark: "SparkSession", rows: "DataFrame", movies: Path) -> None:
    """R7: two movies of a genre at most, with the attributes from a table of Spark or of Arrow."""
    genres = pa.table({"movie": MOVIES, "genre": [f"g{number % 5}" for number in range(40)]})
    whole = recommend(rows, movies, keys="row", k=40)
    rules: dict[str, Any] = {"key": "movie", "k": 8, "category": "genre", "at_most": 2}
    expected = rerank(whole.toArrow().sort_by("row"), genres, **rules)["candidates"].to_pylist()
    of_movie = dict(zip(MOVIES, genres["genre"].to_pylist(), strict=True))
    assert [max(Counter(of_movie[movie] for movie in row).values(), default=0) for row in expected] == [2, 2, 2, 1]
    for items in (genres, spark.createDataFrame(genres.to_pandas())):
        found = rerank(whole, items, **rules)
        assert found.schema == whole.schema
        assert [row.candidates for row in found.orderBy("row").collect()] == expected


def test_a_ranking_model_orders_what_was_retrieved(
    spark: "SparkSession", rows: "DataFrame", movies: Path, tmp_path: Path
) -> None:
    """R6: a cascade, in which the second model reads columns of the list's row and of the candidate."""
    retrieved = recommend(rows, movies, keys="row", k=6).withColumn("rebate", F.col("row") * 0.5)
    no_lists = [(10, [], 0.0), (11, None, 0.0)]
    others = spark.createDataFrame(no_lists, "row bigint, candidates array<string>, rebate double")
    retrieved = retrieved.unionByName(others, allowMissingColumns=True)
    prices = {movie: float(number % 3) for number, movie in enumerate(MOVIES) if number != 5}
    items = spark.createDataFrame(list(prices.items()), "movie string, price double")
    model = package_model({"coefficients": {"price": 1.0, "rebate": -2.0}}, tmp_path / "ranker")
    common: dict[str, Any] = {"model": model, "keys": "row", "key": "movie"}

    ranked = {
        row.row: row for row in rank_candidates(retrieved, items=items, k=4, nulls={"price": 0.0}, **common).collect()
    }
    for before in retrieved.where("row < 10").collect():
        after = ranked[before.row]
        # Sorting is stable, so that of equal prices the first model's order stays.
        expected = sorted(before.candidates, key=lambda movie: -prices.get(movie, 0.0))[:4]
        assert after.candidates == expected
        assert after.scores == pytest.approx([prices.get(movie, 0.0) - after.row for movie in expected])
        assert (after.rebate, after.model_version) == (before.rebate, before.model_version)
        assert after.ranked_by.startswith("ranker")
    assert [ranked[row].candidates for row in (10, 11)] == [[], None]

    with pytest.raises(ColumnError, match="'movie' of items has 39 tokens more than once"):
        rank_candidates(retrieved, items=items.union(items), **common)
    with pytest.raises(ScoringError, match=r"'rank' is not a number of .*, which gives \{'score': "):
        rank_candidates(retrieved, items=items, output="rank", **common)
    with pytest.raises(ColumnError, match=r"lists and items both have the columns \['rebate'\]"):
        rank_candidates(retrieved, items=items.withColumn("rebate", F.lit(1.0)), **common)
    with pytest.raises(ScoringError, match="k is 0; rank at least one candidate"):
        rank_candidates(retrieved, k=0, **common)


def test_one_user_who_has_seen_very_much_does_not_make_all_others_as_large(movies: Path) -> None:
    """S8, R6."""
    seen = pa.array([["m1", "m2"], MOVIES[:38] * 3_000, *[[]] * 998], pa.list_(pa.string()))
    users = pa.table({"user": ["u0"] * 1_000, "history": pa.array([["m1"]] * 1_000, seen.type), "seen": seen})
    model = LoadedModel(movies).with_search(Search("exact", 5, np.array([], np.int64)))
    calls: list[int] = []

    found = model.score_arrow(users, on_call=lambda: calls.append(1))["candidates"]

    # The long list takes 0.9 MB: 64 MB hold 73 rows that are padded to it, and all that follow without it.
    assert len(calls) == 2
    few = users.take(pa.array([0, 1, 2]))
    apart = [model.score_arrow(few.slice(row, 1))["candidates"][0] for row in range(3)]
    assert found.slice(0, 3).to_pylist() == [row.as_py() for row in apart]
    assert found.slice(2).to_pylist() == [apart[2].as_py()] * 998


def test_long_lists_leave_in_parts_of_16_mb(movies: Path) -> None:
    """S8: the size of a part depends on the number of candidates asked for, which the graph leaves open."""
    model, batch = LoadedModel(movies), ROWS.to_batches()[0].take(pa.array([0] * 100_000))
    for k in (1, 40):
        searching = model.with_search(Search("exact", k, np.array([], np.int64)))
        most = max(part.num_rows for part in searching.parts(batch))
        assert most * k * (8 + 4) <= PART_BYTES < (most + DEFAULT_BATCH_SIZE) * k * (8 + 4) or most == batch.num_rows


def test_a_table_in_memory_gets_its_lists_in_its_form(spark: "SparkSession", rows: "DataFrame", movies: Path) -> None:
    """#52: with its index, its order and no keys; with a path as with its DataFrame."""
    frame = ROWS.to_pandas().set_index("row")[::-1]
    found = recommend(frame, movies, k=3, spark=spark)
    assert list(found.columns) == ["candidates", "scores", "model_version"]
    assert list(found.index) == [3, 2, 1, 0]
    wanted = lists(recommend(rows, movies, keys="row", k=3))
    assert [list(one) for one in found["candidates"][::-1]] == wanted
    assert recommend(ROWS, movies, keys="row", k=3)["candidates"].to_pylist() == wanted
