"""Arrow batches of a size that suits a model, whatever size they come in."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from data_pipelines.parquet_rows import BATCH_BYTES, BATCH_ROWS


def regrouped(
    batches: Iterable[pa.RecordBatch], rows: int = BATCH_ROWS, group_bytes: int = BATCH_BYTES
) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in their order, small batches put together and empty ones left out.

    Spark sends the rows of one small file, or of one end of a union, in a batch of their own: a call of the model for
    each would cost what a full one does.

    Args:
        batches: All of one schema.
        rows: A batch is whole when it has so many, or more.
        group_bytes: Or when it takes so many.
    """
    for group in grouped(batches, rows, group_bytes):
        yield pa.concat_batches(group) if len(group) > 1 else group[0]


def grouped(batches: Iterable[pa.RecordBatch], rows: int, group_bytes: int) -> Iterator[list[pa.RecordBatch]]:
    """Yield the batches in their order, so many together as :func:`regrouped` makes one of, none of them copied."""
    waiting: list[pa.RecordBatch] = []
    waiting_rows = waiting_bytes = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        waiting.append(batch)
        waiting_rows += batch.num_rows
        waiting_bytes += batch.nbytes
        if waiting_rows >= rows or waiting_bytes >= group_bytes:
            yield waiting
            waiting, waiting_rows, waiting_bytes = [], 0, 0
    if waiting:
        yield waiting
