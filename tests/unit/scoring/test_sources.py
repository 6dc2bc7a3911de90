"""Folders of plain files are distinguished from tables, whose log lists the files that count."""

from pathlib import Path

import pytest

from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.file_job import find_source
from mirrorspark.scoring.input.spark_tables import SparkSource


def file_at(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"PAR1")
    return path


def test_plain_files_are_read_by_tasks(tmp_path: Path) -> None:
    files = [file_at(tmp_path / "day=1" / "a.parquet"), file_at(tmp_path / "deep" / "er" / "b.parquet")]
    found = find_source(tmp_path, None)
    assert not isinstance(found, SparkSource)
    assert sorted(file.path.local for file in found) == sorted(files)


@pytest.mark.parametrize(
    "place", ["part.parquet", "day=3/part.parquet", "2024/01/31/part.parquet", "a=1/b=2/p.parquet"]
)
@pytest.mark.parametrize(
    ("log", "table_format"), [("_delta_log", "delta"), (".hoodie", "hudi"), ("_spark_metadata", "parquet")]
)
def test_a_table_is_known_by_its_log_however_deep_its_files_are(
    tmp_path: Path, place: str, log: str, table_format: str, caplog: pytest.LogCaptureFixture
) -> None:
    file_at(tmp_path / "table" / place)
    (tmp_path / "table" / log).mkdir()
    with caplog.at_level("WARNING", "mirrorspark.scoring.files"):
        assert find_source(tmp_path / "table", None) == SparkSource(table_format, (f"file://{tmp_path}/table",))
    assert f"is not a folder of plain files ({log}): Spark reads it, which is slower" in caplog.text


@pytest.mark.parametrize("place", ["data/part.parquet", "data/0101/0110/11/part.parquet", "data/day=3/part.parquet"])
def test_an_iceberg_table_is_known_by_its_metadata(tmp_path: Path, place: str) -> None:
    file_at(tmp_path / "table" / place)
    (tmp_path / "table" / "metadata").mkdir()
    assert not isinstance(find_source(tmp_path / "table", None), SparkSource)  # a folder of that name is nothing yet
    (tmp_path / "table" / "metadata" / "v1.metadata.json").write_text("{}")
    assert find_source(tmp_path / "table", None) == SparkSource("iceberg", (f"file://{tmp_path}/table",))


@pytest.mark.parametrize("part", ["day=3", "day=3/part.parquet", "*/*.parquet"])
def test_a_part_of_a_table_is_refused(tmp_path: Path, part: str) -> None:
    file_at(tmp_path / "table" / "day=3" / "part.parquet")
    (tmp_path / "table" / "_delta_log").mkdir()
    with pytest.raises(ScoringError, match=r"is a Delta table, whose log \(_delta_log\) says which of its files count"):
        find_source(tmp_path / "table" / part, None)


def test_files_for_spark_to_read_are_not_listed(tmp_path: Path) -> None:
    assert find_source("lake.flights", "table") == SparkSource("table", ("lake.flights",))
    assert find_source([tmp_path / "a", tmp_path / "b"], "orc") == SparkSource(
        "orc", (str(tmp_path / "a"), str(tmp_path / "b"))
    )
    with pytest.raises(ScoringError, match="a table has one name, 2 are given"):
        find_source(["one", "two"], "table")
    with pytest.raises(FileNotFoundError):
        find_source(tmp_path / "nothing", None)


def test_the_format_is_that_of_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(H16) The same as ``ms.read_table``: names of the catalog, files of other formats, and folders of such."""
    monkeypatch.chdir(tmp_path)
    for name, format_ in (
        ("main.shop.flights", "table"),
        ("`odd-name`.flights", "table"),
        ("flights [2024]/a.csv.gz", "csv"),
        ("s3://lake/day=*/*.jsonl", "json"),
        ("a.ORC", "orc"),
        ("./a.tfrecord", "tfrecord"),
    ):
        assert find_source(name, None) == SparkSource(format_, (name,))
    for name in ("lines/day=1/a.json", "lines/README.md", "mixed/a.csv", "mixed/b.orc", "parquet/part-0", "flights"):
        file_at(tmp_path / name)
    assert find_source("lines", None) == SparkSource("json", ("lines",))
    for name in ("parquet", "flights", "./flights"):
        assert not isinstance(find_source(name, None), SparkSource)
    with pytest.raises(ScoringError, match=r"mixed holds files of several formats, a\.csv .csv. and b\.orc"):
        find_source("mixed", None)
