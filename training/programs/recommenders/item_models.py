"""Item-based recommenders: the weights between items, from a sparse matrix of users and items.

A user's scores are the sum of the weights' rows of the items that the user has had.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack  # type: ignore[import-untyped]
from scipy.sparse import csr_array, diags_array, vstack  # type: ignore[import-untyped]
from scipy.sparse.linalg import svds  # type: ignore[import-untyped]

from mirrorspark.models import ModelSettingsError, classical
from mirrorspark.scoring.output import keep_best
from mirrorspark.training.programs.recommenders.content import ItemContent, weights_of_new_items

# Items whose co-occurrences with all others are in memory at a time.
_ITEMS_AT_ONCE = 2_000

# Items whose scores of all others are in memory at a time, several times over, for each thread.
_FILTERED_AT_ONCE, _FILTER_THREADS = 256, 4

Matrix = Any
"""A sparse array of SciPy, which has no types."""


def item_knn(interactions: Matrix, neighbours: int, shrinkage: float) -> Matrix:
    """Return the cosines of each item with its nearest neighbours, sparse float32 ``[items, items]``.

    The cosine of two items is the number of users in common, divided by the product of the roots of their numbers of
    users plus ``shrinkage``. Of equal cosines the lower item is the nearer one.

    Source: Deshpande and Karypis 2004, "Item-based top-N recommendation algorithms"; the shrinkage is Bell and Koren's
    (2007).

    Args:
        interactions: Sparse float32 ``[users, items]`` of zeros and ones.
        neighbours: Most neighbours of an item.
        shrinkage: 0 or more.
    """
    users = interactions.tocsr()
    by_item = interactions.T.tocsr()
    norms = np.sqrt(np.diff(by_item.indptr)).astype(np.float32)
    items, parts = len(norms), []
    for start in range(0, items, _ITEMS_AT_ONCE):
        common = (by_item[start : start + _ITEMS_AT_ONCE] @ users).tocsr()
        # The kernel takes the lower of equal ones where they are in order.
        common.sort_indices()
        row = np.repeat(np.arange(common.shape[0]), np.diff(common.indptr))
        cosines = common.data / (norms[start + row] * norms[common.indices] + np.float32(shrinkage))
        # An item is not its own neighbour; the kernel passes over NaN.
        cosines[common.indices == start + row] = np.nan
        places = np.zeros((common.shape[0], neighbours), np.int64)
        counts = np.zeros(len(places), np.int64)
        keep_best(cosines, common.indptr.astype(np.int64), places, counts)
        kept = places[np.arange(neighbours) < counts[:, None]]
        ends = np.concatenate([[0], np.cumsum(counts)])
        parts.append(csr_array((cosines[kept], common.indices[kept], ends), shape=common.shape))
    return vstack(parts, format="csr")


def bspm(interactions: Matrix, settings: classical.BSPM, seed: int) -> Matrix:
    """Return the largest weights of each item for the others by blurring and sharpening, sparse ``[items, items]``.

    The graph is N, the interactions divided by the roots of the numbers of their users' and items' interactions. A
    history is blurred by P = N'N, to which an ideal low-pass filter adds its projection on N's first singular vectors.
    Sharpening then solves dx/dt = -Px by one step of the classical Runge-Kutta method: five terms of exp(-tP).
    All of it is linear, so that it is computed here once, as the weights of every single item.

    Source: Choi et al. 2023, "Blurring-Sharpening Process Models for Collaborative Filtering".

    Args:
        interactions: Sparse float32 ``[users, items]`` of zeros and ones.
        settings: Strengths of the filters, and how many weights of an item are kept.
        seed: Fixes the vector that the search for singular vectors begins with.
    """
    # Users without items add nothing, and there may be as many of them as rows.
    interactions = interactions[np.diff(interactions.indptr) > 0]
    users, items = interactions.shape
    roots = [np.sqrt(interactions.sum(axis=axis)) for axis in (1, 0)]
    scales = [np.divide(1, root, out=np.zeros_like(root), where=root > 0) for root in roots]
    graph = (diags_array(scales[0]) @ interactions @ diags_array(scales[1])).tocsr().astype(np.float32)
    by_item = graph.T.tocsr()
    dimensions = min(settings.dimensions, min(users, items) - 1)
    low_pass = np.ascontiguousarray(svds(graph, dimensions, rng=seed)[2]) if dimensions > 0 else np.zeros((1, items))
    into, back = (low_pass * scales[1]).astype(np.float32), (low_pass * roots[1]).T.astype(np.float32)
    kept = min(settings.neighbours, items - 1)

    def weights_of(start: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        chosen = np.arange(start, min(start + _FILTERED_AT_ONCE, items))
        # Scores are [items, chosen]: products with a sparse matrix are fastest along rows.
        blurred = (by_item @ graph[:, chosen]).toarray() + settings.low_pass_weight * (back @ into[:, chosen])
        scores, term = blurred, blurred
        for order in range(1, 5):
            term = (by_item @ (graph @ term)) * np.float32(-settings.sharpening / order)
            scores = scores + term
        # An item is not its own neighbour; a history's own items seldom are candidates.
        scores[chosen, np.arange(len(chosen))] = 0
        columns = np.sort(np.argpartition(-np.abs(scores.T), kept - 1, axis=1)[:, :kept], axis=1)
        return columns, np.take_along_axis(scores.T, columns, axis=1)

    with ThreadPoolExecutor(_FILTER_THREADS) as pool:
        parts = list(pool.map(weights_of, range(0, items, _FILTERED_AT_ONCE)))
    columns, values = (np.concatenate(part).ravel() for part in zip(*parts, strict=True))
    return csr_array((values, columns, np.arange(items + 1) * kept), shape=(items, items))


def ease(interactions: Matrix, settings: classical.Ease, content: ItemContent | None = None) -> npt.NDArray[np.float32]:
    """Return the weights that predict each item from the others by ridge regression, float32 ``[items, items]``.

    With the inverse P of X'X + l2 I they are -P[i, j] / P[j, j], and 0 on the diagonal. The features C of the
    items are regressed together with the users' items: P then is the inverse of X'X + content_weight CC' + l2 I.

    Source: Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data"; with features Jeunen et al. 2020,
    "Closed-Form Models for Collaborative Filtering with Side-Information" (collective EASE^R).

    Args:
        interactions: Sparse float32 ``[users, items]`` of zeros and ones.
        settings: Settings of EASE^R.
        content: The features of the items; None without any.
    """
    weights = _inverse(interactions, settings.l2, "ease", content, settings.content_weight)
    weights /= -weights.diagonal().copy()[None, :]
    np.fill_diagonal(weights, 0)
    weights = _with_new_items(weights, interactions, settings, content)
    np.fill_diagonal(weights, 0)  # of new items, whose neighbours' weights for them are not their own
    return weights


def slit(
    past: Matrix, following: Matrix, settings: classical.Slit, content: ItemContent | None = None
) -> npt.NDArray[np.float32]:
    """Return the weights that predict the next item from those before it, float32 ``[items, items]``.

    By ridge regression they are (S'S + l2 I)^-1 S'T of the past S and the items T that follow.

    Source: Choi et al. 2021, "Session-aware Linear Item-Item Models for Session-based Recommendation", with the next
    item alone as the future of a session.

    Args:
        past: Sparse float32 ``[rows, items]`` of zeros and ones.
        following: The same of the item that follows.
        settings: Settings of SLIT.
        content: The features of the items; None without any.
    """
    weights = _inverse(past, settings.l2, "slit")
    pairs = (past.T.tocsr() @ following).T.tocsr()
    # A part of the rows needs the same part of the inverse alone.
    for start in range(0, len(weights), _ITEMS_AT_ONCE):
        part = slice(start, start + _ITEMS_AT_ONCE)
        weights[part] = (pairs @ weights[part].T).T
    return _with_new_items(weights, following, settings, content)


def _with_new_items(
    weights: npt.NDArray[np.float32], targets: Matrix, settings: classical.Slit, content: ItemContent | None
) -> npt.NDArray[np.float32]:
    """Return ``weights``, in place, in which items that no row has as a target have those of their content."""
    is_new, factor = np.bincount(targets.indices, minlength=len(weights)) == 0, np.float32(settings.new_item_weight)
    if content is not None and is_new.any():
        weights[:, is_new] = factor * weights_of_new_items(weights, is_new, content) if factor else 0
    return weights


def _inverse(
    rows: Matrix, l2: float, name: str, content: ItemContent | None = None, content_weight: float = 0.0
) -> npt.NDArray[np.float32]:
    """Return the inverse of X'X + content_weight CC' + l2 I for ``name``, float32 ``[items, items]``."""
    items = rows.shape[1]
    classical.check_dense_items(name, items)
    columns = rows.tocsc()
    by_item = rows.T.tocsr()
    # LAPACK works in place in the order of Fortran.
    matrix = np.empty((items, items), np.float32, order="F")
    for start in range(0, items, _ITEMS_AT_ONCE):
        part = slice(start, start + _ITEMS_AT_ONCE)
        matrix[:, part] = (by_item @ columns[:, part]).toarray()
        if content is not None and content_weight:
            matrix[:, part] += np.float32(content_weight) * content.cosines(part).T
    matrix[np.diag_indices(items)] += np.float32(l2)
    factor, failed = lapack.spotrf(matrix, lower=1, overwrite_a=1)
    if not failed:
        inverse, failed = lapack.spotri(factor, lower=1, overwrite_c=1)
    if failed:
        raise ModelSettingsError(f"{name} cannot be computed with l2 {l2:g}; use a larger one")
    # Only the lower half is computed. The matrix is symmetric, so its rows in C's order are its columns.
    for start in range(0, items, _ITEMS_AT_ONCE):
        end = min(start + _ITEMS_AT_ONCE, items)
        inverse[start:end, end:] = inverse[end:, start:end].T
        corner = inverse[start:end, start:end]
        corner[:] = np.tril(corner) + np.tril(corner, -1).T
    return np.asarray(inverse.T)
