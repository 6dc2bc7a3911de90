"""The layer for retrieval of a model of Keras Recommenders.

It is given the vectors of queries, and keeps those of candidates at the places of their ids. So towers may have any
name and form.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from mirrorspark.models.keras3.model import tf_variables


class OwnTowers:
    """The vectors of queries, which a model gives to its layer for retrieval, and those of candidates."""

    def __init__(self, model: Any, inputs: Callable[[Mapping[str, Any]], Any], layer: Any, kind: type) -> None:
        self._model, self._inputs, self._layer, self._kind = model, inputs, layer, kind

    def query_vectors(self, inputs: Mapping[str, Any]) -> tf.Tensor:
        """Return the vectors of queries, float32 ``[batch, dim]``."""
        return tf.cast(self.noted_queries(inputs), tf.float32)

    def candidate_vectors(self, ids: tf.Tensor) -> tf.Tensor:
        """Return the vectors of candidates, float32 ``[ids, dim]``."""
        (table,) = tf_variables([self._layer.candidate_embeddings])
        return tf.cast(tf.gather(table, ids), tf.float32)

    def noted_queries(self, inputs: Mapping[str, Any]) -> Any:
        """Return the vectors that the layer is given; None if it is not called."""
        return _noted(self._model, self._kind, self._inputs(inputs))


class RawRetrieval:
    """The layer for retrieval of a trained model, asked by the model's inputs, as an index of raw queries."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._layer, self._kind = retrieval_layer(model)

    def save_spec(self) -> Any:
        """Return the specifications of the inputs that the model was trained on."""
        return (self.model._inputs_of_steps,), {}

    @property
    def candidates(self) -> int:
        """Number of candidates."""
        return int(self._layer.candidate_embeddings.shape[0])

    @property
    def k(self) -> int:
        """Candidates that it finds for a query."""
        return int(self._layer.k)

    def is_asked(self) -> bool:
        """Return whether the model gives queries to its layer."""
        traced: list[Any] = []
        search = tf.function(lambda inputs: traced.append(self._queries(inputs)), autograph=False)
        search.get_concrete_function(self.model._inputs_of_steps)
        return traced[0] is not None

    def __call__(self, inputs: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the scores of each row's best candidates, and these, by their identifiers."""
        queries = self._queries(inputs)
        returns_scores, self._layer.return_scores = self._layer.return_scores, True
        try:
            scores, candidates = self._layer(queries)
        finally:
            self._layer.return_scores = returns_scores
        return scores, candidates

    def _queries(self, inputs: Any) -> Any:
        return _noted(self.model, self._kind, inputs)


def raw_retrieval(model: Any) -> RawRetrieval | None:
    """Return the layer for retrieval, from inputs to candidates, of a model that was trained here and asks one."""
    if not hasattr(model, "_inputs_of_steps"):
        return None
    found = RawRetrieval(model)
    return found if found.is_asked() else None


def retrieval_layer(model: Any) -> tuple[Any, Any]:
    """Return the first layer for retrieval and its base class; without one, None, and without importing the package."""
    for layer in model._flatten_layers():
        for kind in type(layer).__mro__:
            if kind.__module__.startswith("keras_rs.") and kind.__name__ == "Retrieval":
                return layer, kind
    return None, None


def _noted(model: Any, kind: Any, inputs: Any) -> Any:
    """Return the queries that a model gives to a layer of a class; None if it calls none."""
    noted: list[Any] = []
    with _noting(kind, noted):
        model(inputs, training=False)
    return noted[0] if noted else None


@contextlib.contextmanager
def _noting(kind: Any, noted: list[Any]) -> Iterator[None]:
    """Note what layers of a class are given, in the block."""

    def call(layer: Any, queries: Any, *args: Any, **kwargs: Any) -> Any:
        noted.append(queries)
        return keras.layers.Layer.__call__(layer, queries, *args, **kwargs)

    kind.__call__ = call
    try:
        yield
    finally:
        del kind.__call__
