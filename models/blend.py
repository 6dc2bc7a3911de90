"""A weighted mean of the predictions of a network and of gradient-boosted trees, exported and scored as one model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from mirrorspark.models import boosted_trees


@dataclass(frozen=True)
class Blend:
    """A network and trees of the same features and label.

    Attributes:
        architecture: The module or object whose ``predict`` is the network's.
        network: The network.
        trees: The trees.
        share: Share of the network in the mean, between 0 and 1; the trees have the rest.
    """

    architecture: Any
    network: Any
    trees: boosted_trees.BoostedTrees
    share: float

    @property
    def parts(self) -> tuple[Any, ...]:
        """The network and the trees, whose variables the blend needs."""
        return self.network, self.trees


def predict(model: Blend, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Return ``score``, float32 ``[batch]``; of several classes ``scores``, ``[batch, classes]``."""
    of_network, of_trees = model.architecture.predict(model.network, inputs), boosted_trees.predict(model.trees, inputs)
    return {name: model.share * of_network[name] + (1 - model.share) * values for name, values in of_trees.items()}
