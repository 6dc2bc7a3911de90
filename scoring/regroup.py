"""Arrow batches of a size that suits a model, whatever size they come in."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from data_pipelines.parquet_rows import BATCH_BYTES, BATCH_ROWS


def regrouped(
    batches: Iterable[pa.RecordBatch], rows: int = BATCH_ROWS, group_bytes: int = BATCH_BYTES
) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in their order: small batches put together, large ones in pieces, empty ones left out.

    Spark sends the rows of one small file, or of one end of a union, in a batch of their own: a call of the model for
    each would cost what a full one does. And it sends as many rows at a time however wide they are.

    Args:
        batches: All of one schema.
        rows: A batch is whole when it has so many, or more.
        group_bytes: What a batch takes at most, as far as rows are alike.
    """
    small = (piece for batch in batches for piece in pieces(batch, group_bytes))
    for group in grouped(small, rows, group_bytes):
        yield pa.concat_batches(group) if len(group) > 1 else group[0]


def pieces(batch: pa.RecordBatch, piece_bytes: int = BATCH_BYTES) -> Iterator[pa.RecordBatch]:
    """Yield ``batch`` in slices, equal in rows, that take some ``piece_bytes`` or less where rows are alike.

    Nothing is copied. A batch without rows is one piece.
    """
    count = max(1, -(-batch.nbytes // piece_bytes))
    rows = max(1, -(-batch.num_rows // count))
    for start in range(0, max(1, batch.num_rows), rows):
        yield batch.slice(start, rows)


def grouped(batches: Iterable[pa.RecordBatch], rows: int, group_bytes: int) -> Iterator[list[pa.RecordBatch]]:
    """Yield the batches in their order, so many together as :func:`regrouped` makes one of, none of them copied.

    Only one that takes more than ``group_bytes`` by itself makes a group that does.
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
