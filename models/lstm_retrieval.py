"""Sequential retrieval: an LSTM or GRU reads each history, and a softmax over all candidates predicts the next item.

A history is a list of the candidate's own tokens, oldest first, such as the items that a user has watched. Its rows
stay ragged from the table to the batch, which pads them on the right. Padding is masked, so a row has the same query in
every batch. All other features, and the loss, are those of :mod:`models.youtube_dnn`.

Source: Hidasi et al. 2016, "Session-based Recommendations with Recurrent Neural Networks", whose recurrent layer is a
GRU (``cell: gru``) and whose loss compares with the other rows of the batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from mirrorspark.data_pipelines.features import FeatureSpec, FittedFeatures, plain_name
from mirrorspark.models import youtube_dnn
from mirrorspark.models.settings import Cell, ModelSettingsError, check_positive

if TYPE_CHECKING:  # the driver checks settings without loading TensorFlow
    import tensorflow as tf
    import tf_keras

TASK = "retrieval"
READS_ITEMS = True


@dataclass(frozen=True)
class Settings(youtube_dnn.Settings):
    """Settings of the architecture: those of :class:`models.youtube_dnn.Settings`, and the recurrent layer's.

    Attributes:
        lstm_units: Width of the state.
        cell: ``lstm``, or ``gru``, which has a quarter fewer weights.
    """

    lstm_units: int = 64
    cell: Cell = "lstm"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("lstm_units", self.lstm_units)
        if self.cell not in get_args(Cell):
            raise ModelSettingsError(f"model setting cell is '{self.cell}'; use {' or '.join(get_args(Cell))}")


def check_features(settings: Settings, spec: FeatureSpec) -> None:
    """Raise ``ModelSettingsError`` unless there is a history to read, and candidates have an id or features."""
    histories(spec)
    settings.check_items(spec)


def histories(spec: FeatureSpec) -> tuple[str, ...]:
    """Return the names of the lists that the LSTM reads.

    Raises:
        ModelSettingsError: There is no such list.
    """
    return candidate_lists(spec, "lstm_retrieval")


def candidate_lists(spec: FeatureSpec, model: str) -> tuple[str, ...]:
    """Return the names of the lists with the candidate's vocabulary, which ``model`` reads in their order.

    Raises:
        ModelSettingsError: There is no such list.
    """
    if not spec.histories:
        candidate = spec.candidate.name
        raise ModelSettingsError(
            f"model '{model}' has no history to read: no list has the ids of '{candidate}'; give a multi_valued "
            f"or sequence feature vocabulary_of: {candidate}, or use youtube_dnn"
        )
    return spec.histories


def build(settings: Settings, fitted: FittedFeatures, seed: int) -> "tf_keras.Model":
    """Return a model with ``query_tower`` and ``candidate_tower``; the former accepts lists padded to any length.

    Raises:
        ModelSettingsError: There is no history to read.
    """
    from mirrorspark.models.layers import recurrent
    from mirrorspark.models.layers.input import concatenated, inputs_without_ids, lay_out_fields, symbolic_inputs
    from mirrorspark.models.retrieval import RetrievalModel, configured_candidate_tower, query_tower

    features, dim, ordered = fitted.spec.query_features, settings.embedding_dim, histories(fitted.spec)
    inputs = symbolic_inputs(features, any_length=True)
    fields, rows = lay_out_fields(fitted, features)
    embeddings = recurrent.OrderedEmbeddings(fields, ordered, rows, dim, name="fields")
    embedded = embeddings({field.name: inputs[field.name] for field in fields})
    states = [
        recurrent.LastState(settings.lstm_units, settings.cell, name=f"{plain_name(name)}_{settings.cell}")(
            [history, inputs[name]]
        )
        for name, history in zip(ordered, embedded[: len(ordered)], strict=True)
    ]
    averaged = embedded[len(ordered) :]
    joined = concatenated([*states, *averaged, *inputs_without_ids(features, inputs, dim)])
    tower = query_tower(inputs, joined, settings.hidden_units, dim, settings.dropout, seed, cosine=settings.cosine)
    return RetrievalModel(tower, fitted, settings, seed, configured_candidate_tower(settings, fitted, dim, seed))


def predict(model: Any, inputs: Mapping[str, "tf.Tensor"]) -> "tf.Tensor":
    """Return the query embeddings, float32 ``[batch, embedding_dim]``; the longest history sets the number of steps."""
    from mirrorspark.models.layers import recurrent
    from mirrorspark.models.layers.input import lists_of_any_length

    tower = model.query_tower
    return tower(recurrent.without_common_padding(inputs, lists_of_any_length(tower)), training=False)
