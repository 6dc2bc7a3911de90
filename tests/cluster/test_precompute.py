"""S19: what score and recommend return is found by its key, computed once by all tasks."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines.spark.tasks import WriteError
from mirrorspark.recommending.recommendations import recommend
from mirrorspark.scoring.batch import score
from mirrorspark.scoring.task.counts import Counters
from mirrorspark.serving.precomputed.precomputation import precompute
from mirrorspark.serving.precomputed.store import PrecomputedScores
from mirrorspark.serving.precomputed.store_file import StoreError
from tests.unit.scoring.exported_models import FLIGHTS, FLIGHTS_DDL, export_flights, export_movies

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def flights(spark: "SparkSession") -> "DataFrame":
    rows = [tuple(row.values()) for row in FLIGHTS.to_pylist()]
    return spark.createDataFrame(rows, FLIGHTS_DDL).repartition(3)


def test_scores_of_a_table_are_found_by_key_and_were_computed_once(
    spark: "SparkSession", flights: "DataFrame", tmp_path: Path
) -> None:
    counters = Counters(spark)
    scored = score(flights, export_flights(tmp_path / "model", 1), keys="flight_id", counters=counters)
    held = dict(spark.sparkContext._jsc.getPersistentRDDs())
    told = precompute(scored, tmp_path / "scores.db", key="flight_id")
    assert counters.value.rows == told.rows == FLIGHTS.num_rows
    with PrecomputedScores.open(tmp_path / "scores.db") as scores:
        for row in scored.collect():
            assert scores.get(row.flight_id) == row.asDict()
            assert told.model_versions == (row.model_version,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "scores.db"]
    assert dict(spark.sparkContext._jsc.getPersistentRDDs()).keys() == held.keys()


@pytest.mark.full
def test_lists_of_candidates_are_found_by_key(spark: "SparkSession", tmp_path: Path) -> None:
    ddl = "user string, history array<string>, seen array<string>, row bigint"
    users = spark.createDataFrame([("u0", ["m1"], ["m2"], 0), ("u1", [], None, 1)], ddl)
    lists = recommend(users, export_movies(tmp_path / "model", scann=False), keys="row", k=5)
    fallback = {"candidates": ["m1"], "scores": [0.0], "model_version": "popular/1"}
    precompute(lists, tmp_path / "lists.db", key="row", fallback=fallback)
    with PrecomputedScores.open(tmp_path / "lists.db") as scores:
        for row in lists.collect():
            assert scores.get(row.row) == row.asDict()
        assert scores.get(2) == {"row": 2, **fallback}


def test_an_invalid_store_is_refused_and_leaves_no_files(
    spark: "SparkSession", flights: "DataFrame", tmp_path: Path
) -> None:
    rows = flights.select("flight_id", "distance")
    for table, error, message in (
        (rows.union(rows), StoreError, "of column 'flight_id' is there twice"),
        (rows.withColumn("flight_id", F.expr("nullif(flight_id, 'f3')")), StoreError, "'flight_id' is null in a row"),
        (rows.withColumn("at", F.expr("timestamp '2024-05-01'")), StoreError, "column 'at' has type timestamp"),
        (rows.withColumn("counts", F.expr("map('a', 1)")), StoreError, "column 'counts' has type map"),
        (rows.withColumn("n", F.expr("assert_true(distance IS NULL, 'too far')")), WriteError, "too far"),
        (rows.where("false"), StoreError, "the table has no rows"),
    ):
        with pytest.raises(error, match=message):
            precompute(table, tmp_path / "rows.db", key="flight_id")
    assert list(tmp_path.iterdir()) == []
