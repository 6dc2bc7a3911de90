"""S9, S11: a table that is nothing but plain Parquet files is read by the tasks; any other table by Spark, as ever."""

import datetime
import logging
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from py4j.protocol import Py4JJavaError
from pyspark.errors import AnalysisException, PythonException
from pyspark.ml.functions import array_to_vector
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.scoring.batch import score
from mirrorspark.scoring.errors import ScoringError
from tests.unit.scoring.exported_models import (
    FLIGHTS,
    FLIGHTS_DDL,
    ORDERS,
    ORDERS_DDL,
    export_flights,
    export_orders,
    export_vectors,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.timeout(300)

LATE = "America/New_York"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_flights(tmp_path_factory.mktemp("flights"), 1)


@pytest.fixture(scope="module")
def folder(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files in a folder whose name has to be encoded in a URI."""
    folder = tmp_path_factory.mktemp("tables") / "flights of 100% of days"
    rows = spark.createDataFrame([tuple(row.values()) for row in FLIGHTS.to_pylist()], FLIGHTS_DDL)
    rows.repartition(2).write.parquet(str(folder))
    return folder


def is_read_by_spark(scored: "DataFrame") -> bool:
    """Return true if the plan of some scores reads a table, instead of numbering shares of files."""
    plan = scored._jdf.queryExecution().executedPlan().toString()  # type: ignore[operator]
    return "Scan" in plan


def scores(scored: "DataFrame") -> dict[object, float]:
    return {row[0]: row["score"] for row in scored.collect()}


def test_tasks_read_plain_files_and_give_the_scores_that_spark_would(
    spark: "SparkSession", model: Path, folder: Path
) -> None:
    table = spark.read.parquet(str(folder))
    ours, theirs = (score(table, model, keys="flight_id", reader=reader) for reader in ("tasks", "spark"))
    assert is_read_by_spark(theirs)
    assert not is_read_by_spark(ours)
    assert scores(ours) == pytest.approx(scores(theirs), rel=0, abs=1e-7)
    assert ours.count() == FLIGHTS.num_rows
    assert ours.schema == theirs.schema
    # Left to itself it does the same; so it does with some of the columns, in another order.
    some = table.select("distance", "stops", "hour", "carrier", "flight_id")
    for automatic in (score(table, model, keys="flight_id"), score(some, model, keys="flight_id")):
        assert not is_read_by_spark(automatic)
        assert scores(automatic) == scores(ours)


def test_keys_of_all_kinds_pass_through_as_they_are(spark: "SparkSession", model: Path, tmp_path: Path) -> None:
    """Above all moments, which Spark hands over in the time zone of its session."""
    moment = datetime.datetime(2024, 7, 1, 12, 30, 0, 250)
    rows = spark.range(4).selectExpr(
        "id", "'UA' AS carrier", "5 AS hour", "array('EWR') AS stops", "CAST(id AS DOUBLE) AS distance"
    )
    keys = {
        "at": F.lit(moment),
        "wall": F.lit(moment).cast("timestamp_ntz"),
        "day": F.lit(moment.date()),
        "price": F.lit(Decimal("12.50")),
        "raw": F.lit(b"\x00\xff"),
        "tags": F.array(F.lit("a"), F.lit(None)),
        "small": F.lit(7).cast("tinyint"),
        "place": F.struct(F.lit(1).alias("x")),
    }
    rows.withColumns(keys).write.partitionBy("hour").parquet(str(tmp_path / "rows"))
    before = spark.conf.get("spark.sql.session.timeZone")
    spark.conf.set("spark.sql.session.timeZone", LATE)
    try:
        table = spark.read.parquet(str(tmp_path / "rows"))
        ours, theirs = (score(table, model, keys=["id", *keys], reader=reader) for reader in ("tasks", "spark"))
        assert not is_read_by_spark(ours)
        assert ours.schema == theirs.schema
        found, expected = (sorted(map(tuple, scored.drop("score").collect())) for scored in (ours, theirs))
        assert found == expected
        assert len(found) == 4
    finally:
        spark.conf.set("spark.sql.session.timeZone", str(before))


def test_vectors_are_read_by_tasks(spark: "SparkSession", tmp_path: Path) -> None:
    model = export_vectors(tmp_path / "model")
    vectors = spark.range(3).withColumn("vector", array_to_vector(F.expr("array(1.0D, CAST(id AS DOUBLE), 0.0D)")))
    vectors.write.parquet(str(tmp_path / "vectors"))
    table = spark.read.parquet(str(tmp_path / "vectors"))
    ours, theirs = (score(table, model, keys=["id", "vector"], reader=reader) for reader in ("tasks", "spark"))
    assert ours.schema == theirs.schema
    assert sorted(ours.collect()) == sorted(theirs.collect())


def test_columns_of_any_name_are_read_from_a_file_alone_and_keep_their_names(
    spark: "SparkSession", model: Path, folder: Path, tmp_path: Path
) -> None:
    names = {"unused": "a.b", "flight_id": "c`d \u00fc"}
    renamed = spark.read.parquet(str(folder)).withColumnsRenamed(names)
    renamed.coalesce(1).write.parquet(str(tmp_path / "rows"))
    (file,) = (tmp_path / "rows").glob("*.parquet")
    table = spark.read.parquet(str(file))
    ours, theirs = (score(table, model, keys=[*names.values()], reader=reader) for reader in ("tasks", "spark"))
    assert ours.columns == theirs.columns == ["a.b", "c`d \u00fc", "score", "model_version"]
    assert sorted(map(tuple, ours.collect())) == sorted(map(tuple, theirs.collect()))
    # Other names for columns are nothing that the files know, least of all where two change places.
    carrier = F.col("carrier").alias("c`d \u00fc")
    swapped = table.select(carrier, F.col("`c``d \u00fc`").alias("carrier"), "hour", "stops", "distance")
    assert is_read_by_spark(score(swapped, model, keys="c`d \u00fc"))
    assert not is_read_by_spark(score(table, model, keys="c`d \u00fc"))


def test_maps_and_times_in_lists_are_read_by_tasks(spark: "SparkSession", tmp_path: Path) -> None:
    model = export_orders(tmp_path / "model")
    rows = [row | {"basket": dict(row["basket"] or [])} for row in ORDERS.to_pylist()]
    spark.createDataFrame([tuple(row.values()) for row in rows], ORDERS_DDL).write.parquet(str(tmp_path / "orders"))
    table = spark.read.parquet(str(tmp_path / "orders"))
    key = table.columns[0]
    ours, theirs = (score(table, model, keys=key, reader=reader) for reader in ("tasks", "spark"))
    assert scores(ours) == pytest.approx(scores(theirs), rel=0, abs=1e-7)


Change = Callable[["SparkSession", Path], "DataFrame"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda spark, folder: spark.read.parquet(folder).where("hour > 0"), "Filter"),
        (lambda spark, folder: spark.read.parquet(folder).withColumn("hour", F.expr("hour + 1")), "computes"),
        (lambda spark, folder: spark.read.parquet(folder).repartition(3), "Repartition"),
        (lambda spark, folder: spark.read.parquet(folder).union(spark.read.parquet(folder)), "Union"),
        (lambda spark, folder: spark.read.option("pathGlobFilter", "part-00000-*").parquet(folder), "passes over"),
        (lambda spark, folder: spark.read.schema(FLIGHTS_DDL + ", more int").parquet(folder), "no column"),
        (
            lambda spark, folder: spark.read.schema(FLIGHTS_DDL.replace("hour int", "hour bigint")).parquet(folder),
            "to Spark",
        ),
    ],
)
def test_any_other_table_is_read_by_spark_and_the_log_says_why(
    spark: "SparkSession",
    model: Path,
    folder: Path,
    change: Change,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = change(spark, str(folder))  # type: ignore[arg-type]
    keys = [name for name in ("flight_id", "more") if name in table.columns]
    with caplog.at_level(logging.INFO, "mirrorspark.scoring.input.parquet_scan"):
        scored = score(table, model, keys=keys)
    assert is_read_by_spark(scored)
    assert reason in caplog.text
    assert scored.count() == table.count()
    with pytest.raises(ScoringError, match=r"tasks cannot read the table on their own.*leave reader as it is"):
        score(table, model, keys=keys, reader="tasks")


def test_a_table_in_sparks_cache_is_read_from_there(spark: "SparkSession", model: Path, folder: Path) -> None:
    table = spark.read.parquet(str(folder)).cache()
    try:
        assert is_read_by_spark(score(table, model, keys="flight_id"))
    finally:
        table.unpersist(blocking=True)


def test_scores_are_not_written_over_the_table_that_they_are_computed_from(
    spark: "SparkSession", model: Path, folder: Path
) -> None:
    """Spark refuses it where it reads the table itself; where tasks do, nothing must be lost either."""
    spark.read.parquet(str(folder)).select("*", F.lit(0.0).cast("float").alias("score")).write.saveAsTable("scored")
    try:
        table = spark.table("scored")
        scored = score(table.drop("score"), model, keys=[*table.drop("score").columns], with_columns=())
        assert not is_read_by_spark(scored)
        assert scored.columns == table.columns
        with pytest.raises(AnalysisException, match="overwrite"):
            scored.write.mode("overwrite").insertInto("scored")
        with pytest.raises(AnalysisException, match="overwrite"):
            scored.write.mode("overwrite").saveAsTable("scored")
        assert spark.table("scored").count() == FLIGHTS.num_rows
    finally:
        spark.sql("DROP TABLE scored")


def test_scores_that_are_written_over_their_files_fail_as_they_do_where_spark_reads_them(
    spark: "SparkSession", model: Path, folder: Path, tmp_path: Path
) -> None:
    """Spark deletes the files of a path before it reads them: that must not pass for a table without rows."""
    for reader in ("spark", "tasks"):
        target = str(tmp_path / reader)
        spark.read.parquet(str(folder)).write.parquet(target)
        scored = score(spark.read.parquet(target), model, keys="flight_id", reader=reader)
        with pytest.raises((PythonException, Py4JJavaError), match=r"FILE_NOT_EXIST|cannot be read"):
            scored.write.mode("overwrite").parquet(target)


def test_a_table_without_rows_has_no_scores(spark: "SparkSession", model: Path, folder: Path, tmp_path: Path) -> None:
    spark.read.parquet(str(folder)).limit(0).write.parquet(str(tmp_path / "rows"))
    scored = score(spark.read.parquet(str(tmp_path / "rows")), model, keys="flight_id")
    assert not is_read_by_spark(scored)
    assert scored.count() == 0


def test_an_unknown_reader_is_refused(spark: "SparkSession", model: Path, folder: Path) -> None:
    with pytest.raises(ScoringError, match="reader 'jvm' is unknown; use auto, spark, tasks"):
        score(spark.read.parquet(str(folder)), model, keys="flight_id", reader="jvm")  # type: ignore[arg-type]
