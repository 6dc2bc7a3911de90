"""Launches one attempt: a barrier job of MirroredStrategyRunner with one task per worker."""

import contextlib
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from py4j.protocol import Py4JError, Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from spark_tensorflow_distributor import MirroredStrategyRunner

from training.ranks.plan import TrainingPlan
from training.ranks.rank_control import Outcome
from training.ranks.worker import EarlyProgram, EarlyTask, RankTask
from training.supervision.failure_policy import SESSION_LOST, RankError


class BarrierJobError(RuntimeError):
    """Spark's barrier job failed; ``error`` is what Spark knows of it, the ranks' own events may say more."""

    def __init__(self, error: RankError) -> None:
        """Keep what is known."""
        super().__init__(error.message)
        self.error = error

    def __reduce__(self) -> tuple[type, tuple[RankError]]:
        """Pickle by the error, not by its message."""
        return type(self), (self.error,)


class SparkConnectError(ValueError):
    """The session is a Spark Connect one, which cannot run barrier jobs."""


def require_classic(spark: SparkSession) -> None:
    """Check that the session can launch a training.

    Raises:
        SparkConnectError: It is a Spark Connect session.
    """
    if not hasattr(spark, "sparkContext"):
        raise SparkConnectError(
            "this is a Spark Connect session, through which MirroredStrategyRunner's barrier jobs cannot be run; train "
            "from a driver of the cluster: spark-submit, or a session with .master(...) in place of .remote(...)"
        )


class EarlyRunner(MirroredStrategyRunner):
    """The runner, whose tasks let their ranks begin before they exchange the addresses that those do not need."""

    def _get_spark_task_program(self, train_fn: RankTask, **kwargs: Any) -> Callable[[Any], list[Any]]:
        if not train_fn.begins_early:
            program: Callable[[Any], list[Any]] = super()._get_spark_task_program(train_fn, **kwargs)
            return program
        task = EarlyTask(train_fn)
        return EarlyProgram(super()._get_spark_task_program(task, **kwargs), task)


class SparkLauncher:
    """Runs attempts on a Spark session, one at a time."""

    def __init__(self, spark: SparkSession, gpus_per_worker: int = 0) -> None:
        """Keep the session.

        Raises:
            SparkConnectError: The session cannot run barrier jobs.
        """
        require_classic(spark)
        self._spark = spark
        self._gpus_per_worker = gpus_per_worker
        # Every attempt has a job group of its own, so that a cancelling that comes late ends no other one.
        self._group: str | None = None
        self._turn = threading.Lock()
        # The runner announces each of its steps, and sets its own level; the run's progress says more.
        logging.getLogger(EarlyRunner.__name__).addFilter(_is_warning)

    def __call__(self, plan: TrainingPlan) -> tuple[Outcome, ...]:
        """Train as ``plan`` says and return how each rank ended, in rank order.

        Raises:
            BarrierJobError: The job itself failed: an executor was lost, or somebody cancelled it.
        """
        # The ring trains on CPUs and without parameter servers. The other strategies, and functions that are not ours,
        # find the cluster in TF_CONFIG and their GPUs in the environment.
        is_ring = plan.config.strategy_name == "ring"
        return self.launch(RankTask(plan, entry=plan.entry, begins_early=is_ring), plan.ranks)

    def launch(self, task: RankTask, workers: int) -> tuple[Outcome, ...]:
        """Run ``task`` on that many workers; see :meth:`__call__`."""
        try:
            with self._job_group(f"training, attempt {task.plan.attempt}"):
                runner = EarlyRunner(
                    num_slots=workers * max(1, self._gpus_per_worker),
                    use_gpu=self._gpus_per_worker > 0,
                    # The rank's own process builds the strategy, from the TF_CONFIG that the runner sets or without.
                    use_custom_strategy=True,
                )
                return tuple(runner.run(task))
        except (Py4JError, PySparkException, ConnectionError) as error:
            raise BarrierJobError(_what_failed(error)) from error

    def cancel(self) -> None:
        """End the attempt that runs, if one does; its ranks are killed. For other threads."""
        with self._turn:
            group = self._group
        if group is not None:
            # Also where the job of the group is yet to be submitted: a private call, which Spark has since 4.0.
            self._spark.sparkContext._jsc.sc().cancelJobGroupAndFutureJobs(group)

    @contextlib.contextmanager
    def _job_group(self, description: str) -> Iterator[None]:
        """Put the jobs of this thread into a new group while the block runs."""
        context = self._spark.sparkContext
        names = ("spark.jobGroup.id", "spark.job.description", "spark.job.interruptOnCancel")
        before = {name: context.getLocalProperty(name) for name in names}
        group = f"training-{uuid.uuid4()}"
        context.setJobGroup(group, description, interruptOnCancel=True)
        with self._turn:
            self._group = group
        try:
            yield
        finally:
            with self._turn:
                self._group = None
            # In a JVM that is gone there is nothing to restore, and its end is what the caller has to hear of.
            with contextlib.suppress(Py4JError, ConnectionError):
                for name, value in before.items():
                    context.setLocalProperty(name, value)  # type: ignore[arg-type] # None takes it away


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _what_failed(error: Exception) -> RankError:
    """Return what is known of a job that ended with ``error``."""
    if isinstance(error, Py4JJavaError | PySparkException):
        # The text of an error in Java is asked of the JVM.
        with contextlib.suppress(Py4JError, ConnectionError):
            return read_failure(str(error), time.time())
        error = ConnectionError("it ended before it could say why the job failed")
    reason = f"the JVM of the Spark session does not answer any more ({str(error) or type(error).__name__})"
    return RankError("spark", None, SESSION_LOST, reason, time.time())


_CANCELLED = re.compile(r"Job \d+ cancelled.*|.*SparkContext was shut down.*|.*Stage cancelled.*")
_TELLING = re.compile(r".*ExecutorLostFailure.*|.*Python worker exited unexpectedly.*|^[\w.]+(?:Error|Exception): .*")

# What Spark says of executors that it lost with their container, pod or machine, through no fault of a task.
_TAKEN_AWAY = re.compile(r"exited unrelated to the running tasks.*(?:preempt|decommission|deleted)", re.IGNORECASE)


def read_failure(message: str, now: float) -> RankError:
    """Return what Spark's message says of a failed job.

    Ranks speak for themselves; this is what is left when an executor or a task went down as a whole.
    """
    if (cancelled := _CANCELLED.search(message)) is not None:
        return RankError("cancelled", None, "Cancelled", cancelled.group(0).strip(), now)
    lines = message.splitlines()
    telling = [line.strip() for line in lines if _TELLING.match(line)]
    told = telling[0] if telling else " ".join(lines[:2]).strip()
    is_taken_away = _TAKEN_AWAY.search(told) is not None
    return RankError("preempted" if is_taken_away else "spark", None, "BarrierJobError", told, now)
