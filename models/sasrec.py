"""Sequential retrieval: causal self-attention reads each history, and a softmax over all candidates predicts the next.

SASRec reads a history with attention instead of the LSTM of :mod:`models.lstm_retrieval`, and embeds what it reads with
the candidates' own embeddings, which include a net on their features if items have any. Its loss is the softmax over
all candidates, or a sample of them, instead of the paper's binary cross-entropy with one negative: Klenitskiy and
Vasilev 2023, "Turning Dross Into Gold Loss", show that it is what makes SASRec good.

A row is a history and the item after it, so a table with a row per interaction contains every position of a history as
a row of its own. In a table with one row per user the history itself has more to predict: with ``every_position`` each
of its items is predicted from those before it, in one pass over the history, which costs a fraction of the rows that it
replaces. A state reads only what is before it, so the loss is that of all those rows. Validation compares the row's own
candidate alone in either case.

Source: Kang and McAuley 2018, "Self-Attentive Sequential Recommendation".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mirrorspark.data_pipelines.features import FeatureSpec, FittedFeatures, kinds
from mirrorspark.models.lstm_retrieval import candidate_lists
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
        embedding_dim: Width of the item embeddings, of the states and of the query.
        blocks: Number of attention layers, each followed by two dense layers.
        heads: Number of attention heads; they divide ``embedding_dim``.
        dropout: Share of the embeddings, attention weights and outputs of each layer dropped while training.
        hidden_units: Width of each hidden layer on the other features, before they are added to the state.
        reads_user: Whether the user is one of these features. Where users have few items, their own embedding learns
            these by heart.
        every_position: Whether every item of a history is predicted from those before it, for a table with one row per
            user; a recipe's candidates are then those of the histories, too (``history_items`` of the label). False
            predicts the row's candidate alone, for a table with one row per interaction.
    """

    embedding_dim: int = 64
    blocks: int = 2
    heads: int = 1
    dropout: float = 0.2
    hidden_units: tuple[int, ...] = ()
    reads_user: bool = True
    every_position: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("embedding_dim", "blocks", "heads"):
            check_positive(name, getattr(self, name))
        for units in self.hidden_units:
            check_positive("hidden_units", units)
        check_fraction("dropout", self.dropout)
        if self.embedding_dim % self.heads:
            raise ModelSettingsError(
                f"model setting heads is {self.heads}, which does not divide embedding_dim {self.embedding_dim}; "
                f"use a divisor, such as 1"
            )
        if self.every_position and self.sampling in ("in_batch", "mixed"):
            raise ModelSettingsError(
                f"model setting every_position is true, and with sampling '{self.sampling}' each position would be "
                f"compared with all others, its own history's included; set sampling to auto, uniform or popularity"
            )


def learns_histories(settings: Settings) -> bool:
    """Return whether the items of the histories are learnt as candidates, too."""
    return settings.every_position


def check_features(settings: Settings, spec: FeatureSpec) -> None:
    """Raise ``ModelSettingsError`` unless there is one history to read, and candidates have an id or features."""
    history(spec)
    settings.check_items(spec)


def history(spec: FeatureSpec) -> str:
    """Return the name of the list that the attention reads: the one with the candidate's vocabulary.

    Raises:
        ModelSettingsError: There is no such list, or there are several.
    """
    found = candidate_lists(spec, "sasrec")
    if len(found) > 1:
        raise ModelSettingsError(
            f"model 'sasrec' reads one history, but {list(found)} have the ids of '{spec.candidate.name}'; leave one, "
            f"or use lstm_retrieval, which reads several"
        )
    return found[0]


def build(settings: Settings, fitted: FittedFeatures, seed: int) -> "tf_keras.Model":
    """Return a model with ``query_tower`` and ``candidate_tower``; the former accepts lists padded to any length.

    Other features than the history are embedded, and a net of them is added to the state.

    Raises:
        ModelSettingsError: There is no history to read.
    """
    import tf_keras

    from mirrorspark.models.layers import CausalStates, StateAtEnd
    from mirrorspark.models.layers.input import concatenated_inputs, dense_stack, symbolic_inputs
    from mirrorspark.models.retrieval import SequenceRetrieval, configured_candidate_tower, of_length_1

    features, dim = fitted.spec.query_features, settings.embedding_dim
    history_name = history(fitted.spec)
    (read,) = (feature for feature in features if feature.name == history_name)
    assert isinstance(read, kinds.ListFeature)  # noqa: S101 - history returns the names of lists
    unread = {history_name} if settings.reads_user else {history_name, fitted.user}
    others = tuple(feature for feature in features if feature.name not in unread)
    inputs = symbolic_inputs(features, any_length=True)
    # Another sequence than those of the dropouts below.
    candidates = configured_candidate_tower(settings, fitted, dim, seed + 1_000)
    states = CausalStates(
        candidates, read.max_length, settings.blocks, settings.heads, settings.dropout, seed, name="attention"
    )(inputs[history_name])
    query = StateAtEnd(name="end", dtype="float32")([states, inputs[history_name]])
    every = tf_keras.layers.Activation("linear", dtype="float32", name="states")(states)
    if others:
        joined = concatenated_inputs(fitted, others, inputs, dim)
        # Another sequence than those of the attention's dropout.
        joined = dense_stack(joined, settings.hidden_units, settings.dropout, seed + 1_000)
        added = tf_keras.layers.Dense(dim, name="query", dtype="float32")(joined)
        query, every = query + added, every + added[:, None, :]
    outputs = {
        name: of_length_1(one, settings.cosine) for name, one in (("query_tower", query), ("state_tower", every))
    }
    towers = [tf_keras.Model(inputs, one, name=name) for name, one in outputs.items()]
    state_tower = towers[1] if settings.every_position else None
    return SequenceRetrieval(towers[0], state_tower, history_name, candidates, fitted, settings, seed)


def predict(model: Any, inputs: Mapping[str, "tf.Tensor"]) -> "tf.Tensor":
    """Return the query embeddings, float32 ``[batch, embedding_dim]``; the longest history sets the number of steps."""
    from mirrorspark.models.layers import recurrent
    from mirrorspark.models.layers.input import lists_of_any_length

    tower = model.query_tower
    return tower(recurrent.without_common_padding(inputs, lists_of_any_length(tower)), training=False)
