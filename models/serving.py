"""The exported model: a SavedModel that takes raw columns, or encoded features where the caller has encoded them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from data_pipelines.feature_kinds import FIRST_VOCABULARY_ID
from data_pipelines.fitted import FittedFeatures
from models import top_k_cells, top_k_scann
from models.layers import lists_of_any_length
from models.preprocessing import GraphEncoder, encoded_signature, model_inputs
from models.ranked_lists import CANDIDATES, SCORES, UNFILLED
from models.signatures import CELLS, ENCODED_SIGNATURE, EXACT, RAW_SIGNATURE, SCANN, scann_folder
from models.top_k import ExactTopK, Index, Queries, recall

# What the signature of an index takes beside encoded features.
_INDEX_INPUTS = {
    "most_candidates": tf.TensorSpec([], tf.int32, "most_candidates"),
    "unavailable_ids": tf.TensorSpec([None], tf.int64, "unavailable_ids"),
}


class ScoringModule(tf.Module):
    """A binary model: ``score`` for every row."""

    def __init__(self, architecture: ModuleType, model: Any, fitted: FittedFeatures) -> None:
        super().__init__(name="scoring")
        self._predict = partial(architecture.predict, model)
        self._state = _state(model)
        self._features = fitted.spec.query_features
        self._any_length = lists_of_any_length(model)
        self._encoder = GraphEncoder(fitted, self._features)

    def signatures(self) -> dict[str, Any]:
        """Return the concrete functions by signature name."""
        return {
            RAW_SIGNATURE: _concrete(lambda inputs: self._predict(self._encoder(inputs)), self._encoder.signature()),
            ENCODED_SIGNATURE: _concrete(
                lambda encoded: self._predict(model_inputs(self._features, encoded)),
                encoded_signature(self._features, self._any_length),
            ),
        }


class RetrievalModule(tf.Module):
    """A query tower with indexes: the best ``candidates`` and their ``scores`` for every row.

    Each index has a signature of its own name, which takes two inputs beside encoded features: how many candidates to
    find, and which are not available. ``serving_default`` and ``encoded`` search exactly for ``k`` of all.
    """

    def __init__(
        self, architecture: ModuleType, model: Any, fitted: FittedFeatures, k: int, indexes: Mapping[str, Index]
    ) -> None:
        """Take a trained model and some of the indexes that :func:`build_indexes` made of it.

        Raises:
            ValueError: There are fewer than ``k`` candidates, or a feature has the name of an input of the indexes.
        """
        super().__init__(name="retrieval")
        self._predict = partial(architecture.predict, model)
        self._state = _state(model)
        self._exclude = fitted.spec.exclude
        self._features = fitted.spec.query_features + ((fitted.spec.excluded,) if fitted.spec.excluded else ())
        # What takes the features of a query is a part of the model, where it is one of ours.
        self._any_length = lists_of_any_length(getattr(model, "query_tower", model))
        self._encoder = GraphEncoder(fitted, self._features)
        if taken := sorted(set(encoded_signature(self._features)) & set(_INDEX_INPUTS)):
            raise ValueError(f"the indexes have inputs called {taken}; give the features another name")
        tokens = fitted.vocabulary(fitted.spec.candidate).tokens.to_pylist()
        if not 1 <= k <= len(tokens):
            raise ValueError(f"k {k} cannot be met by {len(tokens)} candidates; use 1 to {len(tokens)}")
        self._k = k
        self._tokens = tf.constant([UNFILLED] * FIRST_VOCABULARY_ID + tokens)
        self._indexes = dict(indexes)

    def signatures(self) -> dict[str, Any]:
        """Return the concrete functions by signature name."""
        raw, encoded = self._encoder.signature(), encoded_signature(self._features, self._any_length)
        functions = {
            name: _concrete(partial(self._search_encoded, name), encoded | _INDEX_INPUTS) for name in self._indexes
        }
        if EXACT in self._indexes:
            functions[RAW_SIGNATURE] = _concrete(lambda inputs: self._search(EXACT, self._encoder(inputs)), raw)
            functions[ENCODED_SIGNATURE] = _concrete(lambda inputs: self._search_encoded(EXACT, inputs), encoded)
        return functions

    def _search_encoded(self, index: str, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        wanted = {name: inputs[name] for name in _INDEX_INPUTS if name in inputs}
        return self._search(index, model_inputs(self._features, inputs), **wanted)

    def _search(
        self,
        index: str,
        inputs: Mapping[str, tf.Tensor],
        most_candidates: tf.Tensor | None = None,
        unavailable_ids: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        vectors = self._predict({name: value for name, value in inputs.items() if name != self._exclude})
        nothing = tf.zeros([tf.shape(vectors)[0], 0], tf.int64)
        queries = Queries(vectors, inputs[self._exclude] if self._exclude else nothing)
        k = self._k if most_candidates is None else most_candidates
        searched = self._indexes[index]
        best = searched.search(queries, k, searched.exact.offsets(unavailable_ids))
        found = tf.where(best.scores > best.scores.dtype.min, tf.gather(self._tokens, best.ids), UNFILLED)
        return {CANDIDATES: found, SCORES: best.scores}


def build_indexes(model: Any, k: int, *, scann: bool = False, sample: np.ndarray | None = None) -> dict[str, Index]:
    """Return the indexes of a retrieval model's candidates by name: always ``exact``.

    Args:
        model: The trained model.
        k: How many candidates will be asked for, mostly.
        scann: Whether to have one by ScaNN, where there are candidates enough.
        sample: float32 ``[queries, dim]``, queries like those to come. With them there is one of cells, where there are
            candidates enough: its recall is set by them.
    """
    exact = ExactTopK(candidate_embeddings(model))
    candidates = exact.id_count - FIRST_VOCABULARY_ID
    indexes: dict[str, Index] = {EXACT: exact}
    if sample is not None and candidates >= top_k_cells.LEAST_CANDIDATES:
        indexes[CELLS] = top_k_cells.cells_index(exact, sample, k)
    if scann and candidates >= top_k_scann.LEAST_CANDIDATES:
        indexes[SCANN] = top_k_scann.ScannTopK(exact, k)
    return indexes


def recalls(indexes: Mapping[str, Index], k: int, sample: np.ndarray) -> dict[str, float]:
    """Return by index the share of the exact best ``k`` candidates that it finds for the queries of ``sample``."""
    queries = Queries(tf.constant(sample), tf.zeros([len(sample), 0], tf.int64))
    offsets = indexes[EXACT].exact.offsets()
    found = {name: index.search(queries, k, offsets).ids.numpy() for name, index in indexes.items()}
    return {name: recall(ids, found[EXACT]) for name, ids in found.items()}


def candidate_embeddings(model: Any) -> np.ndarray:
    """Return float32 ``[ids, dim]``: the candidate tower's output for every id."""
    ids = tf.range(model.candidate_tower.input_dim, dtype=tf.int64)
    return model.candidate_tower(ids).numpy()


def save(module: ScoringModule | RetrievalModule, folder: Path) -> None:
    """Write ``module`` as a SavedModel with its signatures."""
    options = tf.saved_model.SaveOptions(namespace_whitelist=["Scann"])
    tf.saved_model.save(module, str(folder), signatures=module.signatures(), options=options)


def save_retrieval(
    architecture: ModuleType, model: Any, fitted: FittedFeatures, k: int, indexes: Mapping[str, Index], folder: Path
) -> None:
    """Write a retrieval model as a SavedModel with the indexes of stock operations, and ScaNN's as one beside it.

    A SavedModel that holds ScaNN's operation loads nowhere without the package, whatever signature is called.
    """
    stock = {name: index for name, index in indexes.items() if name != SCANN}
    save(RetrievalModule(architecture, model, fitted, k, stock), folder)
    if SCANN in indexes:
        scann_part = RetrievalModule(architecture, model, fitted, k, {SCANN: indexes[SCANN]})
        save(scann_part, scann_folder(folder))


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
