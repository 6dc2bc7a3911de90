"""YouTube's candidate generation: averaged histories into a deep query, and a softmax over all candidates.

Source: Covington et al. 2016, "Deep Neural Networks for YouTube Recommendations", section 3: watches and searches are
averaged embeddings beside the other features, ReLU layers follow, and the classes of an extreme multi-class problem
are what is searched when the model serves. Its softmax is taken over a sample of the classes, which importance weights
correct for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_pipelines.feature_kinds import FIRST_VOCABULARY_ID
from data_pipelines.fitted import FittedFeatures
from models.settings import check_fraction, check_positive

if TYPE_CHECKING:  # the driver checks settings without loading TensorFlow
    import tensorflow as tf
    import tf_keras

TASK = "retrieval"


@dataclass(frozen=True)
class Settings:
    """The architecture's knobs.

    Attributes:
        embedding_dim: Width of the field embeddings, of the query and of the candidates.
        hidden_units: Width of each hidden layer.
        dropout: Share of hidden units dropped while training.
        negatives: Candidates that a step draws for all its rows to be compared with; with so many candidates or fewer
            each row is compared with all of them.
    """

    embedding_dim: int = 32
    hidden_units: tuple[int, ...] = (128, 64)
    dropout: float = 0.0
    negatives: int = 1000

    def __post_init__(self) -> None:
        check_positive("embedding_dim", self.embedding_dim)
        for units in self.hidden_units:
            check_positive("hidden_units", units)
        check_fraction("dropout", self.dropout)
        check_positive("negatives", self.negatives)


def build(settings: Settings, fitted: FittedFeatures, seed: int) -> "tf_keras.Model":
    """Return a model with ``query_tower`` and ``candidate_tower``; the latter holds the softmax's weights by id."""
    import tensorflow as tf
    import tf_keras

    from models.layers import LogUniformSample, concatenated_inputs, dense_stack, symbolic_inputs

    candidate = fitted.spec.candidate
    query_features = fitted.spec.query_features
    classes = len(fitted.vocabulary(candidate))

    def known(features: Mapping[str, Any]) -> dict[str, Any]:
        return {feature.name: features[feature.name] for feature in query_features}

    class YouTubeDnn(tf_keras.Model):
        """Softmax over the candidates of the vocabulary, all of them or a sample."""

        def __init__(self) -> None:
            super().__init__()
            inputs = symbolic_inputs(query_features)
            joined = concatenated_inputs(fitted, query_features, inputs, settings.embedding_dim)
            hidden = dense_stack(joined, settings.hidden_units, settings.dropout, seed)
            query = tf_keras.layers.Dense(settings.embedding_dim, name="query", dtype="float32")(hidden)
            self.query_tower = tf_keras.Model(inputs, query, name="query_tower")
            self.candidate_tower = tf_keras.layers.Embedding(
                fitted.id_count(candidate), settings.embedding_dim, name="candidate_tower", dtype="float32"
            )
            self.candidate_tower.build((None,))
            self.sample = LogUniformSample(settings.negatives, classes, seed) if settings.negatives < classes else None
            self.mean_loss = tf_keras.metrics.Mean(name="loss")

        def call(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
            """Return the score of each row's own candidate: float32 ``[batch]``."""
            return tf.reduce_sum(self.query_tower(known(inputs)) * self.candidate_tower(inputs[candidate.name]), axis=1)

        @property
        def metrics(self) -> list[Any]:
            """The metric that Keras resets at each epoch."""
            return [self.mean_loss]

        def row_losses(self, inputs: Mapping[str, tf.Tensor], training: bool) -> tf.Tensor:
            """Return the cross-entropy of each row, float32 ``[batch]``; sampled while training, else exact."""
            queries = self.query_tower(known(inputs), training=training)
            # A row without a candidate of the vocabulary gets some class here, and weight 0 below.
            own = tf.maximum(inputs[candidate.name] - FIRST_VOCABULARY_ID, 0)
            if self.sample is None or not training:
                weights = self.candidate_tower.embeddings[FIRST_VOCABULARY_ID:]
                logits = tf.matmul(queries, weights, transpose_b=True)
                return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=own, logits=logits)
            drawn = self.sample(own)
            mine = tf.reduce_sum(queries * self.candidate_tower(own + FIRST_VOCABULARY_ID), axis=1)
            others = tf.matmul(queries, self.candidate_tower(drawn + FIRST_VOCABULARY_ID), transpose_b=True)
            # Divided by how often each is drawn, their sum is on average that of all candidates but the row's own.
            others -= self.sample.log_expected_count(drawn)
            is_mine = tf.equal(own[:, tf.newaxis], drawn[tf.newaxis, :])
            logits = tf.concat([mine[:, tf.newaxis], tf.where(is_mine, others.dtype.min, others)], axis=1)
            return tf.reduce_logsumexp(logits, axis=1) - mine

        def compute_loss(self, inputs: Any, training: bool = False) -> tf.Tensor:
            """Return the weighted mean loss of a batch ``(features, label, weight)``; the label is not used."""
            features, _, weight = inputs
            weight = tf.where(features[candidate.name] >= FIRST_VOCABULARY_ID, weight, 0.0)
            loss = tf.reduce_sum(self.row_losses(features, training) * weight)
            rows = tf.reduce_sum(weight)
            self.mean_loss.update_state(tf.math.divide_no_nan(loss, rows), sample_weight=rows)
            # Dividing by all replicas' rows makes the all-reduced gradient their mean.
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            return loss / (tf.cast(tf.shape(weight)[0], tf.float32) * replicas)

        def train_step(self, inputs: Any) -> dict[str, tf.Tensor]:
            """Update once; return the epoch's mean loss so far, over all replicas."""
            with tf.GradientTape() as tape:
                loss = self.compute_loss(inputs, training=True)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": self.mean_loss.result()}

        def test_step(self, inputs: Any) -> dict[str, tf.Tensor]:
            """Return the mean loss so far, over all replicas."""
            self.compute_loss(inputs)
            return {"loss": self.mean_loss.result()}

    return YouTubeDnn()


def predict(model: Any, inputs: Mapping[str, "tf.Tensor"]) -> "tf.Tensor":
    """Return the query embeddings, float32 ``[batch, embedding_dim]``."""
    return model.query_tower(inputs, training=False)
