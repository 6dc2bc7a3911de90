"""S1, S8, S11, S12, S20: Parquet files in, Parquet files out, the same scores, once each, nothing half-done."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.reading.parquet_rows import ParquetError
from mirrorspark.data_pipelines.spark.tasks import WriteError
from mirrorspark.scoring.batch import score
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.files import score_files
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.stored.pinned import ModelNotFoundError
from mirrorspark.scoring.run import main
from mirrorspark.scoring.task.probe import Speed
from mirrorspark.storage.lakes import LakeTableError
from mirrorspark.storage.publish import TargetExistsError
from tests.conftest import PATIENCE, cold_workers
from tests.unit.scoring.exported_models import FLIGHTS, FLIGHTS_DDL, export_flights
from tools.calls import traced

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(300)

# Several groups of rows for each of two tasks.
ROWS = 40_000
ROW_GROUPS = 50


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_flights(tmp_path_factory.mktemp("model"), 1)


@pytest.fixture(scope="module")
def flights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flights(tmp_path_factory.mktemp("flights"), ROWS)


def write_flights(folder: Path, rows: int) -> Path:
    """Write the rows of ``FLIGHTS`` again and again under new keys, in two files of many row groups."""
    copies = -(-rows // FLIGHTS.num_rows)
    table = pa.concat_tables([FLIGHTS] * copies).combine_chunks().slice(0, rows)
    keys = pa.array([f"flight {number}" for number in range(rows)])
    table = table.set_column(table.schema.get_field_index("flight_id"), "flight_id", keys)
    half = rows // 2
    for number, part in enumerate((table.slice(0, half), table.slice(half))):
        pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=rows // ROW_GROUPS)
    return folder


def scores_in(folder: Path) -> pa.Table:
    return pq.read_table(folder)


def test_the_scores_are_those_of_the_table_in_the_order_of_the_files(
    spark: "SparkSession", model: Path, flights: Path, tmp_path: Path
) -> None:
    scored = score_files(spark, flights, model, tmp_path / "scores", keys="flight_id")
    found = scores_in(tmp_path / "scores")
    assert found.column_names == ["flight_id", "score", "model_version"]
    assert found["flight_id"].to_pylist() == [f"flight {number}" for number in range(ROWS)]
    assert set(found["model_version"].to_pylist()) == {scored.model}
    table = {
        row.flight_id: row.score for row in score(spark.read.parquet(str(flights)), model, keys="flight_id").collect()
    }
    by_key = dict(zip(found["flight_id"].to_pylist(), found["score"].to_pylist(), strict=True))
    assert by_key == pytest.approx(table, rel=0, abs=1e-6)
    assert spark.read.parquet(str(tmp_path / "scores")).count() == scored.rows == ROWS


def test_a_call_enters_few_of_our_modules_on_the_driver(
    spark: "SparkSession", model: Path, flights: Path, tmp_path: Path
) -> None:
    entered = traced(lambda: score_files(spark, flights, model, tmp_path / "scores", keys="flight_id"))
    for module in ("stopped", "interpreter", "silence"):  # a check of the session, and a filter of log lines
        entered.pop(f"mirrorspark.spark_session.{module}", None)
    assert next(iter(entered)) == "mirrorspark.scoring.files"
    assert len(entered) <= 25, list(entered)
    assert sum(module.startswith("mirrorspark.scoring.") for module in entered) <= 11


@pytest.mark.usefixtures("own_python_workers")
def test_counters_tell_one_load_per_python_worker(spark: "SparkSession", flights: Path, tmp_path: Path) -> None:
    model = export_flights(tmp_path / "model", 2)  # which no worker has yet
    first = score_files(spark, flights, model, tmp_path / "1", keys="flight_id", batch_size=300).counters
    again = score_files(spark, flights, model, tmp_path / "2", keys="flight_id", batch_size=300).counters
    assert 1 <= first.loads == first.processes <= 2
    assert first.loads + again.loads <= 2
    assert (first.rows, first.tasks, first.threads) == (ROWS, 2, 1)
    # Of rows that are put together, whatever row groups hold: a call is short at the end of a group alone.
    assert ROWS / 300 <= first.calls == again.calls <= ROWS / 300 + 4
    assert first.bytes > 0
    assert first.peak_memory_bytes > 10e6


def test_partition_folders_are_columns_and_can_be_keys(spark: "SparkSession", model: Path, tmp_path: Path) -> None:
    for day in (1, 2):
        (tmp_path / f"flights/day={day}").mkdir(parents=True)
        pq.write_table(FLIGHTS, tmp_path / f"flights/day={day}/part.parquet")
    score_files(spark, tmp_path / "flights", model, tmp_path / "scores", keys=["day", "flight_id"])
    found = scores_in(tmp_path / "scores")
    assert found["day"].to_pylist() == [1] * FLIGHTS.num_rows + [2] * FLIGHTS.num_rows


def with_column(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


@pytest.mark.parametrize("names", [("a", "b"), pytest.param(("b", "a"), marks=pytest.mark.full)])
def test_files_of_several_schemas_are_read_by_spark_as_one_table(
    spark: "SparkSession", model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, names: tuple[str, str]
) -> None:
    """S16: narrow numbers are widened and missing columns are null, whichever file comes first, and the log says so."""
    miles = pa.array([100, 2_500, None, None, -3, 1_000])
    hours = pa.array([1] * FLIGHTS.num_rows)
    narrow = with_column(FLIGHTS.drop_columns(["stops"]), "distance", miles)
    narrow = narrow.append_column("at", hours.cast(pa.timestamp("ns"))).append_column(
        "of_day", hours.cast(pa.time64("us"))
    )
    wide = with_column(FLIGHTS, "hour", FLIGHTS["hour"].cast(pa.int64()))
    wide = with_column(wide, "flight_id", pa.array([f"w{number}" for number in range(FLIGHTS.num_rows)]))
    for name, table in zip(names, (narrow, wide), strict=True):
        (tmp_path / "flights [2024]" / name).mkdir(parents=True)
        pq.write_table(table, tmp_path / "flights [2024]" / name / "part.parquet")

    with caplog.at_level("WARNING"):
        scored = score_files(spark, tmp_path / "flights [2024]", model, tmp_path / "scores", keys=["flight_id", "at"])
    said = caplog.text
    assert "have 2 schemas" in said
    assert re.search("columns that some of them lack, and that are null there: (stops, at|at, stops)", said)
    stops = pa.nulls(FLIGHTS.num_rows, FLIGHTS.schema.field("stops").type)
    expected = pa.concat_tables(
        pa.table({"flight_id": rows["flight_id"], "score": LoadedModel(model).score(rows)["score"]})
        for rows in (with_column(with_column(FLIGHTS, "stops", stops), "distance", miles.cast("double")), wide)
    )
    assert scored.rows == expected.num_rows
    found, by_hand = (table.sort_by("flight_id") for table in (scores_in(tmp_path / "scores"), expected))
    assert found["flight_id"].to_pylist() == by_hand["flight_id"].to_pylist()
    assert found["score"].to_pylist() == pytest.approx(by_hand["score"].to_pylist(), rel=0, abs=1e-6)
    assert found["at"].type == pa.timestamp("us")
    assert found["at"].null_count == FLIGHTS.num_rows


@pytest.mark.full
def test_partition_folders_are_columns_of_files_of_several_schemas_too(
    spark: "SparkSession", model: Path, tmp_path: Path
) -> None:
    for day, hours in ((1, pa.int32()), (2, pa.int64())):
        (tmp_path / f"flights/day={day}").mkdir(parents=True)
        table = with_column(FLIGHTS, "hour", FLIGHTS["hour"].cast(hours))
        pq.write_table(table, tmp_path / f"flights/day={day}/part.parquet")
    score_files(spark, tmp_path / "flights", model, tmp_path / "scores", keys=["day", "flight_id"])
    found = scores_in(tmp_path / "scores").sort_by([("day", "ascending"), ("flight_id", "ascending")])
    assert found["day"].to_pylist() == [1] * FLIGHTS.num_rows + [2] * FLIGHTS.num_rows
    scores = found["score"].to_pylist()
    assert scores[: FLIGHTS.num_rows] == pytest.approx(scores[FLIGHTS.num_rows :], rel=0, abs=1e-6)


def test_keys_keep_their_types_and_the_version_can_be_left_out(
    spark: "SparkSession", model: Path, tmp_path: Path
) -> None:
    rows = FLIGHTS.num_rows
    keys = {
        "at": pa.array(range(rows), pa.timestamp("us", "UTC")),
        "day": pa.array(range(rows), pa.date32()),
        "price": pa.array([number * 100 for number in range(rows)], pa.decimal128(10, 2)),
        "code": pa.array([bytes([number]) for number in range(rows)]),
        "kind": pa.array([None, *"a" * (rows - 1)]),
    }
    table = FLIGHTS
    for name, column in keys.items():
        table = table.append_column(name, column)
    pq.write_table(table, tmp_path / "flights.parquet")
    paths = (tmp_path / "flights.parquet", model, tmp_path / "scores")
    score_files(spark, *paths, keys=list(keys), with_columns=())
    found = scores_in(tmp_path / "scores")
    assert found.column_names == [*keys, "score"]
    assert found.select(list(keys)).to_pylist() == table.select(list(keys)).to_pylist()
    of_spark = spark.read.parquet(str(tmp_path / "scores")).dtypes
    expected = ["timestamp", "date", "decimal(10,2)", "binary", "string", "float"]
    assert [type_ for _, type_ in of_spark] == expected


@pytest.mark.full
def test_files_that_spark_wrote_keep_their_moments(spark: "SparkSession", model: Path, tmp_path: Path) -> None:
    """Spark's own timestamps do not say in the file that they are in UTC."""
    moment = "timestamp '2024-05-01 12:00:00 Europe/Berlin' AS at"
    table = spark.createDataFrame([tuple(row.values()) for row in FLIGHTS.to_pylist()], FLIGHTS_DDL)
    table.selectExpr("*", moment).write.parquet(str(tmp_path / "flights"))
    score_files(spark, tmp_path / "flights", model, tmp_path / "scores", keys=["flight_id", "at"])
    found = spark.read.parquet(str(tmp_path / "scores"))
    assert dict(found.dtypes)["at"] == "timestamp"
    assert found.selectExpr(f"at = {moment.removesuffix(' AS at')} AS same").distinct().collect() == [(True,)]


@pytest.mark.full
def test_columns_that_pandas_calls_categories_are_texts(spark: "SparkSession", model: Path, tmp_path: Path) -> None:
    place = FLIGHTS.schema.get_field_index("carrier")
    pq.write_table(FLIGHTS, tmp_path / "plain.parquet")
    category = FLIGHTS.set_column(place, "carrier", FLIGHTS["carrier"].dictionary_encode())
    pq.write_table(category, tmp_path / "category.parquet")
    for name in ("plain", "category"):
        score_files(spark, tmp_path / f"{name}.parquet", model, tmp_path / name, keys=["flight_id", "carrier"])
    assert scores_in(tmp_path / "category").equals(scores_in(tmp_path / "plain"))


def test_no_rows_are_no_error(spark: "SparkSession", model: Path, flights: Path, tmp_path: Path) -> None:
    """Spark writes a file without row groups for a table without rows."""
    spark.read.parquet(str(flights)).where("false").write.parquet(str(tmp_path / "none"))
    scored = score_files(spark, tmp_path / "none", model, tmp_path / "scores", keys="flight_id")
    assert scored.rows == 0
    found = spark.read.parquet(str(tmp_path / "scores"))
    assert (found.columns, found.count()) == (["flight_id", "score", "model_version"], 0)


@pytest.mark.parametrize("mode", ["overwrite", "append"])
def test_the_input_is_never_written_to(spark: "SparkSession", model: Path, tmp_path: Path, mode: str) -> None:
    (tmp_path / "flights").mkdir()
    pq.write_table(FLIGHTS, tmp_path / "flights/part.parquet")
    content = (tmp_path / "flights/part.parquet").read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    for target in (tmp_path / "flights", tmp_path, tmp_path / "link/flights"):
        with pytest.raises(ScoringError, match="holds the input"):
            score_files(spark, tmp_path / "flights", model, target, keys="flight_id", mode=mode)
    assert [path.read_bytes() for path in (tmp_path / "flights").iterdir()] == [content]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flights", "link"]


def test_the_files_of_a_table_or_a_glob_are_never_written_over(
    spark: "SparkSession", model: Path, tmp_path: Path
) -> None:
    for name, form in (("of a table", "parquet"), ("days/1", "orc"), ("days/2", "orc")):
        frame = spark.createDataFrame([tuple(row.values()) for row in FLIGHTS.to_pylist()], FLIGHTS_DDL)
        frame.coalesce(1).write.format(form).save(str(tmp_path / name))
    spark.read.parquet(str(tmp_path / "of a table")).createOrReplaceTempView("own_flights")
    before = sorted(path for path in tmp_path.rglob("*"))
    for paths, input_format, target in (
        ("own_flights", "table", tmp_path / "of a table"),
        ("own_flights", "table", tmp_path),
        (f"{tmp_path}/days/*/*.orc", "orc", tmp_path / "days/2"),
    ):
        with pytest.raises(ScoringError, match="holds the input"):
            score_files(spark, paths, model, target, keys="flight_id", input_format=input_format, mode="overwrite")
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "paths", [*(pytest.param(name, marks=pytest.mark.full) for name in ("flights", "flights/*")), "flights/*/*.parquet"]
)
def test_scores_are_never_written_where_they_would_be_input(
    spark: "SparkSession", model: Path, tmp_path: Path, paths: str
) -> None:
    (tmp_path / "flights/old").mkdir(parents=True)
    pq.write_table(FLIGHTS, tmp_path / "flights/old/part.parquet")
    with pytest.raises(ScoringError, match=r"lies in the input .*, and would be read with it next time"):
        score_files(spark, tmp_path / paths, model, tmp_path / "flights/scores", keys="flight_id")
    assert [path.name for path in (tmp_path / "flights").iterdir()] == ["old"]

    scored = score_files(spark, tmp_path / paths, model, tmp_path / "flights/_scores", keys="flight_id")
    assert scored.rows == FLIGHTS.num_rows, "hidden files are not read"


@pytest.mark.full
def test_columns_of_any_name_are_scored_where_spark_reads(spark: "SparkSession", model: Path, tmp_path: Path) -> None:
    frame = spark.createDataFrame([tuple(row.values()) for row in FLIGHTS.to_pylist()], FLIGHTS_DDL)
    frame.withColumnRenamed("flight_id", "flight.id").coalesce(1).write.orc(str(tmp_path / "flights"))
    score_files(spark, tmp_path / "flights", model, tmp_path / "scores", keys="flight.id", input_format="orc")
    found = scores_in(tmp_path / "scores")
    assert found["flight.id"].to_pylist() == FLIGHTS["flight_id"].to_pylist()
    expected = LoadedModel(model).score(FLIGHTS)["score"]
    assert found["score"].to_pylist() == pytest.approx(expected.tolist(), rel=0, abs=1e-6)


@pytest.mark.full
def test_rows_that_spark_reads_are_read_once(spark: "SparkSession", model: Path, tmp_path: Path) -> None:
    """A table that grows meanwhile, or is computed at length, is counted as the tasks read it."""
    read = spark.sparkContext.accumulator(0)

    def counted(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            read.add(batch.num_rows)
            yield batch

    frame = spark.createDataFrame([tuple(row.values()) for row in FLIGHTS.to_pylist()], FLIGHTS_DDL)
    frame.coalesce(1).mapInArrow(counted, frame.schema).createOrReplaceTempView("counted_flights")
    scored = score_files(spark, "counted_flights", model, tmp_path / "scores", keys="flight_id", input_format="table")
    assert scored.rows == FLIGHTS.num_rows
    assert read.value <= 2 * FLIGHTS.num_rows, "once to see whether there are rows, and once to score them"


@pytest.mark.parametrize("mode", ["overwrite", "append"])
def test_scores_that_are_there_already_are_replaced_or_added_to_when_asked(
    spark: "SparkSession", model: Path, flights: Path, tmp_path: Path, mode: str
) -> None:
    target = tmp_path / "scores"
    for _ in range(2):
        score_files(spark, flights / "part-0.parquet", model, target, keys="flight_id", mode=mode)
    assert scores_in(target).num_rows == {"overwrite": 1, "append": 2}[mode] * ROWS // 2
    with pytest.raises(TargetExistsError):
        score_files(spark, flights, model, target, keys="flight_id")


def test_unsuitable_input_is_refused_before_a_task_starts(
    spark: "SparkSession", model: Path, flights: Path, tmp_path: Path
) -> None:
    target = tmp_path / "scores"
    pq.write_table(FLIGHTS.drop_columns(["carrier"]), tmp_path / "short.parquet")
    strings = pa.array(["far"] * FLIGHTS.num_rows)
    wrong = FLIGHTS.set_column(FLIGHTS.schema.get_field_index("distance"), "distance", strings)
    pq.write_table(wrong, tmp_path / "wrong.parquet")
    (tmp_path / "text.parquet").write_text("flight_id,carrier")
    (tmp_path / "mixed").mkdir()
    pq.write_table(FLIGHTS, tmp_path / "mixed" / "a.parquet")
    pq.write_table(wrong, tmp_path / "mixed" / "b.parquet")
    (tmp_path / "delta" / "_delta_log").mkdir(parents=True)
    (tmp_path / "delta" / "_delta_log" / f"{0:020}.json").write_text("{}")
    pq.write_table(FLIGHTS, tmp_path / "delta" / "part.parquet")
    for folder in ("metadata", "data"):
        (tmp_path / "iceberg" / folder).mkdir(parents=True)
    (tmp_path / "iceberg/metadata/v1.metadata.json").write_text("{}")
    pq.write_table(FLIGHTS, tmp_path / "iceberg/data/part.parquet")
    pq.write_table(FLIGHTS.append_column("flight_id", FLIGHTS["flight_id"]), tmp_path / "twice.parquet")
    for paths, knobs, error, message in (
        (flights, {"keys": "id"}, ScoringError, r"key columns \['id'\] are missing; the table has"),
        (flights, {"keys": []}, ScoringError, "keys is empty"),
        (flights, {"keys": "flight_id", "mode": "ignore"}, ScoringError, "mode 'ignore' would keep the old scores"),
        (flights, {"keys": "flight_id", "batch_size": 0}, ScoringError, "batch_size 0 is below 1"),
        (flights, {"keys": "flight_id", "task_seconds": 0}, ScoringError, "task_seconds 0 is not above 0"),
        (tmp_path / "short.parquet", {"keys": "flight_id"}, ColumnError, "carrier"),
        (tmp_path / "wrong.parquet", {"keys": "flight_id"}, ColumnError, "distance"),
        (
            tmp_path / "text.parquet",
            {"keys": "flight_id"},
            ParquetError,
            "is not a Parquet file: .*; leave it out, or name their format, for example input_format='csv'",
        ),
        (
            tmp_path / "mixed",
            {"keys": "flight_id"},
            ScoringError,
            "column 'distance' has types that are not read as one",
        ),
        (
            tmp_path / "delta",
            {"keys": "flight_id"},
            ScoringError,
            "Spark cannot read .* as delta: .*; give the session",
        ),
        (tmp_path / "del*", {"keys": "flight_id"}, ScoringError, "_delta_log"),
        (tmp_path / "iceberg", {"keys": "flight_id"}, ScoringError, "Spark cannot read .* as iceberg"),
        (tmp_path / "twice.parquet", {"keys": "flight_id"}, ParquetError, "has the columns .* twice"),
        (tmp_path / "nothing", {"keys": "flight_id"}, FileNotFoundError, "nothing"),
    ):
        with pytest.raises(error, match=message):
            score_files(spark, paths, model, target, **knobs)  # type: ignore[arg-type]
    with pytest.raises(ModelNotFoundError):
        score_files(spark, flights, tmp_path / "no model", target, keys="flight_id")
    assert not target.exists()


@pytest.mark.parametrize(
    "mode", ["append", *(pytest.param(mode, marks=pytest.mark.full) for mode in ("overwrite", "error"))]
)
def test_scores_are_not_written_into_a_table_with_a_log(
    spark: "SparkSession", model: Path, flights: Path, tmp_path: Path, mode: str
) -> None:
    table = tmp_path / "scores"
    (table / "_delta_log").mkdir(parents=True)
    for target in (table, table / "day=3"):
        with pytest.raises(LakeTableError, match=f"scores is a Delta table, .* written to {target} would not be in"):
            score_files(spark, flights, model, target, keys="flight_id", mode=mode)
    assert [file.name for file in table.rglob("*")] == ["_delta_log"]


def test_tasks_that_would_take_too_long_become_more_with_the_same_scores(
    spark: "SparkSession", model: Path, flights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A millisecond is too short for any row group: each becomes a task, and the log says how large they may be."""
    few = score_files(spark, flights, model, tmp_path / "few", keys="flight_id")
    assert (len(few.files), few.predicted_task_seconds) == (2, None)
    with caplog.at_level(logging.INFO, "mirrorspark.scoring.task.probe"):
        many = score_files(spark, flights, model, tmp_path / "many", keys="flight_id", task_seconds=0.001)
    assert len(many.files) == ROW_GROUPS
    assert many.predicted_task_seconds is not None
    assert many.predicted_task_seconds > 0.001
    assert f"{ROW_GROUPS} tasks, the longest of some" in caplog.text
    assert "write the files with row groups of at most" in caplog.text
    assert scores_in(tmp_path / "many").equals(scores_in(tmp_path / "few"))


def test_tasks_are_as_many_as_the_measured_speed_asks_for(
    spark: "SparkSession", model: Path, flights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 4,000 rows in a task, of 50 row groups of 800.
    monkeypatch.setattr("mirrorspark.scoring.files.speed_of", lambda *_: Speed(40_000.0, loads=3))
    scored = score_files(spark, flights, model, tmp_path / "scores", keys="flight_id", task_seconds=0.1)
    assert (len(scored.files), scored.predicted_task_seconds) == (10, 0.1)
    assert [pq.read_metadata(tmp_path / "scores" / file).num_rows for file in scored.files] == [4_000] * 10
    assert scored.counters.loads >= 3
    # Short enough as it is, and said so.
    again = score_files(spark, flights, model, tmp_path / "again", keys="flight_id", task_seconds=0.5)
    assert (len(again.files), again.predicted_task_seconds) == (2, 0.5)


@pytest.mark.full
def test_the_speed_is_measured_once_in_a_session(
    spark: "SparkSession", flights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = export_flights(tmp_path / "model", 4)  # which the session does not know
    first = score_files(spark, flights, model, tmp_path / "1", keys="flight_id", task_seconds=10.0)
    assert first.predicted_task_seconds is not None
    assert first.counters.loads >= 1
    # Nothing could be measured now.
    monkeypatch.delattr("mirrorspark.scoring.task.probe.ProbeTask")
    again = score_files(spark, flights, model, tmp_path / "2", keys="flight_id", task_seconds=10.0)
    assert again.predicted_task_seconds == first.predicted_task_seconds


@pytest.mark.full
def test_a_measurement_that_fails_leaves_nothing(
    spark: "SparkSession", model: Path, flights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> Speed:
        raise WriteError("a task failed")

    monkeypatch.setattr("mirrorspark.scoring.files.speed_of", failing)
    with pytest.raises(WriteError, match="a task failed"):
        score_files(spark, flights, model, tmp_path / "scores", keys="flight_id", task_seconds=0.001)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_damaged_in_its_middle_leaves_no_scores(
    spark: "SparkSession", model: Path, flights: Path, tmp_path: Path
) -> None:
    content = bytearray((flights / "part-0.parquet").read_bytes())
    content[len(content) // 3 : len(content) // 3 + 2000] = bytes(2000)
    (tmp_path / "damaged.parquet").write_bytes(content)
    with pytest.raises(WriteError, match=r"damaged\.parquet cannot be read"):
        score_files(spark, tmp_path / "damaged.parquet", model, tmp_path / "scores", keys="flight_id")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.parquet"]


@pytest.mark.parametrize("way", ["files", pytest.param("table", marks=pytest.mark.full)])
def test_a_python_worker_that_is_killed_in_the_middle_changes_nothing_in_the_scores(
    spark: "SparkSession", model: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, way: str
) -> None:
    """S12: Spark tries the task again; the files of the first try are not seen."""
    rows = 100_000  # two batches or more for each task, so that it dies after the first one
    flights = write_flights(tmp_path_factory.mktemp("flights"), rows)
    score_files(spark, flights, model, tmp_path / "clean", keys="flight_id")
    paths = [str(path) for path in (flights, model, tmp_path / "scores", tmp_path / "killed")]
    command = [sys.executable, "-m", "tests.cluster.programs.scoring_killed", way, *paths]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE * 200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "killed").is_dir()
    counters = json.loads(done.stdout.splitlines()[-1])
    assert counters["rows"] == rows
    assert counters["loads"] == counters["processes"]
    assert scores_in(tmp_path / "scores").equals(scores_in(tmp_path / "clean"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "killed", "scores"]


def test_the_command_scores_and_says_so(
    spark: "SparkSession",
    model: Path,
    flights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [f"--model={model}", f"--input={flights}", f"--output={tmp_path / 'scores'}", "--keys=flight_id"]
    command = [sys.executable, "-m", "mirrorspark.scoring.run", *arguments, "--master=local[2]"]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=cold_workers(),
        capture_output=True,
        text=True,
        timeout=PATIENCE * 200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr == ""  # neither Spark's log nor TensorFlow's
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{ROWS:,} rows scored with ")
    assert first.endswith(f"-> {tmp_path / 'scores'}")
    assert "which loaded the model 2 times" in second

    # Again, on the session of the tests, which goes on.
    monkeypatch.setattr(type(spark), "stop", lambda self: None)
    assert main(arguments) == 2
    assert f"mirrorspark: {tmp_path / 'scores'}" in capsys.readouterr().err.splitlines()[-1]


def test_scores_of_other_columns_are_not_added(
    spark: "SparkSession", model: Path, flights: Path, tmp_path: Path
) -> None:
    """S12: where they differ Spark would read null."""
    score_files(spark, flights, model, tmp_path / "scores", keys="flight_id")
    before = scores_in(tmp_path / "scores")
    with pytest.raises(ScoringError, match=r"differ \(prediction, score\)"):
        score_files(spark, flights, model, tmp_path / "scores", keys="flight_id", outputs="struct", mode="append")
    assert scores_in(tmp_path / "scores").equals(before)
