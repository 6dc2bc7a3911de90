"""Two-tower retrieval: a query tower and a candidate tower whose dot product ranks the candidates.

Source: Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations"; the loss is
TensorFlow Recommenders' ``Retrieval`` task with in-batch negatives and their sampling probability.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import FIRST_VOCABULARY_ID
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.models.settings import ModelSettingsError, check_fraction, check_positive, check_temperature

if TYPE_CHECKING:  # the driver checks settings without loading TensorFlow
    import tensorflow as tf
    import tf_keras

TASK = "retrieval"
READS_ITEMS = True


@dataclass(frozen=True)
class Settings:
    """Settings of the architecture.

    Attributes:
        embedding_dim: Width of the field embeddings, and of both towers' outputs.
        hidden_units: Width of each hidden layer of the query tower.
        dropout: Share of hidden units dropped while training.
        temperature: Divisor of the logits; a smaller one gives a sharper distribution.
        cosine: Whether queries and candidates have length 1, so that scores are cosines; a temperature of 0.05 to 0.2
            is usual then.
        candidate_id: Whether candidates have an embedding by id beside their item features.
        id_dropout: With item features, share of the rows whose candidate's id embedding is left out while training, so
            that the features alone do for items without training rows.
        item_hidden_units: Width of each hidden layer on the item features.
    """

    embedding_dim: int = 32
    hidden_units: tuple[int, ...] = (64,)
    dropout: float = 0.0
    temperature: float = 1.0
    cosine: bool = False
    candidate_id: bool = True
    id_dropout: float = 0.1
    item_hidden_units: tuple[int, ...] = (64,)

    def __post_init__(self) -> None:
        check_positive("embedding_dim", self.embedding_dim)
        for units in self.hidden_units:
            check_positive("hidden_units", units)
        for units in self.item_hidden_units:
            check_positive("item_hidden_units", units)
        check_fraction("dropout", self.dropout)
        check_fraction("id_dropout", self.id_dropout)
        check_temperature(self.temperature)


def build(settings: Settings, fitted: FittedFeatures, seed: int) -> "tf_keras.Model":
    """Return a TensorFlow Recommenders model; ``query_tower`` and ``candidate_tower`` are its two halves."""
    import tensorflow as tf
    import tensorflow_recommenders as tfrs
    import tf_keras

    from mirrorspark.models.layers import concatenated_inputs, symbolic_inputs
    from mirrorspark.models.retrieval.towers import query_tower

    candidate = fitted.spec.candidate
    probability = sampling_probability(fitted)

    def known(features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {feature.name: features[feature.name] for feature in fitted.spec.query_features}

    class TwoTower(tfrs.Model):
        """In-batch softmax over the candidates of the other rows with positive weight and another candidate."""

        def __init__(self) -> None:
            super().__init__()
            features, dim = fitted.spec.query_features, settings.embedding_dim
            inputs = symbolic_inputs(features, any_length=True)
            joined = concatenated_inputs(fitted, features, inputs, dim)
            self.query_tower = query_tower(
                inputs, joined, settings.hidden_units, dim, settings.dropout, seed, cosine=settings.cosine
            )
            self.candidate_tower = _candidate_tower(settings, fitted, seed)
            self.task = tfrs.tasks.Retrieval(temperature=settings.temperature, remove_accidental_hits=True)
            self.probability = tf.constant(probability)
            self.mean_loss = tf_keras.metrics.Mean(name="loss")

        def call(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
            """Return the score of each row's own candidate: float32 ``[batch]``."""
            return tf.reduce_sum(self.query_tower(known(inputs)) * self.candidate_tower(inputs[candidate.name]), axis=1)

        @property
        def metrics(self) -> list[Any]:
            """The metric that Keras resets at each epoch; the task's own metrics are not computed in training."""
            return [self.mean_loss]

        def compute_loss(self, inputs: Any, training: bool = False) -> tf.Tensor:
            """Return the weighted mean loss of a batch ``(features, label, weight)``; the label is ignored."""
            features, _, weight = inputs
            queries = self.query_tower(known(features), training=training)
            ids = features[candidate.name]
            # A table of embeddings is the same in training.
            own = self.candidate_tower(ids, training=training) if fitted.items else self.candidate_tower(ids)
            loss = self.task(
                queries,
                own,
                sample_weight=weight,
                candidate_sampling_probability=tf.gather(self.probability, ids),
                candidate_ids=ids,
                compute_metrics=False,
                compute_batch_metrics=False,
                # Padding must not be a negative: with a rare candidate, and so a large weight, it would distort the
                # loss of the last batch.
                score_mask=tf.broadcast_to(weight > 0, [tf.size(weight), tf.size(weight)]),
            )
            rows = tf.reduce_sum(weight)
            self.mean_loss.update_state(tf.math.divide_no_nan(loss, rows), sample_weight=rows)
            # The task sums over the rows; dividing by the rows of all replicas makes the all-reduced gradient a mean.
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            return loss / (tf.cast(tf.shape(weight)[0], tf.float32) * replicas)

        def train_step(self, inputs: Any) -> dict[str, tf.Tensor]:
            """Make one update; return the epoch's mean loss so far, over all replicas."""
            super().train_step(inputs)
            return {"loss": self.mean_loss.result()}

        def test_step(self, inputs: Any) -> dict[str, tf.Tensor]:
            """Return the mean loss so far, over all replicas."""
            super().test_step(inputs)
            return {"loss": self.mean_loss.result()}

    return TwoTower()


def check_features(settings: Settings, spec: FeatureSpec) -> None:
    """Raise ``ModelSettingsError`` if candidates would have neither an id embedding nor features."""
    if spec.items is None and not settings.candidate_id:
        raise ModelSettingsError("model setting candidate_id is false, but the candidates have no features: give items")


def _candidate_tower(settings: Settings, fitted: FittedFeatures, seed: int) -> Any:
    if fitted.items is None:
        from mirrorspark.models.retrieval.towers import candidate_tower

        return candidate_tower(fitted, settings.embedding_dim, cosine=settings.cosine)
    from mirrorspark.models.retrieval.item_tower import ItemTower

    return ItemTower(
        fitted,
        fitted.items,
        settings.embedding_dim,
        hidden_units=settings.item_hidden_units,
        with_ids=settings.candidate_id,
        id_dropout=settings.id_dropout,
        cosine=settings.cosine,
        # Another sequence than that of the query tower's dropout.
        seed=seed + 1_000,
    )


def predict(model: Any, inputs: Mapping[str, "tf.Tensor"]) -> "tf.Tensor":
    """Return the query embeddings, float32 ``[batch, embedding_dim]``."""
    return model.query_tower(inputs, training=False)


def sampling_probability(fitted: FittedFeatures) -> np.ndarray:
    """Return float32 ``[ids]``: the probability of each candidate in the rows of the training data."""
    counts = fitted.vocabulary(fitted.spec.candidate).counts.to_numpy().astype(np.float64)
    share = np.zeros(len(counts) + FIRST_VOCABULARY_ID)
    share[FIRST_VOCABULARY_ID:] = counts / counts.sum()
    # Ids without a count (missing, out of vocabulary, items without training rows) get that of the rarest candidate,
    # because the loss takes the log.
    return np.maximum(share, share[share > 0].min()).astype(np.float32)
