"""Batches that are filled up with padding, and the factor that corrects a mean over their rows."""

from typing import Any, NamedTuple


class PaddedBatch(NamedTuple):
    """A batch of :func:`data_pipelines.reading.load_batches`, and by how much padding lowers its means.

    The scale is float32 ``[]``: the rows of the batch divided by those that are not padding; 1 in every batch but the
    last one of an epoch. A sum over a worker's rows, divided by the rows of its share and multiplied by the scale, is
    this worker's part of the mean over the rows that are not padding.
    """

    features: Any
    label: Any
    weight: Any
    scale: Any


def padding_scale(batch: tuple[Any, ...]) -> Any:
    """Return the scale of a batch; 1.0 of a plain one, of whose padding nothing is known."""
    return batch.scale if isinstance(batch, PaddedBatch) else 1.0
