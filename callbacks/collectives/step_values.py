"""The values that steps of a model return, as one process with all rows would show them.

A loss is scaled so that its sum over the replicas is that of the whole batch, as the sum of the gradients is. In every
step Keras adds up the replicas' values, metrics included. At an epoch's end it reads the metrics again, but only if a
step returns nothing else: a ``tfrs.Model`` returns its loss next to them.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import tf_keras

from mirrorspark.callbacks.collectives.agreement import gather_over_ranks, local_replicas
from mirrorspark.callbacks.collectives.metric_values import scalar_metrics


@contextlib.contextmanager
def whole_values() -> Iterator[None]:
    """While the block runs, ``fit`` and ``evaluate`` return values for all replicas, under every strategy alike.

    A value under the name of a metric is read from that metric; any other number is summed over the replicas.
    """
    keras = tf_keras.Model._validate_and_get_metrics_result

    @functools.wraps(keras)
    def whole(model: tf_keras.Model, logs: Any) -> Any:
        found = keras(model, logs)
        # Keras has read the metrics if the step returned nothing else.
        return _of_whole_batch(model, logs) if found is logs and isinstance(logs, dict) else found

    tf_keras.Model._validate_and_get_metrics_result = whole
    try:
        yield
    finally:
        tf_keras.Model._validate_and_get_metrics_result = keras


def _of_whole_batch(model: tf_keras.Model, logs: dict[str, Any]) -> dict[str, Any]:
    strategy = model.distribute_strategy
    if strategy.num_replicas_in_sync == 1 or strategy._should_use_with_coordinator:
        return logs
    metrics: dict[str, float] = {}
    with contextlib.suppress(TypeError):  # of a metric whose result needs arguments, as in Keras' own method
        metrics = {name: value for name, value in scalar_metrics(model.get_metrics_result()).items() if name in logs}
    own = metrics.keys() | {metric.name for metric in model.metrics}
    sums = {name: value for name, value in scalar_metrics(logs).items() if name not in own}
    if sums and not getattr(strategy, "sums_batch_logs", True):
        rows = np.tile(list(sums.values()), (local_replicas(strategy), 1))
        sums = dict(zip(sums, map(float, gather_over_ranks(strategy, rows).sum(axis=0)), strict=True))
    return logs | sums | metrics
