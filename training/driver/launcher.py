"""The launch of an attempt: a barrier job of MirroredStrategyRunner with one task per worker."""

import contextlib
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

from pyspark.sql import SparkSession
from spark_tensorflow_distributor import MirroredStrategyRunner

from mirrorspark.clear_error import ClearError
from mirrorspark.spark_session import SESSION_ERRORS, SPARK_ERRORS, Session, lack_of_memory, lost_server, session_of
from mirrorspark.training.executor import MORE_MEMORY, Outcome, WorkerTask, run_on_driver, run_program
from mirrorspark.training.protocol import AttemptPlan
from mirrorspark.training.protocol.outcomes import SESSION_LOST, RankError


class BarrierJobError(ClearError, RuntimeError):
    """Spark's barrier job failed; ``error`` has Spark's account of it, and the ranks' own events may have more."""

    def __init__(self, error: RankError) -> None:
        """Wrap ``error``."""
        super().__init__(error.message)
        self.error = error

    def __reduce__(self) -> tuple[type, tuple[RankError]]:
        """Pickle by the error, not by its message."""
        return type(self), (self.error,)


class EarlyRunner(MirroredStrategyRunner):
    """The runner, whose tasks may start their workers ahead and restore their environment.

    The steps of a task are in :mod:`training.executor.task`.
    """

    def _get_spark_task_program(self, train_fn: WorkerTask, **kwargs: Any) -> Callable[[Any], list[Any]]:
        program: Callable[[Any], list[Any]] = super()._get_spark_task_program(train_fn, **kwargs)
        # The program refers to the task that it calls, so both are pickled together and stay the same object.
        return partial(run_program, program, train_fn)


class ConnectRunner(EarlyRunner):
    """The runner without a context in this process: its program runs in a barrier job of the session, or here."""

    def __init__(
        self,
        session: Session | None,
        *,
        num_slots: int,
        use_gpu: bool,
        gpu_resource_name: str,
        local_mode: bool,
        use_custom_strategy: bool,
    ) -> None:
        """Take the session, and the runner's options. The runner's own constructor would ask for a context.

        Only the local mode of a task that meets no others, without GPUs, needs no session.
        """
        self._logger = logging.getLogger(EarlyRunner.__name__)
        self._session = session
        self._num_slots = num_slots
        self._use_gpu = use_gpu
        self._gpu_resource_name = gpu_resource_name
        self._local_mode = local_mode
        self._use_custom_strategy = use_custom_strategy
        self.sc = SimpleNamespace(getConf=lambda: _Settings(session), resources={})
        self._num_tasks = None if local_mode else self.get_num_tasks()

    def run(self, train_fn: WorkerTask, **kwargs: Any) -> Any:
        """Run the task on all ranks, and return the value of the first; in local mode, run it here."""
        if self._session is None:
            # The runner would hide GPUs by a variable of this process, whose other threads may need them.
            return self._run_tensorflow_program(train_fn, self._use_custom_strategy, **kwargs)
        if self._num_tasks is None:
            return super().run(train_fn, **kwargs)
        self._check_encryption()
        return self._session.run_barrier_job(self._get_spark_task_program(train_fn, **kwargs), self._num_tasks)[0]


@dataclass(frozen=True)
class _Settings:
    """The settings of a session, as the runner asks a context for them."""

    session: Session | None

    def contains(self, key: str) -> bool:
        return bool(self.get(key))

    def get(self, key: str, default: str = "") -> str:
        return default if self.session is None else self.session.setting(key, default)


class SparkLauncher:
    """A launcher of attempts on a Spark session, or without one in local mode, one at a time."""

    def __init__(
        self,
        spark: SparkSession | None,
        gpus_per_worker: int = 0,
        payload: bytes | None = None,
        *,
        gpu_resource_name: str = "gpu",
        local_mode: bool = False,
    ) -> None:
        """Take the session, the payload that is sent with every attempt, and two options of the runner.

        Raises:
            MissingCapabilityError: The session has no barrier jobs, and ``local_mode`` is off.
        """
        local_mode = local_mode or spark is None
        self._session = None if spark is None else session_of(spark)
        if self._session is not None and not local_mode:
            self._session.require_barrier_jobs()
        has_context = self._session is not None and self._session.has_context
        self._new_runner = EarlyRunner if has_context else partial(ConnectRunner, self._session)
        self._gpus_per_worker = gpus_per_worker
        self._payload = payload
        self._options: dict[str, Any] = {"gpu_resource_name": gpu_resource_name, "local_mode": local_mode}
        # Every attempt has its own job group, so that a late cancellation ends no other attempt.
        self._group: str | None = None
        self._turn = threading.Lock()
        # The runner logs each of its steps at its own level; the run's progress display has more.
        logging.getLogger(EarlyRunner.__name__).addFilter(_is_warning)

    def __call__(self, plan: AttemptPlan) -> tuple[Outcome, ...]:
        """Train according to ``plan`` and return the outcome of each rank, in rank order.

        Raises:
            BarrierJobError: The job itself failed: an executor was lost, or somebody cancelled it.
        """
        try:
            with self._job_group(f"training, attempt {plan.attempt}"):
                runner = self._new_runner(
                    num_slots=plan.ranks * max(1, self._gpus_per_worker),
                    use_gpu=self._gpus_per_worker > 0,
                    # The worker builds the strategy, with or without the TF_CONFIG that the runner sets.
                    use_custom_strategy=True,
                    **self._options,
                )
                task = WorkerTask(plan, self._payload)
                return tuple(run_on_driver(runner.run, task) if self._options["local_mode"] else runner.run(task))
        except (*SESSION_ERRORS, ConnectionError) as error:
            raise BarrierJobError(_what_failed(error)) from error

    def cancel(self) -> None:
        """End the running attempt, if there is one, and kill its ranks. For other threads."""
        with self._turn:
            group = self._group
        if group is not None and self._session is not None:
            self._session.cancel_jobs(group)

    @contextlib.contextmanager
    def _job_group(self, description: str) -> Iterator[None]:
        """Put the jobs of this thread into a new group while the block runs."""
        if self._session is None:
            yield
            return
        group = f"training-{uuid.uuid4()}"
        with self._session.job_group(group, description):
            with self._turn:
                self._group = group
            try:
                yield
            finally:
                with self._turn:
                    self._group = None


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _what_failed(error: Exception) -> RankError:
    """Return the failure of a job that ended with ``error``."""
    if isinstance(error, SPARK_ERRORS):
        # The text of a Java error is fetched from the JVM, which may be gone.
        with contextlib.suppress(*SESSION_ERRORS, ConnectionError):
            return read_failure(str(error), time.time())
        error = ConnectionError("it ended before it could say why the job failed")
    reason = f"the JVM of the Spark session does not answer any more ({str(error) or type(error).__name__})"
    return RankError("spark", None, SESSION_LOST, reason, time.time())


_CANCELLED = re.compile(
    r"Job \d+ cancelled.*|.*SparkContext was shut down.*|.*Stage cancelled.*|.*Operation has been canceled.*"
)
_INFORMATIVE = re.compile(
    r".*ExecutorLostFailure.*|.*Python worker exited unexpectedly.*|^[\w.]+(?:Error|Exception): .*"
)

# Spark's message about executors that it lost with their container, pod or machine, through no fault of a task.
_TAKEN_AWAY = re.compile(r"exited unrelated to the running tasks.*(?:preempt|decommission|deleted)", re.IGNORECASE)


def read_failure(message: str, now: float) -> RankError:
    """Return the failure that Spark's message about a job describes.

    It is the only account when a whole executor or task has died; otherwise the ranks report their own failures.
    """
    if (cancelled := _CANCELLED.search(message)) is not None:
        return RankError("cancelled", None, "Cancelled", cancelled.group(0).strip(), now)
    if (gone := lost_server(message)) is not None:
        return RankError("spark", None, SESSION_LOST, gone, now)
    lines = message.splitlines()
    informative = [line.strip() for line in lines if _INFORMATIVE.match(line)]
    reason = informative[0] if informative else " ".join(lines[:2]).strip()
    is_taken_away = _TAKEN_AWAY.search(reason) is not None
    # A Python worker here is only the parent of its rank, which holds the memory.
    if not is_taken_away and "Python worker" not in reason and lack_of_memory(reason) is not None:
        reason = f"{reason.rstrip('.')}; most often memory has run out: {MORE_MEMORY}"
    return RankError("preempted" if is_taken_away else "spark", None, "BarrierJobError", reason, now)
