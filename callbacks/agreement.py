"""Collectives over the ranks of a training, so that all of them decide from the same number."""

import tensorflow as tf

from callbacks.roles import current_role


def sum_over_ranks(strategy: tf.distribute.Strategy, value: float) -> float:
    """Return the sum of ``value`` over all ranks; each rank gets the same bits.

    Every rank has to call it, in the same order as other collectives; it also serves as a barrier. Strategies with
    one process (default, mirrored, TPU, parameter server's coordinator) return ``value``.

    Args:
        strategy: The model's ``distribute_strategy``.
        value: This rank's summand, carried as float64.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return float(value)
    local_replicas = len(strategy.extended.worker_devices)

    def summand(context: tf.distribute.experimental.ValueContext) -> tf.Tensor:
        # One replica of each rank carries the value, so that ranks count equally whatever their device count.
        is_first = context.replica_id_in_sync_group % local_replicas == 0
        return tf.constant(value if is_first else 0.0, tf.float64)

    per_replica = strategy.experimental_distribute_values_from_function(summand)
    return float(strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica, axis=None))


def mean_over_ranks(strategy: tf.distribute.Strategy, value: float) -> float:
    """Return the mean of ``value`` over all ranks; see `sum_over_ranks`."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return float(value)
    return sum_over_ranks(strategy, value) / current_role(strategy).workers
