"""Injects the faults of ``MIRRORSPARK_FAULTS`` within a rank; see :mod:`.faults`."""

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

from mirrorspark.callbacks.progress import optimizer_step
from mirrorspark.training.fault_injection import fault as faults
from mirrorspark.training.fault_injection.disk import full_disk
from mirrorspark.training.fault_injection.fault import Fault

# Bytes that no machine has.
_MORE_THAN_THERE_IS = 1 << 62

logger = logging.getLogger(__name__)


Busy = Callable[[], AbstractContextManager[None]]


class InjectedFault(RuntimeError):  # noqa: N818 - it imitates a user's error
    """An injected error of the user's code."""


class InjectedFaults:
    """The faults of one rank in one attempt, usually none; ``busy`` is entered while a fault delays the input."""

    def __init__(self, mine: Sequence[Fault], busy: Busy = contextlib.nullcontext) -> None:
        """Take the faults; nothing happens yet."""
        self._mine = tuple(mine)
        self.busy = busy

    def callbacks(self) -> list[tf_keras.callbacks.Callback]:
        """Return the callback for faults at steps; list it after those that must see the step first."""
        at_steps = [fault for fault in self._mine if not fault.kind.endswith("_input")]
        return [_InjectAtStep(at_steps)] if at_steps else []

    @property
    def of_input(self) -> tuple[Fault, ...]:
        """The faults of the training data."""
        return tuple(fault for fault in self._mine if fault.kind.endswith("_input"))

    def input(self, dataset: Any) -> Any:
        """Return the training data, wrapped if it has faults; to be called before a strategy distributes it.

        Raises:
            TypeError: The data has faults that cannot be injected, because it is not a dataset.
        """
        if not self.of_input:
            return dataset
        if not isinstance(dataset, tf.data.Dataset):
            kinds = ", ".join(sorted({fault.kind for fault in self.of_input}))
            raise TypeError(
                f"{faults.VARIABLE} asks for {kinds}, but the training data is {type(dataset).__name__}, which cannot "
                f"be held up; train on a tf.data.Dataset, or ask for 'hang'"
            )
        return InputGate(self.of_input, self.busy).wrap(dataset)


def from_environment(
    environment: Mapping[str, str], rank: int, attempt: int, busy: Busy = contextlib.nullcontext
) -> InjectedFaults:
    """Return the faults that the environment has for this rank, and log them.

    Raises:
        ValueError: The text cannot be parsed.
    """
    mine = [fault for fault in faults.parse(environment.get(faults.VARIABLE, "")) if fault.applies(rank, attempt)]
    if mine:
        logger.warning("%s asks for faults in this rank: %s", faults.VARIABLE, "; ".join(map(str, mine)))
    return InjectedFaults(mine, busy)


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
            raise InjectedFault(f"{faults.VARIABLE} asked for an error after step {step}")
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


class InputGate:
    """Passes batches on one by one, late or not at all; does nothing unless ``is_active``."""

    def __init__(self, gates: Sequence[Fault], busy: Busy = contextlib.nullcontext, *, is_active: bool = True) -> None:
        """Take the faults, and ``busy``, which is entered while they delay the input."""
        self._gates = tuple(gates)
        self._busy = busy
        self._passed = 0
        self.is_active = is_active

    def wrap(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return the dataset with its batches passed through this gate."""
        return dataset.map(self._pass, num_parallel_calls=1, deterministic=True)

    def _pass(self, *batch: Any) -> Any:
        with tf.control_dependencies([tf.numpy_function(self._wait, [], tf.int64, stateful=True)]):
            same = tf.nest.map_structure(tf.identity, batch, expand_composites=True)
        return same if len(same) > 1 else same[0]

    def _wait(self) -> int:
        if not self.is_active:
            return 0
        for fault in self._gates:
            if fault.kind == "slow_input" and self._passed >= fault.step:
                with self._busy():
                    threading.Event().wait(fault.duration)
            elif fault.kind == "hang_input" and self._passed == fault.step:
                logger.warning("injecting fault %s after %d batches", fault, self._passed)
                with self._busy():
                    threading.Event().wait(fault.duration)
        self._passed += 1
        return self._passed
