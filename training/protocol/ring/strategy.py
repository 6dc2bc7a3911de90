"""`RingStrategy`: synchronous training on several workers, whose gradients are summed over a `Ring` of TCP connections.

It is for CPUs what `MultiWorkerMirroredStrategy` is for GPUs: one replica per worker, Keras' conventions for losses,
optimizers, metrics and callbacks, ``strategy.run``, ``strategy.reduce``. Three differences make it fast:

- all gradients of a step are summed in one collective: dense ones as one flat vector per type, sparse ones by row;
- within a ``tf.function`` a metric has this worker's own value. It is summed over the workers where Python reads it,
  at the end of an epoch or of a validation, and not in every step;
- there is no coordination service. After the loss of a worker the others raise `RingError` instead of aborting.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.distribute import (
    cross_device_ops,
    distribute_lib,
    distribute_utils,
    input_util,
    mirrored_strategy,
    values,
)

from mirrorspark.models.fitting import DistinctSlices
from mirrorspark.training.protocol.ring.ring import Observer, Ring


class RingStrategy(tf.distribute.MirroredStrategy):
    """Trains on the workers of ``ring``, one replica each."""

    # Under other strategies Keras sums the batch logs of this process's replicas; here there is one replica.
    sums_batch_logs = False

    def __init__(self, ring: Ring) -> None:
        """Use ``ring`` for every collective; the caller closes it."""
        # Not MirroredStrategy's own: that is the base class only because Keras scales losses for known strategies.
        tf.distribute.Strategy.__init__(self, _RingExtended(self, ring))
        self.ring = ring

    @classmethod
    def from_tf_config(
        cls,
        token: str,
        *,
        timeout_seconds: float = 60.0,
        limit_seconds: float = 3600.0,
        observer: Observer | None = None,
    ) -> "RingStrategy":
        """Connect to the other workers of ``TF_CONFIG``; without it, train alone. See `Ring.connect`."""
        config = json.loads(os.environ.get("TF_CONFIG", "{}"))
        addresses = config.get("cluster", {}).get("worker", ["127.0.0.1:0"])
        rank = int(config.get("task", {}).get("index", 0))
        return cls(
            Ring.connect(
                rank,
                addresses,
                token,
                timeout_seconds=timeout_seconds,
                limit_seconds=limit_seconds,
                observer=observer,
            )
        )

    @contextlib.contextmanager
    def as_one_replica(self) -> Iterator[None]:
        """Count one replica within the block, whose code averages gradients instead of scaling its loss."""
        self.extended._counted = 1
        try:
            yield
        finally:
            self.extended._counted = self.ring.workers

    @contextlib.contextmanager
    def with_all_rows(self) -> Iterator[None]:
        """Let each rank read all rows of the datasets that are distributed within the block."""
        self.extended._has_all_rows, before = True, self.extended._has_all_rows
        try:
            yield
        finally:
            self.extended._has_all_rows = before

    @contextlib.contextmanager
    def ring_errors(self) -> Iterator[None]:
        """Raise the ring's own errors while the block runs.

        TensorFlow converts them into its own: to an operation's error where a graph runs, and to an error of user code
        where it is traced, which broadcasts the initial values of variables.
        """
        try:
            yield
        except Exception as error:
            failure = self.ring.failure
            if failure is None or failure is error:
                raise
            raise failure from error


class _RingExtended(mirrored_strategy.MirroredExtended):
    """One local replica out of ``ring.workers``."""

    def __init__(self, strategy: RingStrategy, ring: Ring) -> None:
        super().__init__(strategy, devices=["/cpu:0"], cross_device_ops=cross_device_ops.ReductionToOneDevice())
        self._ring = ring
        self._counted = ring.workers
        self._has_all_rows = False

    @property
    def _num_replicas_in_sync(self) -> int:
        return self._counted

    @property
    def experimental_between_graph(self) -> bool:
        return True

    @property
    def should_checkpoint(self) -> bool:
        return self._ring.rank == 0

    @property
    def should_save_summary(self) -> bool:
        return self._ring.rank == 0

    def _in_multi_worker_mode(self) -> bool:
        return True

    def _use_merge_call(self) -> bool:
        return True

    def _get_replica_id_in_sync_group(self, replica_id: int) -> int:
        return self._ring.rank + replica_id

    def _call_for_each_replica(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        # Without MirroredStrategy's threads for replicas, a collective may be inside tf.cond, which local updates need.
        with distribute_lib.ReplicaContext(self._container_strategy(), self._get_replica_id_in_sync_group(0)):
            return fn(*distribute_utils.select_replica(0, args), **distribute_utils.select_replica(0, kwargs))

    def _create_variable(self, next_creator: Callable[..., Any], **kwargs: Any) -> Any:
        """Create a plain variable, unless its writes or reads are aggregated over workers.

        For the few rows of a batch TensorFlow reads a mirrored table as a whole, and then copies it before a write:
        for 50,000 rows that takes longer than the rest of a step.
        """
        if _is_aggregated(kwargs):
            return super()._create_variable(next_creator, **kwargs)
        kwargs.pop("colocate_with", None)  # There is one device.
        kwargs["initial_value"] = self._get_variable_creator_initial_value(
            replica_id=0, device=self._devices[0], primary_var=None, **kwargs
        )
        with tf.device(self._devices[0]):
            return next_creator(**kwargs)

    def _validate_colocate_with_variable(self, colocate_with_variable: Any) -> None:
        """Accept any variable: all are on one device."""

    def _update(self, var: Any, fn: Callable[..., Any], args: Any, kwargs: Any, group: bool) -> Any:
        args, kwargs = distribute_utils.select_replica(0, args), distribute_utils.select_replica(0, kwargs)
        with distribute_lib.UpdateContext(0):
            result = fn(local_variable(var), *args, **kwargs)
        return result if group else (result,)

    def _get_local_replica_id(self, replica_id_in_sync_group: int) -> int:
        return replica_id_in_sync_group - self._ring.rank

    def _get_variable_creator_initial_value(self, replica_id: int, **kwargs: Any) -> Any:
        """Return the chief's initial value: with random values of their own, ranks would train different models.

        Raises:
            ValueError: It is computed within a ``tf.function``, and so has no value yet that could be broadcast.
        """
        initial_value = super()._get_variable_creator_initial_value(replica_id, **kwargs)

        def broadcast() -> Any:
            with tf.init_scope():  # Outside any function that is being traced.
                value = initial_value() if callable(initial_value) else initial_value
                tensor = tf.convert_to_tensor(value, dtype=kwargs.get("dtype"))
            if tensor.dtype == tf.string:  # Cannot be broadcast, and is a constant in practice.
                return tensor
            if (known := tf.get_static_value(tensor)) is None:
                raise ValueError(
                    f"the initial value {tensor.name} of a variable is computed within a tf.function, where the "
                    "workers cannot agree on one; give tf.Variable a function that returns it, or create the variable "
                    "before"
                )
            return tf.constant(self._ring.broadcast(known), tensor.dtype)

        return broadcast if self._ring.workers > 1 and initial_value is not None else initial_value

    def _input_context(self) -> tf.distribute.InputContext:
        workers = self._ring.workers
        return tf.distribute.InputContext(workers, self._ring.rank, workers)

    def _distribute_datasets_from_function(
        self, dataset_fn: Callable[[tf.distribute.InputContext], tf.data.Dataset], options: Any
    ) -> tf.data.Dataset:
        # Plain: TensorFlow's distributed dataset asks all workers in every step whether they have a batch left.
        # A new object, because it is marked: the caller may also use the original in another way.
        dataset = dataset_fn(self._input_context()).with_options(tf.data.Options())
        dataset._is_rank_share = True
        return dataset

    def _experimental_distribute_dataset(self, dataset: tf.data.Dataset, options: Any) -> Any:
        if self._has_all_rows or _is_rank_share(dataset):  # Keras calls this for every plain dataset.
            return dataset
        if _has_fewer_files(dataset, self._ring.workers):
            by_rows = tf.data.Options()
            by_rows.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
            dataset = dataset.with_options(by_rows)
        return input_util.get_distributed_dataset(
            dataset,
            self._input_workers_with_options(options),
            self._container_strategy(),
            num_replicas_in_sync=self._num_replicas_in_sync,
            input_context=self._input_context(),
            options=options,
        )

    def _experimental_distribute_values_from_function(self, value_fn: Callable[[Any], Any]) -> Any:
        context = tf.distribute.experimental.ValueContext(self._ring.rank, self._ring.workers)
        return values.PerReplica((value_fn(context),))

    def _reduce_to(self, reduce_op: Any, value: Any, destinations: Any, options: Any) -> Any:
        if isinstance(value, values.SyncOnReadVariable) and tf.inside_function():
            return value._get_on_device_or_primary().value()
        flat = tf.nest.flatten(value, expand_composites=False)
        return tf.nest.pack_sequence_as(value, self._sum_or_mean(reduce_op, [_local(one) for one in flat]))

    def _batch_reduce_to(self, reduce_op: Any, value_destination_pairs: Sequence[Any], options: Any) -> list[Any]:
        return self._sum_or_mean(reduce_op, [_local(value) for value, _ in value_destination_pairs])

    def _sum_or_mean(self, reduce_op: Any, tensors: Sequence[Any]) -> list[Any]:
        sums = all_reduce(self._ring, tensors)
        if reduce_op == tf.distribute.ReduceOp.MEAN:
            return [_divide(total, self._ring.workers) for total in sums]
        return sums

    def _gather_to_implementation(self, value: Any, destinations: Any, axis: int, options: Any) -> Any:
        local = _local(value)
        moved = tf.experimental.numpy.moveaxis(local, axis, 0)
        gathered = tf.numpy_function(lambda mine: np.concatenate(self._ring.all_gather(mine)), [moved], local.dtype)
        gathered.set_shape([None, *moved.shape[1:]])
        return tf.experimental.numpy.moveaxis(gathered, 0, axis)


def _is_aggregated(kwargs: Mapping[str, Any]) -> bool:
    """Return True if the variable's writes or reads are aggregated over workers."""
    synchronization, aggregation = tf.VariableSynchronization, tf.VariableAggregation
    is_read_alike = kwargs.get("synchronization") in (None, synchronization.AUTO, synchronization.ON_WRITE)
    return not is_read_alike or kwargs.get("aggregation") not in (None, aggregation.NONE)


def local_variable(variable: Any) -> Any:
    """Return this rank's component of a distributed variable; any other variable unchanged."""
    return variable._get_on_device_or_primary() if isinstance(variable, values.DistributedVariable) else variable


def _is_rank_share(dataset: tf.data.Dataset) -> bool:
    """Return True if ``dataset`` is already distributed, or derived from such a one by ``map``, ``prefetch``, ..."""
    return getattr(dataset, "_is_rank_share", False) or any(map(_is_rank_share, dataset._inputs()))


def _has_fewer_files(dataset: tf.data.Dataset, workers: int) -> bool:
    """Return True if TensorFlow would divide files among more workers than there are, which is an error."""
    if dataset.options().experimental_distribute.auto_shard_policy != tf.data.experimental.AutoShardPolicy.AUTO:
        return False
    names = getattr(dataset, "_filenames", None)
    if isinstance(names, tf.data.Dataset) and 0 <= int(names.cardinality()) < workers:
        return True
    return any(_has_fewer_files(one, workers) for one in dataset._inputs())


def all_reduce(ring: Ring, tensors: Sequence[Any]) -> list[Any]:
    """Return the sums of ``tensors`` over all ranks, in one operation of the graph.

    Dense tensors have equal shapes on all ranks. ``tf.IndexedSlices`` stay sparse; their sum has every index once.
    """
    tensors = [tensor if isinstance(tensor, tf.IndexedSlices) else tf.convert_to_tensor(tensor) for tensor in tensors]
    if ring.workers == 1:
        return [_without_duplicates(one) if isinstance(one, tf.IndexedSlices) else one for one in tensors]
    sparse = [number for number, tensor in enumerate(tensors) if isinstance(tensor, tf.IndexedSlices)]
    of_dtype: dict[tf.DType, list[int]] = {}
    for number, tensor in enumerate(tensors):
        if number not in sparse:
            of_dtype.setdefault(tensor.dtype, []).append(number)
    sent = [tf.concat([tf.reshape(tensors[number], [-1]) for number in of], axis=0) for of in of_dtype.values()]
    flat_count = len(sent)
    for number in sparse:
        sent += [tf.convert_to_tensor(part) for part in (tensors[number].values, tensors[number].indices)]

    def exchange(*arrays: Any) -> list[Any]:
        flat = [ring.all_reduce(array) for array in arrays[:flat_count]]
        if len(arrays) == flat_count:
            return flat
        # Not for dense gradients: it loads numba.
        from mirrorspark.training.protocol.ring.row_sums import sum_rows

        # A batch has frequent tokens many times: their sums are sent, and not every slice.
        own = [sum_rows([slices]) for slices in _pairs(arrays[flat_count:])]
        # In one message: for many small tables the number of messages would cost more than the bytes.
        gathered = ring.all_gather_many([*itertools.chain(*own)])
        by_tensor = zip(*map(_pairs, gathered), strict=True)
        return [*flat, *itertools.chain(*map(sum_rows, by_tensor))]

    if tf.executing_eagerly():
        received = [tf.constant(array) for array in exchange(*(part.numpy() for part in sent))]
    else:
        # One stateful operation: two could run in different orders on different ranks.
        received = tf.numpy_function(exchange, sent, [part.dtype for part in sent], stateful=True)
    sums: list[Any] = list(tensors)
    for flat, numbers in zip(received[:flat_count], of_dtype.values(), strict=True):
        shapes = [tf.shape(tensors[number]) for number in numbers]
        sizes = [tf.size(tensors[number]) for number in numbers]
        for number, shape, part in zip(numbers, shapes, tf.split(flat, tf.stack(sizes), num=len(sizes)), strict=True):
            sums[number] = tf.ensure_shape(tf.reshape(part, shape), tensors[number].shape)
    gathered = iter(received[flat_count:])
    for number in sparse:
        part, indices = next(gathered), next(gathered)
        part.set_shape([None, *tensors[number].values.shape[1:]])
        indices.set_shape([None])
        sums[number] = DistinctSlices(part, indices, tensors[number].dense_shape)
    return sums


def _pairs(arrays: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(arrays[::2], arrays[1::2], strict=True)


def _without_duplicates(slices: tf.IndexedSlices) -> DistinctSlices:
    """Return ``slices`` with one slice per index: Keras's norm for clipping assumes that no index repeats."""
    indices, places = tf.unique(slices.indices)
    sums = tf.math.unsorted_segment_sum(slices.values, places, tf.size(indices))
    return DistinctSlices(sums, indices, slices.dense_shape)


def _local(value: Any) -> Any:
    """Return this rank's part of a distributed value."""
    if isinstance(value, values.DistributedVariable):
        return local_variable(value).value()
    return value.values[0] if isinstance(value, values.DistributedValues) else value


def _divide(tensor: Any, by: int) -> Any:
    if isinstance(tensor, tf.IndexedSlices):
        return tf.IndexedSlices(_divide(tensor.values, by), tensor.indices, tensor.dense_shape)
    return tensor / tf.cast(by, tensor.dtype)
