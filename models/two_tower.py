"""Two-tower retrieval: a query tower and a candidate tower whose dot product ranks the candidates.

Source: Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations"; the loss is by
default TensorFlow Recommenders' ``Retrieval`` task with in-batch negatives and their sampling probability, and one of
:mod:`models.retrieval.model` otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mirrorspark.data_pipelines.features import FeatureSpec, FittedFeatures, kinds
from mirrorspark.models.settings import ItemSettings, ModelSettingsError, check_fraction, check_positive

if TYPE_CHECKING:  # the driver checks settings without loading TensorFlow
    import tensorflow as tf
    import tf_keras

TASK = "retrieval"
READS_ITEMS = True


@dataclass(frozen=True)
class Settings(ItemSettings):
    """Settings of the architecture, and those of the candidates and of the loss.

    Attributes:
        embedding_dim: Width of the field embeddings, and of both towers' outputs.
        hidden_units: Width of each hidden layer of the query tower.
        dropout: Share of hidden units dropped while training.
        cross_layers: Layers of TensorFlow Recommenders that multiply the query's features with each other before the
            first hidden layer.
        cross_rank: Width inside of such a layer.
        graph_layers: How often the embeddings of users and candidates are propagated over the graph of the training
            rows (LightGCN, :mod:`models.retrieval.graph`); 0 leaves them as they are.
        rating_hidden_units: With a rating in the label, width of each hidden layer between both vectors and the rating.
        retrieval_weight: With a rating, factor of the retrieval's loss.
        rating_weight: Factor of the rating's loss, the squared error of the standardised rating.
    """

    sampling: str = "in_batch"
    embedding_dim: int = 32
    hidden_units: tuple[int, ...] = (64,)
    dropout: float = 0.0
    cross_layers: int = 0
    cross_rank: int = 32
    graph_layers: int = 0
    rating_hidden_units: tuple[int, ...] = (64,)
    retrieval_weight: float = 1.0
    rating_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("embedding_dim", self.embedding_dim)
        check_positive("cross_rank", self.cross_rank)
        for name in ("hidden_units", "rating_hidden_units"):
            for units in getattr(self, name):
                check_positive(name, units)
        for name in ("retrieval_weight", "rating_weight"):
            if not getattr(self, name) > 0:  # also not a number
                raise ModelSettingsError(f"model setting {name} is {getattr(self, name)}; use a number above 0")
        check_fraction("dropout", self.dropout)
        for name in ("cross_layers", "graph_layers"):
            if getattr(self, name) < 0:
                raise ModelSettingsError(f"model setting {name} is {getattr(self, name)}; use a number from 0 on")
        if self.graph_layers and not self.candidate_id:
            raise ModelSettingsError(
                f"model setting graph_layers is {self.graph_layers}, and candidates have no embedding by id to "
                f"propagate; set candidate_id to true, or graph_layers to 0"
            )


def build(settings: Settings, fitted: FittedFeatures, seed: int) -> "tf_keras.Model":
    """Return a model with ``query_tower`` and ``candidate_tower``; the latter may read the features of items.

    If the label has a rating, the model predicts it, too.
    """
    from mirrorspark.models.layers.input import concatenated_inputs, symbolic_inputs
    from mirrorspark.models.retrieval import RatingTask, RetrievalModel, crossed, query_tower

    features, dim = fitted.spec.query_features, settings.embedding_dim
    inputs = symbolic_inputs(features, any_length=True)
    rating = None
    if fitted.spec.label.rating is not None:
        statistics = fitted.statistics[fitted.spec.label.rating]
        rating = RatingTask(
            dim, settings.rating_hidden_units, statistics, settings.retrieval_weight, settings.rating_weight
        )
    options: Any = (settings.hidden_units, dim, settings.dropout, seed)
    if not settings.graph_layers:
        joined = crossed(concatenated_inputs(fitted, features, inputs, dim), settings.cross_layers, settings.cross_rank)
        tower = query_tower(inputs, joined, *options, cosine=settings.cosine)
        return RetrievalModel(tower, fitted, settings, seed, _candidate_tower(settings, fitted, seed), rating)
    from mirrorspark.models.retrieval import GraphEmbeddings, GraphRetrieval

    user = next(feature for feature in features if feature.name == fitted.user)
    assert isinstance(user, kinds.Bucketed | kinds.Categorical)  # noqa: S101 - as FittedFeatures.user is
    others = [feature for feature in features if feature is not user]
    graph = GraphEmbeddings(fitted.id_count(user), fitted.id_count(fitted.spec.candidate), dim, settings.graph_layers)
    joined = None
    if others:
        joined = crossed(concatenated_inputs(fitted, others, inputs, dim), settings.cross_layers, settings.cross_rank)
    tower = query_tower(inputs, joined, *options, cosine=settings.cosine, user=graph(inputs[user.name]))
    return GraphRetrieval(tower, graph, _candidate_tower(settings, fitted, seed, graph), fitted, settings, seed, rating)


def check_features(settings: Settings, spec: FeatureSpec) -> None:
    """Raise ``ModelSettingsError`` if candidates have neither an id nor features, or a graph would have no users."""
    settings.check_items(spec)
    if settings.graph_layers and spec.user_feature is None:
        raise ModelSettingsError(
            f"model setting graph_layers is {settings.graph_layers}, but no feature is the users of the graph; name "
            f"the one of single ids that is, user: NAME in the feature spec, or set graph_layers to 0"
        )


def _candidate_tower(settings: Settings, fitted: FittedFeatures, seed: int, graph: Any = None) -> Any:
    from mirrorspark.models.retrieval import configured_candidate_tower

    if graph is None:
        return configured_candidate_tower(settings, fitted, settings.embedding_dim, seed)
    from mirrorspark.models.retrieval import GraphCandidates

    # A tower with item features gives the length 1 to their sum.
    by_id = GraphCandidates(graph, cosine=settings.cosine and fitted.items is None)
    return configured_candidate_tower(settings, fitted, settings.embedding_dim, seed, by_id) if fitted.items else by_id


def predict(model: Any, inputs: Mapping[str, "tf.Tensor"]) -> "tf.Tensor":
    """Return the query embeddings, float32 ``[batch, embedding_dim]``."""
    return model.query_tower(inputs, training=False)
