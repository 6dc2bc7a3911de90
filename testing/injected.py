"""The hook that injects the faults of ``MIRRORSPARK_FAULTS`` within a rank; see :mod:`.faults`."""

import contextlib
import ctypes
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.callbacks import StopOnRequest, optimizer_step
from mirrorspark.testing.disk import full_disk
from mirrorspark.testing.fault import Fault, parse
from mirrorspark.training.executor import FAULTS_VARIABLE, TrainingHook
from mirrorspark.training.protocol import COORDINATOR, AttemptPlan, RankRole, Roles, TrainingPlan
from mirrorspark.training.protocol.outcomes import Activity

# Bytes that no machine has.
_MORE_THAN_THERE_IS = 1 << 62

logger = logging.getLogger(__name__)


Busy = Callable[[], AbstractContextManager[None]]


class InjectedFault(RuntimeError):  # noqa: N818 - it imitates a user's error
    """An injected error of the user's code."""


class InjectedFaults(TrainingHook):
    """The faults of one rank in one attempt; ``busy`` is entered while a fault delays the input."""

    def __init__(self, mine: Sequence[Fault], busy: Busy = contextlib.nullcontext) -> None:
        """Take the faults; nothing happens yet."""
        self.at_steps = [fault for fault in mine if not fault.is_of_input]
        self.of_input = [fault for fault in mine if fault.is_of_input]
        self._busy = busy

    def callbacks(self, callbacks: list[Any]) -> list[Any]:
        """Add the callback for faults at steps, which comes after all others but a request to stop."""
        if not self.at_steps:
            return callbacks
        stop = next((i for i, callback in enumerate(callbacks) if isinstance(callback, StopOnRequest)), len(callbacks))
        return [*callbacks[:stop], _InjectAtStep(self.at_steps), *callbacks[stop:]]

    def input(self, dataset: Any, is_training: Callable[[], bool] = lambda: True) -> Any:
        """Return the training data, wrapped if it has faults.

        Raises:
            TypeError: The data has faults that cannot be injected, because it is not a dataset.
        """
        if not self.of_input:
            return dataset
        if not isinstance(dataset, tf.data.Dataset):
            kinds = ", ".join(sorted({fault.kind for fault in self.of_input}))
            raise TypeError(
                f"{FAULTS_VARIABLE} asks for {kinds}, but the training data is {type(dataset).__name__}, which cannot "
                f"be held up; train on a tf.data.Dataset, or ask for 'hang'"
            )
        return DelayedInput(self.of_input, self._busy, is_training).wrap(dataset)


def hook_for(environment: Mapping[str, str], plan: AttemptPlan, rank: int, activity: Activity) -> InjectedFaults:
    """Return the faults that the environment has for this rank, and log them.

    In a training with parameter servers only the coordinator counts steps, and only the workers read data. So faults at
    a step are the coordinator's, and faults of the input are the workers'.

    Raises:
        ValueError: The text cannot be parsed, or has a fault for a rank where it cannot be injected.
    """
    faults = parse(environment.get(FAULTS_VARIABLE, ""))
    roles = plan.roles if isinstance(plan, TrainingPlan) else None
    if roles is not None:
        _require_possible(faults, roles)
        faults = tuple(fault for fault in faults if _is_possible(fault, roles.of(rank)))
    mine = [fault for fault in faults if fault.applies(rank, plan.attempt)]
    if mine:
        logger.warning("%s asks for faults in this rank: %s", FAULTS_VARIABLE, "; ".join(map(str, mine)))
    return InjectedFaults(mine, activity.input_busy)


def _require_possible(faults: Sequence[Fault], roles: Roles) -> None:
    for fault in faults:
        if fault.rank is not None and not _is_possible(fault, roles.of(fault.rank)):
            raise ValueError(
                f"{FAULTS_VARIABLE} asks for '{fault}', but rank {fault.rank} is {roles.of(fault.rank)}: steps are "
                f"counted by rank {COORDINATOR}, the coordinator, and data is read by the workers, ranks 1 to "
                f"{roles.workers}; name one of these, or inject it from outside with faults.kill or faults.stop"
            )


def _is_possible(fault: Fault, role: RankRole) -> bool:
    return role.job == ("worker" if fault.is_of_input else "chief")


class _InjectAtStep(tf_keras.callbacks.Callback):
    """Injects each fault once its step is done."""

    def __init__(self, waiting: Sequence[Fault]) -> None:
        super().__init__()
        self._supports_tf_logs = True
        self._waiting = list(waiting)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        step = optimizer_step(self.model) or 0
        for fault in [fault for fault in self._waiting if step >= fault.step]:
            self._waiting.remove(fault)
            logger.warning("injecting fault %s after step %d", fault, step)
            _inject(fault, step)


def _inject(fault: Fault, step: int) -> None:
    match fault.kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise InjectedFault(f"{FAULTS_VARIABLE} asked for an error after step {step}")
        case "no_memory":
            new = ctypes.CDLL("libstdc++.so.6")._Znwm  # operator new(size_t)
            new.argtypes, new.restype = [ctypes.c_size_t], ctypes.c_void_p
            new(_MORE_THAN_THERE_IS)
        case "hang":
            threading.Event().wait(fault.duration)
        case "freeze":
            # In C with Python's lock held, so that no other thread of this process runs. The signal for a dump of the
            # stacks interrupts it, hence the loop.
            until = time.monotonic() + fault.duration
            while (left := until - time.monotonic()) > 0:
                ctypes.PyDLL(None).poll(None, 0, int(left * 1000) + 1)
        case "full_disk":
            assert fault.path is not None  # noqa: S101 - checked by Fault
            disk = full_disk(fault.path)
            disk.__enter__()
            end = threading.Timer(fault.duration, lambda: disk.__exit__(None, None, None))
            end.daemon = True
            end.start()


class DelayedInput:
    """Passes batches on one by one, late or not at all; does nothing unless ``is_training()``."""

    def __init__(
        self,
        faults: Sequence[Fault],
        busy: Busy = contextlib.nullcontext,
        is_training: Callable[[], bool] = lambda: True,
    ) -> None:
        """Take the faults, and ``busy``, which is entered while they delay the input."""
        self._faults = tuple(faults)
        self._busy = busy
        self._is_training = is_training
        self._passed = 0

    def wrap(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return the dataset with its batches passed on by this object."""
        return dataset.map(self._pass, num_parallel_calls=1, deterministic=True)

    def _pass(self, *batch: Any) -> Any:
        with tf.control_dependencies([tf.numpy_function(self._wait, [], tf.int64, stateful=True)]):
            same = tf.nest.map_structure(tf.identity, batch, expand_composites=True)
        return same if len(same) > 1 else same[0]

    def _wait(self) -> int:
        if not self._is_training():
            return 0
        for fault in self._faults:
            if fault.kind == "slow_input" and self._passed >= fault.step:
                with self._busy():
                    threading.Event().wait(fault.duration)
            elif fault.kind == "hang_input" and self._passed == fault.step:
                logger.warning("injecting fault %s after %d batches", fault, self._passed)
                with self._busy():
                    threading.Event().wait(fault.duration)
        self._passed += 1
        return self._passed
