"""Export of a model as a SavedModel with one signature for raw columns and one for encoded features."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from mirrorspark.data_pipelines.features import FittedFeatures, kinds
from mirrorspark.models.index import CANDIDATE_EMBEDDINGS, CANDIDATES, SCORES, UNFILLED, Index, Queries, recall
from mirrorspark.models.layers.input import lists_of_any_length
from mirrorspark.models.retrieval import SavedQueryTower, rating_task
from mirrorspark.models.serving.preprocessing import (
    GraphEncoder,
    GraphEncoders,
    encoded_signature,
    model_inputs,
)
from mirrorspark.models.serving.saved_functions import concrete, save_functions, saved_variables, state
from mirrorspark.models.serving.signatures import (
    CANDIDATE_VECTORS,
    ENCODED_SIGNATURE,
    EXACT,
    EXCLUDED,
    IVF,
    QUERY_VECTORS,
    RATING,
    RATING_ENCODED,
    RAW_SIGNATURE,
    SCANN,
    VECTORS,
    rated_features,
    scann_folder,
)
from mirrorspark.models.wrapped_architecture import saved_parts

# Inputs of an index's signature in addition to encoded features.
_INDEX_INPUTS = {
    "most_candidates": tf.TensorSpec([], tf.int32, "most_candidates"),
    "unavailable_ids": tf.TensorSpec([None], tf.int64, "unavailable_ids"),
}

# A function of named tensors, and the specs of those.
Function = tuple[Callable[[Mapping[str, tf.Tensor]], Any], Mapping[str, tf.TensorSpec]]


class ScoringModule(tf.Module):
    """A model without an index: the architecture's outputs, such as ``score``, for every row."""

    def __init__(
        self,
        architecture: ModuleType,
        model: Any,
        fitted: FittedFeatures,
        encoders: GraphEncoders = MappingProxyType({}),
    ) -> None:
        """Combine a trained model with the transform of its features, and their encoders."""
        super().__init__(name="scoring")
        self._predict = partial(architecture.predict, model)
        parts = saved_parts(architecture, model)
        self._state = [state(part) for part in parts]
        self._features = fitted.spec.query_features
        self._any_length = tuple(name for part in parts for name in lists_of_any_length(part))
        self._encoder = GraphEncoder(fitted, self._features, encoders)

    def functions(self) -> dict[str, Function]:
        """Return the functions by signature name, each with the specs of its inputs."""
        return {
            RAW_SIGNATURE: (lambda inputs: self._predict(self._encoder(inputs)), self._encoder.signature()),
            ENCODED_SIGNATURE: (
                lambda encoded: self._predict(model_inputs(self._features, encoded)),
                encoded_signature(self._features, self._any_length),
            ),
        }


class RetrievalModule(tf.Module):
    """A query tower with indexes: the best ``candidates`` and their ``scores`` for every row.

    Each index has a signature under its own name, with two inputs in addition to encoded features: the number of
    candidates to find, and the unavailable candidates. ``serving_default`` and ``encoded`` search exactly for ``k`` of
    all candidates. A model that learns ratings has the signature ``rating``, with the raw columns of a query and its
    candidate, and ``rating_encoded`` with their encoded features.
    """

    def __init__(
        self,
        architecture: ModuleType,
        model: Any,
        fitted: FittedFeatures,
        k: int,
        indexes: Mapping[str, Index],
        encoders: GraphEncoders = MappingProxyType({}),
    ) -> None:
        """Combine a trained model with some of its indexes from :func:`build_indexes`.

        Raises:
            ValueError: There are fewer than ``k`` candidates, or a feature has the name of an input of the indexes.
        """
        super().__init__(name="retrieval")
        self._predict = partial(architecture.predict, model)
        self._state = state(model)
        self._exclude = fitted.spec.exclude
        self._features = fitted.spec.query_features + ((fitted.spec.excluded,) if fitted.spec.excluded else ())
        # In our own models the query tower takes the features; other models take them directly, whatever they call it.
        tower = model if hasattr(model, "own_candidates") else getattr(model, "query_tower", model)
        self._any_length = tower.any_length if isinstance(tower, SavedQueryTower) else lists_of_any_length(tower)
        self._encoder = GraphEncoder(fitted, self._features, encoders)
        self._candidate, task = fitted.spec.candidate.name, rating_task(model)
        # As partial, because Keras would save functions of a layer that is an attribute.
        self._rating = None if task is None else partial(task)
        self._rated = rated_features(fitted.spec)
        self._pairs = None if task is None else GraphEncoder(fitted, self._rated, encoders)
        if taken := sorted(set(encoded_signature(self._features)) & set(_INDEX_INPUTS)):
            raise ValueError(f"the indexes have inputs called {taken}; give the features another name")
        tokens = fitted.vocabulary(fitted.spec.candidate).tokens.to_pylist()
        candidates = min(len(index.exact.candidate_ids) for index in indexes.values())
        if not 1 <= k <= candidates:
            raise ValueError(f"k {k} cannot be met by {candidates} candidates; use 1 to {candidates}")
        self._k = k
        self._tokens = tf.constant([UNFILLED] * kinds.FIRST_VOCABULARY_ID + tokens)
        # Not a dict, which would be saved with the models that the indexes are for Keras.
        self._indexes = MappingProxyType(dict(indexes))
        self._state_of_indexes = [state(index) for index in indexes.values()]

    def functions(self) -> dict[str, Function]:
        """Return the functions by signature name, each with the specs of its inputs."""
        raw, encoded = self._encoder.signature(), encoded_signature(self._features, self._any_length)
        functions: dict[str, Function] = {
            name: (partial(self._search_encoded, name), encoded | _INDEX_INPUTS) for name in self._indexes
        }
        if EXACT in self._indexes:
            functions[RAW_SIGNATURE] = (lambda inputs: self._search(EXACT, self._encoder(inputs)), raw)
            functions[ENCODED_SIGNATURE] = (lambda inputs: self._search_encoded(EXACT, inputs), encoded)
            functions |= self._rating_functions() | self._vector_functions(encoded)
        return functions

    def _vector_functions(self, encoded: Mapping[str, tf.TensorSpec]) -> dict[str, Function]:
        """Return the functions that give the vectors whose products are the scores, if they are products."""
        index = self._indexes[EXACT].exact

        def queries(inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            found = self._queries(model_inputs(self._features, inputs))
            return {VECTORS: index.query_vectors(found.vectors), EXCLUDED: found.excluded}

        if not index.scores_are_products:
            return {}
        return {
            QUERY_VECTORS: (queries, encoded),
            CANDIDATE_VECTORS: (lambda _: {VECTORS: tf.identity(index.candidate_vectors)}, {}),
        }

    def _rating_functions(self) -> dict[str, Function]:
        """Return the functions that give the rating of each row's candidate, float32 ``[batch]``."""
        rating, pairs, candidates = self._rating, self._pairs, self._indexes[EXACT].exact
        if rating is None or pairs is None:
            return {}

        def rate(inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            known = dict(inputs)
            vectors = tf.gather(candidates.embeddings, known.pop(self._candidate))
            return {RATING: rating(self._predict(known), vectors)}

        encoded = encoded_signature(self._rated, self._any_length)
        return {
            RATING: (lambda raw: rate(pairs(raw)), pairs.signature()),
            RATING_ENCODED: (lambda given: rate(model_inputs(self._rated, given)), encoded),
        }

    def _queries(self, inputs: Mapping[str, tf.Tensor]) -> Queries:
        """Return the vectors of the rows, and the ids that they exclude."""
        vectors = self._predict({name: value for name, value in inputs.items() if name != self._exclude})
        nothing = tf.zeros([tf.shape(vectors)[0], 0], tf.int64)
        return Queries(vectors, inputs[self._exclude] if self._exclude else nothing)

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
        queries = self._queries(inputs)
        k = self._k if most_candidates is None else most_candidates
        searched = self._indexes[index]
        best = searched.search(queries, k, searched.exact.offsets(unavailable_ids))
        found = tf.where(best.scores > best.scores.dtype.min, tf.gather(self._tokens, best.ids), UNFILLED)
        return {CANDIDATES: found, SCORES: best.scores}


def build_indexes(
    model: Any,
    k: int,
    *,
    scann: bool = False,
    sample: np.ndarray | None = None,
    removed: np.ndarray | None = None,
    on_progress: Callable[[str, int, int], None] = lambda doing, done, total: None,
) -> dict[str, Index]:
    """Return the indexes of a retrieval model's candidates by name; ``exact`` is always included.

    From then on a model that reads the features of a history's items reads their vectors of this moment, so that the
    exported model has these in place of the features.

    Args:
        model: The trained model.
        k: Usual number of candidates per query.
        scann: Whether to build a ScaNN index if there are enough candidates.
        sample: float32 ``[queries, dim]``, representative queries. If given, an IVF index is built if there are
            enough candidates, and tuned on these queries for its recall.
        removed: int64 ``[any]``, ids that must never be found.
        on_progress: Gets the activity, the amount done and the total; 0 where that cannot be counted.
    """
    # Here, because they need TensorFlow Recommenders, and the export of other models does not.
    from mirrorspark.models.index import ExactTopK, ivf
    from mirrorspark.models.index import scann as scann_index

    exact = ExactTopK(candidate_embeddings(model, partial(on_progress, "candidates embedded")), removed)
    getattr(model, "hold_histories", lambda: None)()
    candidates = len(exact.candidate_ids)
    indexes: dict[str, Index] = {EXACT: exact}
    if sample is not None and candidates >= ivf.LEAST_CANDIDATES:
        indexes[IVF] = ivf.ivf_index(
            exact, sample, k, partial(on_progress, "rounds to divide the candidates into lists")
        )
    if scann and candidates >= scann_index.LEAST_CANDIDATES:
        on_progress("building the index of ScaNN", 0, 0)
        indexes[SCANN] = scann_index.ScannTopK(exact, k)
    return indexes


def recalls(indexes: Mapping[str, Index], k: int, sample: np.ndarray) -> dict[str, float]:
    """Return for each index the share of the exact best ``k`` candidates that it finds for the ``sample`` queries."""
    queries = Queries(tf.constant(sample), tf.zeros([len(sample), 0], tf.int64))
    offsets = indexes[EXACT].exact.offsets()
    # As graphs, as they are searched later: eager loops take several times as long.
    search = {name: tf.function(partial(index.search, queries, k, offsets)) for name, index in indexes.items()}
    found = {name: search[name]().ids.numpy() for name in indexes}
    return {name: recall(ids, found[EXACT]) for name, ids in found.items()}


def candidate_embeddings(model: Any, on_progress: Callable[[int, int], None] = lambda done, total: None) -> np.ndarray:
    """Return float32 ``[ids, dim]``: the candidate tower's output for every id, reported by ``on_progress``."""
    # It comes with TensorFlow Recommenders, which other models do without.
    from mirrorspark.models.retrieval import ids_in_pieces

    tower = getattr(model, "own_candidates", None) or model.candidate_tower
    getattr(tower, "refresh", lambda: None)()
    return np.concatenate([tower(ids).numpy() for ids in ids_in_pieces(tower.input_dim, on_progress)])


def saved_candidate_embeddings(folder: Path) -> np.ndarray:
    """Return the result of :func:`candidate_embeddings` from a SavedModel, perhaps followed by rows of zeros.

    The graph is not loaded, which would take longer than embedding a hundred thousand candidates.
    """
    reader, variables = saved_variables(folder)
    (key,) = (key for name, key in variables if name == CANDIDATE_EMBEDDINGS)
    return np.asarray(reader.get_tensor(key))


def save(module: ScoringModule | RetrievalModule, folder: Path) -> None:
    """Write ``module`` as a SavedModel with its signatures."""
    signatures = {name: concrete(function, specs) for name, (function, specs) in module.functions().items()}
    save_functions(module, signatures, folder)


def save_retrieval(
    architecture: ModuleType,
    model: Any,
    fitted: FittedFeatures,
    k: int,
    indexes: Mapping[str, Index],
    folder: Path,
    encoders: GraphEncoders = MappingProxyType({}),
) -> None:
    """Write a retrieval model as a SavedModel with the indexes of stock operations, and a second one with ScaNN's.

    A SavedModel with ScaNN's operation cannot be loaded without the package, even to call another signature.
    """
    stock = {name: index for name, index in indexes.items() if name != SCANN}
    save(RetrievalModule(architecture, model, fitted, k, stock, encoders), folder)
    if SCANN in indexes:
        scann_part = RetrievalModule(architecture, model, fitted, k, {SCANN: indexes[SCANN]})
        save(scann_part, scann_folder(folder))
