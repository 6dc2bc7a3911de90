"""Batches for graphs that the coordinator builds and workers run.

The dataset is read by Python code, which a graph cannot carry: TensorFlow looks it up by name in the process that runs
the operation. So each worker registers its batches under a name (`BatchSupply`), and the coordinator's graphs refer to
that name (`RemoteBatches`).
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy.typing as npt
import tensorflow as tf

from mirrorspark.data_pipelines.reading import Dataset, ReadPlan, load_batches
from mirrorspark.training.protocol.outcomes import Activity

_TRAIN, _VALIDATION = 0, 1
_PREFETCHED_BATCHES = 2

Array = npt.NDArray[Any]


class BatchSupply:
    """A worker's batches: of its training stream in order, of the validation split by number; graphs use ``name``."""

    def __init__(
        self,
        dataset: Dataset,
        training: ReadPlan,
        validation: ReadPlan,
        activity: Activity,
        input_hook: Callable[[tf.data.Dataset], tf.data.Dataset] = lambda stream: stream,
    ) -> None:
        """Open the dataset; nothing is read yet.

        Args:
            dataset: The dataset directory.
            training: The worker's part of the training split.
            validation: Batches of the validation split.
            activity: The worker's activity.
            input_hook: Wraps the training stream; a test delays the data by it.
        """
        self._dataset = dataset
        self._validation = validation
        self._activity = activity
        # An update is one worker's share; see `worker_read_plan`.
        stream = input_hook(load_batches(dataset, training, scaled_to="share", busy=activity.input_busy))
        self._training = iter(stream)
        self._validating: Iterator[Any] = iter(())
        self._next_step = -1
        self._turn = threading.Lock()
        # The graph keeps the Python function registered; it is never run.
        self._graph = tf.Graph()
        with self._graph.as_default():
            number = tf.constant(0, tf.int64)
            tensors = tf.numpy_function(self._batch, [number, number], _types(stream.element_spec))
        self.name = tensors[0].op.get_attr("token").decode()

    def _batch(self, split: Array, step: Array) -> list[Array]:
        with self._turn:
            batch = next(self._training) if split == _TRAIN else self._validation_batch(int(step))
            if split == _TRAIN:
                self._activity.step += 1
        return [tensor.numpy() for tensor in tf.nest.flatten(batch, expand_composites=True)]

    def _validation_batch(self, step: int) -> Any:
        # Each call of a worker covers consecutive steps; the next call begins elsewhere.
        if step != self._next_step:
            plan = dataclasses.replace(self._validation, step=step)
            self._validating = iter(
                load_batches(self._dataset, plan, scaled_to="batch", busy=self._activity.input_busy)
            )
        self._next_step = step + 1
        return next(self._validating)


class RemoteBatches:
    """The workers' batches in the coordinator's graphs."""

    def __init__(self, name: str, dataset: Dataset, training: ReadPlan, validation: ReadPlan) -> None:
        """Get the shapes of both splits; nothing is read.

        Args:
            name: Name of the workers' `BatchSupply`.
            dataset: The workers' dataset.
            training: Any worker's part of the training split: all have batches of one shape.
            validation: Batches of the validation split.
        """
        self._name = name
        self._training = load_batches(dataset, training, scaled_to="share").element_spec
        self._validation = load_batches(dataset, validation, scaled_to="batch").element_spec

    def training(self, _: tf.distribute.InputContext) -> tf.data.Dataset:
        """Return the training stream of the worker that builds it."""
        options = tf.data.Options()
        options.autotune.enabled = False  # as in load_batches
        stream = tf.data.Dataset.counter().map(lambda step: self._request(self._training, _TRAIN, step))
        return stream.prefetch(_PREFETCHED_BATCHES).with_options(options)

    def validation(self, step: tf.Tensor) -> Any:
        """Return batch number ``step`` (int64) of the validation split, read by the worker that runs this."""
        return self._request(self._validation, _VALIDATION, step)

    def _request(self, spec: Any, split: int, step: tf.Tensor) -> Any:
        tensors = tf.raw_ops.PyFunc(input=[tf.constant(split, tf.int64), step], token=self._name, Tout=_types(spec))
        for tensor, component in zip(tensors, _components(spec), strict=True):
            tensor.set_shape(component.shape)
        return tf.nest.pack_sequence_as(spec, tensors, expand_composites=True)


def _types(spec: Any) -> list[tf.DType]:
    return [component.dtype for component in _components(spec)]


def _components(spec: Any) -> list[tf.TensorSpec]:
    return list(tf.nest.flatten(spec, expand_composites=True))
