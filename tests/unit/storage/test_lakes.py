"""Lake tables are recognised wherever a path leads into one, and are neither read nor written as plain files."""

import pickle
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirrorspark.data_pipelines.reading.parquet_rows import ParquetRows
from mirrorspark.data_pipelines.tables import source_identity
from mirrorspark.fleet.coefficients import read_table
from mirrorspark.fleet.folder import write_folder
from mirrorspark.scoring.model.folder.new_folder import new_model_folder
from mirrorspark.storage.lakes import LakeTableError, lake_around
from mirrorspark.storage.listing import list_files
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import SaveMode, WriteJob

LOGS = {
    "delta": "_delta_log/00000000000000000000.json",
    "hudi": ".hoodie/hoodie.properties",
    "parquet": "_spark_metadata/0",
    "iceberg": "metadata/v1.metadata.json",
}
PARTS = ("day=3", "day=3/part.parquet", "day=3/*.parquet", "data/0101/0110/11/part.parquet", "data/new/folder")


def table_in(folder: Path, name: str = "delta", parts: tuple[str, ...] = ("day=3/part.parquet",)) -> Path:
    """Make a table with a log and some files, and return its folder."""
    for part in (LOGS[name], *parts):
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"x": [1.0]}), folder / part)
    return folder


def everything_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("name", LOGS)
def test_a_table_is_recognised_at_its_folder_and_at_everything_in_it(tmp_path: Path, name: str) -> None:
    table = table_in(tmp_path / "table", name)
    (tmp_path / "link").symlink_to(table / "day=3")
    for place in (table, *(table / part for part in PARTS), tmp_path / "link", f"file://{table}"):
        found = lake_around(place)
        assert found is not None, place
        assert (found.folder.local, found.format.name) == (table, name)


def test_other_folders_are_no_tables(tmp_path: Path) -> None:
    table_in(tmp_path / "table")
    (tmp_path / "plain" / "metadata").mkdir(parents=True)
    (tmp_path / "plain" / "metadata" / "notes.json").write_text("{}")
    for place in (tmp_path / "plain", tmp_path / "plain" / "day=3", tmp_path, tmp_path / "table2", tmp_path / "*"):
        assert lake_around(place) is None, place
    assert lake_around() is None
    assert lake_around("https://example.org/folder/file.parquet") is None


@pytest.mark.parametrize("name", LOGS)
def test_files_of_a_table_are_not_listed(tmp_path: Path, name: str) -> None:
    table = table_in(tmp_path / "tables" / "one", name)
    plain = tmp_path / "plain"
    plain.mkdir()
    pq.write_table(pa.table({"x": [1.0]}), plain / "part.parquet")
    for places in (
        table,
        table / "day=3",
        table / "day=3" / "part.parquet",
        tmp_path / "tables",
        tmp_path / "tables" / "*",
        tmp_path / "{tables,plain}" / "**" / "**" / "*.parquet",
        [plain, table],
    ):
        with pytest.raises(
            LakeTableError, match=r"one is .*, whose log .* says which of its files count; read it with"
        ):
            list_files(places)
    assert [file.path.local for file in list_files([plain, tmp_path / "pl*"])] == [plain / "part.parquet"]
    with pytest.raises(LakeTableError):
        ParquetRows.of(table, None)


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("mode", SaveMode)
def test_nothing_is_written_into_a_table(tmp_path: Path, name: str, mode: SaveMode) -> None:
    table = table_in(tmp_path / "table", name)
    before = everything_in(tmp_path)
    for target in (table, table / "day=3", table / "new" / "folder"):
        with pytest.raises(LakeTableError, match=f"table is .*; a file written to {target} would not be"):
            WriteJob.begin(StoragePath.of(target), mode)
        with pytest.raises(LakeTableError), new_model_folder(target):
            pass
        with pytest.raises(LakeTableError):
            write_folder(pa.table({"x": [1.0]}), ["digest"], target)
    assert everything_in(tmp_path) == before


def test_deleted_rows_of_a_delta_table_do_not_come_back(shared_data: Path, tmp_path: Path) -> None:
    """The table has 300 rows in its files, of which 180 count."""
    table = Path(shutil.copytree(shared_data / "lakes" / "delta_deleted", tmp_path / "coefficients"))
    assert sum(pq.read_metadata(file).num_rows for file in table.glob("*.parquet")) > 180
    for read in (list_files, read_table):
        with pytest.raises(LakeTableError, match=r"coefficients is a Delta table, whose log \(_delta_log\)"):
            read(table)  # type: ignore[operator]


def test_a_deletion_changes_the_identity_of_a_table(tmp_path: Path) -> None:
    """It may add an entry to the log, and touch no other file."""
    table = table_in(tmp_path / "flights.parquet")
    before = source_identity({"flights": table}, "select 1")
    assert source_identity({"flights": table}, "select 1") == before
    (table / "_delta_log" / "00000000000000000001.json").write_text('{"remove": {"path": "day=3/part.parquet"}}')
    assert source_identity({"flights": table}, "select 1") != before


def test_the_error_survives_pickling(tmp_path: Path) -> None:
    with pytest.raises(LakeTableError) as raised:
        list_files(table_in(tmp_path / "table"))
    again = pickle.loads(pickle.dumps(raised.value))  # noqa: S301
    assert (str(again), again.table) == (str(raised.value), raised.value.table)
