"""A rank of ours whose supervision rests in half of its epochs, so that both halves meet the same machine."""

import functools
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import tf_keras

from benchmarks.train_halves import TIMES_FILE, Times, is_supervised
from mirrorspark.callbacks.progress import EventCallback
from mirrorspark.callbacks.stop_request import StopOnRequest
from mirrorspark.training.executor.worker_control import Finish, WorkerControl
from mirrorspark.training.fitting import fit
from mirrorspark.training.fitting.activity_callback import ActivityCallback
from mirrorspark.training.fitting.fit_callbacks import fit_callbacks
from mirrorspark.training.protocol.plan import TrainingPlan

# Who watches, tells and asks. The other callbacks restore, save and stop early, which belongs to both halves.
_SUPERVISION = (ActivityCallback, EventCallback, StopOnRequest)


def train(plan: TrainingPlan, control: WorkerControl, finish: Finish) -> None:
    """Train as :func:`training.fitting.fit.train` does, half of the time; the chief notes the times.

    Args:
        plan: What to do; it has to end with its last epoch.
        control: Ties this rank to its driver.
        finish: Is called at the training's end.
    """
    times = Path(plan.checkpoints).parent / TIMES_FILE if control.rank == 0 else None
    with mock.patch.object(fit, "fit_callbacks", functools.partial(_callbacks, times)):
        fit.train(plan, control, finish)


def _callbacks(times: Path | None, *arguments: Any, **more: Any) -> list[tf_keras.callbacks.Callback]:
    *callbacks, end = fit_callbacks(*arguments, **more)
    with_rests = [_Resting(one) if isinstance(one, _SUPERVISION) else one for one in callbacks]
    supervision = [one for one in with_rests if isinstance(one, _Resting)]
    return [*with_rests, *([_Clock(times, supervision)] if times else []), end]


class _Resting(tf_keras.callbacks.Callback):
    """Passes on to a callback what happens while supervision is at work, and the training's begin and end.

    Attributes:
        seconds: Time that went by in the callback, the start and the end of the training left out.
    """

    def __init__(self, callback: tf_keras.callbacks.Callback) -> None:
        super().__init__()
        self._supports_tf_logs = callback._supports_tf_logs
        self._callback = callback
        self._is_at_work = True
        self.seconds = 0.0

    def set_params(self, params: dict[str, Any]) -> None:
        super().set_params(params)
        self._callback.set_params(params)

    def set_model(self, model: tf_keras.Model) -> None:
        super().set_model(model)
        self._callback.set_model(model)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._callback.on_train_begin(logs)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._callback.on_train_end(logs)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._is_at_work = is_supervised(epoch)
        self._pass_on("on_epoch_begin", epoch, logs)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._pass_on("on_epoch_end", epoch, logs)
        if not self._is_at_work and isinstance(self._callback, EventCallback):
            # The checkpoint that follows asks how far it has come.
            self._callback.set_state(self._callback.get_state() | {"epoch": epoch + 1})

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._pass_on("on_train_batch_begin", batch, logs)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._pass_on("on_train_batch_end", batch, logs)

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._pass_on("on_test_begin", logs)

    def on_test_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._pass_on("on_test_end", logs)

    def on_test_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._pass_on("on_test_batch_end", batch, logs)

    def _pass_on(self, hook: str, *arguments: Any) -> None:
        if self._is_at_work:
            began = time.perf_counter()
            getattr(self._callback, hook)(*arguments)
            self.seconds += time.perf_counter() - began


class _Clock(tf_keras.callbacks.Callback):
    """Writes down `Times`; comes behind all that an epoch's end brings."""

    def __init__(self, path: Path, supervision: Sequence[_Resting]) -> None:
        super().__init__()
        self._supports_tf_logs = True
        self._path = path
        self._supervision = supervision
        self._ended: list[float] = []
        self._within: list[float] = []  # up to the end of each epoch
        self._threads: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._ended.append(time.monotonic())
        self._within.append(sum(one.seconds for one in self._supervision))
        self._threads.append(_cpu_of_other_threads())

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        Times(tuple(self._ended), _by_epoch(self._within), _by_epoch(self._threads)).write(self._path)


def _by_epoch(until: Sequence[float]) -> tuple[float, ...]:
    return tuple(now - before for before, now in itertools.pairwise([0.0, *until]))


def _cpu_of_other_threads() -> float:
    """Return the CPU seconds of all threads of Python's but the one that trains; all live as long as the training."""
    idents = (thread.ident for thread in threading.enumerate() if thread is not threading.current_thread())
    return sum(time.clock_gettime(time.pthread_getcpuclockid(ident)) for ident in idents if ident is not None)
