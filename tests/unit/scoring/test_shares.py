"""S9, S11: tasks read the rows of their shares; files without a row have one share."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.parquet_rows import ParquetRows
from scoring.shares import Shares


def read(shares: Shares, *numbers: int) -> dict[int, list[int]]:
    """Return the rows of the shares of these numbers, as a task reads them that is handed each in a batch."""
    batches = [pa.record_batch({"id": pa.array([number], pa.int64())}) for number in numbers]
    return {
        number: [row for batch in rows for row in batch.column("id").to_pylist()]
        for number, rows in shares.read(batches)
    }


def test_a_task_reads_the_rows_of_the_numbers_that_it_is_handed(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": range(35)}), tmp_path / "rows.parquet", row_group_size=10)
    shares = Shares.of(ParquetRows.of(tmp_path / "rows.parquet", None), [1, 2, 1])
    assert len(shares.groups) == 3
    assert read(shares, 1) == {1: list(range(10, 30))}
    assert read(shares, 2, 0) == {2: list(range(30, 35)), 0: list(range(10))}


def test_files_without_a_row_are_one_share_without_rows(tmp_path: Path) -> None:
    with pq.ParquetWriter(tmp_path / "rows.parquet", pa.schema([("id", pa.int64())])):
        pass  # a file without a row group
    source = ParquetRows.of(tmp_path / "rows.parquet", None)
    shares = Shares.of(source, source.groups_per_task(2))
    assert shares.groups == ((),)
    assert read(shares, 0) == {0: []}
