"""Gradient-boosted trees as a TensorFlow graph, so that they are exported and scored like any other model.

A SavedModel runs no Python code and needs no scikit-learn where it scores.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from mirrorspark.data_pipelines.features import kinds
from mirrorspark.models.catalog import BOOSTED_TREES

# Trees that are walked side by side: 8,192 rows then take 4 MB per attribute of a node.
_TREES_AT_ONCE = 64
# scikit-learn bins a feature into at most 255 values.
_MOST_CATEGORIES = 256

Link = Literal["logit", "softmax", "identity"]
Part = Literal["value", "length"]


@dataclass(frozen=True)
class TreeColumn:
    """One column that the trees split.

    Attributes:
        form: Form of the feature; a list gives two columns.
        part: ``value`` (also the last id of a list) or ``length`` of a list.
        categories: Ids that are split as categories, ascending; None for an ordered column.
        is_id: True for an ordered column of ids, whose missing id is not a value.
    """

    feature: str
    form: kinds.Form
    part: Part = "value"
    categories: np.ndarray | None = None
    is_id: bool = False


@dataclass(frozen=True)
class Trees:
    """All nodes of all trees side by side.

    Attributes:
        columns: The columns that the trees split, by the numbers in ``column``.
        column: Column of each node, ``[nodes]``.
        threshold: A node's rows with a value up to it go left, ``[nodes]``.
        left: Number of the left child, ``[nodes]``; a leaf's is its own.
        right: Number of the right child.
        missing_left: True where rows without a value go left.
        is_categorical: True where ``goes_left`` decides instead of ``threshold``.
        goes_left: True for the categories that go left, ``[nodes or 1, 256]``.
        categories_at: Row of ``goes_left``, ``[nodes]``.
        value: Value that a leaf adds, ``[nodes]``.
        roots: First node of each tree, ``[trees]``.
        outputs: Number of the output that each tree adds to, ``[trees]``.
        start: Value that the trees add to, ``[outputs]``.
        depth: Nodes between a root and the deepest leaf.
        link: How sums become scores.
        class_numbers: The class of each output of a multi-class model.
        classes: Number of classes; 0 for one score per row.
    """

    columns: tuple[TreeColumn, ...]
    column: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    missing_left: np.ndarray
    is_categorical: np.ndarray
    goes_left: np.ndarray
    categories_at: np.ndarray
    value: np.ndarray
    roots: np.ndarray
    outputs: np.ndarray
    start: np.ndarray
    depth: int
    link: Link
    class_numbers: tuple[int, ...] = ()
    classes: int = 0


class BoostedTrees(tf.Module):
    """The trees with their arrays as variables, which the signatures of a SavedModel share."""

    def __init__(self, trees: Trees) -> None:
        super().__init__(name=BOOSTED_TREES)
        self.trees = trees
        # Trees that add nothing fill the last part.
        filler = len(trees.value)
        missing = -len(trees.roots) % _TREES_AT_ONCE
        nodes = {
            "column": _variable(np.append(trees.column, 0), tf.int32),
            "threshold": _variable(np.append(trees.threshold, 0), tf.float64),
            "left": _variable(np.append(trees.left, filler), tf.int32),
            "right": _variable(np.append(trees.right, filler), tf.int32),
            "missing_left": _variable(np.append(trees.missing_left, False), tf.bool),
            "value": _variable(np.append(trees.value, 0), tf.float64),
        }
        if trees.is_categorical.any():
            nodes |= {
                "is_categorical": _variable(np.append(trees.is_categorical, False), tf.bool),
                "categories_at": _variable(np.append(trees.categories_at, 0), tf.int32),
            }
        # tf.Module saves no dictionary that was changed after it became an attribute.
        self._nodes = nodes
        self._goes_left = _variable(trees.goes_left.ravel(), tf.bool)
        self._roots = _variable(np.append(trees.roots, np.full(missing, filler)), tf.int32)
        self._outputs = _variable(np.append(trees.outputs, np.zeros(missing)), tf.int32)

    def __call__(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return the sums of the leaves, float64 ``[batch, outputs]``, for encoded features."""
        matrix = tf.stack([_column(column, inputs[column.feature]) for column in self.trees.columns], axis=1)
        start = tf.constant(self.trees.start, tf.float64)
        sums = tf.tile(start[None, :], [tf.shape(matrix)[0], 1])

        def add(part: tf.Tensor, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            first = part * _TREES_AT_ONCE
            roots = self._roots[first : first + _TREES_AT_ONCE]
            outputs = tf.one_hot(self._outputs[first : first + _TREES_AT_ONCE], len(self.trees.start), dtype=tf.float64)
            return part + 1, sums + tf.matmul(self._leaves(matrix, roots), outputs)

        parts = self._roots.shape[0] // _TREES_AT_ONCE
        return tf.while_loop(lambda part, _: part < parts, add, (tf.constant(0), sums))[1]

    def _leaves(self, matrix: tf.Tensor, roots: tf.Tensor) -> tf.Tensor:
        """Return the value of the leaf of each row in each tree, ``[batch, trees]``."""
        nodes = tf.tile(roots[None, :], [tf.shape(matrix)[0], 1])

        def descend(depth: tf.Tensor, nodes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            of = {name: tf.gather(values, nodes) for name, values in self._nodes.items() if name != "value"}
            values = tf.gather(matrix, of["column"], batch_dims=1)
            is_missing = tf.math.is_nan(values)
            is_left = values <= of["threshold"]
            if "is_categorical" in of:
                # Values that are not categories become some number here that is not used.
                numbers = tf.where(is_missing, tf.zeros_like(values), values)
                category = tf.cast(tf.clip_by_value(numbers, 0, _MOST_CATEGORIES - 1), tf.int32)
                among = tf.gather(self._goes_left, of["categories_at"] * _MOST_CATEGORIES + category)
                is_left = tf.where(of["is_categorical"], among, is_left)
            is_left = tf.where(is_missing, of["missing_left"], is_left)
            return depth + 1, tf.where(is_left, of["left"], of["right"])

        reached = tf.while_loop(lambda depth, _: depth < self.trees.depth, descend, (tf.constant(0), nodes))[1]
        return tf.gather(self._nodes["value"], reached)


def predict(model: BoostedTrees, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Return ``score``, float32 ``[batch]``; of several classes ``scores``, ``[batch, classes]``."""
    sums, trees = model(inputs), model.trees
    if not trees.classes:
        score = tf.sigmoid(sums) if trees.link == "logit" else sums
        return {"score": tf.cast(score[:, 0], tf.float32)}
    if trees.link == "softmax":
        found = tf.nn.softmax(sums)
    else:
        found = tf.concat([1 - tf.sigmoid(sums), tf.sigmoid(sums)], axis=1)
    # The rows that the trees learnt from may have lacked some classes.
    places = tf.one_hot(trees.class_numbers, trees.classes, dtype=tf.float64)
    return {"scores": tf.cast(tf.matmul(found, places), tf.float32)}


def _column(column: TreeColumn, values: Any) -> tf.Tensor:
    """Return a column for the trees, float64 ``[batch]``, with NaN for a missing value."""
    if column.form == "ids":
        lengths = tf.math.count_nonzero(values, axis=1)
        if column.part == "length":
            return tf.cast(lengths, tf.float64)
        # The batch's longest list may have no element, and then there is nothing to gather.
        filled = tf.pad(values, [[0, 0], [0, 1]])
        values = tf.gather(filled, tf.maximum(lengths - 1, 0), batch_dims=1)
    # By float32, as the trees learnt them.
    numbers = tf.cast(tf.cast(values, tf.float32), tf.float64)
    nothing = tf.constant(np.nan, tf.float64)
    if column.categories is not None:
        categories = tf.constant(column.categories, tf.float64)
        place = tf.minimum(tf.searchsorted(categories, numbers), len(column.categories) - 1)
        is_known = tf.equal(tf.gather(categories, place), numbers)
        return tf.where(is_known, tf.cast(place, tf.float64), nothing)
    return tf.where(tf.equal(numbers, float(kinds.MISSING_ID)), nothing, numbers) if column.is_id else numbers


def _variable(values: np.ndarray, dtype: tf.DType) -> tf.Variable:
    return tf.Variable(tf.constant(values, dtype), trainable=False)
