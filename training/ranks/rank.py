"""The process of one rank: takes its orders, runs the training they name, and answers how it ended.

Forked by :mod:`training.ranks.fork_server` for :mod:`training.ranks.worker`. The orders come on standard input, since
they hold a secret, and arguments and environment are public on a host. That pipe stays open: the task's requests come
by it, and when it ends the task is gone, and the rank leaves.
"""

import contextlib
import dataclasses
import errno
import importlib
import io
import json
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, NoReturn

from callbacks import at_exit
from callbacks.checkpoint_store import CheckpointStoreError
from callbacks.commit import CheckpointDamagedError
from callbacks.credentials import clean, without_credentials
from callbacks.fence import StaleAttemptError
from data_pipelines.storage import StoreUnreachableError
from training.channel.events import Command, EventAddress, EventClient
from training.fitting.activity import Activity, Phase
from training.fitting.ring_errors import RingConnectError, RingError
from training.ranks.child_process import EXIT_ABANDONED, LOG_CHARACTERS, LineBudget, marked_as_told
from training.ranks.rank_control import Finish, Meeting, Outcome, RankControl, StopRequest
from training.supervision.timing import ALIVE_SECONDS, EXIT_WORK_SECONDS

EXIT_FAILED = 1

# Of an error's message; the traceback is longer.
MESSAGE_LENGTH = 4000
_TRACEBACK_LENGTH = 8000

_GENERATED_SOURCE = "__autograph_generated_file"

# What a machine sends that is taken away, and what Spark's daemon sends to its whole group when it ends.
PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class RankOrders:
    """What a task tells its rank.

    Attributes:
        rank: Which one it is.
        attempt: Stamped on its events.
        events: Where the driver listens.
        entry: ``module:function`` that trains. It is called with plan, :class:`RankControl` and ``finish``, which takes
            the number of completed epochs and does not return; where it does not call that, it returns the number.
        plan_class: ``module:class`` of the plan, with a ``from_json``.
        plan: The plan as JSON.
        payload: Bytes for the entry, as they are.
        verbose: Whether its log goes to the driver and to standard error from INFO on, not from WARNING on.
        host: Where the other ranks reach this one, which then meets them through the driver; None where ``TF_CONFIG``
            names them.
    """

    rank: int
    attempt: int
    events: EventAddress
    entry: str
    plan_class: str
    plan: str
    payload: bytes | None = dataclasses.field(default=None, repr=False)
    verbose: bool = False
    host: str | None = None

    def to_bytes(self) -> bytes:
        """Return what the rank reads: a line of JSON, then the payload."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        size = None if self.payload is None else len(self.payload)
        line = json.dumps(fields | {"events": dataclasses.asdict(self.events), "payload": size})
        return line.encode() + b"\n" + (self.payload or b"")

    @classmethod
    def read(cls, stream: IO[bytes]) -> "RankOrders":
        """Read what :meth:`to_bytes` wrote."""
        document = json.loads(stream.readline())
        size = document["payload"]
        payload = None if size is None else stream.read(size)
        return cls(**document | {"events": EventAddress(**document["events"]), "payload": payload})


def main(answers: IO[str]) -> NoReturn:
    """Run the training that the orders name, and answer with its outcome; the task ends this process.

    Args:
        answers: Takes a line when the orders are read, and one at the end.
    """
    orders = RankOrders.read(sys.stdin.buffer)
    sys.stdout, sys.stderr = _CleanText(1), _CleanText(2)
    # What ps and top show of a fork is otherwise its server's.
    Path("/proc/self/comm").write_text(f"rank {orders.rank}")
    stop_request = StopRequest()
    for number in PREEMPTION_SIGNALS:
        signal.signal(number, lambda *_: stop_request.request("preempted"))
    threading.Thread(target=_obey, args=(stop_request,), name="task", daemon=True).start()
    _answer(answers, {"ready": os.getpid()})
    peers: SimpleQueue[Command] = SimpleQueue()
    events = CleanEventClient(orders.events, orders.rank, orders.attempt, on_command=peers.put)
    _let_the_log_out(events, verbose=orders.verbose)

    def tell_phase(phase: Phase) -> None:
        events.send({"event": "phase", "phase": phase, "host": socket.gethostname(), "process": os.getpid()})

    activity = Activity(on_phase=tell_phase)
    meeting = None if orders.host is None else Meeting(orders.rank, orders.host, events, peers, activity)
    control = RankControl(orders.rank, events, stop_request, activity, orders.payload, meeting)
    threading.Thread(target=_tell_alive, args=(control,), name="alive", daemon=True).start()

    def end_well(outcome: Outcome) -> None:
        activity.enter("ending")
        at_exit.finish(EXIT_WORK_SECONDS)
        events.close()
        _remove_generated_sources()
        _answer(answers, outcome)
        # Peers take the end of a connection for a death, so nobody leaves before the task says that all have answered.
        threading.Event().wait()

    def finish(epochs: int, **more: str) -> None:
        end_well({"outcome": "finished", "epochs": epochs} | more)

    try:
        finish(_train(orders, control, finish))
    except BaseException as error:
        if (step := _stopped_at(error, activity)) is not None:
            # All ranks stop when one of them is asked to.
            end_well({"outcome": "stopped", "reason": stop_request.reason or "peer", "step": step})
        failure = describe(error, activity.phase) | {"step": activity.step or None}
        events.send(failure)
        print(without_credentials(traceback.format_exc()), end="", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        at_exit.finish(EXIT_WORK_SECONDS)
        events.close()
        # The task knows what to do with this where the driver was out of reach.
        fields = {key: value for key, value in failure.items() if key not in ("event", "traceback")}
        _remove_generated_sources()
        _answer(answers, {"outcome": "failed"} | fields)
    # Not a plain return: TensorFlow's threads can hang in a collective whose peer is gone.
    os._exit(EXIT_FAILED)


def _remove_generated_sources() -> None:
    """Remove the files that TensorFlow's AutoGraph writes for every function it converts.

    It would do so when Python exits, which a rank never does: a day of training leaves thousands in ``/tmp``.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith(_GENERATED_SOURCE) and module.__file__ is not None:
            Path(module.__file__).unlink(missing_ok=True)


def _train(orders: RankOrders, control: RankControl, finish: Finish) -> int:
    try:
        entry, plan_class = _named(orders.entry), _named(orders.plan_class)
    except Exception as error:
        raise EntryError(f"{orders.entry} cannot be loaded: {type(error).__name__}: {error}") from error
    epochs = entry(plan_class.from_json(orders.plan), control, finish)
    if not isinstance(epochs, int):
        raise TypeError(f"{orders.entry} returned {epochs!r}; return the number of epochs, or call finish with it")
    return epochs


def _stopped_at(error: BaseException, activity: Activity) -> int | None:
    """Return the step at which a training stopped because it was asked to; None for every other end."""
    # By name: callbacks import TensorFlow, which this module leaves to the training.
    is_stop = any(kind.__name__ == "TrainingStopped" for kind in type(error).__mro__)
    return int(getattr(error, "step", activity.step)) if is_stop else None


class EntryError(ImportError):
    """The function that trains, or the class of its plan, cannot be imported here."""


def _named(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _answer(answers: IO[str], message: dict[str, Any]) -> None:
    with contextlib.suppress(ConnectionError):  # the task is gone, and so is this process in a moment
        print(json.dumps(message, default=str), file=answers, flush=True)


def _obey(stop_request: StopRequest) -> None:
    """Take requests from the task until it is gone; then leave."""
    with contextlib.suppress(OSError, ValueError):
        for line in sys.stdin.buffer:
            stop_request.request(json.loads(line)["stop"])
    os._exit(EXIT_ABANDONED)


def _tell_alive(control: RankControl) -> None:
    over = threading.Event()
    while not over.wait(ALIVE_SECONDS):
        control.events.send({"event": "alive", **control.activity.snapshot()})


def describe(error: BaseException, phase: Phase = "training") -> dict[str, Any]:
    """Return the error as an event.

    Args:
        error: What ended the training.
        phase: When.

    Returns:
        ``cause`` is one of :data:`training.supervision.failure_policy.Cause`: ``peer`` when the error tells of another
        rank's end, ``start`` when the rank never came to train (a taken port, a rank that cannot be reached, an
        import), ``store`` when it is the place of the files that failed, and otherwise ``user``: it stems from the
        model, the data or the configuration, and would come again. Message and traceback are without secrets. An
        error that knows in which step it began tells ``epoch`` and ``step_in_epoch``.
    """
    return {
        "event": "error",
        "is_from_tensorflow": _is_from_tensorflow(error),
        "cause": _cause(error, phase),
        "type": type(error).__name__,
        # Cleaned before they are cut: half a secret is not found any more.
        "message": without_credentials(str(error))[:MESSAGE_LENGTH],
        "traceback": without_credentials("".join(traceback.format_exception(error)))[-_TRACEBACK_LENGTH:],
        **{name: number for name in _WHERE_IT_BEGAN if isinstance(number := getattr(error, name, None), int)},
    }


# Attributes of errors that are noticed later than they begin.
_WHERE_IT_BEGAN = ("epoch", "step_in_epoch")

_STARTING: frozenset[Phase] = frozenset({"starting", "connecting"})

# What the collectives of the other ranks raise when one is gone, beside UnavailableError.
_PEER_CLASSES = ("UnavailableError", "AbortedError", "CancelledError", "DeadlineExceededError")
_PEER_MESSAGES = (
    "RingError",  # our ring's, raised within an operation of TensorFlow, which passes on its name and text alone
    "Socket closed",
    "Connection reset",
    "Collective ops is aborted",
    "coordination service",
    "heartbeat",
)

# The port that was free when the runner dealt out the cluster's addresses may be taken when it is bound.
_PORT_MESSAGES = ("Could not start gRPC server", "Address already in use")

_STORE_MESSAGES = ("No space left on device", "Stale file handle", "Input/output error")

# A disk that is full, broken, read-only of late or no longer there.
_STORE_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.ENODEV, errno.ENXIO, errno.ENOTCONN}
)


def _cause(error: BaseException, phase: Phase) -> str:
    """Return the cause that the error, or one that it was raised from, tells of."""
    causes = (_own_cause(one, phase) for one in _chain(error))
    return next((cause for cause in causes if cause is not None), "user")


def _own_cause(error: BaseException, phase: Phase) -> str | None:
    match error:
        case RingConnectError() | EntryError():
            return "start"
        # Where a checkpoint is damaged, the driver finds an older one that is whole.
        case CheckpointStoreError() | StoreUnreachableError() | CheckpointDamagedError():
            return "store"
        case StaleAttemptError():  # a later attempt has taken over
            return "peer"
        case RingError():
            return "start" if phase in _STARTING else "peer"
        case OSError(errno=errno.EADDRINUSE):
            return "start"
        case OSError(errno=number) if number in _STORE_ERRORS:
            return "store"
        case ConnectionError() | TimeoutError() if phase in _STARTING:
            return "start"
    if not _is_from_tensorflow(error):
        return None
    text = str(error)
    if any(message in text for message in _STORE_MESSAGES):
        return "store"
    if any(message in text for message in _PORT_MESSAGES) or "RingConnectError" in text:
        return "start"
    if type(error).__name__ in _PEER_CLASSES or any(message in text for message in _PEER_MESSAGES):
        return "start" if phase in _STARTING else "peer"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what it was raised from. What merely came before it in an ``except`` is no cause."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__


def _is_from_tensorflow(error: BaseException) -> bool:
    if "tensorflow" not in sys.modules:  # failed before TensorFlow was there, or because it is not
        return False
    from tensorflow import errors

    return isinstance(error, errors.OpError)


class CleanEventClient(EventClient):
    """Tells the driver without telling it secrets: they can be found only where their environment is known."""

    def send(self, event: Mapping[str, Any]) -> None:
        """Queue an event without the secrets in it."""
        super().send(clean(event))


class _CleanText(io.TextIOWrapper):
    """Standard output or error of a rank, line by line, without the secrets that this process knows of."""

    def __init__(self, file: int) -> None:
        # Line by line also into a pipe: a rank is killed when it has finished, and what it printed is to be seen.
        stream = open(file, "wb", closefd=False)  # noqa: SIM115 - open as long as the process
        super().__init__(stream, encoding="utf-8", errors="backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        super().write(without_credentials(text))
        return len(text)


def _let_the_log_out(events: EventClient, *, verbose: bool) -> None:
    """Send the log to the driver: warnings and errors, with ``verbose`` INFO too, which is then also printed."""
    root = logging.getLogger()
    root.addHandler(_LogToDriver(events, logging.INFO if verbose else logging.WARNING))
    if verbose:
        root.setLevel(logging.INFO)
        printer = logging.StreamHandler()
        printer.setFormatter(_PrintedFormatter("%(levelname)s %(name)s: %(message)s"))
        root.addHandler(printer)


class _LogToDriver(logging.Handler):
    def __init__(self, events: EventClient, level: int) -> None:
        super().__init__(level)
        self._events = events
        # Warnings have one of their own, so that they come through among many lines of INFO.
        self._budgets = {is_warning: LineBudget() for is_warning in (False, True)}

    def emit(self, record: logging.LogRecord) -> None:
        # The channel's own warnings would come back to it for ever.
        if record.name.startswith("training.channel.events"):
            return
        try:
            text: str | None = without_credentials(record.getMessage())
        except Exception:  # whatever stands in a record, it is not the end of a training
            self.handleError(record)
            return
        text = self._budgets[record.levelno >= logging.WARNING].admit(text or "")
        if text is not None:
            self._events.send({"event": "log", "level": record.levelname, "message": text[:LOG_CHARACTERS]})


class _PrintedFormatter(logging.Formatter):
    """Marks what it formats: the task shows these lines and leaves the driver to :class:`_LogToDriver`."""

    def format(self, record: logging.LogRecord) -> str:
        return marked_as_told(super().format(record))
