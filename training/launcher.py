"""Launches one attempt: a barrier job of MirroredStrategyRunner with one task per worker."""

import logging
import re
import time

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from spark_tensorflow_distributor import MirroredStrategyRunner

from training.failure_policy import RankError
from training.plan import TrainingPlan
from training.worker import RankTask


class BarrierJobError(RuntimeError):
    """Spark's barrier job failed; ``error`` is what Spark knows of it, the ranks' own events may say more."""

    def __init__(self, error: RankError) -> None:
        """Keep what is known."""
        super().__init__(error.message)
        self.error = error


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
            raise BarrierJobError(read_failure(str(error), time.time())) from error


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


_RANK_FAILURE = re.compile(r"RankFailedError: rank (\d+) failed \((\w+)\): (\w+): (.*)")
_CANCELLED = re.compile(r"Job \d+ cancelled.*|.*SparkContext was shut down.*|.*Stage cancelled.*")


def read_failure(message: str, now: float) -> RankError:
    """Return what Spark's message says of a failed job: the rank's own words, where the task could pass them on.

    Ranks speak for themselves over the event channel; this is what is left when that could not be reached.
    """
    if (failed := _RANK_FAILURE.search(message)) is not None:
        rank, cause, type_, text = failed.groups()
        return RankError("user" if cause == "user" else "peer", int(rank), type_, text.strip(), now)
    if (cancelled := _CANCELLED.search(message)) is not None:
        return RankError("cancelled", None, "Cancelled", cancelled.group(0).strip(), now)
    lines = message.splitlines()
    telling = [line.strip() for line in lines if "RankFailedError:" in line or "ExecutorLostFailure" in line]
    return RankError("spark", None, "BarrierJobError", telling[0] if telling else " ".join(lines[:2]).strip(), now)
