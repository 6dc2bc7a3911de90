"""A packaged router gives the same scores from a table, files and SQL as in this process (R5, R9)."""

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from mirrorspark.scoring.batch import score
from mirrorspark.scoring.files import score_files
from mirrorspark.scoring.predictor import Predictor
from mirrorspark.scoring.routing.package import package_router
from mirrorspark.scoring.routing.router import Route, Router
from mirrorspark.scoring.sql import register_sql
from tests.unit.scoring.exported_models import FLIGHTS, export_flights

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.timeout(300)

UTC = datetime.UTC
# Moments around midnight in New York, whose zone the router counts days in: 05:00 in UTC.
BOOKED = [datetime.datetime(2026, 1, day, hour, tzinfo=UTC) for day, hour in ((9, 4), (9, 5), (9, 6), (1, 5), (12, 0))]


def test_table_files_sql_and_predictor_agree(spark: "SparkSession", tmp_path: Path) -> None:
    router = Router(
        (Route("young", "booked", younger_than_days=2, nulls="match"), Route("old")),
        as_of="today",
        time_zone="America/New_York",
    )
    models = {"young": export_flights(tmp_path / "young", seed=1), "old": export_flights(tmp_path / "old", seed=2)}
    folder = package_router(router, tmp_path / "router", models=models)
    today = [datetime.date(2026, 1, 10)] * FLIGHTS.num_rows
    rows = FLIGHTS.append_column("booked", [[*BOOKED, None]]).append_column("today", [today])
    pq.write_table(rows, tmp_path / "rows.parquet")
    table = spark.read.parquet(str(tmp_path / "rows.parquet"))

    expected = [{"flight_id": row["flight_id"]} | Predictor(folder).predict(row) for row in rows.to_pylist()]
    assert [row["model"] for row in expected] == ["old", "young", "young", "old", "young", "young"]
    alone = {name: Predictor(path) for name, path in models.items()}
    for row, found in zip(rows.to_pylist(), expected, strict=True):
        assert found["score"] == pytest.approx(alone[found["model"]].predict(row)["score"], abs=1e-6)

    score_files(spark, str(tmp_path / "rows.parquet"), folder, str(tmp_path / "scores"), keys="flight_id")
    register_sql(spark, "routed", folder)
    table.createOrReplaceTempView("rows_of_the_router")
    for frame in (
        score(table, folder, keys="flight_id"),
        score(table, folder, keys="flight_id", reader="spark"),
        spark.read.parquet(str(tmp_path / "scores")),
        spark.sql("SELECT flight_id, s.* FROM (SELECT flight_id, routed(struct(*)) AS s FROM rows_of_the_router)"),
    ):
        found_rows = [row.asDict() for row in frame.orderBy("flight_id").collect()]
        for found, wanted in zip(found_rows, expected, strict=True):
            assert found == wanted | {"score": pytest.approx(wanted["score"], abs=1e-6)}
