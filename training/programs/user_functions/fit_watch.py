"""Adds callbacks to every ``fit`` of a user's training function, and follows the datasets that it distributes."""

import contextlib
import functools
import inspect
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
import wrapt  # a dependency of TensorFlow
from tensorflow.python.data.experimental.ops import distribute
from tensorflow.python.distribute.distribute_lib import StrategyBase
from tensorflow.python.framework import ops

from mirrorspark.callbacks import BackupAndRestore, ChiefCheckpoint, EventCallback, StopOnRequest, TrainingStopped
from mirrorspark.data_pipelines.reading import PaddedBatch
from mirrorspark.models import keras3
from mirrorspark.models.fitting import absent_rows
from mirrorspark.training.executor import TrainingHook
from mirrorspark.training.programs.keras_fit import ActivityCallback
from mirrorspark.training.programs.user_functions.plan import UnsupportedKerasError
from mirrorspark.training.protocol.outcomes import Activity
from mirrorspark.training.protocol.ring import RingStrategy

# Keras' default for arrays.
_KERAS_BATCH_SIZE = 32

# Fields of an event that follow from the rows of a step.
_RATES = ("examples_per_second", "global_batch_size")

logger = logging.getLogger(__name__)


class FitWatch:
    """Adds callbacks to each ``fit`` while it is installed: progress, phases, stop requests, and those of the hook.

    A second ``fit`` from epoch 0 on is another training (a fold, a fine-tuning): its metrics are named ``fit_2/loss``.
    One with an ``initial_epoch`` continues the existing curves.

    A distributed dataset has no batch size and cannot be wrapped any more, so datasets are inspected before a strategy
    distributes them.

    Attributes:
        stopped: The exception that ended a stopped ``fit``, even if the function caught it; None if none was stopped.
    """

    def __init__(
        self,
        send: Callable[[dict[str, Any]], None],
        activity: Activity,
        is_stop_requested: Callable[[], bool],
        hook: TrainingHook,
    ) -> None:
        """Prepare; :meth:`installed` begins.

        Args:
            send: Sends an event to the driver.
            activity: The rank's activity.
            is_stop_requested: Returns True if this rank was asked to stop.
            hook: Changes the callbacks and the training data.
        """
        self._send = send
        self._activity = activity
        self._is_stop_requested = is_stop_requested
        self._hook = hook
        self.stopped: TrainingStopped | None = None
        self._fits = 0
        self._completed: dict[int, int] = {}
        self._is_within = False
        # By distributed dataset; a function may distribute a new one for every fold.
        self._distributed: weakref.WeakKeyDictionary[Any, _Distributed] = weakref.WeakKeyDictionary()

    @property
    def epochs(self) -> int:
        """Completed epochs of all fits, including those before a restart if the function resumes."""
        return sum(self._completed.values())

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Replace ``Model.fit`` of tf-keras and of Keras 3 while the block runs."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._watching(tf_keras.Model))
            is_over = threading.Event()
            stack.callback(is_over.set)

            def watch(keras: ModuleType) -> None:
                if not is_over.is_set():
                    stack.enter_context(self._watching(keras.Model))

            # A function of tf-keras is spared the second of Keras 3's import.
            wrapt.register_post_import_hook(watch, "keras")
            stack.enter_context(self._inspecting_datasets())
            stack.enter_context(_scope_over_resets())
            yield

    @contextlib.contextmanager
    def _watching(self, kind: Any) -> Iterator[None]:
        """Replace ``fit`` of a class while the block runs."""
        original, is_own = kind.fit, "fit" in vars(kind)
        signature = inspect.signature(original)

        @functools.wraps(original)
        def fit(model: Any, *args: Any, **kwargs: Any) -> Any:
            call = signature.bind(model, *args, **kwargs)
            if keras3.is_keras3(model):
                _prepare_keras3(model)
            elif isinstance(model.distribute_strategy, RingStrategy):
                absent_rows.guard_steps(model)
            if self._is_within or not self._add_callbacks(call.arguments):
                return original(model, *args, **kwargs)
            self._is_within = True
            try:
                return original(*call.args, **call.kwargs)
            except TrainingStopped as stopped:
                self.stopped = stopped
                raise
            finally:
                self._count_resumed_epochs(call.arguments["callbacks"])
                self._is_within = False
                self._activity.enter("building")

        kind.fit = fit
        try:
            yield
        finally:
            if is_own:
                kind.fit = original
            else:
                del kind.fit

    @contextlib.contextmanager
    def _inspecting_datasets(self) -> Iterator[None]:
        """Inspect each dataset that the block distributes; those that Keras distributes within ``fit`` are known."""
        from_function = StrategyBase.distribute_datasets_from_function
        from_dataset = StrategyBase.experimental_distribute_dataset

        @functools.wraps(from_function)
        def distribute_from_function(strategy: Any, dataset_fn: Any, options: Any = None) -> Any:
            if self._is_within:
                return from_function(strategy, dataset_fn, options)
            known = _Distributed()

            def rank_dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
                dataset = dataset_fn(context)
                size = _batch_size(dataset)
                # Every replica of every rank takes its own batches.
                known.global_batch_size = size * strategy.num_replicas_in_sync if size else None
                return self._hook.input(dataset, lambda: known.is_training)

            distributed = from_function(strategy, rank_dataset, options)
            self._distributed[distributed] = known
            return distributed

        @functools.wraps(from_dataset)
        def distribute_dataset(strategy: Any, dataset: Any, options: Any = None) -> Any:
            if self._is_within or not isinstance(dataset, tf.data.Dataset) or dataset in self._distributed:
                return from_dataset(strategy, dataset, options)
            known = _Distributed(_batch_size(dataset))
            distributed = from_dataset(strategy, self._hook.input(dataset, lambda: known.is_training), options)
            self._distributed[distributed] = known
            return distributed

        StrategyBase.distribute_datasets_from_function = distribute_from_function
        StrategyBase.experimental_distribute_dataset = distribute_dataset
        try:
            yield
        finally:
            StrategyBase.distribute_datasets_from_function = from_function
            StrategyBase.experimental_distribute_dataset = from_dataset

    def _add_callbacks(self, arguments: dict[str, Any]) -> bool:
        """Add our callbacks to the arguments of ``fit``; return False if that is impossible."""
        given = arguments.get("callbacks")
        if type(given).__name__ == "CallbackList":  # of either Keras
            logger.warning("fit was given a CallbackList, so its progress is not shown; give it a plain list instead")
            return False
        own = tf.nest.flatten(given) if given else []
        if not arguments.get("initial_epoch"):
            self._fits += 1
        prefix = f"fit_{self._fits}/" if self._fits > 1 else ""
        x = arguments.get("x")
        known = self._distributed.get(x) if isinstance(x, tf.data.Dataset | tf.distribute.DistributedDataset) else None
        size = known.global_batch_size if known else global_batch_size(x, arguments.get("batch_size"))
        progress = EventCallback(self._sender(prefix, has_rate=size is not None), global_batch_size=size or 1)
        checkpoint = next((callback for callback in own if isinstance(callback, ChiefCheckpoint)), _OwnCheckpoints())
        if known is None:
            arguments["x"] = self._hook.input(x)
        else:
            known.is_training = True
        callbacks = [
            ActivityCallback(self._activity),
            *own,
            # After the function's own, which may add to the logs or replace them by means over the ranks.
            progress,
            StopOnRequest(self._is_stop_requested, checkpoint),  # type: ignore[arg-type] # only save_now is used
        ]
        arguments["callbacks"] = self._hook.callbacks(callbacks)
        return True

    def _count_resumed_epochs(self, callbacks: list[Any]) -> None:
        """Count the epochs of a resumed fit with no epoch left."""
        for callback in callbacks:
            if isinstance(callback, BackupAndRestore):
                self._completed.setdefault(self._fits, callback.initial_epoch)

    def _sender(self, prefix: str, *, has_rate: bool) -> Callable[[dict[str, Any]], None]:
        def send(event: dict[str, Any]) -> None:
            if event["event"] == "epoch_end":
                self._completed[self._fits] = event["epoch"]
                event = event | {"logs": {f"{prefix}{name}": value for name, value in event["logs"].items()}}
            if not has_rate:
                event = event | {name: None for name in _RATES if name in event}
            self._send(event)

        return send


@contextlib.contextmanager
def _scope_over_resets() -> Iterator[None]:
    """Keep the scope of a strategy over ``clear_session`` of either Keras, after which each rank would train alone."""
    graphs = ops._default_graph_stack
    reset = graphs.reset

    def keep_scope() -> None:
        scopes = ops.get_default_graph()._distribution_strategy_stack
        reset()
        ops.get_default_graph()._distribution_strategy_stack = scopes

    graphs.reset = keep_scope
    try:
        yield
    finally:
        del graphs.reset


def _prepare_keras3(model: Any) -> None:
    """Make a model of Keras 3 train with the other ranks.

    Raises:
        UnsupportedKerasError: It is under TensorFlow's strategy for several workers, where Keras 3 does not train.
        ModelSettingsError: Keras has another backend than TensorFlow.
    """
    keras3.require_tensorflow("the function's model")
    strategy = model.distribute_strategy
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy | tf.distribute.ParameterServerStrategy):
        raise UnsupportedKerasError(
            f"the function fits a model of Keras 3 under {type(strategy).__name__}, which trains models of tf-keras "
            f"alone: give strategy='ring', or build the model with tf_keras"
        )
    if isinstance(strategy, RingStrategy) and model.compiled:
        keras3.share_steps(model)


def global_batch_size(x: Any, batch_size: int | None) -> int | None:
    """Return the rows of a step over all replicas if known: for arrays, and for batched datasets."""
    if isinstance(x, tf.data.Dataset):
        return _batch_size(x)
    parts = tf.nest.flatten(x)
    if parts and all(isinstance(part, np.ndarray | tf.Tensor) for part in parts):
        return batch_size or _KERAS_BATCH_SIZE
    return None


def _batch_size(dataset: tf.data.Dataset) -> int | None:
    if isinstance(dataset.element_spec, PaddedBatch):  # whose scale has no rows, which TensorFlow does not expect
        return dataset.element_spec.weight.shape[0]
    # Not from the shapes, which are unknown if the last batch may be smaller.
    size = int(distribute.compute_batch_size(dataset))
    return size if size > 0 else None


@dataclass
class _Distributed:
    """The rows of a step of a distributed dataset, if known; it is training data once ``fit`` has it."""

    global_batch_size: int | None = None
    is_training: bool = False


class _OwnCheckpoints:
    """Replaces the `ChiefCheckpoint` in a training without one."""

    def save_now(self) -> str:
        return "its own checkpoints, if it has any"
