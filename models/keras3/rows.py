"""A user's model of Keras 3 that takes rows in a form of its own, such as one of Keras Recommenders."""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from mirrorspark.data_pipelines.features import FittedFeatures
from mirrorspark.data_pipelines.reading import PaddedBatch
from mirrorspark.models.keras3.model import inputs_of
from mirrorspark.models.keras3.retrieval import OwnTowers, retrieval_layer
from mirrorspark.models.own_recommender import OwnCandidates, kept, nothing, of_row, row_count
from mirrorspark.models.settings import ModelSettingsError

# From the columns of rows by name to inputs, label, and weights if there are any, as a dataset of Keras gives them.
Form = Callable[[dict[str, Any]], tuple[Any, ...]]


def prepare(model: Any, form: Form | None, task: str, fitted: FittedFeatures, function: str) -> Any:
    """Create the weights of a model, let it train on its own form of rows, and return its outputs for a row.

    Without a form of its own, and without a layer for retrieval, nothing is done, and the result is None.

    Args:
        model: The model of Keras 3.
        form: Function from the columns of rows to what the model takes; None if it takes the features by name.
        task: ``retrieval``, or the task of a label of rows.
        fitted: The features.
        function: Name of the user's function, for messages.

    Raises:
        ModelSettingsError: It has no candidates, or not those of the label.
    """
    layer, kind = retrieval_layer(model)
    if layer is None and task == "retrieval":
        raise ModelSettingsError(
            f"{function} returns a model of Keras 3 without a layer for retrieval, which a label of kind candidate "
            f"needs: give it keras_rs.layers.BruteForceRetrieval, or extend tfrs.Model"
        )
    if layer is None and form is None:
        return None
    rows = OwnRows(model, form, fitted)
    outputs = model(rows.inputs({}), training=False)
    model.own_rows = rows
    if task != "retrieval":
        return outputs
    ids, table = fitted.id_count(fitted.spec.candidate), layer.candidate_embeddings
    if table is None or layer.candidate_ids is not None or table.shape[0] < ids:
        given = "no candidates" if table is None else f"{table.shape[0]} candidates"
        given += " with candidate_ids of their own" if layer.candidate_ids is not None else ""
        raise ModelSettingsError(
            f"{function} returns a model whose {type(layer).__name__} has {given}, and it is to have one at the place "
            f"of each of the {ids} ids of '{fitted.spec.candidate.name}': give it a table of "
            f"features.id_count(features.spec.candidate) rows"
        )
    model.own_tasks = OwnTowers(model, rows.inputs, layer, kind)
    if model.own_tasks.noted_queries({}) is None:
        raise ModelSettingsError(
            f"{function} returns a model whose call asks no {type(layer).__name__} with training=False; call it with "
            f"the vectors of queries"
        )
    # As the examples of Keras Recommenders call what computes the vectors of candidates anew.
    refresh = getattr(model, "update_candidates", lambda: None)
    model.own_candidates = OwnCandidates(model.own_tasks, ids, refresh)
    return outputs


class OwnRows:
    """The rows of a batch in the form that a model takes."""

    def __init__(self, model: Any, form: Form | None, fitted: FittedFeatures) -> None:
        self._model, self._form, self._spec = model, form, fitted.spec

    def of_batch(self, batch: PaddedBatch) -> tuple[Any, Any, Any]:
        """Return the inputs, label and weights of the rows without padding, or the specifications of those."""
        if not isinstance(batch.weight, tf.TensorSpec):
            return self._real_rows(batch)
        traced = tf.function(self._real_rows, autograph=False).get_concrete_function(batch)
        specs: tuple[Any, Any, Any] = tf.nest.map_structure(
            lambda one: None if one is None else tf.TensorSpec(one.shape, one.dtype), traced.structured_outputs
        )
        return specs

    def inputs(self, columns: Mapping[str, Any]) -> Any:
        """Return the inputs of rows, of which columns may be missing."""
        rows = row_count(columns) if columns else 1
        return self._given(nothing(self._spec, rows) | dict(columns))[0]

    def _real_rows(self, batch: PaddedBatch) -> tuple[Any, Any, Any]:
        counts = batch.weight > 0
        columns = dict(batch.features) | of_row(self._spec, batch.label, batch.weight)
        return self._given({name: kept(values, counts) for name, values in columns.items()})

    def _given(self, columns: dict[Any, Any]) -> tuple[Any, Any, Any]:
        if self._form is None:
            candidate = self._spec.label.kind == "candidate"
            names = [feature.name for feature in (self._spec.query_features if candidate else self._spec.features)]
            label = columns[self._spec.label.name]
            return (
                inputs_of(self._model, {name: columns[name] for name in names}),
                label,
                columns.get(self._spec.weight),
            )
        given = self._form(columns)
        if not isinstance(given, tuple) or not 2 <= len(given) <= 3:
            raise ModelSettingsError(
                f"the function for the rows of {type(self._model).__name__} returns {type(given).__name__}; return "
                f"(inputs, label) or (inputs, label, weights)"
            )
        x, y, *weights = given
        return x, y, weights[0] if weights else columns.get(self._spec.weight)
