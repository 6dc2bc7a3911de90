"""Kernels that sum the trees of models. They have their own file because compiling them imports Numba.

A tree of up to 64 leaves is not descended. Each split whose condition fails marks the leaves on its left side as
unreachable, in a 64-bit mask per row; the first leaf without a mark, from the left, is the one that a descent would
reach. All splits of a tree are computed, but without a branch and several rows at a time: eight times as a
descent. Source: Lucchese et al., QuickScorer, SIGIR 2015.

Larger trees are descended by some hundred rows at a time, a level at a step: the steps of different rows do not wait
for each other, and rows that have reached a leaf take no further ones.
"""

import numpy as np

from mirrorspark.data_pipelines import compile_inner_kernel, compile_kernel

MOST_LEAVES = 64

_NONE = np.uint64(0)
# Place of the lowest bit of a number, by the upper 6 bits of that bit times the factor. Source: Leiserson et al., Using
# de Bruijn Sequences to Index a 1 in a Computer Word, 1998.
_FACTOR = np.uint64(0x03F79D71B4CB0A89)
_SHIFT = np.uint64(58)
_PLACES = np.empty(MOST_LEAVES, np.uint8)
for _place in range(MOST_LEAVES):
    _PLACES[(int(_FACTOR) << _place) % 2**64 >> int(_SHIFT)] = _place


@compile_kernel("void(Array(int32, 2, 'C', readonly=True), int64[::1])")
def count_leaves(nodes: np.ndarray, counts: np.ndarray) -> None:
    """Write how many leaves are below each split, as ``counts`` int64 ``[splits]``; more than 64 are 65.

    Args:
        nodes: int32 ``[splits, 4]`` of a :class:`fleet.forests.Forest`, each after its children.
        counts: Written.
    """
    for split in range(len(nodes)):
        left, right = nodes[split, 2], nodes[split, 3]
        count = (counts[left] if left >= 0 else 1) + (counts[right] if right >= 0 else 1)
        counts[split] = min(count, MOST_LEAVES + 1)


@compile_kernel(
    "void(Array(int32, 2, 'C', readonly=True), Array(float64, 1, 'C', readonly=True),"
    " Array(int64, 1, 'C', readonly=True), Array(int32, 1, 'C', readonly=True),"
    " Array(int64, 1, 'C', readonly=True), Array(int64, 1, 'C', readonly=True),"
    " uint32[::1], int32[::1], uint64[::1], float64[::1])"
)
def write_masks(
    nodes: np.ndarray,
    values: np.ndarray,
    counts: np.ndarray,
    roots: np.ndarray,
    split_starts: np.ndarray,
    leaf_starts: np.ndarray,
    features: np.ndarray,
    edges: np.ndarray,
    masks: np.ndarray,
    leaves: np.ndarray,
) -> None:
    """Write the splits and leaves of small trees in the order of their leaves from the left.

    Args:
        nodes: int32 ``[splits, 4]``.
        values: float64 ``[leaves]``.
        counts: int64 ``[splits]``, from :func:`count_leaves`.
        roots: int32 ``[trees]``.
        split_starts: int64 ``[trees + 1]``.
        leaf_starts: int64 ``[trees + 1]``; a large tree has no leaves here.
        features: uint32: the feature of each split; written, as are the others.
        edges: int32: the bits of its float32 edge.
        masks: uint64: a bit for each leaf on its left side.
        leaves: float64: the value of each leaf.
    """
    # A tree of 64 leaves is at most 63 splits deep, and each adds one to the open nodes.
    open_nodes, open_leaves = np.empty(MOST_LEAVES + 1, np.int64), np.empty(MOST_LEAVES + 1, np.int64)
    for tree in range(len(roots)):
        if leaf_starts[tree] == leaf_starts[tree + 1]:
            continue
        split, depth = split_starts[tree], 1
        open_nodes[0], open_leaves[0] = roots[tree], 0
        while depth:
            depth -= 1
            node, first = open_nodes[depth], open_leaves[depth]
            if node < 0:
                leaves[leaf_starts[tree] + first] = values[~node]
                continue
            left = nodes[node, 2]
            count = counts[left] if left >= 0 else 1
            edges[split], features[split] = nodes[node, 0], nodes[node, 1]
            masks[split] = ((np.uint64(1) << np.uint64(count)) - np.uint64(1)) << np.uint64(first)
            split += 1
            open_nodes[depth], open_leaves[depth] = left, first
            open_nodes[depth + 1], open_leaves[depth + 1] = nodes[node, 3], first + count
            depth += 2


@compile_inner_kernel
def _mark(rows_of, features, edges, masks, first, stop, marks):  # type: ignore[no-untyped-def]
    """Write the leaves that each row cannot reach. Four splits at a time take half the time of one."""
    rows = len(marks)
    marks[:] = _NONE
    split = first
    while split + 4 <= stop:
        x0, x1 = rows_of[features[split]], rows_of[features[split + 1]]
        x2, x3 = rows_of[features[split + 2]], rows_of[features[split + 3]]
        e0, e1, e2, e3 = edges[split], edges[split + 1], edges[split + 2], edges[split + 3]
        m0, m1, m2, m3 = masks[split], masks[split + 1], masks[split + 2], masks[split + 3]
        for row in range(rows):
            marks[row] |= (
                (m0 if x0[row] >= e0 else _NONE)
                | (m1 if x1[row] >= e1 else _NONE)
                | (m2 if x2[row] >= e2 else _NONE)
                | (m3 if x3[row] >= e3 else _NONE)
            )
        split += 4
    while split < stop:
        x0, e0, m0 = rows_of[features[split]], edges[split], masks[split]
        for row in range(rows):
            marks[row] |= m0 if x0[row] >= e0 else _NONE
        split += 1


@compile_inner_kernel
def _descend(rows_of, nodes, edges, root, active, places):  # type: ignore[no-untyped-def]
    """Write the leaf of each row, as ``~number``."""
    rows = len(places)
    for place in range(rows):
        active[place] = place
        places[place] = root
    count = rows if root >= 0 else 0
    while count:
        left = 0
        for place in range(count):
            row = np.uint32(active[place])
            node = np.uint32(places[row])
            is_right = rows_of[np.uint32(nodes[node, 1]), row] >= edges[node, 0]
            child = nodes[node, np.uint32(2) + np.uint32(is_right)]
            places[row] = child
            active[left] = row
            left += child >= 0
        count = left


@compile_kernel(
    "void(Array(float32, 2, 'C', readonly=True), Array(int32, 2, 'C', readonly=True),"
    " Array(float32, 2, 'C', readonly=True), Array(float64, 1, 'C', readonly=True),"
    " Array(int32, 1, 'C', readonly=True), Array(int64, 1, 'C', readonly=True),"
    " Array(int64, 1, 'C', readonly=True), Array(int64, 1, 'C', readonly=True),"
    " Array(uint32, 1, 'C', readonly=True), Array(float32, 1, 'C', readonly=True),"
    " Array(uint64, 1, 'C', readonly=True), Array(float64, 1, 'C', readonly=True),"
    " Array(float64, 1, 'C', readonly=True), float32[:, ::1])"
)
def sum_trees(
    rows_of: np.ndarray,
    nodes: np.ndarray,
    node_edges: np.ndarray,
    values: np.ndarray,
    roots: np.ndarray,
    starts: np.ndarray,
    split_starts: np.ndarray,
    leaf_starts: np.ndarray,
    features: np.ndarray,
    edges: np.ndarray,
    masks: np.ndarray,
    leaves: np.ndarray,
    intercepts: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Write the linear predictors of models of trees.

    Args:
        rows_of: float32 ``[features, rows]``; NaN goes left.
        nodes: int32 ``[splits, 4]``, as are the others of a :class:`fleet.forests.Forest`.
        node_edges: float32 ``[splits, 4]``: the same bytes.
        values: float64 ``[leaves]``.
        roots: int32 ``[trees]``.
        starts: int64 ``[models + 1]``.
        split_starts: int64 ``[trees + 1]``.
        leaf_starts: int64 ``[trees + 1]``.
        features: uint32, of the splits of small trees.
        edges: float32, of these.
        masks: uint64, of these.
        leaves: float64, of small trees.
        intercepts: float64 ``[models]``.
        sums: float32 ``[models, rows]``, written.
    """
    rows = rows_of.shape[1]
    active, places = np.empty(rows, np.int32), np.empty(rows, np.int32)
    marks, totals = np.empty(rows, np.uint64), np.empty(rows, np.float64)
    for model in range(len(intercepts)):
        totals[:] = intercepts[model]
        for tree in range(starts[model], starts[model + 1]):
            first = leaf_starts[tree]
            if first == leaf_starts[tree + 1]:
                _descend(rows_of, nodes, node_edges, roots[tree], active, places)
                for row in range(rows):
                    totals[row] += values[~places[row]]
                continue
            _mark(rows_of, features, edges, masks, split_starts[tree], split_starts[tree + 1], marks)
            own = leaves[first : leaf_starts[tree + 1]]
            for row in range(rows):
                lowest = ~marks[row] & (marks[row] + np.uint64(1))
                totals[row] += own[_PLACES[(lowest * _FACTOR) >> _SHIFT]]
        for row in range(rows):
            sums[model, row] = np.float32(totals[row])
