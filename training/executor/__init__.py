"""The executor's part of a training: Spark's barrier task, the fork server, and the worker's process.

A worker that dies, hangs or gets a request to stop leaves no process behind. Its outcome is reported to the driver.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.executor import child_process
    from mirrorspark.training.executor.child_process import OnProgress, Tail
    from mirrorspark.training.executor.task import WorkerTask, run_on_driver, run_program, started_ahead_on_driver
    from mirrorspark.training.executor.training_hook import FAULTS_VARIABLE, TrainingHook
    from mirrorspark.training.executor.worker_control import Finish, Outcome, WorkerControl
    from mirrorspark.training.executor.worker_failure import MORE_MEMORY
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "FAULTS_VARIABLE",
    "MORE_MEMORY",
    "Finish",
    "OnProgress",
    "Outcome",
    "Tail",
    "TrainingHook",
    "WorkerControl",
    "WorkerTask",
    "child_process",
    "run_on_driver",
    "run_program",
    "started_ahead_on_driver",
]
