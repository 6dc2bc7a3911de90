"""The distribution strategy of a rank, connected to the other ranks."""

import math

import tensorflow as tf

from mirrorspark.training.protocol import TrainingPlan
from mirrorspark.training.protocol.outcomes import Activity
from mirrorspark.training.protocol.ring import Rendezvous, RingStrategy


def open_strategy(
    plan: TrainingPlan, activity: Activity, rendezvous: Rendezvous | None = None
) -> tf.distribute.Strategy:
    """Return the plan's strategy, connected to the other ranks.

    Args:
        plan: The attempt.
        activity: Shows the rank that the strategy waits for.
        rendezvous: Exchanges the addresses of the ranks; without it ``TF_CONFIG`` has them.

    Raises:
        RingConnectError: A rank did not connect within the limit of the start.
    """
    if plan.config.strategy_name == "multi_worker_mirrored":
        return tf.distribute.MultiWorkerMirroredStrategy()
    limit = plan.config.start_limit_seconds
    if rendezvous is None:
        return RingStrategy.from_tf_config(plan.token, timeout_seconds=limit, limit_seconds=math.inf, observer=activity)
    return RingStrategy(rendezvous.connect(plan.token, limit, math.inf))
