"""What a training tells MLflow, on its way: sent by a background thread, kept while the server is away.

``python -m callbacks.metric_buffer replay FILE`` sends what a process had to leave behind. No TensorFlow in here: the
driver uses it, too.
"""

import logging
import math
import posixpath
import re
import shlex
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from callbacks import at_exit
from callbacks.credentials import without_credentials
from callbacks.metric_replay import main, replay
from callbacks.metric_requests import (
    METRICS_PER_REQUEST,
    first_line,
    log_points,
    logged_steps,
    send_call,
    start_run,
)
from callbacks.metric_spill import Point, SpillFile, Target
from callbacks.metric_values import scalar_metrics
from callbacks.mlflow_store import absolute_store, store_client
from callbacks.run_calls import RunCall, SetStatus, with_call

# The command that every warning names is `python -m callbacks.metric_buffer replay`.
__all__ = ["METRICS_PER_REQUEST", "MetricBuffer", "Point", "main", "metric_name", "replay", "retry_delay"]

_FORBIDDEN_IN_NAME = re.compile(r"[^A-Za-z0-9_\-. /:]")
_NAME_LENGTH = 250
_RUN_ID = re.compile(r"[A-Za-z0-9_\-]{1,64}")

logger = logging.getLogger(__name__)


def metric_name(name: str) -> str:
    """Return ``name`` as MLflow accepts it: characters it refuses (such as ``@``) become ``_``.

    One refused name would hold up every metric sent with it, so names are made to fit before.
    """
    name = _FORBIDDEN_IN_NAME.sub("_", name)[:_NAME_LENGTH]
    if name in ("", ".", "..") or name.startswith(("/", "../")) or posixpath.normpath(name) != name:
        name = name.replace("/", "_").replace("..", "__").strip(".") or "_"
    return name


def retry_delay(failures: int, first_seconds: float, longest_seconds: float) -> float:
    """Return the seconds to wait after that many failures in a row: doubled each time, up to the longest."""
    return min(longest_seconds, first_seconds * 2.0 ** min(failures - 1, 30))


class MetricBuffer:
    """Takes metrics and calls at any rate, sends them from a background thread, and never raises into the training.

    While the server does not answer, metrics wait in memory; beyond ``capacity`` they move to the file ``spill_path``.
    A file that an earlier process left for the same run is sent, too. Each name's steps only move forward: a step at
    or below one that was logged for that name, by this process or by an earlier one that wrote to the run, is skipped.
    A resumed training repeats the epochs after its checkpoint, and MLflow cannot replace a value, so the first value
    stays and the curve has one point per step. Parameters, tags and artifacts (`callbacks.run_calls`) follow the
    metrics in the order they came; one that the server refuses is dropped with a warning.

    Args:
        client: An ``MlflowClient``, or a tracking URI to open one for in the background.
        run_id: The run to log to; None starts one when the server answers.
        experiment: Name of the experiment for a run that is started here.
        experiment_id: Its id, where that is what is known; it goes before the name.
        run_name: Name for a run that is started here; one of that name that an earlier process started is gone on with.
        spill_path: File for metrics that memory cannot hold and for those left at the end; JSON lines.
            By default ``mlflow-metrics-<run id>.jsonl`` in the working directory.
        capacity: Metric values kept in memory.
        first_retry_seconds: Wait after a first failure; it doubles with each further one.
        longest_retry_seconds: Longest wait between attempts.
        linger_seconds: Wait after a request for more to send with the next: fewer requests, later points.
        clock: Returns seconds; monotonic.

    Raises:
        ValueError: The run id is not one, or the spill file belongs to another run.
    """

    def __init__(
        self,
        client: Any,
        run_id: str | None = None,
        *,
        experiment: str = "Default",
        experiment_id: str | None = None,
        run_name: str | None = None,
        spill_path: str | Path | None = None,
        capacity: int = 10_000,
        first_retry_seconds: float = 1.0,
        longest_retry_seconds: float = 60.0,
        linger_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the arguments and start the sending thread; the server is not asked yet."""
        # The id becomes part of a file name.
        if run_id is not None and not _RUN_ID.fullmatch(run_id):
            raise ValueError(f"run_id {run_id!r} is not an MLflow run id")
        self._client = None if isinstance(client, str) else client
        self._tracking_uri = client if isinstance(client, str) else getattr(client, "tracking_uri", "")
        self._run_id = run_id
        self._is_own_run = run_id is None
        # Whoever replays the file may be anywhere.
        store = without_credentials(absolute_store(self._tracking_uri))
        self._target = Target(run_id, store, experiment, run_name, experiment_id)
        default_path = f"mlflow-metrics-{run_id or uuid.uuid4().hex}.jsonl"
        self._spill = SpillFile(Path(spill_path or default_path).absolute(), self._target)
        self._capacity = capacity
        self._first_retry_seconds = first_retry_seconds
        self._longest_retry_seconds = longest_retry_seconds
        self._linger_seconds = linger_seconds
        self._clock = clock

        # Guards everything below; waited on by flush (all sent?) and by the thread (something to send?).
        self._changed = threading.Condition()
        self._pending: deque[Point] = deque()
        self._in_flight: list[Point] = []
        # How an earlier process ended says nothing of this one.
        self._calls: tuple[RunCall, ...] = tuple(
            call for call in self._spill.earlier_calls if not isinstance(call, SetStatus)
        )
        self._newest_step: dict[str, int] = {}
        self._stored_step: dict[str, int] | None = None
        self._failures = 0
        self._last_error = ""
        self._retry_at = -math.inf
        self._is_hurried = False
        self._closed = False
        # Daemon: a server that hangs must not keep the process alive. `at_exit` saves what is left then.
        self._thread = threading.Thread(target=self._work, name="metric-buffer", daemon=True)
        self._thread.start()
        at_exit.register(self.close, at_exit.SERVER_SECONDS)

    @property
    def run_id(self) -> str | None:
        """The run; None as long as one to be started here could not be."""
        return self._run_id

    @property
    def is_failing(self) -> bool:
        """Whether the last try to send something failed."""
        return self._failures > 0

    @property
    def spill_path(self) -> Path:
        """Where metrics go that cannot be sent."""
        return self._spill.path

    def log(self, metrics: Mapping[str, Any], step: int, timestamp_ms: int | None = None) -> None:
        """Take metrics; returns at once.

        Args:
            metrics: Name to float, NumPy scalar or tensor; values that are no single number are left out.
            step: Their step; see the class for steps that were logged before.
            timestamp_ms: Milliseconds since the epoch; now by default.
        """
        if timestamp_ms is None:
            timestamp_ms = time.time_ns() // 1_000_000
        with self._changed:
            if self._closed:
                logger.warning("Metrics of step %d came after close() and are dropped", step)
                return
            for raw_name, value in scalar_metrics(metrics).items():
                name = metric_name(raw_name)
                if step > self._newest_step.get(name, -sys.maxsize):
                    self._newest_step[name] = step
                    self._pending.append(Point(name, value, step, timestamp_ms))
            if len(self._pending) > self._capacity:
                self._spill_pending()
            self._changed.notify_all()

    def call(self, call: RunCall) -> None:
        """Take parameters, tags, an artifact or the status; returns at once."""
        with self._changed:
            if self._closed:
                logger.warning("%s came after close() and is dropped", call)
                return
            self._calls = with_call(self._calls, call)
            self._changed.notify_all()

    def flush(self, timeout_seconds: float = 10.0) -> bool:
        """Try now, whatever the back-off says, and return whether everything was sent within the time."""
        with self._changed:
            self._retry_at = -math.inf
            self._failures = min(self._failures, 1)
            self._is_hurried = True
            self._changed.notify_all()
            is_sent = self._changed.wait_for(self._is_all_sent, timeout_seconds)
            self._is_hurried = False
            return is_sent

    def close(self, timeout_seconds: float = 30.0, *, status: str | None = None) -> bool:
        """Send what is left, or save it to the spill file and say so in one warning; a second call does nothing.

        Args:
            timeout_seconds: Longest wait for the server.
            status: Status for a run that was started here, such as ``FINISHED``; None leaves it running.

        Returns:
            Whether everything was sent.
        """
        with self._changed:
            if self._closed:
                return self._is_all_sent()
            if self._is_own_run and status is not None:
                self._calls = with_call(self._calls, SetStatus(status))
        is_sent = self.flush(timeout_seconds)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if not is_sent:
                # A request may still be under way. Its metrics are saved as well: replay leaves out what arrived.
                self._pending.extendleft(reversed(self._in_flight))
                self._in_flight = []
                self._spill_pending(self._calls if self._is_worth_a_file() else ())
        at_exit.unregister(self.close)
        if not is_sent and self.left_behind is not None:
            logger.warning(
                "MLflow could not be reached (%s); metrics are kept in %s. Send them later with: %s",
                self._last_error or f"no answer within {timeout_seconds:g} s",
                self.spill_path,
                self.left_behind,
            )
        return is_sent

    @property
    def left_behind(self) -> str | None:
        """The command that sends what a closed buffer could not; None when there is nothing."""
        if not self._closed or not self._spill.has_points():
            return None
        return f"python -m callbacks.metric_buffer replay {shlex.quote(str(self.spill_path))}"

    def _is_all_sent(self) -> bool:
        return not (self._pending or self._in_flight or self._calls or self._spill.has_points())

    def _is_worth_a_file(self) -> bool:
        """Whether there is more to send than the status of a run that was never started."""
        has_points = bool(self._run_id or self._pending or self._spill.has_points())
        return has_points or any(not isinstance(call, SetStatus) for call in self._calls)

    def _spill_pending(self, calls: tuple[RunCall, ...] = ()) -> None:
        try:
            self._spill.append(self._pending, self._run_id, calls)
        except OSError as error:
            # Neither the server nor the disk takes them: the oldest go, and this says how many.
            lost = max(0, len(self._pending) - self._capacity) if not self._closed else len(self._pending)
            logger.warning("%d metric values are lost: cannot write %s (%s)", lost, self.spill_path, error)
            for _ in range(lost):
                self._pending.popleft()
        else:
            self._pending.clear()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (self._is_all_sent() or self._clock() < self._retry_at):
                    wait = None if self._is_all_sent() else max(0.0, self._retry_at - self._clock())
                    self._changed.wait(wait)
                if self._closed:
                    return
            try:
                self._send_some()
            except Exception as error:  # Whatever a client raises must neither end this thread nor the training.
                self._note_failure(error)
            else:
                self._note_success()

    def _send_some(self) -> None:
        """Send one request's worth: what an outage moved to the file, then what is in memory, then the first call."""
        client = self._connect()
        with self._changed:
            if self._has_ended():
                return
            spilled, offset = self._spill.read(METRICS_PER_REQUEST)
            if not spilled:
                count = min(METRICS_PER_REQUEST, len(self._pending))
                self._in_flight = [self._pending.popleft() for _ in range(count)]
                self._spill.drop_until(offset)  # lines that hold no value
            points = spilled or list(self._in_flight)
            call = self._calls[0] if self._calls and not points else None
        self._log_batch(client, [point for point in points if not self._is_stored(client, point)])
        if call is not None:
            assert self._run_id is not None  # noqa: S101 - _connect started one
            send_call(client, self._run_id, call)
        with self._changed:
            if self._has_ended():
                return
            self._in_flight = []
            if spilled:
                self._spill.drop_until(offset)
            # A newer one may have taken its place meanwhile.
            self._calls = tuple(waiting for waiting in self._calls if waiting is not call)
            if not self._calls:  # a file of before may hold those that are still to be sent
                self._spill.remove_when_sent()

    def _has_ended(self) -> bool:
        """Whether it was closed while a request was under way: the file has all of it, and a warning has said so."""
        return self._closed

    def _connect(self) -> Any:
        if self._client is None:
            self._client = store_client(self._tracking_uri)  # seconds, and nobody waits for this thread
        if self._run_id is None:
            run_id = start_run(self._client, self._target)
            with self._changed:
                self._run_id = run_id
                self._spill.name_run(run_id)
        return self._client

    def _has_a_backlog(self) -> bool:
        return bool(self._calls or self._spill.has_points()) or len(self._pending) >= METRICS_PER_REQUEST

    def _is_stored(self, client: Any, point: Point) -> bool:
        if self._stored_step is None:
            names = client.get_run(self._run_id).data.metrics
            self._stored_step = {name: max(logged_steps(client, self._run_id, name)) for name in names}
        return point.step <= self._stored_step.get(point.name, -sys.maxsize)

    def _log_batch(self, client: Any, points: Sequence[Point]) -> None:
        if points:
            log_points(client, self._run_id, points)

    def _note_failure(self, error: Exception) -> None:
        with self._changed:
            self._pending.extendleft(reversed(self._in_flight))
            self._in_flight = []
            if len(self._pending) > self._capacity:
                self._spill_pending()
            self._failures += 1
            self._last_error = f"{type(error).__name__}: {first_line(error)}"
            delay = retry_delay(self._failures, self._first_retry_seconds, self._longest_retry_seconds)
            self._retry_at = self._clock() + delay
            is_first = self._failures == 1
            self._changed.notify_all()
        if is_first:
            logger.warning("MLflow does not take metrics (%s); they are kept and sent later", self._last_error)

    def _note_success(self) -> None:
        with self._changed:
            if self._failures:
                logger.info("MLflow takes metrics again")
            self._failures = 0
            is_patient = self._linger_seconds and not self._is_hurried and not self._has_a_backlog()
            self._retry_at = self._clock() + self._linger_seconds if is_patient else -math.inf
            self._changed.notify_all()


if __name__ == "__main__":
    sys.exit(main())
