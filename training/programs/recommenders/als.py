"""Alternating least squares for implicit feedback: Spark computes the items' factors, and a row's items its scores."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pyspark.ml.recommendation import ALS
from pyspark.sql import SparkSession

from mirrorspark.models import classical

# Spark's plan grows with each iteration. Its serialisation has overflowed the stack of a task at the fifteenth.
_ITERATIONS_BETWEEN_CHECKPOINTS = 5


def item_factors(interactions: Any, settings: classical.ALS, seed: int, spark: SparkSession) -> npt.NDArray[np.float32]:
    """Return the factors of all items, float32 ``[items, rank]``; those of items without a user are 0.

    Args:
        interactions: Sparse ``[users, items]`` of zeros and ones.
        settings: Spark's settings.
        seed: Fixes the factors that Spark begins with.
        spark: The session that computes them.
    """
    pairs = interactions.tocoo()
    table = pd.DataFrame({"user": pairs.row.astype(np.int32), "item": pairs.col.astype(np.int32)}).assign(rating=1.0)
    estimator = ALS(
        rank=settings.rank,
        regParam=settings.l2,
        alpha=settings.alpha,
        maxIter=settings.iterations,
        checkpointInterval=_ITERATIONS_BETWEEN_CHECKPOINTS,
        implicitPrefs=True,
        userCol="user",
        itemCol="item",
        ratingCol="rating",
        seed=seed,
    )
    found = estimator.fit(spark.createDataFrame(table)).itemFactors.toPandas()
    factors = np.zeros((interactions.shape[1], settings.rank), np.float32)
    factors[found["id"].to_numpy()] = np.stack(found["features"].to_list())
    return factors


def fold_in(histories: Any, factors: npt.NDArray[np.float32], settings: classical.ALS) -> npt.NDArray[np.float32]:
    """Return the factors of users who have had these items, float32 ``[users, rank]``; 0 for nothing.

    It solves (Y'Y + alpha H'H + l2 n I) x = (1 + alpha) H'1, where H has the rows of the items' factors Y that belong
    to the n items of a user. For a user of the training Spark's own factors are the same.

    Source: Hu, Koren and Volinsky 2008, "Collaborative Filtering for Implicit Feedback Datasets", equation 4.

    Args:
        histories: Sparse rows ``[users, items]`` of zeros and ones.
        factors: Float32 ``[items, rank]``.
        settings: The settings that the factors were computed with.
    """
    every = factors.astype(np.float64)
    common, identity = every.T @ every, np.eye(every.shape[1])
    found = np.zeros((histories.shape[0], every.shape[1]), np.float32)
    for user in np.flatnonzero(np.diff(histories.indptr)):
        own = every[histories.indices[histories.indptr[user] : histories.indptr[user + 1]]]
        matrix = common + settings.alpha * (own.T @ own) + settings.l2 * len(own) * identity
        found[user] = np.linalg.solve(matrix, (1 + settings.alpha) * own.sum(axis=0))
    return found
