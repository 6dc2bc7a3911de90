"""Decision trees of a model as a fleet stores them, made node by node or from a library's arrays."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from mirrorspark.fleet.columns import LEAF, FleetError


def edge_below(thresholds: Any) -> Any:
    """Return the float32 edges for which ``x < edge`` is ``x < threshold``, for every float32 ``x``."""
    return _rounded_up(thresholds, np.less)


def edge_at_most(thresholds: Any) -> Any:
    """Return the float32 edges for which ``x < edge`` is ``x <= threshold``, for every float32 ``x``."""
    return _rounded_up(thresholds, np.less_equal)


def _rounded_up(thresholds: Any, is_left: np.ufunc) -> Any:
    """Return the smallest float32 numbers that are not left of the thresholds."""
    with np.errstate(over="ignore"):  # the edge above the largest number is infinite
        edges = np.asarray(thresholds, np.float64).astype(np.float32)
        return np.where(is_left(edges, thresholds), np.nextafter(edges, np.float32(np.inf)), edges)


class TreeNodes:
    """The nodes of all trees of a model, each after its children; several splits may share a child.

    Attributes:
        roots: The root of each tree; the model is the sum of the trees.
    """

    def __init__(self) -> None:
        self.roots: list[int] = []
        self._features: list[int] = []
        self._values: list[float] = []
        self._lefts: list[int] = []
        self._rights: list[int] = []
        self._missing_left: list[bool] = []

    def leaf(self, value: float | None) -> int:
        """Add a leaf, None for a prediction of null; return its number."""
        return self._add(LEAF, np.nan if value is None else float(value), 0, 0, False)

    def below(self, feature: int, threshold: float, left: int, right: int, *, missing_left: bool) -> int:
        """Add a split that goes left where the feature is below the threshold; return its number."""
        return self._split(feature, edge_below(np.float64(threshold)), left, right, missing_left)

    def at_most(self, feature: int, threshold: float, left: int, right: int, *, missing_left: bool) -> int:
        """Add a split that goes left where the feature is at most the threshold; return its number."""
        return self._split(feature, edge_at_most(np.float64(threshold)), left, right, missing_left)

    def is_missing(self, feature: int, yes: int, no: int) -> int:
        """Add a split by whether the feature is missing; return its number."""
        return self._split(feature, np.inf, no, yes, False)

    def one_of(self, feature: int, codes: Iterable[int], yes: int, no: int) -> int:
        """Add splits that go to ``yes`` where the whole part of the feature is a code; return the first one's number.

        A missing value goes to ``no``, as does a negative code.
        """
        node = no
        for code in sorted(set(codes), reverse=True):
            # From -1 on, a number's whole part is 0.
            node = self.below(feature, code + 1, yes, node, missing_left=False)
            start = edge_at_most(np.float64(-1)) if code == 0 else code
            node = self.below(feature, float(start), no, node, missing_left=True)
        return node

    def add_tree(
        self,
        features: np.ndarray,
        edges: np.ndarray,
        lefts: np.ndarray,
        rights: np.ndarray,
        missing_left: np.ndarray,
        values: np.ndarray,
        root: int = 0,
    ) -> None:
        """Add a tree from arrays ``[nodes]``, in any order.

        Args:
            features: Features of splits; ``LEAF`` for leaves.
            edges: Edges of splits, from :func:`edge_below` or :func:`edge_at_most`.
            lefts: Left children of splits.
            rights: Right children of splits.
            missing_left: Whether a missing value goes left.
            values: Outputs of leaves.
            root: The first node.

        Raises:
            FleetError: The nodes do not form a tree.
        """
        order = _children_first(features == LEAF, lefts, rights, root)
        numbers = np.zeros(len(features), np.int64)
        numbers[order] = len(self._features) + np.arange(len(order))
        is_leaf = features[order] == LEAF
        self._features += features[order].tolist()
        self._values += np.where(is_leaf, values[order], edges[order]).tolist()
        self._lefts += np.where(is_leaf, 0, numbers[lefts[order]]).tolist()
        self._rights += np.where(is_leaf, 0, numbers[rights[order]]).tolist()
        self._missing_left += np.where(is_leaf, False, missing_left[order]).tolist()
        self.roots.append(int(numbers[root]))

    def scaled(self, factor: float) -> None:
        """Multiply the values of all leaves."""
        self._values = [
            value * factor if feature == LEAF else value
            for feature, value in zip(self._features, self._values, strict=True)
        ]

    def lists(self) -> dict[str, list[object]]:
        """Return the fields of :data:`fleet.columns.TREE_FIELDS`."""
        return {
            "tree_roots": list(self.roots),
            "node_features": list(self._features),
            # Only a leaf can be NaN: it is null.
            "node_values": [None if value != value else value for value in self._values],
            "node_lefts": list(self._lefts),
            "node_rights": list(self._rights),
            "node_missing_left": list(self._missing_left),
        }

    def _split(self, feature: int, edge: float, left: int, right: int, missing_left: bool) -> int:
        if left == right:
            return left
        return self._add(feature, float(edge), left, right, missing_left)

    def _add(self, feature: int, value: float, left: int, right: int, missing_left: bool) -> int:
        self._features.append(feature)
        self._values.append(value)
        self._lefts.append(left)
        self._rights.append(right)
        self._missing_left.append(missing_left)
        return len(self._features) - 1


def _children_first(is_leaf: np.ndarray, lefts: np.ndarray, rights: np.ndarray, root: int) -> np.ndarray:
    """Return the nodes below a root, the farthest first."""
    levels = np.full(len(is_leaf), -1)
    found, level = np.array([root]), 0
    while len(found):
        if level > len(levels) or found.min() < 0 or found.max() >= len(levels):
            raise FleetError("the nodes of a tree refer to nodes that are not there, or to each other")
        levels[found] = level
        inner = found[~is_leaf[found]]
        found, level = np.unique(np.concatenate([lefts[inner], rights[inner]])), level + 1
    order = np.argsort(-levels, kind="stable")
    return order[: np.count_nonzero(levels >= 0)]
