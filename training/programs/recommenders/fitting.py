"""Fitting of classical recommenders, and scores of fitted ones, in NumPy and SciPy."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from pyspark.sql import SparkSession

from mirrorspark.models import classical
from mirrorspark.storage import atomic_file
from mirrorspark.training.programs.recommenders.als import fold_in, item_factors
from mirrorspark.training.programs.recommenders.interactions import Interactions
from mirrorspark.training.programs.recommenders.item_models import bspm, ease, item_knn, slit
from mirrorspark.training.programs.recommenders.weight_kernel import add_weights

_ITEMS_AT_ONCE = 512

Scores = Callable[[Any], npt.NDArray[np.float32]]
"""From sparse histories ``[rows, items]`` of zeros and ones to the scores of all items, float32 of the same shape."""


def fit(
    asked: classical.Recommender, interactions: Interactions, seed: int, spark: SparkSession | None = None
) -> dict[str, np.ndarray]:
    """Return the arrays that a recommender learns from the training rows.

    They are ``counts`` float32 ``[items]`` of popularity, ``weights`` float32 ``[items, items]`` of EASE^R and SLIT,
    ``factors`` float32 ``[items, rank]`` of ALS, and the ``ends``, ``columns`` and ``values`` of the sparse rows of
    item-kNN and BSPM. Only ALS needs a session.
    """
    settings = asked.settings
    if asked.name == "popularity":
        return {"counts": interactions.counts}
    if asked.name == "ease":
        return {"weights": ease(interactions.matrix, settings, interactions.content)}
    if asked.name == "slit":
        return {"weights": slit(*interactions.steps(settings.last_items), settings, interactions.content)}
    if asked.name == "als":
        assert spark is not None  # noqa: S101 - callers without a session ask for others
        return {"factors": item_factors(interactions.matrix, settings, seed, spark)}
    if asked.name == "bspm":
        weights = bspm(interactions.matrix, settings, seed)
    else:
        weights = item_knn(interactions.matrix, settings.neighbours, settings.shrinkage)
    return {"ends": weights.indptr, "columns": weights.indices, "values": weights.data}


def largest(arrays: classical.Arrays, most: int) -> classical.Arrays:
    """Return the result of :func:`fit` with only the weights of largest magnitude of each item.

    Args:
        arrays: The arrays of a recommender.
        most: Number of weights to keep of an item; arrays without a weight for each pair of items stay as they are.
    """
    weights = arrays.get("weights")
    if weights is None or weights.shape[1] <= most:
        return arrays
    columns = np.empty((len(weights), most), np.int32)
    for start in range(0, len(weights), _ITEMS_AT_ONCE):
        part = slice(start, start + _ITEMS_AT_ONCE)
        columns[part] = np.sort(np.argpartition(-np.abs(weights[part]), most - 1, axis=1)[:, :most], axis=1)
    values = np.take_along_axis(weights, columns, axis=1)
    return {"ends": np.arange(len(weights) + 1) * most, "columns": columns.ravel(), "values": values.ravel()}


def scores_of(name: str, settings: Any, arrays: classical.Arrays) -> Scores:
    """Return the scores of a recommender by the result of :func:`fit`."""
    if name == "popularity":
        counts = arrays["counts"]
        return lambda histories: np.tile(counts, (histories.shape[0], 1))
    if "weights" in arrays:
        weights = arrays["weights"]
        return lambda histories: histories @ weights
    if name == "als":
        factors = arrays["factors"]
        return lambda histories: fold_in(histories, factors, settings) @ factors.T
    sparse = arrays["ends"].astype(np.int64), arrays["columns"].astype(np.int32), arrays["values"].astype(np.float32)

    def scores(histories: Any) -> npt.NDArray[np.float32]:
        found = np.empty(histories.shape, np.float32)
        add_weights(histories.indptr.astype(np.int64), histories.indices.astype(np.int32), *sparse, found)
        return found

    return scores


def save(arrays: classical.Arrays, folder: Path, name: str) -> Path:
    """Write the result of :func:`fit` into a file of ``folder``, named after its content, and return its path."""
    digest = hashlib.sha256()
    for key, values in arrays.items():
        digest.update(f"{key} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{digest.hexdigest()[:12]}.npz"
    with atomic_file.replaced(path) as file:
        np.savez(file, **cast(dict[str, Any], arrays))
    return path


def load(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays that :func:`save` wrote."""
    with np.load(path) as arrays:
        return dict(arrays)
