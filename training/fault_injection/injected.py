"""Faults that a rank brings upon itself when ``MIRRORSPARK_FAULTS`` asks: the inside of :mod:`.faults`."""

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

logger = logging.getLogger(__name__)


Busy = Callable[[], AbstractContextManager[None]]


class InjectedFault(RuntimeError):  # noqa: N818 - it stands for anybody's error
    """The error of the user's code that somebody asked for."""


class InjectedFaults:
    """The faults of one rank in one attempt; usually none.

    Attributes:
        busy: What is entered while a fault holds the input up.
    """

    def __init__(self, mine: Sequence[Fault], busy: Busy = contextlib.nullcontext) -> None:
        """Keep them; nothing happens yet."""
        self._mine = tuple(mine)
        self.busy = busy

    def callbacks(self) -> list[tf_keras.callbacks.Callback]:
        """Return what strikes at steps, to be listed behind all that must have seen the step."""
        of_steps = [fault for fault in self._mine if not fault.kind.endswith("_input")]
        return [_InjectAtStep(of_steps)] if of_steps else []

    @property
    def of_input(self) -> tuple[Fault, ...]:
        """Those that hold up the training data."""
        return tuple(fault for fault in self._mine if fault.kind.endswith("_input"))

    def input(self, dataset: Any) -> Any:
        """Return the training data, behind a gate where there is a fault for it.

        It belongs before the distribution: on what a strategy made of a dataset nothing can be put.

        Raises:
            TypeError: There is a fault for it, which can never strike: it is no dataset.
        """
        if not self.of_input:
            return dataset
        if not isinstance(dataset, tf.data.Dataset):
            kinds = ", ".join(sorted({fault.kind for fault in self.of_input}))
            raise TypeError(
                f"{faults.VARIABLE} asks for {kinds}, but the training data is {type(dataset).__name__}, which cannot "
                f"be held up; train on a tf.data.Dataset, or ask for 'hang'"
            )
        return InputGate(self.of_input, self.busy).before(dataset)


def from_environment(
    environment: Mapping[str, str], rank: int, attempt: int, busy: Busy = contextlib.nullcontext
) -> InjectedFaults:
    """Return the faults that the environment names for this rank, and say so aloud.

    Raises:
        ValueError: The text cannot be read.
    """
    mine = [fault for fault in faults.parse(environment.get(faults.VARIABLE, "")) if fault.applies(rank, attempt)]
    if mine:
        logger.warning("%s asks for faults in this rank: %s", faults.VARIABLE, "; ".join(map(str, mine)))
    return InjectedFaults(mine, busy)


class _InjectAtStep(tf_keras.callbacks.Callback):
    """Strikes once each fault's step is done."""

    def __init__(self, waiting: Sequence[Fault]) -> None:
        super().__init__()
        self._supports_tf_logs = True
        self._waiting = list(waiting)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        step = optimizer_step(self.model) or 0
        for fault in [fault for fault in self._waiting if step >= fault.step]:
            self._waiting.remove(fault)
            logger.warning("fault %s strikes after step %d", fault, step)
            _inject(fault, step)


def _inject(fault: Fault, step: int) -> None:
    match fault.kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise InjectedFault(f"{faults.VARIABLE} asked for an error after step {step}")
        case "hang":
            threading.Event().wait(fault.duration)
        case "freeze":
            # Within C and with Python's lock held, so that no other thread of this process runs; again where the signal
            # for a dump of the stacks has ended it.
            until = time.monotonic() + fault.duration
            while (left := until - time.monotonic()) > 0:
                ctypes.PyDLL(None).poll(None, 0, int(left * 1000) + 1)
        case "full_disk":
            assert fault.path is not None  # noqa: S101 - Fault has seen to it
            disk = full_disk(fault.path)
            disk.__enter__()
            end = threading.Timer(fault.duration, lambda: disk.__exit__(None, None, None))
            end.daemon = True
            end.start()


class InputGate:
    """Lets batches pass one by one, late or not at all.

    Attributes:
        is_watched: Whether it counts and holds up what passes.
    """

    def __init__(self, gates: Sequence[Fault], busy: Busy = contextlib.nullcontext, *, is_watched: bool = True) -> None:
        """Keep the faults, and what is entered while they hold the input up; nothing passes yet."""
        self._gates = tuple(gates)
        self._busy = busy
        self._passed = 0
        self.is_watched = is_watched

    def before(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return the dataset behind this gate."""
        return dataset.map(self._pass, num_parallel_calls=1, deterministic=True)

    def _pass(self, *batch: Any) -> Any:
        with tf.control_dependencies([tf.numpy_function(self._wait, [], tf.int64, stateful=True)]):
            same = tf.nest.map_structure(tf.identity, batch, expand_composites=True)
        return same if len(same) > 1 else same[0]

    def _wait(self) -> int:
        if not self.is_watched:
            return 0
        for fault in self._gates:
            if fault.kind == "slow_input" and self._passed >= fault.step:
                with self._busy():
                    threading.Event().wait(fault.duration)
            elif fault.kind == "hang_input" and self._passed == fault.step:
                logger.warning("fault %s strikes after %d batches", fault, self._passed)
                with self._busy():
                    threading.Event().wait(fault.duration)
        self._passed += 1
        return self._passed
