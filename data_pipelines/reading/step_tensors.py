"""The steps of a chunk as tensors: a few large arrays arrive in TensorFlow at once, and are split there."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mirrorspark.data_pipelines.features import FeatureSpec
from mirrorspark.data_pipelines.reading.batching import LABEL, WEIGHT, BatchColumns, Chunk
from mirrorspark.data_pipelines.reading.padding import PaddedBatch

if TYPE_CHECKING:  # the driver reads datasets without loading TensorFlow
    import tensorflow as tf


@dataclass(frozen=True)
class StepTensors:
    """Makes batches ``(features, label, weight)`` out of chunks.

    Attributes:
        columns: The columns of the chunks.
        batch: Rows of a step.
        spec: The features, in the order of the batches.
        values_as: Name of one tensor for all features of the form ``value``; None for a tensor for each.
        is_scaled: Whether batches are each a :class:`PaddedBatch`.
    """

    columns: BatchColumns
    batch: int
    spec: FeatureSpec
    values_as: str | None
    is_scaled: bool

    @property
    def _values(self) -> tuple[str, ...]:
        """Names of the features in the tensor ``values_as``. They are the first columns of the floats."""
        return () if self.values_as is None else tuple(one.name for one in self.spec if one.form == "value")

    def arrays(self, chunk: Chunk, scales: npt.NDArray[np.float32]) -> dict[str, Any]:
        """Return a chunk's arrays, with the scale of each of its steps: an element with :meth:`signature`."""
        return {
            "scales": scales,
            "floats": chunk.floats,
            "int64s": chunk.int64s,
            "ids": tuple(chunk.ids),
            "classes": tuple(chunk.classes),
            "sparse": tuple(rows.coordinates() for rows in chunk.sparse),
            "vectors": tuple(chunk.vectors),
        }

    def signature(self) -> dict[str, Any]:
        """Return the types and shapes of :meth:`arrays`."""
        import tensorflow as tf  # deferred: see above

        columns, batch = self.columns, self.batch
        return {
            "scales": tf.TensorSpec((None,), tf.float32),
            "floats": tf.TensorSpec((None, len(columns.floats), batch), tf.float32),
            "int64s": tf.TensorSpec((None, len(columns.int64s), batch), tf.int64),
            "ids": tuple(tf.TensorSpec((None, batch, length), tf.int64) for length in columns.ids.values()),
            "classes": tuple(tf.TensorSpec((None, batch, classes), tf.float32) for classes in columns.classes.values()),
            "sparse": tuple(
                (
                    tf.TensorSpec((None, 2), tf.int64),
                    tf.TensorSpec((None,), tf.float32),
                    tf.TensorSpec((None,), tf.int64),
                )
                for _ in columns.sparse
            ),
            "vectors": tuple(tf.TensorSpec((None, batch, size), tf.float32) for size in columns.vectors.values()),
        }

    def steps(self, chunk: dict[str, Any]) -> "tf.data.Dataset":
        """Return the batches of :meth:`arrays`, which are tensors here."""
        import tensorflow as tf  # deferred: see above

        places = tf.data.Dataset.range(tf.shape(chunk["floats"], tf.int64)[0])
        return places.map(lambda step: self._batch(chunk, step))

    def _batch(self, chunk: dict[str, Any], step: "tf.Tensor") -> tuple[Any, ...]:
        """Slice one step out of a chunk: slices along the first axis copy nothing."""
        import tensorflow as tf  # deferred: see above

        columns, values = self.columns, self._values
        floats, single = chunk["floats"][step], columns.floats[len(values) :]
        tensors = dict(zip(single, tf.unstack(floats[len(values) :], len(single)), strict=True))
        tensors |= zip(columns.int64s, tf.unstack(chunk["int64s"][step], len(columns.int64s)), strict=True)
        for kind in ("ids", "classes", "vectors"):
            tensors |= {name: rows[step] for name, rows in zip(getattr(columns, kind), chunk[kind], strict=True)}
        for (name, size), (coordinates, elements, starts) in zip(columns.sparse.items(), chunk["sparse"], strict=True):
            span = slice(starts[step], starts[step + 1])
            tensors[name] = tf.SparseTensor(coordinates[span], elements[span], (self.batch, size))
        label, weight = tensors.pop(LABEL), tensors.pop(WEIGHT)
        features = {one.name: tensors[one.name] for one in self.spec if one.name not in values}
        if self.values_as is not None and values:
            features[self.values_as] = tf.transpose(floats[: len(values)])
        if not self.is_scaled:
            return features, label, weight
        return PaddedBatch(features, label, weight, chunk["scales"][step])
