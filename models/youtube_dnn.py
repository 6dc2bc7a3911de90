"""YouTube's candidate generation: a deep query tower on averaged histories, and a softmax over all candidates.

Source: Covington et al. 2016, "Deep Neural Networks for YouTube Recommendations", section 3: averaged embeddings of
watches and searches are concatenated with the other features, and ReLU layers follow. The softmax and its loss are in
:mod:`models.retrieval.model`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mirrorspark.data_pipelines.features import FeatureSpec, FittedFeatures
from mirrorspark.models.settings import ItemSettings, check_fraction, check_positive

if TYPE_CHECKING:  # the driver checks settings without loading TensorFlow
    import tensorflow as tf
    import tf_keras

TASK = "retrieval"
READS_ITEMS = True


@dataclass(frozen=True)
class Settings(ItemSettings):
    """Settings of the architecture, and those of the candidates and of the loss.

    Attributes:
        embedding_dim: Width of the field embeddings, of the query and of the candidates.
        hidden_units: Width of each hidden layer.
        dropout: Share of hidden units dropped while training.
    """

    embedding_dim: int = 32
    hidden_units: tuple[int, ...] = (128, 64)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("embedding_dim", self.embedding_dim)
        for units in self.hidden_units:
            check_positive("hidden_units", units)
        check_fraction("dropout", self.dropout)


def check_features(settings: Settings, spec: FeatureSpec) -> None:
    """Raise ``ModelSettingsError`` if candidates have neither an id nor features."""
    settings.check_items(spec)


def build(settings: Settings, fitted: FittedFeatures, seed: int) -> "tf_keras.Model":
    """Return a model with ``query_tower`` and ``candidate_tower``: the softmax's weights by id, or of item features."""
    from mirrorspark.models.layers.input import concatenated_inputs, symbolic_inputs
    from mirrorspark.models.retrieval import RetrievalModel, configured_candidate_tower, query_tower

    features, dim = fitted.spec.query_features, settings.embedding_dim
    inputs = symbolic_inputs(features, any_length=True)
    joined = concatenated_inputs(fitted, features, inputs, dim)
    tower = query_tower(inputs, joined, settings.hidden_units, dim, settings.dropout, seed, cosine=settings.cosine)
    return RetrievalModel(tower, fitted, settings, seed, configured_candidate_tower(settings, fitted, dim, seed))


def predict(model: Any, inputs: Mapping[str, "tf.Tensor"]) -> "tf.Tensor":
    """Return the query embeddings, float32 ``[batch, embedding_dim]``."""
    return model.query_tower(inputs, training=False)
