"""Regrouping of batches to sizes that suit a model, and counting of rows in a task."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.scoring.output import Form


def regrouped(
    batches: Iterable[pa.RecordBatch], rows: int = parquet_rows.BATCH_ROWS, group_bytes: int = parquet_rows.BATCH_BYTES
) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in order, with small batches merged, large ones sliced and empty ones dropped.

    Spark sends the rows of each small file and of each branch of a union as a separate batch, and a call of the model
    for each would cost as a full one. Spark's limit of rows per batch also ignores their width.

    Args:
        batches: Batches of one schema.
        rows: Smallest number of rows of a complete batch.
        group_bytes: Largest size of a batch, if rows have similar sizes.
    """
    small = (piece for batch in batches for piece in pieces(batch, group_bytes))
    for group in grouped(small, rows, group_bytes):
        yield pa.concat_batches(group) if len(group) > 1 else group[0]


def pieces(batch: pa.RecordBatch, piece_bytes: int = parquet_rows.BATCH_BYTES) -> Iterator[pa.RecordBatch]:
    """Yield ``batch`` in slices with equal numbers of rows, of at most ``piece_bytes`` if rows have similar sizes.

    Nothing is copied. A batch without rows is one piece.
    """
    count = max(1, -(-batch.nbytes // piece_bytes))
    rows = max(1, -(-batch.num_rows // count))
    for start in range(0, max(1, batch.num_rows), rows):
        yield batch.slice(start, rows)


def grouped(batches: Iterable[pa.RecordBatch], rows: int, group_bytes: int) -> Iterator[list[pa.RecordBatch]]:
    """Yield groups of consecutive batches for :func:`regrouped`, without copying.

    A group exceeds ``group_bytes`` only if it is a single batch that does.
    """
    waiting: list[pa.RecordBatch] = []
    waiting_rows = waiting_bytes = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        if waiting and waiting_bytes + batch.nbytes > group_bytes:
            yield waiting
            waiting, waiting_rows, waiting_bytes = [], 0, 0
        waiting.append(batch)
        waiting_rows += batch.num_rows
        waiting_bytes += batch.nbytes
        if waiting_rows >= rows or waiting_bytes >= group_bytes:
            yield waiting
            waiting, waiting_rows, waiting_bytes = [], 0, 0
    if waiting:
        yield waiting


class RowCountError(ClearError, AssertionError):
    """Raised when the numbers of input and output rows of a task differ, which is a defect of the code."""


class RowCount:
    """Counts the input and output rows of a task."""

    def __init__(self) -> None:
        self._input_rows = self._output_rows = 0

    def count_input(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield input batches and count their rows."""
        for batch in batches:
            self._input_rows += batch.num_rows
            yield batch

    def count_output(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield output batches and count their rows."""
        for batch in batches:
            self._output_rows += batch.num_rows
            yield batch

    def check(self, form: Form) -> None:
        """Compare both counts at the end of a task; they may differ in a task that is stopped early.

        Raises:
            RowCountError: They differ, although the form has one result per row.
        """
        if form.keeps_rows and self._output_rows != self._input_rows:
            raise RowCountError(
                f"a task read {self._input_rows} rows and returned {self._output_rows} rows of scores, though the form "
                f"{form} has one per row; do not use these scores, and report this defect: the table is not at fault"
            )
