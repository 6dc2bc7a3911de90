"""The main job: supervised training on Spark, export, registration, scoring and report.

A finished job has a registered model whose scores on Spark were checked. ``pipeline`` lists the stages.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training import commands, pipeline, run
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "commands",
    "pipeline",
    "run",
]
