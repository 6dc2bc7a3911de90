"""Collective decisions of a training's workers, the role of this process, and its cleanup before it ends.

A decision is the same on every rank at the same step.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.callbacks.collectives import at_exit
    from mirrorspark.callbacks.collectives.agreed_monitor import AgreedMonitor
    from mirrorspark.callbacks.collectives.agreement import (
        AgreedInterval,
        gather_over_ranks,
        local_replicas,
        mean_over_ranks,
        sum_over_ranks,
    )
    from mirrorspark.callbacks.collectives.equal_weights import WeightsDifferError, check_equal_weights
    from mirrorspark.callbacks.collectives.metric_values import as_float, scalar_metrics
    from mirrorspark.callbacks.collectives.roles import current_role
    from mirrorspark.callbacks.collectives.step_values import whole_values
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "AgreedInterval",
    "AgreedMonitor",
    "WeightsDifferError",
    "as_float",
    "at_exit",
    "check_equal_weights",
    "current_role",
    "gather_over_ranks",
    "local_replicas",
    "mean_over_ranks",
    "scalar_metrics",
    "sum_over_ranks",
    "whole_values",
]
