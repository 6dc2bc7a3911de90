"""Models of trees in the form in which their kernel takes them."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from mirrorspark.fleet.columns import LEAF, array, lengths_of, numbers_of
from mirrorspark.fleet.tree_kernels import MOST_LEAVES, count_leaves, write_masks

if TYPE_CHECKING:
    from mirrorspark.fleet.compiled import OutputRules, Terms


@dataclass(frozen=True)
class Forest:
    """Models of trees that are computed together.

    A tree of up to 64 leaves has splits and leaves in the arrays from ``split_starts`` on; a larger one has none there.

    Attributes:
        terms: The terms that the trees read; infinity replaces a missing value that goes right.
        nodes: int32 ``[splits, 4]``: the bits of the float32 edge; the feature, from which edge on a row goes right;
            and the two children, ``~number`` for a leaf.
        values: float64 ``[leaves]``, NaN for null.
        roots: int32 ``[trees]``.
        starts: int64 ``[models + 1]``: the first tree of each model.
        split_starts: int64 ``[trees + 1]``.
        leaf_starts: int64 ``[trees + 1]``.
        features: uint32, of the splits of small trees.
        edges: int32: their bits.
        masks: uint64: a bit for each leaf on the left side of the split.
        leaves: float64: the values of the leaves of small trees.
        intercepts: float64 ``[models]``.
    """

    decisions: "OutputRules"
    terms: "Terms"
    nodes: np.ndarray
    values: np.ndarray
    roots: np.ndarray
    starts: np.ndarray
    split_starts: np.ndarray
    leaf_starts: np.ndarray
    features: np.ndarray
    edges: np.ndarray
    masks: np.ndarray
    leaves: np.ndarray
    intercepts: np.ndarray


def forest_of(
    models: pa.Table, decisions: "OutputRules", terms: "Terms", features: np.ndarray, first_terms: np.ndarray
) -> Forest:
    """Return the arrays of models of trees.

    Args:
        models: Their rows of the fleet's table.
        decisions: Their links, thresholds and cut-points.
        terms: Their terms.
        features: int64 ``[terms]``: the same number for terms that are the same.
        first_terms: int64 ``[models]``.
    """
    lengths = lengths_of(array(models, "node_features"))
    flat = {name: array(models, name).flatten() for name in ("node_features", "node_lefts", "node_rights")}
    of_nodes, lefts, rights = (values.to_numpy() for values in flat.values())
    is_leaf = of_nodes == LEAF
    is_split = ~is_leaf
    # A number of its own for each split, and for each leaf.
    places = np.where(is_leaf, ~(np.cumsum(is_leaf) - 1), np.cumsum(is_split) - 1).astype(np.int32)
    first_nodes = np.cumsum(lengths) - lengths
    starts, of_terms = (np.repeat(values, lengths)[is_split] for values in (first_nodes, first_terms))
    of_terms = of_terms + of_nodes[is_split]
    is_right = ~array(models, "node_missing_left").flatten().to_numpy(zero_copy_only=False)[is_split]
    _, examples, numbers = np.unique(2 * features[of_terms] + is_right, return_index=True, return_inverse=True)
    read = terms.where(of_terms[examples])
    values = numbers_of(array(models, "node_values").flatten())
    nodes = np.empty((len(starts), 4), np.int32)
    nodes[:, 0] = values[is_split].astype(np.float32).view(np.int32)
    nodes[:, 1] = numbers
    nodes[:, 2], nodes[:, 3] = (places[starts + children[is_split]] for children in (lefts, rights))
    roots = array(models, "tree_roots")
    trees = lengths_of(roots)
    of_trees = places[np.repeat(first_nodes, trees) + roots.flatten().to_numpy()]
    counts = np.zeros(len(nodes), np.int64)
    count_leaves(nodes, counts)
    # A root that is a leaf, ~number, takes the last count: 1.
    leaf_counts = np.append(counts, 1)[np.maximum(of_trees, -1)]
    is_small = leaf_counts <= MOST_LEAVES
    leaf_starts, split_starts = (
        np.concatenate([[0], np.cumsum(np.where(is_small, many, 0))]) for many in (leaf_counts, leaf_counts - 1)
    )
    small_features, edges, masks = (np.empty(split_starts[-1], kind) for kind in (np.uint32, np.int32, np.uint64))
    leaves = np.empty(leaf_starts[-1])
    write_masks(
        nodes, values[is_leaf], counts, of_trees, split_starts, leaf_starts, small_features, edges, masks, leaves
    )
    return Forest(
        decisions,
        replace(read, missing=np.where(np.isnan(read.missing) & is_right[examples], np.inf, read.missing)),
        nodes,
        values[is_leaf],
        of_trees,
        np.concatenate([[0], np.cumsum(trees)]),
        split_starts,
        leaf_starts,
        small_features,
        edges,
        masks,
        leaves,
        numbers_of(array(models, "intercept")),
    )
