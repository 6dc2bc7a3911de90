"""CSV files become Parquet files of one size, in narrow types, in order, or nothing (M9)."""

import bz2
import gzip
import math
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirrorspark.data_pipelines.ingest import IngestError, ingest_csv
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import WriteJob, is_hidden

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SCHEMA = "id bigint, small int, price double, share double, word string"
ROWS = 60_000


@pytest.fixture(scope="module")
def csv_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one table in three CSV files: plain, gzip and bzip2."""
    folder = tmp_path_factory.mktemp("cs v ü")
    generator = np.random.default_rng(5)
    ids = generator.permutation(ROWS)
    words = generator.integers(0, 16, (ROWS, 12))
    lines = [
        f"{10**12 + key},{key % 100},{key / 4},{key / 10 if key % 50 else ''},{bytes(97 + word).decode()}"
        for key, word in zip(ids, words.astype(np.uint8), strict=True)
    ]
    for number, (name, opener) in enumerate((("a.csv", open), ("b.csv.gz", gzip.open), ("c.csv.bz2", bz2.open))):
        part = "\n".join(["id,small,price,share,word", *lines[number::3]]) + "\n"
        with opener(folder / name, "wb") as file:
            file.write(part.encode())
    return folder


def test_files_have_the_wanted_size_narrow_types_and_every_row_in_order(
    spark: "SparkSession", csv_folder: Path, tmp_path: Path
) -> None:
    target = 200_000
    result = ingest_csv(
        spark,
        str(csv_folder),
        tmp_path / "table",
        schema=SCHEMA,
        sort_by="id",
        target_file_bytes=target,
        row_group_bytes=2**18,
    )
    sizes = [Path(file).stat().st_size for file in result.files]
    names = [Path(file).name for file in result.files]
    assert sorted(path.name for path in (tmp_path / "table").iterdir()) == ["_SUCCESS", *names]
    assert [path.name for path in tmp_path.iterdir()] == ["table"]
    assert sum(sizes) == result.bytes
    assert abs(len(sizes) - math.ceil(result.bytes / target)) <= 0.2 * len(sizes)
    assert len(sizes) >= 4
    for size in sizes[:-1]:
        assert abs(size - target) <= 0.2 * target, sizes
    # Ids are beyond 32 bits; prices are quarters, which float32 holds; shares are tenths, which it does not.
    assert result.types == {"id": "int64", "small": "int8", "price": "float", "share": "double", "word": "string"}
    tables = [pq.read_table(file) for file in result.files]
    table = pa.concat_tables(tables)
    assert result.rows == table.num_rows == ROWS
    ids = table["id"].to_numpy() - 10**12
    assert (ids == np.arange(ROWS)).all()
    assert (table["small"].to_numpy() == ids % 100).all()
    assert (table["price"].to_numpy() == ids / 4).all()
    assert table["share"].null_count == math.ceil(ROWS / 50)
    assert spark.read.parquet(str(tmp_path / "table")).count() == ROWS
    groups = [pq.ParquetFile(file).metadata for file in result.files]
    assert sum(group.num_row_groups for group in groups) > len(groups)


def test_types_stay_where_they_are_to_stay(spark: "SparkSession", csv_folder: Path, tmp_path: Path) -> None:
    result = ingest_csv(spark, [str(csv_folder / "a.csv")], tmp_path / "table", schema=SCHEMA, downcast=False)
    assert result.types == {"id": "int64", "small": "int32", "price": "double", "share": "double", "word": "string"}
    assert len(result.files) == 1
    assert result.rows == ROWS / 3


def test_a_table_on_an_object_store_is_whole_or_not_there(
    spark: "SparkSession", csv_folder: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = StoragePath.of(f"s3://{s3_bucket}") / uuid4().hex / "table"
    plain = str(csv_folder / "a.csv")

    # The driver dies before it publishes: nothing of the table is there for readers.
    def dies(job: WriteJob, files: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(WriteJob, "publish", dies)
        patched.setattr(WriteJob, "abort", lambda job: None)
        with pytest.raises(KeyboardInterrupt):
            ingest_csv(spark, plain, target, schema=SCHEMA, target_file_bytes=200_000)
    assert target.files()
    assert all(is_hidden(file.path.relative_to(target)) for file in target.files())

    result = ingest_csv(spark, plain, target, schema=SCHEMA, target_file_bytes=200_000)
    seen = [file.path for file in target.files() if not is_hidden(file.path.relative_to(target))]
    assert sorted(map(str, seen)) == list(result.files)
    tables = [pq.read_table(pa.BufferReader(path.read_bytes())) for path in seen]
    assert sum(table.num_rows for table in tables) == result.rows == ROWS / 3
    assert sum(path.size() for path in seen) == result.bytes
    assert (target / "_SUCCESS").is_file()
    with pytest.raises(IngestError, match="exists already"):
        ingest_csv(spark, plain, target, schema=SCHEMA)


def test_files_are_read_as_tables_are(spark: "SparkSession", tmp_path: Path) -> None:
    """Columns go by name, also those of folders; separator, missing values and line breaks are those of the writer."""
    for day, content in (("01", 'town;n;more\r\n"a\r\nb";1,5;x\r\nNA;-;\r\n'), ("x", "n,town\n2.5,Zürich\n")):
        (tmp_path / f"day={day}").mkdir()
        (tmp_path / f"day={day}" / "t.csv").write_text(content, newline="", encoding="utf-8-sig")
    paths = str(tmp_path / "day=01")
    result = ingest_csv(spark, paths, tmp_path / "_one", schema="n string, town string")
    assert pq.read_table(list(result.files)).to_pylist() == [{"n": "1,5", "town": "a\r\nb"}, {"n": "-", "town": None}]
    (tmp_path / "_towns").mkdir()
    (tmp_path / "_towns" / "latin.csv").write_text("town\nZürich\n", encoding="latin-1")
    latin = str(tmp_path / "_towns" / "latin.csv")
    with pytest.raises(IngestError, match=r"latin\.csv has another encoding than UTF-8 .* ms\.ingest_csv: encoding="):
        ingest_csv(spark, latin, tmp_path / "_latin", schema="town string")
    result = ingest_csv(spark, latin, tmp_path / "_latin", schema="town string", encoding="windows-1252")
    assert pq.read_table(list(result.files)).to_pylist() == [{"town": "Zürich"}]
    result = ingest_csv(
        spark, str(tmp_path), tmp_path / "_all", schema="day string, n string, town string", sort_by=["day", "town"]
    )
    assert pq.read_table(list(result.files)).to_pylist() == [
        {"day": "01", "n": "-", "town": None},
        {"day": "01", "n": "1,5", "town": "a\r\nb"},
        {"day": "x", "n": "2.5", "town": "Zürich"},
    ]


@pytest.mark.parametrize("content", ["n,m\n1,2\n1,2,3\n", 'n,m\n1,"2,2"\n1,"2\n2",3\n'])
def test_a_row_with_more_cells_than_the_header_stops_it(spark: "SparkSession", tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(IngestError, match=r"more cells than its header has columns \(2\).* such a row is 1,"):
        ingest_csv(spark, str(tmp_path / "bad.csv"), tmp_path / "table", schema="n string")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]


def test_a_value_that_does_not_fit_stops_it_and_leaves_nothing(spark: "SparkSession", tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("n\n1\nmany\n")
    with pytest.raises(IngestError, match="with the schema 'n int'") as caught:
        ingest_csv(spark, str(tmp_path / "bad.csv"), tmp_path / "table", schema="n int")
    assert "many" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]


def test_input_that_cannot_be_ingested_is_refused(spark: "SparkSession", csv_folder: Path, tmp_path: Path) -> None:
    plain = str(csv_folder / "a.csv")
    with pytest.raises(IngestError, match="exists already"):
        ingest_csv(spark, plain, csv_folder, schema=SCHEMA)
    with pytest.raises(IngestError, match=r"sort_by \['when'\] is not in the schema"):
        ingest_csv(spark, plain, tmp_path / "table", schema=SCHEMA, sort_by="when")
    with pytest.raises(IngestError, match="cannot be read"):
        ingest_csv(spark, str(tmp_path / "none.csv"), tmp_path / "table", schema=SCHEMA)
    with pytest.raises(IngestError, match=r"a\.csv lacks the columns \['key'\]; its header has \['id',"):
        ingest_csv(
            spark, plain, tmp_path / "table", schema="key bigint, small int, price double, share double, word string"
        )
    (tmp_path / "empty.csv").write_text("n\n")
    with pytest.raises(IngestError, match="no rows"):
        ingest_csv(spark, str(tmp_path / "empty.csv"), tmp_path / "table", schema="n int")
    with pytest.raises(ValueError, match="target_file_bytes 0 is below 1"):
        ingest_csv(spark, plain, tmp_path / "table", schema=SCHEMA, target_file_bytes=0)
