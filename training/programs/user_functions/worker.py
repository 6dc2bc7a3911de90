"""Runs a user's training function unchanged in the process of a rank, and reports its progress to the driver."""

import contextlib
import functools
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from mirrorspark.callbacks.checkpoints import fencing
from mirrorspark.callbacks.collectives import whole_values
from mirrorspark.scoring.input import Column
from mirrorspark.spark_session import as_barrier_task
from mirrorspark.training.programs.user_functions import plan as function_plan
from mirrorspark.training.programs.user_functions.fit_watch import FitWatch
from mirrorspark.training.programs.user_functions.plan import FunctionPlan, ReturnValueError
from mirrorspark.training.programs.user_functions.returned_model import is_model, package_saved, save_model
from mirrorspark.training.protocol.outcomes import Activity
from mirrorspark.training.protocol.ring import Ring, RingStrategy, mean_losses, whole_predictions

if TYPE_CHECKING:
    from mirrorspark.training.executor import Finish, WorkerControl

# Outside `fit` slow work looks like a hang: one rank may prepare data for hours while others wait.
_RING_SECONDS = 24 * 3600.0

logger = logging.getLogger(__name__)


@whole_values()
def train(plan: FunctionPlan, control: "WorkerControl", finish: "Finish") -> None:
    """Call the function of the payload in the scope of the plan's strategy; then call ``finish``.

    Args:
        plan: The attempt.
        control: Connects this rank to its driver; its payload is the function.
        finish: Gets the number of completed epochs, and on rank 0 the return value.

    Raises:
        TrainFnError: The function cannot be loaded here.
        UnsupportedKerasError: It fits a model of Keras 3 under a strategy that needs tf-keras.
        RingError: Another rank is lost.
        TrainingStopped: The rank was asked to stop.
        Exception: The function's own error.
    """
    train_fn, kwargs = function_plan.unpack_function(control.payload)
    os.environ[fencing.CHECKPOINTS_VARIABLE] = plan.checkpoints
    os.environ[fencing.ATTEMPT_VARIABLE] = str(plan.attempt)
    os.environ[fencing.FENCE_VARIABLE] = plan.fence or ""
    watch = FitWatch(control.events.send, control.activity, control.stop_request.is_set, control.hook)
    with _scope(plan, control.activity), watch.installed(), _as_barrier_task(plan, control):
        # Before fit slow work, such as a download of data, looks like a hang: this phase has no limit for steps.
        control.activity.enter("building")
        value = _call(train_fn, kwargs, watch)
        saved = _saved(value, plan, control.rank)
    finish(watch.epochs, **(_pack_return_value(value, saved, plan.model_columns) if control.rank == 0 else {}))


def _call(train_fn: Callable[..., Any], kwargs: dict[str, Any], watch: FitWatch) -> Any:
    """Call the function; a stopped one has not finished, even if it caught the exception that ended its ``fit``.

    Raises:
        TrainingStopped: The rank was asked to stop.
        Exception: The function's own error.
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
    """Enter the scope of the plan's strategy, connected to the other ranks of ``TF_CONFIG``."""
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
    with strategy.ring_errors(), mean_losses(strategy), whole_predictions(strategy), strategy.scope():
        yield


@contextlib.contextmanager
def _as_barrier_task(plan: FunctionPlan, control: "WorkerControl") -> Iterator[None]:
    """Give the function the ``BarrierTaskContext`` that it has in the task with the plain runner."""

    @functools.cache
    def ring() -> Ring:
        if control.rendezvous is None or plan.workers == 1:
            return Ring(0, 1)
        return control.rendezvous.connect(plan.token, plan.start_limit_seconds, _RING_SECONDS)

    def gather(message: str) -> list[str]:
        return [part.tobytes().decode() for part in ring().all_gather(np.array([*message.encode()], np.uint8))]

    cluster = json.loads(os.environ.get("TF_CONFIG", "{}")).get("cluster", {})
    with as_barrier_task(control.rank, cluster.get("worker", ["127.0.0.1:0"]), gather):
        yield


def _saved(value: Any, plan: FunctionPlan, rank: int) -> Path | ReturnValueError | None:
    """Save a model that the function returned, in a folder of this attempt's own; return where, or why it cannot."""
    if not is_model(value):
        return None
    try:
        return save_model(value, Path(plan.model) / (plan.fence or str(plan.attempt)), rank, plan.model_columns)
    except ReturnValueError as error:
        return error


def _pack_return_value(
    value: Any, saved: Path | ReturnValueError | None, columns: list[str | Column] | None
) -> dict[str, str]:
    """Return the packed value, or why it cannot be packed: the finished training is not lost for that.

    Instead of a model it is the folder of the packaged one.
    """
    try:
        if isinstance(saved, ReturnValueError):
            raise saved
        if saved is not None:
            return {"value": function_plan.pack_value(None), "model": str(package_saved(value, saved, columns))}
        return {"value": function_plan.pack_value(value)}
    except ReturnValueError as error:
        logger.warning("%s", error)
        return {"refused": str(error)}
