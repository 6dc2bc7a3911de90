"""Indexes of TensorFlow Recommenders, and of Keras Recommenders, in a returned model: from raw query to item ids."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from mirrorspark.models import keras3
from mirrorspark.models.index import CANDIDATES, SCORES, UNFILLED
from mirrorspark.models.serving import concrete, save_functions, state
from mirrorspark.scoring.backends import protocol
from mirrorspark.scoring.input import Column
from mirrorspark.training.programs.user_functions.plan import ReturnValueError

_QUERY = "query"


def index_of(model: Any) -> Any:
    """Return the first index of raw queries in a model, which may be the model itself; None if it has none."""
    if keras3.is_keras3(model):
        return keras3.raw_retrieval(model)
    tfrs = sys.modules.get("tensorflow_recommenders")
    if tfrs is None or not isinstance(model, tf.Module):  # The function has not imported it.
        return None
    if isinstance(model, tfrs.layers.factorized_top_k.TopK):
        return model
    for layer in model.submodules:
        is_index = isinstance(layer, tfrs.layers.factorized_top_k.TopK)
        # An index without a query model belongs to a metric, and takes vectors.
        if is_index and getattr(layer, "query_model", None) is not None:
            return layer
    return None


def save_index(index: Any, columns: Sequence[str | Column] | None, folder: Path) -> None:
    """Write an index as a SavedModel: from the query's columns to ``candidates`` and their ``scores``, best first.

    Args:
        index: ``BruteForce``, ``ScaNN``, ``Streaming`` or one of ours, with its candidates, or a layer for retrieval.
        columns: Name of the query's column, if it is one without a name; ``query`` by default.
        folder: The new folder.

    Raises:
        ReturnValueError: It has never been called, so the types of the queries are unknown, or finds more candidates
            than it has.
        ValueError: It has no candidates.
    """
    specs = _specs(index, columns)
    _check_length(index)
    found = _in_memory(index)

    def search(inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        scores, candidates = found(inputs if _has_names(index) else next(iter(inputs.values())))
        # Their ranks are unknown after ScaNN, whose places without a candidate have no number as score.
        lists = {CANDIDATES: tf.ensure_shape(candidates, [None, None]), SCORES: tf.ensure_shape(scores, [None, None])}
        is_void = tf.math.is_nan(lists[SCORES])
        nobody = tf.constant(UNFILLED if candidates.dtype == tf.string else -1, candidates.dtype)
        return {
            CANDIDATES: tf.where(is_void, nobody, lists[CANDIDATES]),
            SCORES: tf.where(is_void, scores.dtype.min, lists[SCORES]),
        }

    module = tf.Module(name="index")
    module.state = state(getattr(found, "model", found))
    save_functions(module, {"serving_default": concrete(search, specs)}, folder)


def query_columns(index: Any, columns: Sequence[str | Column] | None) -> list[Column]:
    """Return the columns of the query."""
    found = []
    for name, spec in _specs(index, columns).items():
        element = protocol.ELEMENTS.get(spec.dtype.name, spec.dtype.name)
        found.append(Column(name, element if spec.shape.rank == 1 else f"array<{element}>"))
    return found


def _specs(index: Any, columns: Sequence[str | Column] | None) -> dict[str, tf.TensorSpec]:
    """Return the query's tensors by name, with any number of rows."""
    spec = _query_spec(index)
    if isinstance(spec, Mapping):
        return dict(spec)
    first = columns[0] if columns else _QUERY
    return {first if isinstance(first, str) else first.name: spec}


def _query_spec(index: Any) -> Any:
    for model in (index, getattr(index, "query_model", None)):
        known = None if model is None else model.save_spec()
        if known is not None:
            return known[0][0]
    raise ReturnValueError(
        f"{type(index).__name__} has never been called, so the types of its queries are unknown; call it before you "
        f"return it, for example index(tf.constant(['42']))"
    )


def _has_names(index: Any) -> bool:
    return isinstance(_query_spec(index), Mapping)


def _check_length(index: Any) -> None:
    """Raise an error of ours where TensorFlow raises several lines. Other indexes give shorter lists."""
    tfrs = sys.modules.get("tensorflow_recommenders")
    if tfrs is not None and isinstance(index, tfrs.layers.factorized_top_k.BruteForce):
        if index._candidates is None:
            return
        k, candidates = index._k, index._candidates.shape[0]
    elif hasattr(index, "candidates"):  # a layer for retrieval
        k, candidates = index.k, index.candidates
    else:
        return
    if k > candidates:
        raise ReturnValueError(f"its index finds k {k} of {candidates} candidates; use a k of 1 to {candidates}")


def _in_memory(index: Any) -> Any:
    """Return the index; instead of ``Streaming``, whose dataset no SavedModel can hold, an exact one of the same."""
    tfrs = sys.modules.get("tensorflow_recommenders")
    if tfrs is None or not isinstance(index, tfrs.layers.factorized_top_k.Streaming):
        return index
    from mirrorspark.models.index import ExactTopK

    if index._candidates is None:
        raise ValueError("the index has no candidates; call index_from_dataset before you return it")
    return ExactTopK(query_model=index.query_model, k=index._k).index_from_dataset(index._candidates)
