"""A network and classical recommenders that score the same candidates, exported and scored as one model."""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from mirrorspark.models.index import blended
from mirrorspark.models.retrieval.fitted_recommender import FittedRecommender

TASK = "retrieval"


class BlendedRecommender(tf.Module):
    """A blend in TensorFlow.

    Attributes:
        architecture: The module or object whose ``predict`` gives the network's queries.
        network: The network.
        embeddings: Its vectors of the candidates, float32 ``[ids, dim]``.
        others: The classical recommenders.
        share: The network's share of the sum of scaled scores; the others have equal parts of the rest.
        index: Finds the best candidates of queries.
        query_tower: The part of the network that takes the features.
    """

    def __init__(
        self,
        architecture: ModuleType,
        network: Any,
        embeddings: np.ndarray,
        others: Sequence[FittedRecommender],
        share: float,
    ) -> None:
        """Combine a trained network with fitted recommenders."""
        super().__init__(name="blend")
        # As `build_indexes` does with a network alone: the blend is built to be exported.
        getattr(network, "hold_histories", lambda: None)()
        self.architecture, self.network, self.embeddings = architecture, network, embeddings
        self.others, self.share = tuple(others), share
        self.index = blended.BlendTopK(embeddings, [one.index for one in others], share)
        is_own = hasattr(network, "own_candidates")
        self.query_tower = network if is_own else getattr(network, "query_tower", network)


def predict(model: BlendedRecommender, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Return the queries in the form of :mod:`models.index.blended`."""
    vectors = tf.cast(model.architecture.predict(model.network, inputs), tf.float64)
    lists = [one.queries(inputs) for one in model.others]
    # Popularity, which reads no history, has no ids.
    width = tf.reduce_max([tf.shape(ids)[1] for ids in lists])
    padded = [tf.pad(ids, [[0, 0], [0, width - tf.shape(ids)[1]]]) for ids in lists]
    return tf.concat([vectors, *(tf.cast(ids, tf.float64) for ids in padded)], axis=1)
