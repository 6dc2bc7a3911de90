"""Lake tables given as paths: read by their format where the session has it, else refused with what it needs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirrorspark.data_pipelines.any_table import read_table
from mirrorspark.data_pipelines.ingest import ingest_csv
from mirrorspark.data_pipelines.spark.lake_tables import read_lake_table
from mirrorspark.data_pipelines.tables import register_tables
from mirrorspark.data_pipelines.tfrecords import write_tfrecords, write_tfrecords_from_parquet
from mirrorspark.storage.lakes import LakeTableError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.types import StructType


@pytest.fixture(scope="module")
def with_delta(spark: "SparkSession") -> "SparkSession":
    """Return a session of its own that has a format ``delta``: it reads the files that the log adds and keeps."""
    from pyspark.sql.datasource import DataSource, DataSourceReader

    class Reader(DataSourceReader):
        def __init__(self, folder: str) -> None:
            self.folder = folder

        def read(self, _: object) -> Iterator[tuple[Any, ...]]:
            import json
            from pathlib import Path

            import pyarrow.parquet as pq

            folder = Path(self.folder.removeprefix("file:"))
            files: dict[str, None] = {}
            for entry in sorted((folder / "_delta_log").glob("*.json")):
                for line in entry.read_text(encoding="utf-8").splitlines():
                    action = json.loads(line)
                    if "remove" in action:
                        files.pop(action["remove"]["path"])
                    if "add" in action:
                        files[action["add"]["path"]] = None
            for file in files:
                yield from ((row["x"],) for row in pq.read_table(folder / file, columns=["x"]).to_pylist())

    class Delta(DataSource):
        @classmethod
        def name(cls) -> str:
            return "delta"

        def schema(self) -> str:
            return "x double"

        def reader(self, schema: "StructType") -> DataSourceReader:
            return Reader(self.options["path"])

    session = spark.newSession()
    session.dataSource.register(Delta)
    return session


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Return a Delta table of three files with one row each, of which the log has removed one."""
    folder = tmp_path / "table"
    (folder / "_delta_log").mkdir(parents=True)
    for number in range(3):
        pq.write_table(pa.table({"x": [float(number)]}), folder / f"part-{number}.parquet")
    added = [json.dumps({"add": {"path": f"part-{number}.parquet"}}) for number in range(3)]
    (folder / "_delta_log" / f"{0:020}.json").write_text("\n".join(added))
    (folder / "_delta_log" / f"{1:020}.json").write_text(json.dumps({"remove": {"path": "part-1.parquet"}}))
    return folder


def test_a_table_is_read_by_its_format_where_the_session_has_it(with_delta: "SparkSession", table: Path) -> None:
    for path in (str(table), f"file://{table}", str(table.parent / "tab*")):
        assert sorted(row.x for row in read_table(with_delta, path).collect()) == [0.0, 2.0], path
    renamed = table.rename(table.parent / "flights.parquet")
    register_tables(with_delta, {"flights": renamed}, {"flights": "x double"}, unpacked=table.parent / "unpacked")
    assert with_delta.table("flights").count() == 2


def test_a_session_without_the_format_is_told_what_it_needs(spark: "SparkSession", table: Path) -> None:
    with pytest.raises(
        LakeTableError,
        match=r"table is a Delta table, whose log \(_delta_log\) says .*; this session does not have the format "
        r"'delta': start the session with spark.jars.packages=io.delta:delta-spark.*, or give the name of the table",
    ):
        read_table(spark, table)
    for name, log, package in (("hudi", ".hoodie", "hudi-spark"), ("iceberg", "metadata", "iceberg-spark-runtime")):
        other = table.parent / name
        (other / log).mkdir(parents=True)
        (other / log / "v1.metadata.json").write_text("{}")
        with pytest.raises(
            LakeTableError, match=f"does not have the format '{name}': start the session with .*{package}"
        ):
            read_table(spark, other)


def test_a_part_of_a_table_is_not_read_as_plain_files(with_delta: "SparkSession", table: Path) -> None:
    (table / "day=3").mkdir()
    pq.write_table(pa.table({"x": [9.0]}), table / "day=3" / "part.parquet")
    plain = table.parent / "plain.parquet"
    pq.write_table(pa.table({"x": [7.0]}), plain)
    (table.parent / "link").symlink_to(table / "day=3")
    for path in (table / "day=3", table / "part-0.parquet", table / "*.parquet", table.parent / "link"):
        with pytest.raises(LakeTableError, match=r"would be read without it: give the folder of the table alone"):
            read_table(with_delta, path)
    with pytest.raises(LakeTableError, match="would be read without it"):
        read_lake_table(with_delta, str(plain), str(table))
    assert read_lake_table(with_delta, str(plain), str(plain)) is None
    assert read_table(with_delta, plain).count() == 1


def test_text_is_not_ingested_from_a_table_and_nothing_is_written_into_one(spark: "SparkSession", table: Path) -> None:
    before = sorted(table.rglob("*"))
    text = table.parent / "rows.csv"
    text.write_text("x\n1\n")
    with pytest.raises(LakeTableError, match=r"table is a Delta table, .*; its files are Parquet"):
        ingest_csv(spark, str(table), table.parent / "new", schema="x double")
    with pytest.raises(LakeTableError, match=f"a file written to {table}/day=3 would not be in the table"):
        ingest_csv(spark, str(text), str(table / "day=3"), schema="x double")
    rows = spark.createDataFrame([(1.0,)], "x double")
    with pytest.raises(LakeTableError, match="would not be in the table"):
        write_tfrecords(rows, table, mode="append")
    with pytest.raises(LakeTableError, match="read it with Spark"):
        write_tfrecords_from_parquet(spark, [table], table.parent / "new")
    assert sorted(table.rglob("*")) == before
    assert not (table.parent / "new").exists()
