"""Batches for graphs that the coordinator makes and workers run.

Reading the dataset is Python code, which does not travel in a graph: TensorFlow finds it by a name, in the process that
runs the operation. So each worker gives its batches under a name (`BatchSupply`), and the coordinator's graphs ask for
them by that name (`RemoteBatches`).
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy.typing as npt
import tensorflow as tf

from mirrorspark.data_pipelines.reading.dataset import Dataset, ReadPlan, load_batches
from mirrorspark.training.protocol.activity import Activity

_TRAIN, _VALIDATION = 0, 1
_PREFETCHED_BATCHES = 2

Array = npt.NDArray[Any]


class BatchSupply:
    """A worker's batches: those of its training stream one after the other, those of the validation by number.

    Attributes:
        name: Under which graphs find it.
    """

    def __init__(
        self,
        dataset: Dataset,
        training: ReadPlan,
        validation: ReadPlan,
        activity: Activity,
        gate: Callable[[tf.data.Dataset], tf.data.Dataset] = lambda stream: stream,
    ) -> None:
        """Open the dataset; nothing is read yet.

        Args:
            dataset: What is read.
            training: What this worker reads of its training split.
            validation: How the batches of its validation split are cut.
            activity: The rank's board.
            gate: Returns what the training stream is to be read through; a fault to inject may hold it up.
        """
        self._dataset = dataset
        self._validation = validation
        self._activity = activity
        stream = gate(load_batches(dataset, training, busy=activity.input_busy))
        self._training = iter(stream)
        self._validating: Iterator[Any] = iter(())
        self._next_step = -1
        self._turn = threading.Lock()
        # A graph keeps alive what it names; it is never run.
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
        # A worker is given some steps in a row, then goes on where the others have not been.
        if step != self._next_step:
            plan = dataclasses.replace(self._validation, step=step)
            self._validating = iter(load_batches(self._dataset, plan, busy=self._activity.input_busy))
        self._next_step = step + 1
        return next(self._validating)


class RemoteBatches:
    """What stands for the workers' batches in the coordinator's graphs."""

    def __init__(self, name: str, dataset: Dataset, training: ReadPlan, validation: ReadPlan) -> None:
        """Look at the shapes of both splits; nothing is read.

        Args:
            name: What the workers' `BatchSupply` is called.
            dataset: The same as theirs.
            training: What some worker reads of it: all have batches of one shape.
            validation: As theirs.
        """
        self._name = name
        self._training = load_batches(dataset, training).element_spec
        self._validation = load_batches(dataset, validation).element_spec

    def training(self, _: tf.distribute.InputContext) -> tf.data.Dataset:
        """Return the training stream of whichever worker builds it."""
        options = tf.data.Options()
        options.autotune.enabled = False  # as in load_batches
        stream = tf.data.Dataset.counter().map(lambda step: self._ask(self._training, _TRAIN, step))
        return stream.prefetch(_PREFETCHED_BATCHES).with_options(options)

    def validation(self, step: tf.Tensor) -> Any:
        """Return the batch number ``step`` (int64) of the validation split, from whichever worker runs this."""
        return self._ask(self._validation, _VALIDATION, step)

    def _ask(self, spec: Any, split: int, step: tf.Tensor) -> Any:
        tensors = tf.raw_ops.PyFunc(input=[tf.constant(split, tf.int64), step], token=self._name, Tout=_types(spec))
        for tensor, component in zip(tensors, _components(spec), strict=True):
            tensor.set_shape(component.shape)
        return tf.nest.pack_sequence_as(spec, tensors, expand_composites=True)


def _types(spec: Any) -> list[tf.DType]:
    return [component.dtype for component in _components(spec)]


def _components(spec: Any) -> list[tf.TensorSpec]:
    return list(tf.nest.flatten(spec, expand_composites=True))
