"""The main job: supervise workers on Spark, export, register, score and report.

A finished run has a registered, checked model, whatever died on the way. ``pipeline`` lists the stages.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training import pipeline, run
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "pipeline",
    "run",
]
