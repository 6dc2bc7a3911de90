"""The retrieval model whose users and candidates have embeddings that are propagated over a graph."""

from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features import FittedFeatures
from mirrorspark.models.retrieval.graph import GraphCandidates, GraphEmbeddings
from mirrorspark.models.retrieval.item_tower import ItemTower
from mirrorspark.models.retrieval.model import RetrievalModel
from mirrorspark.models.retrieval.rating import RatingTask
from mirrorspark.models.settings import LossSettings


class GraphRetrieval(RetrievalModel):
    """A retrieval model whose users and candidates have propagated embeddings."""

    def __init__(
        self,
        query_tower: tf_keras.Model,
        graph: GraphEmbeddings,
        candidates: GraphCandidates | ItemTower,
        fitted: FittedFeatures,
        settings: LossSettings,
        seed: int,
        rating: RatingTask | None = None,
    ) -> None:
        """Add the embeddings that both towers read; the other arguments are those of :class:`RetrievalModel`."""
        super().__init__(query_tower, fitted, settings, seed, candidates, rating)
        self.graph = graph
        # The feature that is not in the common table of the others, which a warm start must know.
        self.embedded_apart = (fitted.user,)

    def train_step(self, inputs: Any) -> dict[str, tf.Tensor]:
        """Make one update, and propagate the table anew; return the epoch's metrics so far, over all replicas."""
        graph, variables = self.graph, self.trainable_variables
        with tf.GradientTape() as tape:
            tape.watch(graph.propagated)
            loss = self.compute_loss(inputs, training=True)
        # The optimizer's variables are saved in the order of the model's.
        (place,) = (place for place, variable in enumerate(variables) if variable is graph.table)
        read = [*variables[:place], graph.propagated, *variables[place + 1 :]]
        gradients = tape.gradient(loss, read)
        gradients[place] = graph.propagate(tf.convert_to_tensor(gradients[place]))
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        graph.refresh()
        return {metric.name: metric.result() for metric in self.metrics}
