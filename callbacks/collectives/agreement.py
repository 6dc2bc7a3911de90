"""Collectives over the ranks of a training, so that all of them base decisions on the same number."""

import math
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import tensorflow as tf


def sum_over_ranks(strategy: tf.distribute.Strategy, value: float) -> float:
    """Return the sum of ``value`` over all ranks; each rank gets the same bits.

    Every rank has to call this, in the same order as other collectives; it also serves as a barrier. Strategies with
    one process (default, mirrored, TPU, parameter server's coordinator) return ``value``.

    Args:
        strategy: The model's ``distribute_strategy``.
        value: This rank's summand, carried as float64.
    """
    if not _has_ranks(strategy):
        return float(value)
    local = local_replicas(strategy)

    def summand(context: tf.distribute.experimental.ValueContext) -> tf.Tensor:
        # One replica of each rank carries the value, so that ranks count equally whatever their number of devices.
        is_first = context.replica_id_in_sync_group % local == 0
        return tf.constant(value if is_first else 0.0, tf.float64)

    per_replica = strategy.experimental_distribute_values_from_function(summand)
    return float(strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica, axis=None))


def mean_over_ranks(strategy: tf.distribute.Strategy, value: float) -> float:
    """Return the mean of ``value`` over all ranks; see `sum_over_ranks`."""
    if not _has_ranks(strategy):
        return float(value)
    return sum_over_ranks(strategy, value) * local_replicas(strategy) / strategy.num_replicas_in_sync


def gather_over_ranks(strategy: tf.distribute.Strategy, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the rows of all replicas of all ranks, in the order of the replicas; each rank gets the same bits.

    Args:
        strategy: The model's ``distribute_strategy``.
        rows: One row for each replica of this rank, float64 ``[local replicas, values]``.
    """
    if not _has_ranks(strategy):
        return rows
    local, replicas = local_replicas(strategy), strategy.num_replicas_in_sync

    def summand(context: tf.distribute.experimental.ValueContext) -> tf.Tensor:
        # A sum in which all other replicas add zero is a gather, and every strategy supports sums.
        replica = context.replica_id_in_sync_group
        table = np.zeros((replicas, rows.shape[1]))
        table[replica] = rows[replica % local]
        return tf.constant(table)

    per_replica = strategy.experimental_distribute_values_from_function(summand)
    table = strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica, axis=None)
    return np.asarray(table.numpy(), dtype=np.float64)


def local_replicas(strategy: tf.distribute.Strategy) -> int:
    """Return the number of replicas with their own values in this process."""
    if _has_ranks(strategy):
        return len(strategy.extended.worker_devices)
    return 1 if strategy._should_use_with_coordinator else int(strategy.num_replicas_in_sync)


class AgreedInterval:
    """An interval in seconds by the chief's clock that ends at the same step on all ranks.

    A collective in every step would be too expensive. The chief therefore includes in each answer the number of steps
    until the next one, estimated from the pace of the training.

    Args:
        seconds: The interval.
        clock: Returns seconds; monotonic.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Check the arguments, and begin an interval at step 0."""
        if not seconds > 0:
            raise ValueError(f"every_seconds is {seconds}; use None or a positive number")
        self._seconds = seconds
        self._clock = clock
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begin an interval at ``step``; the pace is measured again from the next step on."""
        self._since = self._checked = self._clock()
        self._checked_step = step
        self._next_step = step + 1

    def is_over(self, strategy: tf.distribute.Strategy, step: int, *, is_chief: bool) -> bool:
        """Return, equally on all ranks, whether the interval is over; the next one then begins.

        Every rank has to call this with the same steps.
        """
        if step < self._next_step:
            return False
        now = self._clock()
        is_over = now - self._since >= self._seconds
        left = self._seconds if is_over else self._since + self._seconds - now
        steps = steps_until(left, step - self._checked_step, now - self._checked)
        answer = sum_over_ranks(strategy, (-steps if is_over else steps) if is_chief else 0)
        self._checked, self._checked_step, self._next_step = now, step, step + int(abs(answer))
        if answer < 0:
            self._since = now
        return answer < 0


def steps_until(seconds: float, steps_done: int, seconds_taken: float) -> int:
    """Return the number of steps that take ``seconds``, at least 1.

    The result is at most four times the number of measured steps, because the first steps of a training predict the
    rest poorly.
    """
    pace = max(seconds_taken, 1e-9) / max(steps_done, 1)
    return max(1, min(math.ceil(seconds / pace), 4 * max(steps_done, 1)))


def _has_ranks(strategy: tf.distribute.Strategy) -> bool:
    """Return whether several processes run this program in parallel; a parameter server's coordinator runs it alone."""
    return bool(strategy.extended._in_multi_worker_mode()) and not strategy._should_use_with_coordinator
