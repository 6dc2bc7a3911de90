"""Faults that a rank brings upon itself when ``MIRRORSPARK_FAULTS`` asks: the inside of :mod:`training.faults`."""

import ctypes
import logging
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from callbacks.progress import optimizer_step
from training import faults
from training.faults import Fault

logger = logging.getLogger(__name__)


class InjectedFault(RuntimeError):  # noqa: N818 - it stands for anybody's error
    """The error of the user's code that somebody asked for."""


class InjectedFaults:
    """The faults of one rank in one attempt; usually none."""

    def __init__(self, mine: Sequence[Fault]) -> None:
        """Keep them; nothing happens yet."""
        self._mine = tuple(mine)

    def callbacks(self) -> list[tf_keras.callbacks.Callback]:
        """Return what strikes at steps, to be listed behind all that must have seen the step."""
        of_steps = [fault for fault in self._mine if not fault.kind.endswith("_input")]
        return [_StrikeAtStep(of_steps)] if of_steps else []

    def input(self, dataset: Any) -> Any:
        """Return the training data, behind a gate where there is a fault for it; what is no dataset passes as it is."""
        gates = [fault for fault in self._mine if fault.kind.endswith("_input")]
        if not gates or not isinstance(dataset, tf.data.Dataset):
            return dataset
        return dataset.map(_Gate(gates), num_parallel_calls=1, deterministic=True)


def from_environment(environment: Mapping[str, str], rank: int, attempt: int) -> InjectedFaults:
    """Return the faults that the environment names for this rank, and say so aloud.

    Raises:
        ValueError: The text cannot be read.
    """
    mine = [fault for fault in faults.parse(environment.get(faults.VARIABLE, "")) if fault.strikes(rank, attempt)]
    if mine:
        logger.warning("%s asks for faults in this rank: %s", faults.VARIABLE, "; ".join(map(str, mine)))
    return InjectedFaults(mine)


class _StrikeAtStep(tf_keras.callbacks.Callback):
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
            _strike(fault, step)


def _strike(fault: Fault, step: int) -> None:
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
            # Within C and with Python's lock held, so that no other thread of this process runs.
            ctypes.PyDLL(None).poll(None, 0, int(fault.duration * 1000))
        case "full_disk":
            assert fault.path is not None  # noqa: S101 - Fault has seen to it
            disk = faults.full_disk(fault.path)
            disk.__enter__()
            end = threading.Timer(fault.duration, lambda: disk.__exit__(None, None, None))
            end.daemon = True
            end.start()


class _Gate:
    """Lets batches pass one by one, late or not at all."""

    def __init__(self, gates: Sequence[Fault]) -> None:
        self._gates = tuple(gates)
        self._passed = 0

    def __call__(self, *batch: Any) -> Any:
        with tf.control_dependencies([tf.numpy_function(self._wait, [], tf.int64, stateful=True)]):
            same = tf.nest.map_structure(tf.identity, batch, expand_composites=True)
        return same if len(same) > 1 else same[0]

    def _wait(self) -> int:
        for fault in self._gates:
            if fault.kind == "slow_input" and self._passed >= fault.step:
                threading.Event().wait(fault.duration)
            elif fault.kind == "hang_input" and self._passed == fault.step:
                logger.warning("fault %s strikes after %d batches", fault, self._passed)
                threading.Event().wait(fault.duration)
        self._passed += 1
        return self._passed
