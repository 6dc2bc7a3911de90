"""Pipelines from a recipe's tables to a model in production, in one command whose stages are checked and recorded.

For the same date, the command continues where the last one stopped.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.lifecycle.pipeline.alerts import Alert, report
    from mirrorspark.lifecycle.pipeline.run import run_pipeline
    from mirrorspark.lifecycle.pipeline.settings import PipelineSettings
    from mirrorspark.lifecycle.pipeline.stages import StageFailedError
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "Alert",
    "PipelineSettings",
    "StageFailedError",
    "report",
    "run_pipeline",
]
