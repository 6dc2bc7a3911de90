"""Preflight checks of the driver, the cluster and its executors, before a run starts.

A failed check gives the finding and the remedy.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.job.readiness import preflight
    from mirrorspark.training.job.readiness.checks import Check
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "Check",
    "preflight",
]
