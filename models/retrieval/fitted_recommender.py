"""Classical recommenders in TensorFlow: the inputs of scores, and the index that scores candidates by them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from mirrorspark.data_pipelines.features import FittedFeatures, kinds
from mirrorspark.models.classical import Arrays, history_of
from mirrorspark.models.index import row_sums


class FittedRecommender(tf.Module):
    """A classical recommender in TensorFlow.

    Attributes:
        arrays: Its learnt arrays.
        settings: Its settings.
        index: Finds the best candidates of queries.
    """

    def __init__(
        self,
        name: str,
        settings: Any,
        fitted: FittedFeatures,
        arrays: Arrays,
        index: row_sums.HistoryTopK | None = None,
    ) -> None:
        """Build the index of the recommender ``name``, or take that of another one with the same arrays."""
        super().__init__(name=name)
        self.arrays, self.settings = arrays, settings
        self._history = history_of(fitted.spec)
        self._last_items = getattr(settings, "last_items", 0)
        self._scores_from_history = name != "popularity"
        self.index = index or _index(name, settings, arrays)

    def queries(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return the ids that rows are scored from."""
        if not self._scores_from_history:
            rows = tf.shape(next(iter(inputs.values())))[0]
            return tf.zeros([rows, 0], tf.int64)
        ids = inputs[str(self._history)]
        if self._last_items:
            length = tf.math.count_nonzero(ids, axis=1, keepdims=True)
            place = tf.range(tf.shape(ids, tf.int64)[1])
            ids = tf.where(place >= length - self._last_items, ids, 0)
        ids = tf.sort(tf.where(ids >= kinds.FIRST_VOCABULARY_ID, ids, 0), axis=1)
        # An item that was had twice counts once.
        before = tf.pad(ids[:, :-1], [[0, 0], [1, 0]])[:, : tf.shape(ids)[1]]
        ids = tf.where(ids == before, tf.zeros_like(ids), ids)
        # In their order the zeros come first.
        return ids[:, -self._last_items :] if self._last_items else ids


def _index(name: str, settings: Any, arrays: Arrays) -> row_sums.HistoryTopK:
    if name == "popularity":
        return row_sums.PopularTopK(arrays["counts"])
    if "weights" in arrays:
        return row_sums.WeightsTopK(arrays["weights"])
    if name == "als":
        return row_sums.FactorsTopK(arrays["factors"], settings.l2, settings.alpha)
    ends, columns, values = arrays["ends"], arrays["columns"], arrays["values"]
    lengths = np.diff(ends)
    row = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(row)) - np.repeat(ends[:-1], lengths)
    shape = (len(lengths), max(1, int(lengths.max(initial=0))))
    neighbours, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    neighbours[row, place], weights[row, place] = columns, values
    return row_sums.NeighboursTopK(neighbours, weights)
