"""Sending the content of an event log to MLflow, in the background of a training or later.

A log is a file of JSON lines (`storage.event_file`): the events of a run, or the file of an ``MLflowLogger``.
``mirrorspark runs replay`` sends the part that MLflow does not have.
"""

import contextlib
import hashlib
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mirrorspark.callbacks.collectives import scalar_metrics
from mirrorspark.callbacks.mlflow.metric_requests import (
    METRICS_PER_REQUEST,
    LogArtifact,
    Point,
    RunCall,
    SetStatus,
    SetTags,
    Target,
    first_line,
    from_line,
    log_points,
    logged_steps,
    metric_name,
    send_call,
    start_run,
    to_line,
    with_call,
)
from mirrorspark.callbacks.mlflow.tracking_store import is_same_store, limit_requests, store_client
from mirrorspark.callbacks.mlflow.usage_metrics import STEP_PREFIX, WORK_PREFIX, named
from mirrorspark.storage import FOR_MLFLOW, Event, EventFile, EventTail, event_file, lock_state, without_credentials

# The run of the log, metrics and calls that no other event contains, and the position that MLflow has acknowledged.
_RUN, _METRICS, _CALL, _SENT = (f"{FOR_MLFLOW}{kind}" for kind in ("run", "metrics", "call", "sent"))

logger = logging.getLogger(__name__)


def run_event(target: Target) -> Event:
    """Return the event that names the run of a log; the last one in a log is valid."""
    return {"event": _RUN, **asdict(target)}


def metrics_event(metrics: Mapping[str, float], step: int, timestamp_ms: int) -> Event:
    """Return the event for metrics that no other event contains."""
    return {"event": _METRICS, "metrics": dict(metrics), "step": step, "timestamp_ms": timestamp_ms}


def call_digest(call: RunCall) -> bytes:
    """Return a digest of a call, the same for equal calls."""
    return hashlib.sha256(json.dumps(to_line(call), sort_keys=True).encode()).digest()


def entry_event(entry: Point | RunCall) -> Event:
    """Return the event for a point, or for parameters, tags, an artifact or a status."""
    if isinstance(entry, Point):
        return metrics_event({entry.name: entry.value}, entry.step, entry.timestamp_ms)
    return {"event": _CALL, **to_line(entry)}


class RunMetrics:
    """Converts the events of a run, in their order, into points and calls.

    Each metric's steps only move forward. A resumed training repeats the epochs after its checkpoint, and MLflow cannot
    replace a value, so the first value stays and the curve has one point per step.
    """

    def __init__(self) -> None:
        """Start before the first event."""
        self._newest_step: dict[str, int] = {}
        self._attempts: list[dict[str, Any]] = []
        self._world_size_step = 0
        self._began: float | None = None

    def of(self, event: Event, *, with_calls: bool = True) -> Iterator[Point | RunCall]:
        """Yield the points and, unless ``with_calls`` is false, the calls of the next event.

        Raises:
            KeyError, TypeError, ValueError: The event is malformed.
        """
        if event["event"] == _CALL:
            if with_calls:
                yield from_line(event)
            return
        if self._began is None:
            self._began = event.get("time")
        timestamp_ms = event.get("timestamp_ms") or int(event.get("time", time.time()) * 1000)
        for metrics, step in self._metrics(event):
            for raw_name, value in scalar_metrics(metrics).items():
                name = metric_name(raw_name)
                if step > self._newest_step.get(name, -sys.maxsize):
                    self._newest_step[name] = step
                    yield Point(name, value, step, timestamp_ms)
        if not with_calls:
            return
        if event["event"] == "attempt":
            yield SetTags({"attempts": str(len(self._attempts)), "workers": str(self._attempts[-1]["workers"])})
        if event["event"] in ("attempt", "restart") and self._attempts:
            yield LogArtifact.of("attempts.json", json.dumps(self._attempts, indent=2).encode())

    def _metrics(self, event: Event) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield metrics with their step."""
        is_of_chief = event.get("rank") == 0
        match event["event"]:
            case kind if kind == _METRICS:
                yield event["metrics"], event["step"]
            case "epoch_end" if is_of_chief:
                rate = event.get("examples_per_second")
                speed = {"seconds_per_epoch": event["seconds"]} | ({"examples_per_second": rate} if rate else {})
                # MLflow lists them in this order: those on validation rows first, and the losses after the others.
                names = sorted(event["logs"], key=lambda name: (not name.startswith("val_"), name.endswith("loss")))
                yield {name: event["logs"][name] for name in names}, event["epoch"]
                yield {f"{WORK_PREFIX}{name}": value for name, value in speed.items()}, event["epoch"]
                if self._attempts and event.get("step"):
                    yield self._world_size(event["step"])
            case "progress" if is_of_chief and event.get("step") is not None:
                values = {name: event.get(name) for name in ("loss", "examples_per_second")}
                yield {f"{STEP_PREFIX}{name}": value for name, value in values.items()}, event["step"]
            case "system" if self._began is not None and "time" in event:
                usage = named(event["rank"], event.get("cpu_percent"), event.get("memory_bytes"))
                yield usage, int(event["time"] - self._began)
            case "attempt":
                yield from self._begun(event)
            case "restart" if self._attempts:
                error = event.get("error")
                self._attempts[-1] |= {
                    "error": None if error is None else {**error, "traceback": ""},
                    "decision": event.get("decision"),
                    "delay_seconds": event.get("delay_seconds"),
                }

    def _begun(self, event: Event) -> Iterator[tuple[dict[str, Any], int]]:
        workers, step = event.get("workers") or 0, event.get("resumed_from") or 0
        begun = {"attempt": event["attempt"], "workers": workers, "resumed_from_step": step, "error": None}
        self._attempts.append(begun)
        yield {f"{WORK_PREFIX}attempt": len(self._attempts)}, len(self._attempts)
        # Logged at the attempt's first step, because the checkpoint's step has the point of the epoch's end. If the
        # attempt repeats steps, logged after the last point, because earlier steps are skipped.
        yield self._world_size(max(step, self._world_size_step) + 1)

    def _world_size(self, step: int) -> tuple[dict[str, Any], int]:
        self._world_size_step = max(step, self._world_size_step)
        return {f"{WORK_PREFIX}world_size": self._attempts[-1]["workers"]}, step


class LogSender:
    """Sends the content of a log, in its order and one request at a time; the content of a failed request is resent.

    Calls follow the points that were read with them. Events of the log itself give the position up to which MLflow has
    acknowledged everything. The sender of another process continues from there. It leaves out the points that MLflow
    received without an acknowledgement; calls may be repeated.

    Args:
        events: The log.
        fills_gaps: Whether to send every point of the log whose step the run lacks, even if the run has later steps.
    """

    def __init__(self, events: EventFile, *, fills_gaps: bool = False) -> None:
        """Find the position; read no event yet."""
        self._events = events
        self._tail = EventTail(events)
        self._metrics = RunMetrics()
        self._fills_gaps = fills_gaps
        self.earlier, self._earlier_bytes = LogContent(), 0
        if events.path is not None and events.path.exists():
            self.earlier, self._earlier_bytes = read_log(events.path), events.path.stat().st_size
        self._stored: dict[str, range | set[int]] | None = None
        # Guards entries that are read but not sent, because the closing thread reads the rest.
        self._lock = threading.Lock()
        self._points: list[Point] = []
        self._calls: tuple[RunCall, ...] = ()
        self.is_only_for_mlflow = True
        # True for the run of a user, who ends it.
        self.leaves_status = False
        self._is_closed = False
        self.sent = self.present = self.calls_sent = 0

    def read(self, limit: int = METRICS_PER_REQUEST) -> bool:
        """Read until ``limit`` points wait, or to the end, and return whether there is something to send."""
        while True:
            # Per event, so that nobody waits for a long log.
            with self._lock:
                if len(self._points) >= limit or not self._take_next():
                    return bool(self._points or self._calls)

    def has_any(self, *, beside_status: bool) -> bool:
        """Return whether anything waits, or anything but a status; reads on until that is known."""
        while True:
            with self._lock:
                if self._points or any(not (beside_status and isinstance(call, SetStatus)) for call in self._calls):
                    return True
                if not self._take_next():
                    return False

    def has_backlog(self) -> bool:
        """Return whether more is waiting than fits into the next request of points."""
        return bool(len(self._points) >= METRICS_PER_REQUEST or self._calls)

    def send(self, client: Any, run_id: str) -> None:
        """Send one request of the entries that were read; note the position in the log if it was the last one.

        Raises:
            Exception: Any error of the client; the entries then remain unsent.
        """
        if self._points:
            self._send_points(client, run_id)
        else:
            self._send_call(client, run_id)
        with self._lock:
            has_all = not (self._points or self._calls or self._is_closed)
            if has_all and self._events.path is not None:
                self._events.append({"event": _SENT, "position": self._tail.position})

    def waiting(self) -> Sequence[Point | RunCall]:
        """Read the log to its end, and return everything that waits."""
        self.read(limit=sys.maxsize)
        with self._lock:
            return (*self._points, *self._calls)

    def close(self) -> None:
        """Close the log; no more events are read or written."""
        with self._lock:
            self._is_closed = True
            self._tail.close()

    def _send_points(self, client: Any, run_id: str) -> None:
        points = self._points[:METRICS_PER_REQUEST]
        missing = [point for point in points if not self._is_stored(client, run_id, point)]
        if missing:
            log_points(client, run_id, missing)
        self.sent += len(missing)
        self.present += len(points) - len(missing)
        with self._lock:
            del self._points[: len(points)]

    def _send_call(self, client: Any, run_id: str) -> None:
        call = self._calls[0]
        if not (self.leaves_status and isinstance(call, SetStatus)):
            send_call(client, run_id, call)
            self.calls_sent += 1
        with self._lock:
            # The closing thread may have replaced it by a newer one meanwhile.
            self._calls = tuple(waiting for waiting in self._calls if waiting is not call)

    def _take_next(self) -> bool:
        """Read the next event, and return whether there was one."""
        begin = self._tail.position
        if (event := self._tail.read()) is None:
            return False
        self.is_only_for_mlflow = self.is_only_for_mlflow and str(event["event"]).startswith(FOR_MLFLOW)
        # An event that could not be written takes no bytes: it counts neither as acknowledged nor as an earlier
        # process's.
        is_acknowledged = begin < self._tail.position <= self.earlier.position
        is_earlier = begin < self._tail.position <= self._earlier_bytes
        try:
            for entry in self._metrics.of(event, with_calls=not is_acknowledged):
                if isinstance(entry, Point):
                    if self._fills_gaps or not is_acknowledged:
                        self._points.append(entry)
                elif not (is_earlier and self._is_outdated(entry)):
                    self._calls = with_call(self._calls, entry)
        except (KeyError, TypeError, ValueError) as error:
            logger.warning("Skipped an event that cannot be sent to MLflow (%r): %.80s", error, event)
        return True

    def _is_outdated(self, entry: RunCall) -> bool:
        """Return True for a status of an earlier process that must not be sent.

        That is ``RUNNING``, or its end if this process continues the run.
        """
        return isinstance(entry, SetStatus) and (entry.status == "RUNNING" or not self._fills_gaps)

    def _is_stored(self, client: Any, run_id: str, point: Point) -> bool:
        if self._stored is None:
            names = client.get_run(run_id).data.metrics
            steps = {name: set(logged_steps(client, run_id, name)) for name in names}
            self._stored = {
                name: of if self._fills_gaps else range(-sys.maxsize, max(of) + 1) for name, of in steps.items()
            }
        return point.step in self._stored.get(point.name, ())


@dataclass(frozen=True)
class Replayed:
    """The result of a replay.

    Attributes:
        run_id: The run, which the replay started if it did not exist.
        sent: Number of metric values sent.
        present: Number of metric values that the run already had.
        calls: Number of calls sent (parameters, tags, artifacts), including those that the server refused.
    """

    run_id: str
    sent: int
    present: int
    calls: int


def replay(path: Path, *, client: Any = None, tracking_uri: str | None = None, keeps_file: bool = False) -> Replayed:
    """Send the content of a log to its run; a file that only an ``MLflowLogger`` or a sweep wrote is then removed.

    A replay can be repeated: values whose name and step the run already has are left out, and every call can be made
    twice.

    Args:
        path: The log.
        client: An ``MlflowClient``; by default one for ``tracking_uri``.
        tracking_uri: Server or store; by default the one that the file names. The file never contains user name and
            password. They come from MLflow's own variables, or from ``MLFLOW_TRACKING_URI`` if it names the same store.
        keeps_file: Whether to keep the file in any case.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file contains nothing for MLflow, or its writer still has it open.
    """
    log = read_log(path)
    target = log.target
    if lock_state(path) == "held":
        raise ValueError(f"{path} is still written, by a process that sends it itself; wait until that has ended")
    if target is None:
        raise ValueError(
            f"{path} holds nothing for MLflow; name the events.jsonl of a run, or the file that an MLflowLogger left"
        )
    if client is None:
        limit_requests()
        uri = tracking_uri or _store_of(target)
        logger.info("sending %s to %s", path, without_credentials(uri))
        client = store_client(uri)
    with (
        contextlib.closing(EventFile(path)) as events,
        contextlib.closing(LogSender(events, fills_gaps=True)) as sender,
    ):
        run_id = target.run_id
        if run_id is None:
            run_id = start_run(client, target)
            # A process that could not start the run may have had no time to write its end status. Before the run's id,
            # so that a replay that fails half-way leaves both to the next one.
            if not log.has_end:
                events.append(entry_event(SetStatus("FINISHED")))
            events.append(run_event(replace(target, run_id=run_id)))
        sender.leaves_status = run_id == target.parent_id
        while sender.read():
            sender.send(client, run_id)
        if sender.is_only_for_mlflow and not keeps_file:
            event_file.remove(path)
    return Replayed(run_id, sender.sent, sender.present, sender.calls_sent)


@dataclass
class LogContent:
    """Records of earlier processes that a log holds for MLflow alone, without its metrics.

    Attributes:
        target: The run that the log belongs to; None if it names none.
        position: Number of bytes that MLflow has acknowledged.
        has_end: Whether it holds an end status.
        last_calls: Digest of the last call of each label.
    """

    target: Target | None = None
    position: int = 0
    has_end: bool = False
    last_calls: dict[str, bytes] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Add the next event.

        Raises:
            KeyError, TypeError, ValueError: The event is malformed.
        """
        fields = {name: value for name, value in event.items() if name != "event"}
        match event["event"]:
            case kind if kind == _RUN:
                self.target = Target(**fields)
            case kind if kind == _SENT:
                self.position = int(fields["position"])
            case kind if kind == _CALL:
                call = from_line(event)
                self.has_end = self.has_end or (isinstance(call, SetStatus) and call.status != "RUNNING")
                self.last_calls[str(call)] = call_digest(call)


def read_log(path: Path) -> LogContent:
    """Return the content of the log at ``path``; damaged lines are skipped with a warning."""
    content = LogContent()
    for line in event_file.lines_of(path):
        if not any(kind.encode() in line[:80] for kind in (_RUN, _SENT, _CALL)):
            continue
        try:
            content.add(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError):
            logger.warning("Skipped a damaged line of %s: %r", path, line[:80])
    return content


def _store_of(target: Target) -> str:
    """Return the store of the run, never another one that is MLflow's current store."""
    import mlflow

    current = mlflow.get_tracking_uri()
    return current if not target.tracking_uri or is_same_store(current, target.tracking_uri) else target.tracking_uri


def report(path: Path, tracking_uri: str | None = None, *, keeps_file: bool = False) -> int:
    """Do :func:`replay`, print the result, and return an exit status: 0 sent, 1 not accepted, 2 no such log."""
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    # Our own line about an unreachable server is enough.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    try:
        done = replay(path, tracking_uri=tracking_uri, keeps_file=keeps_file)
    except FileNotFoundError:
        print(f"{path} does not exist; name a file that a training left", file=sys.stderr)
        return 2
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:  # Whatever the client raises, the file is still there, and the message says so.
        moved = "" if tracking_uri else "; give --tracking-uri if the server has moved"
        print(f"{path} is kept, because MLflow did not accept it: {first_line(error)}{moved}", file=sys.stderr)
        return 1
    print(f"{done.sent} metric values sent to run {done.run_id}, {done.present} were there already")
    if done.calls:
        print(f"{done.calls} calls with parameters, tags, artifacts or status sent")
    return 0
