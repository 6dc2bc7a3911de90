"""A packaged router gives the same scores from a table, files and SQL as in this process (R5, R9)."""

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.errors import PySparkException
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.recommending.recommendations import recommend
from mirrorspark.recommending.reranking.cascade import rank_candidates
from mirrorspark.recommending.reranking.reranker import rerank
from mirrorspark.recommending.routing.package import package_router
from mirrorspark.recommending.routing.router import Cascade, Route, Router
from mirrorspark.scoring.batch import score
from mirrorspark.scoring.files import score_files
from mirrorspark.scoring.model.stored.consent import UntrustedModelError
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.predictor import Predictor
from mirrorspark.scoring.sql import register_sql
from tests.unit.scoring.exported_models import FLIGHTS, export_flights, export_movies, export_watches

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.timeout(300)

UTC = datetime.UTC
# Moments around midnight in New York, whose zone the router counts days in: 05:00 in UTC.
BOOKED = [datetime.datetime(2026, 1, day, hour, tzinfo=UTC) for day, hour in ((9, 4), (9, 5), (9, 6), (1, 5), (12, 0))]


@pytest.mark.full
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

    expected = [{"flight_id": row["flight_id"]} | Predictor(folder).predict(row) for row in rows.to_pylist()]
    assert [row["model"] for row in expected] == ["old", "young", "young", "old", "young", "young"]
    alone = {name: Predictor(path) for name, path in models.items()}
    for row, found in zip(rows.to_pylist(), expected, strict=True):
        assert found["score"] == pytest.approx(alone[found["model"]].predict(row)["score"], abs=1e-6)

    for frame in every_way(spark, tmp_path, folder, "flight_id"):
        found_rows = [row.asDict() for row in frame.orderBy("flight_id").collect()]
        for found, wanted in zip(found_rows, expected, strict=True):
            assert found == wanted | {"score": pytest.approx(wanted["score"], abs=1e-6)}


def every_way(spark: "SparkSession", folder: Path, model: Path, key: str) -> list["DataFrame"]:
    """Return the scores of the rows in a folder: from a table by both readers, from files, and in SQL."""
    path = str(folder / "rows.parquet")
    table = spark.read.parquet(path)
    score_files(spark, path, model, str(folder / "scores"), keys=key)
    register_sql(spark, "routed", model)
    return [
        score(table, model, keys=key),
        score(table, model, keys=key, reader="spark"),
        spark.read.parquet(str(folder / "scores")),
        table.selectExpr(key, "routed(struct(*)) AS s").select(key, "s.*"),
    ]


MOVIES = [f"m{number}" for number in range(40)]
VISITORS = pa.table(
    {
        "row": [0, 1, 2, 3],
        "user": ["u0", "u1", "nobody", "u0"],
        "history": pa.array([["m1"], [], None, ["m3", "m4"]], pa.list_(pa.string())),
        "seen": pa.array([["m1", "m2"], None, MOVIES[:38], MOVIES], pa.list_(pa.string())),
        "rebate": [0.0, 0.5, 1.0, 0.0],
    }
)


def test_a_cascade_answers_alike_everywhere_and_as_its_stages_do_on_spark(
    spark: "SparkSession", tmp_path: Path
) -> None:
    """R9, R7: found, ranked and re-ranked by one packaged model, and by three calls; a list may be empty."""
    pq.write_table(VISITORS, tmp_path / "rows.parquet")
    attributes = [(movie, number % 3 * 1.0, f"g{number % 5}") for number, movie in enumerate(MOVIES)]
    items = spark.createDataFrame(attributes, "movie string, price double, genre string")
    hooks = tmp_path / "hooks.py"
    hooks.write_text("def postprocess(outputs):\n    return {'score': outputs['score'] * 2}\n")
    rules: dict[str, Any] = {"category": "genre", "at_most": 1}
    towers = export_movies(tmp_path / "towers", scann=False)
    prices = package_model({"coefficients": {"price": 1.0, "rebate": -2.0}}, tmp_path / "prices", hooks=hooks)
    funnel = Cascade("towers", "movie", rank="prices", rerank=rules, depth=12, k=4)
    router = Router((Route("funnel"),), cascades={"funnel": funnel})
    folder = package_router(router, tmp_path / "router", models={"towers": towers, "prices": prices}, items=items)

    answers = Predictor(folder).predict_rows(VISITORS.to_pylist())
    expected = [{"row": row} | answer for row, answer in enumerate(answers)]
    for frame in every_way(spark, tmp_path, folder, "row"):
        assert [row.asDict() for row in frame.orderBy("row").collect()] == expected

    table = spark.read.parquet(str(tmp_path / "rows.parquet"))
    found = recommend(table, folder, keys="row", k=4, unavailable=["m7"]).orderBy("row").collect()
    long_lists = recommend(table, towers, keys="row", k=12, unavailable=["m7"]).join(
        table.select("row", "rebate"), "row"
    )
    ranked = rank_candidates(long_lists, prices, keys="row", key="movie", items=items.drop("genre"))
    shown = rerank(ranked, items, key="movie", k=4, **rules).orderBy("row").collect()
    assert [row.candidates for row in found] == [row.candidates for row in shown]
    assert [row.scores for row in found] == [row.scores for row in shown]
    assert [len(row.candidates) for row in found] == [4, 4, 2, 0]
    assert not any("m7" in row.candidates for row in found)
    # The hook is code of another process, which nobody has agreed to.
    hooks.write_text(hooks.read_text().replace("* 2", "* 3"))
    (folder / "router" / "models" / "01" / "hooks.py").write_text(hooks.read_text())
    with pytest.raises(UntrustedModelError, match=r"'prices' in .* brings Python code"):
        recommend(table, folder, keys="row", k=4)


@pytest.mark.full
def test_a_cascade_of_integers_answers_alike_everywhere(spark: "SparkSession", tmp_path: Path) -> None:
    """R9: lists hold tokens, and the ranking model was trained on numbers."""
    seen = [[f"{number}" for number in numbers] for numbers in ((1, 2), (), range(38), range(40))]
    visitors = VISITORS.set_column(3, "seen", pa.array(seen, pa.list_(pa.string())))
    pq.write_table(visitors, tmp_path / "rows.parquet")
    towers = export_movies(tmp_path / "towers", scann=False, prefix="")
    watches = export_watches(tmp_path / "watches")
    funnel = Cascade("towers", "movie", rank="watches", depth=12, k=4)
    router = Router((Route("funnel"),), cascades={"funnel": funnel})
    folder = package_router(router, tmp_path / "router", models={"towers": towers, "watches": watches})

    answers = Predictor(folder).predict_rows(visitors.to_pylist())
    expected = [{"row": row} | answer for row, answer in enumerate(answers)]
    assert [sum(map(bool, row["candidates"])) for row in expected] == [4, 4, 2, 0]
    for frame in every_way(spark, tmp_path, folder, "row"):
        for found, wanted in zip(frame.orderBy("row").collect(), expected, strict=True):
            assert found.asDict() == wanted | {"scores": pytest.approx(wanted["scores"], abs=1e-6)}

    table = spark.read.parquet(str(tmp_path / "rows.parquet"))
    lists = recommend(table, towers, keys="row", k=12).join(table.select("row", "rebate"), "row")
    ranked = rank_candidates(lists, watches, keys="row", key="movie", k=4).orderBy("row").collect()
    assert [row.candidates for row in ranked] == [[one for one in row["candidates"] if one] for row in expected]
    with pytest.raises(PySparkException, match="candidate 'x7' is not a 64-bit integer in plain decimal digits"):
        rank_candidates(
            lists.withColumn("candidates", F.array(F.lit("x7"))), watches, keys="row", key="movie"
        ).collect()
