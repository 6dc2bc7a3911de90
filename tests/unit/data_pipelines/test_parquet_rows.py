"""Row groups of Parquet files are dealt to tasks, each once, and read in their order."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirrorspark.data_pipelines.reading.parquet_rows import NotParquetError, ParquetError, ParquetFiles, ParquetRows
from mirrorspark.storage.listing import list_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of two files with 4 and 3 row groups, in partition folders."""
    for day, (rows, start) in enumerate(((40, 0), (25, 40))):
        (tmp_path / "in" / f"day={day}").mkdir(parents=True)
        table = pa.table({"id": range(start, start + rows), "text": [f"t{n}" for n in range(start, start + rows)]})
        pq.write_table(table, tmp_path / "in" / f"day={day}" / "part.parquet", row_group_size=10)
    return tmp_path / "in"


def ids(rows: ParquetRows, slots: int, multiple: int = 4) -> list[int]:
    shares = rows.divide(slots)
    return [n for share in shares for batch in rows.batches(share, multiple) for n in batch.column("id").to_pylist()]


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 100])
def test_every_row_is_read_once_in_order_for_any_number_of_tasks(folder: Path, slots: int) -> None:
    rows = ParquetRows.of(folder, None)

    assert rows.rows == 65
    assert len(rows.divide(slots)) == min(slots, 7)
    assert ids(rows, slots) == list(range(65))


def test_columns_are_chosen_and_partition_folders_are_columns(folder: Path) -> None:
    rows = ParquetRows.of(folder, ["day", "id"])

    assert rows.schema == pa.schema([("day", pa.int32()), ("id", pa.int64())])
    batch = next(rows.batches(rows.divide(1)[0], 4))
    assert batch.slice(0, 1).to_pylist() == [{"day": 0, "id": 0}]


def test_wide_rows_come_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = pa.array([bytes([number]) * 1000 + number.to_bytes(2) for number in range(200)])
    pq.write_table(pa.table({"wide": wide, "id": range(200)}), tmp_path / "w.parquet", use_dictionary=False)
    monkeypatch.setattr("mirrorspark.data_pipelines.reading.parquet_rows.BATCH_BYTES", 50_000)
    for columns, most in ((["wide"], 50), (["id"], 200)):
        rows = ParquetRows.of(tmp_path / "w.parquet", columns)
        sizes = [batch.num_rows for batch in rows.batches(rows.divide(1)[0], 4)]
        assert sum(sizes) == 200
        assert most * 0.8 <= max(sizes) <= most


@pytest.mark.parametrize(
    "column",
    [
        pa.array([0.5] * 20_000),
        pa.array([7] * 20_000, pa.int32()),
        pa.array([None, 1.5] * 10_000),
        pa.array([[3, 3, 3, 3]] * 20_000),
        pa.array([""] * 20_000),
    ],
    ids=lambda column: str(column.type),
)
def test_dictionary_encoded_values_are_read_in_bounded_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: pa.Array
) -> None:
    """S8: encoded, such a column takes next to nothing."""
    pq.write_table(pa.table({"x": column}), tmp_path / "w.parquet")
    monkeypatch.setattr("mirrorspark.data_pipelines.reading.parquet_rows.BATCH_BYTES", 20_000)
    rows = ParquetRows.of(tmp_path / "w.parquet", None)

    batches = list(rows.batches(rows.divide(1)[0], 1))

    assert sum(batch.num_rows for batch in batches) == 20_000
    assert max(batch.nbytes for batch in batches) <= 1.3 * 20_000  # nulls, and where lists begin, come on top


def test_a_row_group_on_a_disk_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    """S8: Spark writes row groups of 128 MB."""
    noise = np.random.default_rng(1).random(2_000_000)
    pq.write_table(pa.table({"x": noise}), tmp_path / "w.parquet", row_group_size=len(noise))
    rows = ParquetRows.of(tmp_path / "w.parquet", None)
    before = pa.total_allocated_bytes()

    held = [pa.total_allocated_bytes() - before for _ in rows.batches(rows.groups, 1)]

    assert len(held) > 50
    assert max(held) < 4e6  # of 16


def test_schemas_that_do_not_fit_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ParquetError, match=r"has no column \['none'\]; it has \['id', 'text', 'day'\]"):
        ParquetRows.of(folder, ["none"])
    pq.write_table(pa.table({"id": ["x"], "text": ["y"]}), folder / "day=1" / "z.parquet")
    with pytest.raises(ParquetError, match=r"column 'id' is string in .*z.parquet and int64 in"):
        ParquetRows.of(folder, None)
    pq.write_table(pa.table({"id": [1], "text": ["y"], "more": [2]}), folder / "day=1" / "z.parquet")
    with pytest.raises(ParquetError, match=r"z\.parquet has columns \['more'\], which .*part\.parquet does not have"):
        ParquetRows.of(folder, None)
    assert ParquetRows.of(folder, ["id"]).rows == 66
    (tmp_path / "no.parquet").write_bytes(b"no Parquet file")
    with pytest.raises(NotParquetError, match=r"no\.parquet is not a Parquet file"):
        ParquetRows.of(tmp_path / "no.parquet", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no Parquet files"):
        ParquetRows.of(tmp_path / "empty", None)


def test_schemas_are_told_apart_by_the_columns_asked_for(folder: Path) -> None:
    pq.write_table(pa.table({"id": pa.array([1], pa.int32()), "day": ["x"]}), folder / "day=1" / "z.parquet")
    files = ParquetFiles.of(list_files(folder))

    first, _, last = files.files
    assert files.of_each_schema(["id"]) == (first, last)
    assert files.of_each_schema(["text"]) == (first, last)
    # Nobody has the one; the other one is that of the folders, whatever is in the files.
    assert files.of_each_schema(["none", "day"]) == (first,)


def test_names_of_list_elements_do_not_change_the_schema(tmp_path: Path) -> None:
    """Their types are equal, and print, and hash, as others."""
    one, other = (pa.list_(pa.field(name, pa.int64())) for name in ("element", "item"))
    for name, type_ in (("a", one), ("b", other)):
        table = pa.table({"ids": pa.array([[1, 2]], type_)})
        pq.write_table(table, tmp_path / f"{name}.parquet", use_compliant_nested_type=False)
    files = ParquetFiles.of(list_files(tmp_path))
    assert [str(footer.schema.field("ids").type) for footer in files.footers] == [str(one), str(other)]
    assert files.of_each_schema(["ids"]) == files.files[:1]


def test_row_groups_go_to_tasks_by_their_number(folder: Path) -> None:
    rows = ParquetRows.of(folder, None)

    assert rows.group_rows == (10, 10, 10, 10, 10, 10, 5)
    assert rows.shares(rows.groups_per_task(3)) == rows.divide(3)
    first, second, third = rows.shares([3, 2, 2])
    # Neighbours of one file are read together.
    assert [(groups.first, groups.stop) for groups in first] == [(0, 3)]
    assert [(groups.first, groups.stop) for groups in second] == [(3, 4), (0, 1)]
    found = [n for share in (first, second, third) for batch in rows.batches(share, 1) for n in batch["id"].to_pylist()]
    assert found == list(range(65))


def test_old_timestamps_are_moments_and_categories_are_texts_wherever_they_are(tmp_path: Path) -> None:
    wall, name = pa.timestamp("us"), pa.dictionary(pa.int8(), pa.string())
    at, inner = datetime(2024, 7, 1, 12, 30, 0, 250), {"of": "a", "at": datetime(1969, 12, 31)}
    rows = {"name": "a", "at": at, "list": [at, None], "map": [("x", at)], "inner": inner, "names": ["a", "a"], "n": 7}
    schema = pa.schema(
        [
            ("name", name),
            ("at", wall),
            ("list", pa.list_(wall)),
            ("map", pa.map_(pa.string(), wall)),
            ("inner", pa.struct([("of", name), ("at", wall)])),
            ("names", pa.large_list(name)),
            ("n", pa.int64()),
        ]
    )
    pq.write_table(
        pa.Table.from_pylist([rows, dict.fromkeys(rows)], schema),
        tmp_path / "t.parquet",
        use_deprecated_int96_timestamps=True,
    )

    read = ParquetRows.of(tmp_path / "t.parquet", None)

    moment = pa.timestamp("us", "UTC")
    assert read.schema == pa.schema(
        [
            ("name", pa.string()),
            ("at", moment),
            ("list", pa.list_(moment)),
            ("map", pa.map_(pa.string(), moment)),
            ("inner", pa.struct([("of", pa.string()), ("at", moment)])),
            ("names", pa.large_list(pa.string())),
            ("n", pa.int64()),
        ]
    )
    utc = at.replace(tzinfo=UTC)
    first, second = next(read.batches(read.divide(1)[0], 1)).to_pylist()
    assert first == rows | {
        "at": utc,
        "list": [utc, None],
        "map": [("x", utc)],
        "inner": {"of": "a", "at": datetime(1969, 12, 31, tzinfo=UTC)},
    }
    assert second == dict.fromkeys(rows)
