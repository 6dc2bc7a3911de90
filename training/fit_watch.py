"""Faults that a rank brings upon itself when ``MIRRORSPARK_FAULTS`` asks: the inside of :mod:`training.faults`."""

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow.python.data.experimental.ops import distribute

from callbacks.backup import BackupAndRestore
from callbacks.checkpoint import ChiefCheckpoint
from callbacks.progress import EventCallback
from callbacks.stop_request import StopOnRequest
from training.activity import Activity
from training.follow import Follow
from training.injected_faults import InjectedFaults

# What Keras takes for arrays when it is told nothing.
_KERAS_BATCH_SIZE = 32

logger = logging.getLogger(__name__)


class FitWatch:
    """Adds callbacks to each ``fit`` while it is installed: progress, phases, stop requests, faults to inject.

    A second ``fit`` from epoch 0 on is another training (a fold, a fine-tuning): its metrics get names of their own,
    ``fit_2/loss``. One that is given an ``initial_epoch`` goes on with the curves there are.

    """

    def __init__(
        self,
        send: Callable[[dict[str, Any]], None],
        activity: Activity,
        is_stop_requested: Callable[[], bool],
        faults: InjectedFaults,
    ) -> None:
        """Keep whom to tell.

        Args:
            send: Takes an event for the driver.
            activity: The rank's board.
            is_stop_requested: Whether somebody has asked this rank to stop.
            faults: What to inject; usually nothing.
        """
        self._send = send
        self._activity = activity
        self._is_stop_requested = is_stop_requested
        self._faults = faults
        self._fits = 0
        self._completed: dict[int, int] = {}
        self._is_within = False

    @property
    def epochs(self) -> int:
        """Epochs completed, of all fits together, those before a restart included where the function resumes."""
        return sum(self._completed.values())

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Watch while the block runs."""
        original = tf_keras.Model.fit
        signature = inspect.signature(original)

        @functools.wraps(original)
        def fit(model: tf_keras.Model, *args: Any, **kwargs: Any) -> Any:
            call = signature.bind(model, *args, **kwargs)
            if self._is_within or not self._extend(call.arguments):
                return original(model, *args, **kwargs)
            self._is_within = True
            try:
                return original(*call.args, **call.kwargs)
            finally:
                self._note_resumed(call.arguments["callbacks"])
                self._is_within = False
                self._activity.enter("building")

        tf_keras.Model.fit = fit
        try:
            yield
        finally:
            tf_keras.Model.fit = original

    def _extend(self, arguments: dict[str, Any]) -> bool:
        """Add our callbacks to the arguments of ``fit``; False where that cannot be done."""
        given = arguments.get("callbacks")
        if isinstance(given, tf_keras.callbacks.CallbackList):
            logger.warning("fit was given a CallbackList, so its progress is not shown; give it a plain list instead")
            return False
        own = tf.nest.flatten(given) if given else []
        if not arguments.get("initial_epoch"):
            self._fits += 1
        prefix = f"fit_{self._fits}/" if self._fits > 1 else ""
        size = global_batch_size(arguments.get("x"), arguments.get("batch_size"))
        progress = EventCallback(self._tell(prefix, has_rate=size is not None), global_batch_size=size or 1)
        checkpoint = next((callback for callback in own if isinstance(callback, ChiefCheckpoint)), _OwnCheckpoints())
        arguments["x"] = self._faults.input(arguments.get("x"))
        arguments["callbacks"] = [
            Follow(self._activity),
            *own,
            # After the function's own, which may add to the logs or put means over the ranks in their place.
            progress,
            *self._faults.callbacks(),
            StopOnRequest(self._is_stop_requested, checkpoint),  # type: ignore[arg-type] # it needs save_now alone
        ]
        return True

    def _note_resumed(self, callbacks: list[Any]) -> None:
        """Count the epochs of a fit that had nothing left to do."""
        for callback in callbacks:
            if isinstance(callback, BackupAndRestore):
                self._completed.setdefault(self._fits, callback.initial_epoch)

    def _tell(self, prefix: str, *, has_rate: bool) -> Callable[[dict[str, Any]], None]:
        def tell(event: dict[str, Any]) -> None:
            if event["event"] == "epoch_end":
                self._completed[self._fits] = event["epoch"]
                event = event | {"logs": {f"{prefix}{name}": value for name, value in event["logs"].items()}}
            if not has_rate and "examples_per_second" in event:
                event = event | {"examples_per_second": None}
            self._send(event)

        return tell


def global_batch_size(x: Any, batch_size: int | None) -> int | None:
    """Return the rows of a step over all replicas, where that can be known: for arrays, and datasets that batch."""
    if isinstance(x, tf.data.Dataset):
        # Not from the shapes: a last batch that may be smaller leaves them open.
        size = int(distribute.compute_batch_size(x))
        return size if size > 0 else None
    parts = tf.nest.flatten(x)
    if parts and all(isinstance(part, np.ndarray | tf.Tensor) for part in parts):
        return batch_size or _KERAS_BATCH_SIZE
    return None


class _OwnCheckpoints:
    """Stands where a training has no `ChiefCheckpoint`: what it keeps by itself is all there is."""

    def save_now(self) -> str:
        return "its own checkpoints, if it has any"
