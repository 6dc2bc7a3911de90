"""The tables are the same every time, and have the shapes that their pages describe."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks import tables
from benchmarks.tables import Kind, make_table, parquet_files


@pytest.mark.parametrize("kind", list(Kind))
def test_same_arguments_give_the_same_rows(kind: Kind) -> None:
    assert make_table(kind, 50, first_key=100).equals(make_table(kind, 50, first_key=100))
    assert not make_table(kind, 50, seed=1).equals(make_table(kind, 50, seed=2))


def test_numbers_have_42_columns() -> None:
    table = make_table(Kind.NUMBERS, 100, first_key=7)

    assert table.num_columns == 42
    assert table.schema.types.count(pa.float32()) == 20
    assert table.schema.types.count(pa.int64()) == 22
    assert table["key"].to_pylist() == list(range(7, 107))
    assert set(table["label"].to_pylist()) == {0, 1}


def test_strings_and_lists_have_what_their_names_say() -> None:
    strings, lists = make_table(Kind.STRINGS, 200), make_table(Kind.LISTS, 200)

    assert strings.schema.types.count(pa.string()) == 8
    assert [lists.schema.types.count(pa.list_(kind)) for kind in (pa.int64(), pa.float32(), pa.string())] == [4, 2, 2]
    lengths = pc.list_value_length(lists["ids_00"]).to_pylist()
    assert min(lengths) == 0
    assert max(lengths) == 16


def test_files_hold_all_rows_and_two_cores_can_share_them(tmp_path: Path) -> None:
    files = parquet_files(tmp_path, Kind.NUMBERS, 103)

    assert [pq.read_metadata(file).num_rows for file in files] == [26, 26, 26, 25]
    keys = [key for file in files for key in pq.read_table(file, columns=["key"])["key"].to_pylist()]
    assert keys == list(range(103))


def test_files_that_are_there_are_not_written_again(tmp_path: Path) -> None:
    files = parquet_files(tmp_path, Kind.NUMBERS, 20)
    before = [file.stat().st_mtime_ns for file in files]

    assert parquet_files(tmp_path, Kind.NUMBERS, 20) == files
    assert [file.stat().st_mtime_ns for file in files] == before


def test_files_of_an_interrupted_run_are_written_anew(tmp_path: Path) -> None:
    unfinished = tmp_path / "numbers-20-by-5.unfinished"
    unfinished.mkdir()
    (unfinished / "part-00000.parquet").write_bytes(b"half of a f")

    files = parquet_files(tmp_path, Kind.NUMBERS, 20)

    assert sum(pq.read_metadata(file).num_rows for file in files) == 20


def test_long_tables_repeat_their_rows_instead_of_filling_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "DISTINCT_ROWS", 20)

    files = parquet_files(tmp_path, Kind.NUMBERS, 50, file_rows=10)

    assert [pq.read_metadata(file).num_rows for file in files] == [10] * 5
    assert len({file.stat().st_ino for file in files}) == 2
    assert pq.read_table(files[0]).equals(pq.read_table(files[2]))
