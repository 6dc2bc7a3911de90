"""Launches one attempt: a barrier job of MirroredStrategyRunner with one task per worker."""

import logging

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from spark_tensorflow_distributor import MirroredStrategyRunner

from training.plan import TrainingPlan
from training.worker import RankTask


class BarrierJobError(RuntimeError):
    """Spark's barrier job failed; the ranks' own events say why, if any of them could still speak."""


class SparkLauncher:
    """Runs attempts on a Spark session."""

    def __init__(self, spark: SparkSession, gpus_per_worker: int = 0) -> None:
        self._spark = spark
        self._gpus_per_worker = gpus_per_worker
        # The runner announces each of its steps, and sets its own level; the run's progress says more.
        logging.getLogger(MirroredStrategyRunner.__name__).addFilter(_is_warning)

    def __call__(self, plan: TrainingPlan) -> int:
        """Train as ``plan`` says and return the number of completed epochs.

        Raises:
            BarrierJobError: A rank failed or was lost.
        """
        runner = MirroredStrategyRunner(
            num_slots=plan.workers * max(1, self._gpus_per_worker),
            use_gpu=self._gpus_per_worker > 0,
            # The rank's own process builds MultiWorkerMirroredStrategy from the TF_CONFIG that the runner sets.
            use_custom_strategy=True,
        )
        try:
            return int(runner.run(RankTask(plan)))
        except (Py4JJavaError, PySparkException) as error:
            raise BarrierJobError(_reason(error)) from error


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _reason(error: Exception) -> str:
    """Return the line of Spark's message that tells most: the Python error of the task, or the first line."""
    lines = str(error).splitlines()
    telling = [line.strip() for line in lines if "RankFailedError:" in line or "ExecutorLostFailure" in line]
    return telling[0] if telling else " ".join(lines[:2]).strip()
