"""Gradient-boosted trees as a TensorFlow graph, so that they are exported and scored like any other model.

A SavedModel runs no Python code and needs no scikit-learn where it scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from mirrorspark.data_pipelines.features import kinds
from mirrorspark.models.catalog import BOOSTED_TREES, MOST_LEAVES

# Trees and rows that are evaluated side by side: their tests then stay in a processor's cache.
_TREES_AT_ONCE = 64
_ROWS_AT_ONCE = 1024
# The largest finite threshold and value: only what is missing lies beyond.
_LARGEST = float(np.finfo(np.float32).max)

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
    link: Link
    class_numbers: tuple[int, ...] = ()
    classes: int = 0


class BoostedTrees(tf.Module):
    """The trees with their arrays as variables, which the signatures of a SavedModel share.

    No tree is walked. Its leaves are bits, from left to right. A node whose test fails removes the leaves of its left
    side, so the leaf that a row reaches is the first one that is left over (Lucchese et al., QuickScorer, SIGIR 2015).
    The tests of all nodes are then a few operations on whole matrices, which take a seventh of the time. Of a
    categorical column, the leaves that all nodes of a tree remove are looked up by the category.
    """

    def __init__(self, trees: Trees) -> None:
        """Prepare the tests.

        Raises:
            ValueError: A tree has more than 31 leaves.
        """
        super().__init__(name=BOOSTED_TREES)
        self.trees = trees
        tests = _tests(trees)
        self._tests = {
            "column": _variable(tests.column, tf.int32),
            "threshold": _variable(tests.threshold, tf.float32),
            "removes": _variable(tests.removes, tf.int32),
            "values": _variable(tests.values, tf.float64),
            "outputs": _variable(tests.outputs, tf.int32),
        }
        self._by_category = [_variable(table, tf.int32) for table in tests.by_category]

    def __call__(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return the sums of the leaves, float64 ``[batch, outputs]``, for encoded features."""
        values = [(column, _values(column, inputs[column.feature])) for column in self.trees.columns]
        categories = [_categories(column, of) for column, of in values if column.categories is not None]
        ordered = [_ordered(column, of) for column, of in values if column.categories is None]
        numbers = tf.stack(ordered or [tf.zeros_like(values[0][1])])
        missing = tf.math.is_nan(numbers)
        bounded = tf.clip_by_value(tf.where(missing, 0.0, numbers), -_LARGEST, _LARGEST)
        # A column twice: missing values go right in the first one, and left in the second.
        both = tf.concat([tf.where(missing, np.inf, bounded), tf.where(missing, -np.inf, bounded)], axis=0)
        rows = tf.shape(both)[1]
        blocks = tf.maximum(1, (rows + _ROWS_AT_ONCE - 1) // _ROWS_AT_ONCE)
        parts = tf.TensorArray(tf.float64, blocks, infer_shape=False, element_shape=(None, len(self.trees.start)))

        def add(block: tf.Tensor, parts: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            of_block = slice(block * _ROWS_AT_ONCE, (block + 1) * _ROWS_AT_ONCE)
            return block + 1, parts.write(block, self._sums(both[:, of_block], [ids[of_block] for ids in categories]))

        return tf.while_loop(lambda block, _: block < blocks, add, (tf.constant(0), parts))[1].concat()

    def _sums(self, numbers: tf.Tensor, categories: list[tf.Tensor]) -> tf.Tensor:
        """Return the sums of the leaves ``[rows, outputs]`` for some rows.

        ``numbers`` are ``[2 * ordered columns, rows]``, and ``categories`` ``[rows]`` each.
        """
        start = tf.constant(self.trees.start, tf.float64)

        def add(part: tf.Tensor, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            of = {name: values[part] for name, values in self._tests.items()}
            fails = tf.gather(numbers, of["column"]) > of["threshold"][:, None]
            removed = tf.cast(fails, tf.int32) * of["removes"][:, None]
            half = removed.shape[0] // 2
            while half >= _TREES_AT_ONCE:
                removed = tf.bitwise.bitwise_or(removed[:half], removed[half:])
                half //= 2
            for table, ids in zip(self._by_category, categories, strict=True):
                removed = tf.bitwise.bitwise_or(removed, tf.transpose(tf.gather(table[part], ids)))
            left_over = tf.bitwise.invert(removed)
            below_first = tf.bitwise.bitwise_and(left_over, -left_over) - 1
            leaf = tf.cast(tf.raw_ops.PopulationCount(x=below_first), tf.int32)
            values = tf.gather(of["values"], leaf, batch_dims=1)
            outputs = tf.one_hot(of["outputs"], len(self.trees.start), dtype=tf.float64)
            return part + 1, sums + tf.matmul(values, outputs, transpose_a=True)

        parts = self._tests["column"].shape[0]
        sums = tf.tile(start[None, :], [tf.shape(numbers)[1], 1])
        return tf.while_loop(lambda part, _: part < parts, add, (tf.constant(0), sums))[1]


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


def _values(column: TreeColumn, values: Any) -> tf.Tensor:
    """Return a column of a feature, float32 ``[batch]``, as the trees learnt it."""
    if column.form == "ids":
        lengths = tf.math.count_nonzero(values, axis=1)
        if column.part == "length":
            return tf.cast(lengths, tf.float32)
        # The batch's longest list may have no element, and then there is nothing to gather.
        filled = tf.pad(values, [[0, 0], [0, 1]])
        values = tf.gather(filled, tf.maximum(lengths - 1, 0), batch_dims=1)
    return tf.cast(values, tf.float32)


def _ordered(column: TreeColumn, values: tf.Tensor) -> tf.Tensor:
    """Return the values of an ordered column, with NaN for a missing one."""
    return tf.where(tf.equal(values, float(kinds.MISSING_ID)), np.nan, values) if column.is_id else values


def _categories(column: TreeColumn, values: tf.Tensor) -> tf.Tensor:
    """Return the places of the ids among the column's categories, int32 ``[batch]``; their number for unknown ones."""
    categories = np.asarray(column.categories, np.float32)
    count = len(categories)
    place = tf.minimum(tf.searchsorted(categories, values), count - 1)
    return tf.where(tf.equal(tf.gather(categories, place), values), place, count)


@dataclass(frozen=True)
class _Tests:
    """The tests of all nodes, in parts of ``_TREES_AT_ONCE`` trees.

    Attributes:
        column: Ordered column that a node tests, ``[parts, nodes of a tree * trees of a part]``: the first node of each
            tree, then the second ones; each column is there twice, see :meth:`BoostedTrees.__call__`.
        threshold: Values above it fail the test.
        removes: The leaves, as bits, that a failed test removes.
        by_category: For each categorical column the leaves that its nodes remove by the number of the category, the
            last one for what is unknown: ``[parts, categories + 1, trees of a part]``.
        values: Values of the leaves, ``[parts, trees of a part, leaves]``.
        outputs: Output that each tree adds to, ``[parts, trees of a part]``.
    """

    column: np.ndarray
    threshold: np.ndarray
    removes: np.ndarray
    by_category: Sequence[np.ndarray]
    values: np.ndarray
    outputs: np.ndarray


def _tests(trees: Trees) -> _Tests:
    count = len(trees.roots)
    padded = count + -count % _TREES_AT_ONCE
    found = [_leaves_and_tests(trees, int(root)) for root in trees.roots]
    if (most := max(len(leaves) for leaves, _ in found)) > MOST_LEAVES:
        raise ValueError(f"a tree has {most} leaves; up to {MOST_LEAVES} can be exported")
    ordered = [number for number, column in enumerate(trees.columns) if column.categories is None]
    places = {number: place for place, number in enumerate(ordered)}
    by_category = {
        number: np.zeros((len(column.categories) + 1, padded), np.int32)
        for number, column in enumerate(trees.columns)
        if column.categories is not None
    }
    of_tree: list[list[int]] = []
    removed: dict[int, int] = {}
    values = np.zeros((padded, most))
    for tree, (leaves, tests) in enumerate(found):
        values[tree, : len(leaves)] = trees.value[leaves]
        removed |= tests
        of_tree.append([node for node in tests if not trees.is_categorical[node]])
        for node, bits in tests.items():
            if trees.is_categorical[node]:
                table = by_category[int(trees.column[node])]
                goes_left = trees.goes_left[trees.categories_at[node], : len(table) - 1]
                table[~np.append(goes_left, trees.missing_left[node]), tree] |= bits
    # A power of two, so that halves can be joined; empty places test nothing.
    width = 1 << max(0, max(map(len, of_tree)) - 1).bit_length()
    nodes = np.full((padded, width), -1)
    for tree, numbers in enumerate(of_tree):
        nodes[tree, : len(numbers)] = numbers
    nodes = nodes.reshape(-1, _TREES_AT_ONCE, width).swapaxes(1, 2).reshape(-1, width * _TREES_AT_ONCE)
    is_test = nodes >= 0
    place = np.array([places.get(number, 0) for number in range(len(trees.columns))])[trees.column[nodes]]
    return _Tests(
        column=np.where(is_test, place + max(1, len(ordered)) * trees.missing_left[nodes], 0),
        threshold=np.where(is_test, _rounded_down(trees.threshold[nodes]), np.inf),
        removes=np.array([removed.get(node, 0) for node in nodes.ravel().tolist()], np.int32).reshape(nodes.shape),
        by_category=[table.reshape(len(table), -1, _TREES_AT_ONCE).swapaxes(0, 1) for table in by_category.values()],
        values=values.reshape(-1, _TREES_AT_ONCE, most),
        outputs=np.append(trees.outputs, np.zeros(padded - count, int)).reshape(-1, _TREES_AT_ONCE),
    )


def _leaves_and_tests(trees: Trees, root: int) -> tuple[list[int], dict[int, int]]:
    """Return a tree's leaves from left to right, and by its other nodes the leaves of their left sides, as bits."""
    leaves: list[int] = []
    left_sides: dict[int, int] = {}
    waiting: list[tuple[int, int | None]] = [(root, None)]
    while waiting:
        node, first = waiting.pop()
        if first is not None:  # its left side is done
            left_sides[node] = (1 << len(leaves)) - (1 << first)
        elif trees.left[node] == node:
            leaves.append(node)
        else:
            waiting += [(int(trees.right[node]), None), (node, len(leaves)), (int(trees.left[node]), None)]
    return leaves, left_sides


def _rounded_down(thresholds: np.ndarray) -> np.ndarray:
    """Return the largest float32 up to each threshold: the same float32 values lie above it."""
    with np.errstate(over="ignore"):
        near = thresholds.astype(np.float32)
    below = np.where(near > thresholds, np.nextafter(near, np.float32(-np.inf)), near)
    return np.minimum(below, np.float32(_LARGEST))


def _variable(values: np.ndarray, dtype: tf.DType) -> tf.Variable:
    return tf.Variable(tf.constant(values, dtype), trainable=False)
