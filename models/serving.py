"""The exported model: a SavedModel that takes raw columns, or encoded features where the caller has encoded them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from data_pipelines.fitted import FittedFeatures
from models.preprocessing import GraphEncoder, encoded_signature, model_inputs
from models.top_k import SCANN_LEAST_CANDIDATES, ExactTopK, ScannTopK

RAW_SIGNATURE = "serving_default"
ENCODED_SIGNATURE = "encoded"
SCANN_SIGNATURE = "scann"


class ScoringModule(tf.Module):
    """A binary model: ``score`` for every row."""

    def __init__(self, architecture: ModuleType, model: Any, fitted: FittedFeatures) -> None:
        super().__init__(name="scoring")
        self._predict = partial(architecture.predict, model)
        self._state = _state(model)
        self._features = fitted.spec.query_features
        self._encoder = GraphEncoder(fitted, self._features)

    def signatures(self) -> dict[str, Any]:
        """Return the concrete functions by signature name."""
        return {
            RAW_SIGNATURE: _concrete(lambda inputs: self._predict(self._encoder(inputs)), self._encoder.signature()),
            ENCODED_SIGNATURE: _concrete(
                lambda encoded: self._predict(model_inputs(self._features, encoded)),
                encoded_signature(self._features),
            ),
        }


class RetrievalModule(tf.Module):
    """A query tower with its index: the best ``candidates`` and their ``scores`` for every row.

    With ``scann`` there is an approximate index too, where there are candidates enough to need and to build one.
    """

    def __init__(self, architecture: ModuleType, model: Any, fitted: FittedFeatures, k: int, *, scann: bool) -> None:
        super().__init__(name="retrieval")
        self._predict = partial(architecture.predict, model)
        self._state = _state(model)
        self._exclude = fitted.spec.exclude
        self._features = fitted.spec.query_features + ((fitted.spec.excluded,) if fitted.spec.excluded else ())
        self._encoder = GraphEncoder(fitted, self._features)
        embeddings = candidate_embeddings(model)
        tokens = fitted.vocabulary(fitted.spec.candidate).tokens.to_pylist()
        self._exact = ExactTopK(embeddings, tokens, k)
        self._scann = ScannTopK(embeddings, tokens, k) if scann and len(tokens) >= SCANN_LEAST_CANDIDATES else None

    def signatures(self) -> dict[str, Any]:
        """Return the concrete functions by signature name."""
        raw, encoded = self._encoder.signature(), encoded_signature(self._features)
        functions = {
            RAW_SIGNATURE: _concrete(lambda inputs: self._search(self._exact, self._encoder(inputs)), raw),
            ENCODED_SIGNATURE: _concrete(lambda inputs: self._search_encoded(self._exact, inputs), encoded),
        }
        if self._scann is not None:
            functions[SCANN_SIGNATURE] = _concrete(lambda inputs: self._search_encoded(self._scann, inputs), encoded)
        return functions

    def _search_encoded(self, index: Any, encoded: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return self._search(index, model_inputs(self._features, encoded))

    def _search(self, index: Any, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        excluded = inputs[self._exclude] if self._exclude else None
        query = self._predict({name: value for name, value in inputs.items() if name != self._exclude})
        return index(query, excluded)


def candidate_embeddings(model: Any) -> np.ndarray:
    """Return float32 ``[ids, dim]``: the candidate tower's output for every id."""
    ids = tf.range(model.candidate_tower.input_dim, dtype=tf.int64)
    return model.candidate_tower(ids).numpy()


def save(module: ScoringModule | RetrievalModule, folder: Path) -> None:
    """Write ``module`` as a SavedModel with its signatures."""
    options = tf.saved_model.SaveOptions(namespace_whitelist=["Scann"])
    tf.saved_model.save(module, str(folder), signatures=module.signatures(), options=options)


def _state(model: Any) -> list[Any]:
    """Return what a graph of ``model`` uses and a SavedModel has to hold: variables, tables and files.

    Not the model itself: Keras would add some functions for every layer, which nobody calls; to trace, write and load
    those takes several times as long as all else.
    """
    kinds = (tf.Variable, tf.saved_model.experimental.TrackableResource, tf.saved_model.Asset)
    return [one for one in tf.train.TrackableView(model).descendants() if isinstance(one, kinds)]


def _concrete(function: Any, specs: Mapping[str, tf.TensorSpec]) -> Any:
    # Keyword arguments become the names of the signature's inputs.
    return tf.function(lambda **inputs: function(inputs), autograph=False).get_concrete_function(**specs)
