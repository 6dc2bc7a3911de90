"""Runs somebody's own training function in the process of a rank, unchanged, and lets its driver watch."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from mirrorspark.callbacks.checkpoints.fence import ATTEMPT_VARIABLE, CHECKPOINTS_VARIABLE, FENCE_VARIABLE
from mirrorspark.training.fault_injection import injected as injected_faults
from mirrorspark.training.functions import plan as function_plan
from mirrorspark.training.functions.fit_watch import FitWatch
from mirrorspark.training.functions.plan import FunctionPlan, ReturnValueError
from mirrorspark.training.protocol.activity import Activity
from mirrorspark.training.ring.strategy import RingStrategy

if TYPE_CHECKING:
    from mirrorspark.training.executor.worker_control import Finish, WorkerControl

# Outside of `fit` nobody knows what takes long and what hangs: one rank may prepare data for hours while others wait.
_RING_SECONDS = 24 * 3600.0

logger = logging.getLogger(__name__)


def train(plan: FunctionPlan, control: "WorkerControl", finish: "Finish") -> None:
    """Call the function that came along, in the scope that it is used to; then call ``finish``.

    Args:
        plan: Where and with whom.
        control: Ties this rank to its driver; its payload is the function.
        finish: Takes the number of completed epochs, on rank 0 with what the function returned.

    Raises:
        TrainFnError: The function cannot be loaded here.
        RingError: Another rank is gone.
        TrainingStopped: The rank was asked to stop.
        Exception: Whatever the function raises.
    """
    train_fn, kwargs = function_plan.unpack_function(control.payload)
    os.environ[CHECKPOINTS_VARIABLE] = plan.checkpoints
    os.environ[ATTEMPT_VARIABLE] = str(plan.attempt)
    os.environ[FENCE_VARIABLE] = plan.fence or ""
    faults = injected_faults.from_environment(os.environ, control.rank, plan.attempt, control.activity.input_busy)
    watch = FitWatch(control.events.send, control.activity, control.stop_request.is_set, faults)
    with _scope(plan, control.activity), watch.installed():
        # Until it calls fit nobody can tell work from standing still: data may have to be fetched first.
        control.activity.enter("building")
        value = _called(train_fn, kwargs, watch)
    finish(watch.epochs, **(_returned(value) if control.rank == 0 else {}))


def _called(train_fn: Callable[..., Any], kwargs: dict[str, Any], watch: FitWatch) -> Any:
    """Return what the function does, unless it was asked to stop: then it has not come to its end.

    It may catch what ends its ``fit``, as around the folds of a validation.

    Raises:
        TrainingStopped: The rank was asked to stop.
        Exception: Whatever the function raises.
    """
    try:
        value = train_fn(**kwargs)
    except Exception as error:
        if watch.stopped is None:
            raise
        if error is not watch.stopped:
            logger.warning("after its training was stopped the function raised %s: %s", type(error).__name__, error)
        raise watch.stopped from None
    if watch.stopped is not None:
        raise watch.stopped
    return value


@contextlib.contextmanager
def _scope(plan: FunctionPlan, activity: Activity) -> Iterator[None]:
    """Enter the scope of the plan's strategy, connected to the other ranks that ``TF_CONFIG`` names."""
    if plan.strategy == "own":
        yield
        return
    activity.enter("connecting")
    if plan.strategy == "multi_worker_mirrored":
        with tf.distribute.MultiWorkerMirroredStrategy().scope():
            yield
        return
    strategy = RingStrategy.from_tf_config(
        plan.token, timeout_seconds=plan.start_limit_seconds, limit_seconds=_RING_SECONDS, observer=activity
    )
    with strategy.ring_errors(), strategy.scope():
        yield


def _returned(value: Any) -> dict[str, str]:
    """Return the value as it travels, or why it cannot: hours of training are not lost for that."""
    try:
        return {"value": function_plan.pack_value(value)}
    except ReturnValueError as error:
        logger.warning("%s", error)
        return {"refused": str(error)}
