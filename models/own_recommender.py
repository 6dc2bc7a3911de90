"""A user's own model of TensorFlow Recommenders: its steps on batches of a dataset, and the vectors of its towers.

``compute_loss`` says all: it is given the columns of rows by name, and gives vectors of queries and candidates, or
predictions, to a task. So towers may have any name, and any form.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features import FeatureSpec, FittedFeatures, kinds
from mirrorspark.data_pipelines.reading import PaddedBatch
from mirrorspark.models.fitting import absent_rows, scale_in_hand, share_of_rows
from mirrorspark.models.settings import ModelSettingsError

_LIBRARY = "tensorflow_recommenders"


def is_recommender(model: Any) -> bool:
    """Return whether a model extends ``tfrs.Model``, without importing TensorFlow Recommenders."""
    return any(kind.__module__.startswith(f"{_LIBRARY}.models") for kind in type(model).__mro__)


def prepare(model: Any, task: str, fitted: FittedFeatures, function: str) -> None:
    """Create the weights of a ``tfrs.Model``, and let it train on batches of a dataset.

    Args:
        model: The model.
        task: ``retrieval``, or the task of a label of rows.
        fitted: The features.
        function: Name of the user's function, for messages.

    Raises:
        ModelSettingsError: It calls no task that goes with the label, would need its loss scaled, or has an index of
            ScaNN already.
    """
    if tf_keras.mixed_precision.global_policy().name == "mixed_float16":
        raise ModelSettingsError(
            f"precision mixed_float16 needs its losses scaled, which the tfrs.Model of {function} does not do; use "
            f"mixed_bfloat16"
        )
    spec = fitted.spec
    given = _given_to_tasks(model, nothing(spec, 1))
    found, name, takes = (given.vectors, "Retrieval", "the vectors of queries and candidates")
    if task != "retrieval":
        found, name, takes = (given.predictions, "Ranking", "labels and predictions")
    if found is None:
        raise ModelSettingsError(
            f"{function} returns a model whose compute_loss calls no tfrs.tasks.{name}, which the label "
            f"'{spec.label.name}' of kind {spec.label.kind} needs; give such a task {takes}"
        )
    if any(weight.dtype == tf.string for weight in model.trainable_weights):
        raise ModelSettingsError(
            f"{function} returns a model whose ScaNN index has candidates before the training, those of untrained "
            f"towers; leave index_from_dataset out: the exported model has indexes of the trained candidates"
        )
    model.own_tasks = OwnTasks(model, spec)
    if task == "retrieval":
        model.own_candidates = OwnCandidates(model.own_tasks, fitted.id_count(spec.candidate))
    model.own_loss = tf_keras.metrics.Mean(name="loss")
    steps = _Steps(model, spec)
    model.train_step, model.test_step = steps.train, steps.test


class OwnTasks:
    """The vectors and predictions that a model gives to its tasks, for rows of which some columns are missing."""

    def __init__(self, model: Any, spec: FeatureSpec) -> None:
        self._model, self._spec = model, spec

    def query_vectors(self, inputs: Mapping[str, Any]) -> tf.Tensor:
        """Return the vectors of queries, float32 ``[batch, dim]``."""
        return self._given(inputs).vectors[0]

    def candidate_vectors(self, ids: tf.Tensor) -> tf.Tensor:
        """Return the vectors of candidates, float32 ``[ids, dim]``."""
        return self._given({self._spec.candidate.name: ids}).vectors[1]

    def predictions(self, inputs: Mapping[str, Any]) -> tuple[tf.Tensor, Any]:
        """Return the predictions of the first ranking task, float32, and that task's loss."""
        given = self._given(inputs)
        return tf.cast(given.predictions, tf.float32), given.loss

    def _given(self, inputs: Mapping[str, Any]) -> "_Given":
        return _given_to_tasks(self._model, nothing(self._spec, row_count(inputs)) | dict(inputs))


class OwnCandidates:
    """The candidates of a model by id, like other candidate towers; no layer, so that it is not saved with the model.

    Attributes:
        input_dim: Number of ids.
        refresh: Called before the vectors of all ids are read.
    """

    def __init__(self, tasks: Any, id_count: int, refresh: Callable[[], Any] = lambda: None) -> None:
        self.input_dim, self.refresh = id_count, refresh
        self._vectors = tf.function(tasks.candidate_vectors, reduce_retracing=True, autograph=False)

    def __call__(self, ids: tf.Tensor) -> tf.Tensor:
        """Return the vectors of int64 ids, float32 ``[ids, dim]``."""
        return self._vectors(tf.cast(ids, tf.int64))


@dataclass
class _Given:
    """The arguments of the first retrieval task, and of the first ranking task with its loss."""

    vectors: Any = None
    predictions: Any = None
    loss: Any = None


def _given_to_tasks(model: Any, inputs: Mapping[str, Any]) -> _Given:
    given = _Given()
    with _noting(given), _no_updates(model):
        model.compute_loss(dict(inputs), training=False)  # a dict of its own, from which it may take the label
    return given


@contextlib.contextmanager
def _no_updates(model: Any) -> Iterator[None]:
    """Leave the model's metrics as they are in the block: outside of a step a strategy refuses to update them."""
    updates = [(metric, metric.update_state) for metric in model.metrics]
    for metric, _ in updates:
        metric.update_state = lambda *_, **__: None
    try:
        yield
    finally:
        for metric, update in updates:
            metric.update_state = update


@contextlib.contextmanager
def _noting(given: _Given) -> Iterator[None]:
    """Let tasks note their arguments, and compute nothing, while the block runs."""
    from mirrorspark.models.recommenders import tfrs

    def retrieve(task: Any, query_embeddings: Any, candidate_embeddings: Any, *_: Any, **__: Any) -> tf.Tensor:
        if given.vectors is None:
            given.vectors = query_embeddings, candidate_embeddings
        return tf.zeros([])

    def rank(task: Any, labels: Any, predictions: Any, *_: Any, **__: Any) -> tf.Tensor:
        if given.predictions is None:
            given.predictions, given.loss = predictions, task._loss
        return tf.zeros([])

    tfrs.tasks.Retrieval.__call__, tfrs.tasks.Ranking.__call__ = retrieve, rank
    try:
        yield
    finally:
        del tfrs.tasks.Retrieval.__call__, tfrs.tasks.Ranking.__call__  # those of Keras' layers count again


class _Steps:
    """The steps of a model on the rows of a batch that are not padding, all of which its tasks would count."""

    def __init__(self, model: Any, spec: FeatureSpec) -> None:
        self._model, self._spec = model, spec
        self._own = {
            name: getattr(model, name)
            for name in ("train_step", "test_step")
            if not getattr(type(model), name).__module__.startswith(_LIBRARY)
        }

    def train(self, batch: Any) -> Mapping[str, Any]:
        """Make one update; return the metrics so far, over all workers."""
        model = self._model
        for optimizer in absent_rows.optimizers_of(model, tf_keras.optimizers.Optimizer):
            absent_rows.count_gradients(optimizer)

        def step(inputs: dict[str, Any], rows: tf.Tensor, has_rows: Any) -> Mapping[str, Any]:
            if "train_step" in self._own:
                return dict(self._own["train_step"](inputs))
            with tf.GradientTape() as tape:
                loss = self._loss(inputs, training=True)
            gradients = tape.gradient(loss, model.trainable_variables)
            model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            return self._logs(absent_rows.counted(loss, has_rows), rows)

        return self._of_real_rows(step, batch)

    def test(self, batch: Any) -> Mapping[str, Any]:
        """Return the metrics so far, over all workers."""

        def step(inputs: dict[str, Any], rows: tf.Tensor, has_rows: Any) -> Mapping[str, Any]:
            if "test_step" in self._own:
                return dict(self._own["test_step"](inputs))
            return self._logs(absent_rows.counted(self._loss(inputs, training=False), has_rows), rows)

        return self._of_real_rows(step, batch)

    def _of_real_rows(self, step: Callable[..., Mapping[str, Any]], batch: Any) -> Mapping[str, Any]:
        """Return the logs of a step on the rows of a batch that are not padding, of which a worker may have none."""
        inputs, rows, share = self._real_rows(batch)
        has_rows = share > 0 if absent_rows.may_lack_rows(tf.distribute.get_strategy()) else True
        with share_of_rows(share):
            logs: Mapping[str, Any]
            of_rows = functools.partial(step, inputs, rows, has_rows)
            logs, _ = absent_rows.run_step(of_rows, has_rows, self._model)
        return logs

    def _loss(self, inputs: Mapping[str, Any], *, training: bool) -> tf.Tensor:
        """Return this worker's part of the loss: those of all workers are summed."""
        loss = tf.reduce_sum(self._model.compute_loss(dict(inputs), training=training))
        penalties = [tf.reduce_sum(penalty) for penalty in self._model.losses]
        return loss + tf.add_n(penalties) / _workers() if penalties else loss

    def _logs(self, loss: tf.Tensor, rows: tf.Tensor) -> Mapping[str, Any]:
        """Return the values of all metrics; the loss of an epoch is the mean of its batches' by their rows."""
        self._model.own_loss.update_state(loss * _workers(), sample_weight=rows)
        return {metric.name: metric.result() for metric in self._model.metrics}

    def _real_rows(self, batch: Any) -> tuple[dict[str, Any], tf.Tensor, tf.Tensor]:
        """Return the columns of this worker's rows, the number of rows of all workers, and this worker's share."""
        features, label, weight = batch[:3]
        scale = batch.scale if isinstance(batch, PaddedBatch) else scale_in_hand()
        rows = tf.cast(tf.shape(weight)[0], tf.float32) * _workers() / scale
        # Padding is spread over the share: it follows the rows of each lane (:mod:`data_pipelines.reading.order`).
        counts = weight > 0
        named = dict(features) | of_row(self._spec, label, weight)
        inputs = {name: kept(values, counts) for name, values in named.items()}
        return inputs, rows, tf.reduce_sum(tf.cast(counts, tf.float32)) / rows


def _workers() -> int:
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def of_row(spec: FeatureSpec, label: Any, weight: Any) -> dict[str, Any]:
    """Return the label and the weight of rows by the names of their columns."""
    named = {spec.label.stored: label, spec.weight: weight}
    return {name: values for name, values in named.items() if name is not None}


def kept(values: Any, is_kept: tf.Tensor) -> Any:
    """Return the rows of a column that are kept."""
    if not isinstance(values, tf.SparseTensor):
        return tf.boolean_mask(values, is_kept)
    places = tf.cumsum(tf.cast(is_kept, tf.int64))
    found = tf.sparse.retain(values, tf.gather(is_kept, values.indices[:, 0]))
    indices = tf.stack([tf.gather(places, found.indices[:, 0]) - 1, found.indices[:, 1]], axis=1)
    return tf.SparseTensor(indices, found.values, tf.stack([tf.reduce_max(places), values.dense_shape[1]]))


def row_count(inputs: Mapping[str, Any]) -> tf.Tensor:
    """Return the number of rows of columns."""
    first = next(iter(inputs.values()))
    return tf.cast(first.dense_shape[0], tf.int32) if isinstance(first, tf.SparseTensor) else tf.shape(first)[0]


def nothing(spec: FeatureSpec, rows: Any) -> dict[str, Any]:
    """Return rows of missing values: ids of 0, numbers of 0, and empty lists, with a label of 0."""
    label_type = tf.int64 if spec.label.form == "multi_class" else tf.float32
    found = {feature.name: _missing(feature, rows) for feature in spec.features}
    return found | of_row(spec, tf.zeros([rows], label_type), tf.ones([rows]))


def _missing(feature: kinds.Feature, rows: Any) -> Any:
    if isinstance(feature, kinds.Sparse):
        shape = tf.stack([tf.cast(rows, tf.int64), feature.size])
        return tf.SparseTensor(tf.zeros([0, 2], tf.int64), tf.zeros([0]), shape)
    if isinstance(feature, kinds.ListFeature):
        return tf.zeros([rows, feature.max_length], tf.int64)
    if isinstance(feature, kinds.VectorFeature):
        return tf.zeros([rows, feature.size])
    return tf.zeros([rows], tf.float32 if feature.form == "value" else tf.int64)
