"""Options of a table of scores: forms, nulls, bad rows, counters; and their independence of Spark's ways."""

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.errors import PySparkException
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.spark.tasks import WriteError
from mirrorspark.data_pipelines.tfrecords import write_tfrecords
from mirrorspark.scoring.batch import score
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.files import score_files
from mirrorspark.scoring.model.folder.directory import DESCRIPTION_FILE
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.output.forms import AtLeast, Long, Struct, TopK, Wide
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.run import main
from mirrorspark.scoring.sql import register_sql
from mirrorspark.scoring.task.counts import Counters
from mirrorspark.scoring.udf import scorer_udf
from mirrorspark.spark_session.errors import task_message
from tests.conftest import PATIENCE
from tests.unit.scoring.exported_models import (
    BASKETS,
    FLIGHTS,
    FLIGHTS_DDL,
    ORDERS,
    ORDERS_DDL,
    export_baskets,
    export_flights,
    export_movies,
    export_orders,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_flights(tmp_path_factory.mktemp("flights"), 1)


@pytest.fixture(scope="module")
def orders_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_orders(tmp_path_factory.mktemp("orders"))


@pytest.fixture(scope="module")
def flights(spark: "SparkSession") -> "DataFrame":
    frame = spark.createDataFrame([tuple(row.values()) for row in FLIGHTS.to_pylist()], FLIGHTS_DDL)
    frame.createOrReplaceTempView("flights")
    return frame


@pytest.fixture(scope="module")
def orders(spark: "SparkSession") -> "DataFrame":
    rows = [row | {"basket": dict(row["basket"] or [])} for row in ORDERS.to_pylist()]
    return spark.createDataFrame([tuple(row.values()) for row in rows], ORDERS_DDL)


def direct(model: Path, table: pa.Table = FLIGHTS, key: str = "flight_id") -> dict[Any, float]:
    """Return the scores of the model itself, called in this process."""
    return dict(zip(table[key].to_pylist(), LoadedModel(model).score(table)["score"].tolist(), strict=True))


@pytest.mark.full
@pytest.mark.usefixtures("own_python_workers")
def test_two_hundred_partitions_are_scored_by_one_load_per_python_worker_and_no_new_graph(
    spark: "SparkSession", tmp_path: Path
) -> None:
    """S1, S5, S10: loads are processes, an exported signature is traced no more, one thread per core of a task."""
    model, counters = export_flights(tmp_path, 7), Counters(spark)
    table = spark.range(20_000, numPartitions=200).selectExpr(
        "id", "'UA' AS carrier", "5 AS hour", "array('EWR') AS stops", "CAST(id AS DOUBLE) AS distance"
    )
    scored = score(table, model, keys="id", counters=counters, batch_size=64)
    assert scored.agg({"score": "count"}).first()[0] == 20_000  # type: ignore[index]
    told = counters.value
    assert (told.tasks, told.rows, told.calls, told.traces, told.threads) == (200, 20_000, 400, 0, 1)
    assert 1 <= told.loads == told.processes <= 2
    assert (told.bad_rows, told.nans) == (0, 0)
    assert told.bytes > 20_000 * 8
    assert told.peak_memory_bytes > 10e6


@pytest.mark.full
@pytest.mark.usefixtures("own_python_workers")
def test_sql_and_a_udf_tell_what_their_tasks_did_over_all_queries(spark: "SparkSession", tmp_path: Path) -> None:
    """S1, S5, S10: as `score` does; of a model whose scores are all NaN."""
    model, counters = export_flights(tmp_path, 8, weights=float("nan")), Counters(spark)
    table = spark.range(20_000, numPartitions=4).selectExpr(
        "id", "'UA' AS carrier", "5 AS hour", "array('EWR') AS stops", "CAST(id AS DOUBLE) AS distance"
    )
    table.createOrReplaceTempView("many_flights")
    register_sql(spark, "counted", model, batch_size=1_000, counters=counters)
    scores = spark.sql("SELECT count(s.score) FROM (SELECT counted(struct(*)) AS s FROM many_flights)")
    assert scores.collect() == [(20_000,)]
    told = counters.value
    assert (told.tasks, told.rows, told.calls, told.traces, told.threads) == (4, 20_000, 20, 0, 1)
    assert (told.bad_rows, told.nans) == (0, 20_000)
    assert 1 <= told.loads == told.processes <= 2
    assert told.bytes > 20_000 * 8
    assert told.peak_memory_bytes > 10e6

    udf = scorer_udf(spark, model, nulls={"hour": "fail"}, bad_rows="mark", counters=counters)
    hour = F.expr("IF(id = 7, CAST(NULL AS INT), hour)")
    marked = table.select(udf("carrier", hour, "stops", "distance").alias("s")).select("s.error")
    assert marked.where("error IS NOT NULL").count() == 1
    told = counters.value
    assert (told.tasks, told.rows, told.bad_rows, told.nans) == (8, 40_000, 1, 39_999)
    assert told.loads == told.processes <= 2


@pytest.mark.full
def test_a_partition_of_a_million_rows_takes_the_memory_of_one_of_ten_thousand(tmp_path: Path) -> None:
    """S8, S11: one Python worker scores the small one first; neither it nor the driver ever holds the rows."""
    weights = {f"x{number}": 0.5 for number in range(20)}
    model = package_model({"coefficients": weights}, tmp_path / "model")
    command = [sys.executable, "-m", "tests.cluster.programs.scoring_memory", str(model)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE * 200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    small, large = map(json.loads, done.stdout.splitlines()[-2:])
    assert (small["rows"], large["rows"]) == (10_000, 1_000_000)
    assert (small["tasks"], large["tasks"], small["loads"], large["loads"]) == (1, 1, 1, 0)
    # 168 MB of rows, of which a task holds some ten thousands at a time.
    assert large["bytes"] > 160e6
    assert large["peak_memory_bytes"] - small["peak_memory_bytes"] < large["bytes"] / 4
    assert large["driver_bytes"] - small["driver_bytes"] < large["bytes"] / 10


def test_scores_do_not_pass_through_the_driver(spark: "SparkSession", flights: "DataFrame", model: Path) -> None:
    """S11: no job runs before the scores are used, and no step of the plan brings rows together."""
    group = "not used yet"
    spark.sparkContext.setJobGroup(group, group)
    scored = score(flights, model, keys="flight_id")
    spark.sparkContext.setLocalProperty("spark.jobGroup.id", None)  # type: ignore[arg-type]
    assert spark.sparkContext.statusTracker().getJobIdsForGroup(group) == []
    plan = scored._jdf.queryExecution().executedPlan().toString()  # type: ignore[operator]
    assert "MapInArrow" in plan
    assert not [step for step in ("Collect", "Broadcast", "Exchange") if step in plan]


def test_a_filter_on_a_score_evaluates_the_model_once(spark: "SparkSession", flights: "DataFrame", model: Path) -> None:
    """The pain of UDFs: Spark computes a column anew for a filter on it. Counted where the model is called."""
    counters = Counters(spark)
    assert score(flights, model, keys="flight_id", counters=counters).where("score > 0").count() == 6
    assert counters.value.rows == 6
    for once, evaluations in ((True, 1), (False, 2)):
        register_sql(spark, "score_flight", model, evaluated_once=once)
        query = spark.sql(
            "SELECT * FROM (SELECT flight_id, score_flight(struct(*)) AS s FROM flights) WHERE s.score > 0"
        )
        assert query.count() == 6
        plan = query._jdf.queryExecution().executedPlan().toString()  # type: ignore[operator]
        assert plan.count("ArrowEvalPython") == evaluations


def test_a_stream_has_the_scores_of_the_batch(
    spark: "SparkSession", flights: "DataFrame", model: Path, tmp_path: Path
) -> None:
    """R10: the same call, on a streaming DataFrame, over two files that come one after the other."""
    flights.repartition(2).write.parquet(str(tmp_path / "flights"))
    stream = spark.readStream.schema(flights.schema).option("maxFilesPerTrigger", 1).parquet(str(tmp_path / "flights"))
    query = (
        score(stream, model, keys="flight_id")
        .writeStream.option("checkpointLocation", str(tmp_path / "checkpoint"))
        .trigger(availableNow=True)
        .start(str(tmp_path / "scores"))
    )
    assert query.awaitTermination(120)
    scores = {row.flight_id: row.score for row in spark.read.parquet(str(tmp_path / "scores")).collect()}
    assert scores == pytest.approx(direct(model), rel=0, abs=1e-6)


@pytest.mark.full
def test_files_that_a_stream_wrote_are_read_by_spark_which_knows_those_that_count(
    spark: "SparkSession", flights: "DataFrame", model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flights.write.parquet(str(tmp_path / "flights"))
    stream = spark.readStream.schema(flights.schema).parquet(str(tmp_path / "flights"))
    written = stream.writeStream.option("checkpointLocation", str(tmp_path / "checkpoint")).trigger(availableNow=True)
    assert written.start(str(tmp_path / "streamed")).awaitTermination(120)
    pq.write_table(FLIGHTS, tmp_path / "streamed" / "left-over.parquet")  # which the stream's log does not have
    with caplog.at_level("WARNING", "mirrorspark.scoring.files"):
        scored = score_files(spark, tmp_path / "streamed", model, tmp_path / "scores", keys="flight_id")
    assert "is not a folder of plain files (_spark_metadata): Spark reads it, which is slower" in caplog.text
    assert scored.rows == 6
    assert scores_in(tmp_path / "scores") == pytest.approx(direct(model), rel=0, abs=1e-6)
    with pytest.raises(ScoringError, match=r"whose log \(_spark_metadata\) says which"):
        score_files(spark, tmp_path / "streamed" / "*.parquet", model, tmp_path / "more", keys="flight_id")


def scores_in(folder: Path, key: str = "flight_id") -> dict[Any, float]:
    table = pq.read_table(folder)
    return dict(zip(table[key].to_pylist(), table["score"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=pytest.mark.full) for kind in ("orc", "tfrecord")), "table"]
)
def test_formats_other_than_parquet_are_read_by_spark(
    spark: "SparkSession", flights: "DataFrame", model: Path, tmp_path: Path, kind: str
) -> None:
    """S16: the same command, whatever the rows are in."""
    source: Path | str = tmp_path / "flights"
    # A record's list holds no null; "" is missing as well.
    table = flights.selectExpr("* except (stops)", "transform(stops, stop -> coalesce(stop, '')) AS stops")
    if kind == "orc":
        flights.write.orc(str(source))
    elif kind == "tfrecord":
        write_tfrecords(table, source)
    else:
        source = "flights"
    named = kind if kind == "tfrecord" else None  # folders of the other formats, and tables, are known by their names
    scored = score_files(spark, source, model, tmp_path / "scores", keys="flight_id", input_format=named)
    assert scored.rows == scored.counters.rows == 6
    assert scores_in(tmp_path / "scores") == pytest.approx(direct(model), rel=0, abs=1e-6)


@pytest.mark.full
def test_an_empty_table_is_one_file_without_rows(
    spark: "SparkSession", flights: "DataFrame", model: Path, tmp_path: Path
) -> None:
    flights.where("false").createOrReplaceTempView("no_flights")
    scored = score_files(spark, "no_flights", model, tmp_path / "scores", keys="flight_id", input_format="table")
    assert (scored.rows, scored.counters.loads) == (0, 0)
    found = spark.read.parquet(str(tmp_path / "scores"))
    assert (found.columns, found.count()) == (["flight_id", "score", "model_version"], 0)


def test_input_that_spark_cannot_read_is_reported(spark: "SparkSession", model: Path, tmp_path: Path) -> None:
    for source, kind, message in (
        ("no_such_table", "table", "Spark cannot read no_such_table as table"),
        (["one", "two"], "table", "a table has one name, 2 are given"),
        (tmp_path, "no_such_format", "Spark cannot read .* as no_such_format"),
    ):
        with pytest.raises(ScoringError, match=message):
            score_files(spark, source, model, tmp_path / "scores", keys="flight_id", input_format=kind)
    assert not (tmp_path / "scores").exists()


def test_forms_of_the_scores(spark: "SparkSession", flights: "DataFrame", model: Path, tmp_path: Path) -> None:
    """S6, S7: a struct, the best labels, those above a threshold, a row for each; labels by name, with their keys."""
    structs = score(flights, model, keys="flight_id", outputs=Struct("of_model"), with_columns=())
    assert structs.dtypes == [("flight_id", "string"), ("of_model", "struct<score:float>")]
    assert {row.flight_id: row.of_model.score for row in structs.collect()} == pytest.approx(direct(model), abs=1e-6)
    with pytest.raises(ScoringError, match="the form 'top:2' is for a model with one list of scores for labels"):
        score(flights, model, keys="flight_id", outputs=TopK(2))

    movies = export_movies(tmp_path / "movies", scann=False)
    rows = [("u0", ["m1", "m2"], []), ("u1", [], ["m1", "m2", "m3"])]
    users = spark.createDataFrame(rows, "user string, history array<string>, seen array<string>")
    plain = {
        row.user: list(zip(row.candidates, row.scores, strict=True))
        for row in score(users, movies, keys="user").collect()
    }
    best = score(users, movies, keys="user", outputs=TopK(2))
    assert best.dtypes[1] == ("predictions", "array<struct<label:string,score:float>>")
    found = {row.user: [(entry.label, entry.score) for entry in row.predictions] for row in best.collect()}
    assert found == {user: pairs[:2] for user, pairs in plain.items()}
    threshold = plain["u0"][1][1]
    above = score(users, movies, keys="user", outputs=AtLeast(threshold)).where("user = 'u0'").collect()[0]
    assert [entry.label for entry in above.predictions] == [label for label, _ in plain["u0"][:2]]
    long = score(users, movies, keys="user", outputs=Long())
    assert long.columns == ["user", "label", "score", "model_version"]
    assert sorted((row.user, row.label) for row in long.collect()) == sorted(
        (user, label) for user, pairs in plain.items() for label, _ in pairs
    )
    udf = scorer_udf(spark, movies, outputs=TopK(1))
    of_udf = users.select("user", udf("user", "history", "seen").alias("s")).collect()
    assert {row.user: row.s.predictions[0].label for row in of_udf} == {
        user: pairs[0][0] for user, pairs in plain.items()
    }
    with pytest.raises(ScoringError, match="does not give one value per row"):
        scorer_udf(spark, movies, outputs=Long())


def test_labels_of_a_multi_label_model_become_columns_rows_or_lists_by_their_names(
    spark: "SparkSession", tmp_path: Path
) -> None:
    """S6, S7: names from the artifact, with the keys, in every form."""
    model = export_baskets(tmp_path / "model")
    scores = LoadedModel(model).score(BASKETS)["scores"]
    names = ["tea", "milk", "ü"]
    pq.write_table(BASKETS, tmp_path / "baskets.parquet")
    table = spark.read.parquet(str(tmp_path / "baskets.parquet"))
    by_row = dict(zip(BASKETS["id"].to_pylist(), scores.tolist(), strict=True))
    wide = score(table, model, keys="id", outputs=Wide(), with_columns=())
    assert wide.columns == ["id", *names]
    flat = {(row, name): value for row, values in by_row.items() for name, value in zip(names, values, strict=True)}
    found = {(row.id, name): row[name] for row in wide.collect() for name in names}
    assert found == pytest.approx(flat, rel=0, abs=1e-6)
    long = {(row.id, row.label): row.score for row in score(table, model, keys="id", outputs=Long()).collect()}
    assert long == pytest.approx(flat, rel=0, abs=1e-6)
    score_files(spark, tmp_path / "baskets.parquet", model, tmp_path / "best", keys="id", outputs=TopK(1))
    for row in pq.read_table(tmp_path / "best").to_pylist():
        (best,) = row["predictions"]
        expected = by_row[row["id"]]
        assert best["label"] == names[int(np.argmax(expected))]
        assert best["score"] == pytest.approx(max(expected), abs=1e-6)


def test_bad_rows_are_marked_with_the_reason_and_the_others_scored(
    spark: "SparkSession", orders: "DataFrame", orders_model: Path, tmp_path: Path
) -> None:
    """An index that is none of the model's, in one row of 3,000, and what is said of it in each form."""
    many = orders.crossJoin(spark.range(1_000)).selectExpr("* except (order_id, id)", "id * 3 + order_id AS order_id")
    bad = many.selectExpr("* except (basket)", "IF(order_id = 1501, map(77, 1.0D), basket) AS basket")
    expected = direct(orders_model, ORDERS, "order_id")
    counters = Counters(spark)
    marked = score(bad, orders_model, keys="order_id", bad_rows="mark", counters=counters)
    assert marked.columns == ["order_id", "score", "error", "model_version"]
    rows = {row.order_id: row for row in marked.collect()}
    assert len(rows) == 3_000
    assert rows[1501].score is None
    assert rows[1501].error.startswith("sparse feature 'basket' has the index 77; its size is 10")
    assert counters.value.bad_rows == 1
    for order_id, row in rows.items():
        if order_id != 1501:
            assert row.error is None
            assert row.score == pytest.approx(expected[(order_id - 1) % 3 + 1], abs=1e-6)
    bad.write.parquet(str(tmp_path / "orders"))
    files = score_files(
        spark,
        tmp_path / "orders",
        orders_model,
        tmp_path / "scores",
        keys="order_id",
        bad_rows="mark",
        outputs=Struct(),
    )
    assert (files.rows, files.counters.bad_rows) == (3_000, 1)
    wrong = [row for row in pq.read_table(tmp_path / "scores").to_pylist() if row["error"] is not None]
    assert [(row["order_id"], row["prediction"]) for row in wrong] == [(1501, None)]
    with pytest.raises(
        ColumnError, match=r"the row order_id=1501 cannot be scored: sparse feature 'basket' has the ind"
    ):
        score_files(spark, tmp_path / "orders", orders_model, tmp_path / "none", keys="order_id")
    assert not (tmp_path / "none").exists()


def test_nulls_are_what_the_caller_says(spark: "SparkSession", flights: "DataFrame", model: Path) -> None:
    """Per column: a value in its place, or none may be."""
    filled = FLIGHTS.set_column(2, "hour", FLIGHTS["hour"].fill_null(6)).set_column(
        4, "distance", FLIGHTS["distance"].fill_null(50.0)
    )
    scored = score(flights, model, keys="flight_id", nulls={"hour": 6, "distance": 50.0})
    found = {row.flight_id: row.score for row in scored.collect()}
    assert found == pytest.approx(direct(model, filled), rel=0, abs=1e-6)
    assert found["f2"] != pytest.approx(direct(model)["f2"], rel=0, abs=1e-6)
    marked = score(flights, model, keys="flight_id", nulls={"hour": "fail"}, bad_rows="mark").collect()
    assert {row.flight_id: row.error for row in marked if row.error} == {
        "f2": "column 'hour' is null, which the null policy does not allow"
    }
    with pytest.raises(ScoringError, match="the null policy names 'minute', which the model does not read"):
        score(flights, model, keys="flight_id", nulls={"minute": 0})


@pytest.mark.full
def test_nan_scores_are_counted_and_told(
    spark: "SparkSession",
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model of weights that are NaN, as a training that went wrong leaves them: in the log, and by the command."""
    model, file = export_flights(tmp_path / "model", 1, weights=float("nan")), tmp_path / "flights.parquet"
    pq.write_table(FLIGHTS, file)
    with caplog.at_level("WARNING", "mirrorspark.scoring.files"):
        scored = score_files(spark, file, model, tmp_path / "scores", keys="flight_id")
    assert (scored.rows, scored.counters.nans) == (6, 6)
    advice = "NaN: look at these rows' columns, and at the model's weights"
    assert f"6 scores of {scored.model} are {advice}" in caplog.text
    monkeypatch.setattr(type(spark), "stop", lambda _: None)
    arguments = ["--model", str(model), "--input", str(file), "--output", str(tmp_path / "again")]
    assert main([*arguments, "--keys", "flight_id"]) == 0
    assert f"6 scores are {advice}" in capsys.readouterr().out.splitlines()


def test_the_command_takes_all_of_it(
    spark: "SparkSession", tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flags reach the scoring, which stops the session that it made; not this one."""
    monkeypatch.setattr(type(spark), "stop", lambda _: None)
    movies = export_movies(tmp_path / "movies", scann=False)
    table = pa.table({"user": ["u0", None], "history": [["m1"], []], "seen": [["m2"], []]})
    pq.write_table(table, tmp_path / "users.parquet")
    base = ["--model", str(movies), "--input", str(tmp_path / "users.parquet"), "--output", str(tmp_path / "scores")]
    flags = ["--keys", "user", "--outputs", "top:2", "--null", "user=fail", "--bad-rows", "mark", "--json"]
    assert main([*base, *flags]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["counters"]["bad_rows"]) == (2, 1)
    rows = pq.read_table(tmp_path / "scores").to_pylist()
    assert [len(row["predictions"] or []) for row in rows] == [2, 0]
    assert "null policy" in rows[1]["error"]
    for wrong, message in (
        (["--outputs", "best"], "there is no form 'best'"),
        (["--mode", "replace"], "mirrorspark: mode 'replace' is unknown; use error, overwrite or append"),
        (["--output", __file__], f"mirrorspark: {__file__}: a write needs a folder as its target, and this is a file"),
        (["--null", "user"], "--null user is not COLUMN=VALUE"),
        (["--bad-rows", "drop"], "bad_rows 'drop' is unknown"),
        (["--other-versions", "no"], "other_versions 'no' is unknown"),
    ):
        assert main([*base, "--keys", "user", "--mode", "overwrite", *wrong]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.full
def test_a_registry_that_nobody_answers_for_ends_the_command_in_one_line(
    spark: "SparkSession", tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(spark), "stop", lambda _: None)
    arguments = ["--input", str(tmp_path / "none.parquet"), "--output", str(tmp_path / "scores"), "--keys", "id"]
    store = "http://127.0.0.1:9"
    assert main([*arguments, "--model", "models:/flights/1", "--tracking-uri", store]) == 1
    told = capsys.readouterr().err.splitlines()
    reason = f"cannot be looked up in the MLflow store {store}: Connection refused"
    assert told[-1] == f"mirrorspark: model 'models:/flights/1' {reason}"
    assert not any("Traceback" in line for line in told)
    assert main([*arguments, "--model", "models:/flights/1", "--tracking-uri", store, "--offline"]) == 1
    assert "mirrorspark: offline there is no model 'models:/flights/1'" in capsys.readouterr().err


# A task that fails takes its Python worker along, and the next one imports TensorFlow anew: these tests come last.


@pytest.mark.full
def test_executors_of_other_versions_refuse_before_the_first_row(
    spark: "SparkSession", flights: "DataFrame", tmp_path: Path
) -> None:
    """L10: the message has both versions and what to do; by option they score all the same."""
    model = export_flights(tmp_path, 3)
    description = json.loads((tmp_path / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    old = json.dumps(description | {"versions": {"tensorflow": "1.15.0"}})
    (tmp_path / DESCRIPTION_FILE).write_text(old, encoding="utf-8")
    pq.write_table(FLIGHTS, tmp_path.parent / "of-old.parquet")
    allowed = score(flights, model, keys="flight_id", other_versions="allow")
    assert {row.flight_id: row.score for row in allowed.collect()} == pytest.approx(direct(model), rel=0, abs=1e-6)
    with pytest.raises(PySparkException) as caught:
        score(flights, model, keys="flight_id").collect()
    assert "instead of 1.15.0, which the model was exported with" in task_message(caught.value)
    with pytest.raises(WriteError, match=r"instead of 1\.15\.0, which the model was exported with"):
        score_files(spark, tmp_path.parent / "of-old.parquet", model, tmp_path.parent / "scores", keys="flight_id")


def test_a_bad_row_of_a_table_is_named_by_its_key_and_in_sql_by_its_place(
    spark: "SparkSession", orders: "DataFrame", orders_model: Path
) -> None:
    bad = orders.selectExpr("* except (basket)", "IF(order_id = 2, map(77, 1.0D), basket) AS basket").coalesce(1)
    fault = "cannot be scored: sparse feature 'basket' has the index 77"
    with pytest.raises(PySparkException) as caught:
        score(bad, orders_model, keys="order_id").collect()
    assert f"the row order_id=2 {fault}" in task_message(caught.value)
    bad.createOrReplaceTempView("bad_orders")
    register_sql(spark, "score_order", orders_model)
    with pytest.raises(PySparkException) as caught:
        spark.sql("SELECT score_order(struct(*)).score FROM bad_orders").collect()
    assert f"the row number 1 of 3 scored together (the first is 0) {fault}" in task_message(caught.value)


@pytest.mark.full
def test_a_master_that_is_none_ends_the_command_in_one_line(model: Path, tmp_path: Path) -> None:
    command = ["--model", str(model), "--input", str(tmp_path), "--output", str(tmp_path / "scores"), "--keys", "id"]
    done = subprocess.run(
        [sys.executable, "-m", "mirrorspark.scoring.run", *command, "--master", "spark.example:7077"],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=PATIENCE * 100,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    told = done.stderr.splitlines()[-1]
    assert "Could not parse Master URL: 'spark.example:7077': give --master as local[2], spark://host:7077" in told
