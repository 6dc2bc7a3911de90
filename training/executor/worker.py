"""The process of a worker: reads its orders, runs the training that they name, and answers with the outcome.

It is forked by :mod:`training.executor.fork_server` for :mod:`training.executor.task`. The orders come on standard
input, since they hold a secret, and arguments and environment are public on a host. That pipe stays open for the task's
requests; its end means that the task has ended, and the worker exits.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import signal
import socket
import sys
import threading
import traceback
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, NoReturn

from mirrorspark.callbacks.collectives import at_exit
from mirrorspark.storage import without_credentials
from mirrorspark.training.executor.child_process import EXIT_ABANDONED
from mirrorspark.training.executor.training_hook import hook_for
from mirrorspark.training.executor.worker_control import Finish, Outcome, WorkerControl
from mirrorspark.training.executor.worker_failure import EntryError, describe
from mirrorspark.training.executor.worker_log import CleanEventClient, CleanText, let_the_log_out
from mirrorspark.training.protocol.messages import Command, EventAddress, StopSignal
from mirrorspark.training.protocol.outcomes import Activity, Phase, timing
from mirrorspark.training.protocol.ring import Rendezvous

EXIT_FAILED = 1

_GENERATED_SOURCE = "__autograph_generated_file"

# The signal of a machine that is taken away, and that of Spark's daemon to its whole group when it ends.
PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class WorkerOrders:
    """A task's orders to its worker.

    Attributes:
        attempt: Added to its events.
        events: Address of the driver's event server.
        entry: ``module:function`` that trains. It is called with plan, :class:`WorkerControl` and ``finish``, which
            takes the number of completed epochs and does not return; if it does not call ``finish``, it returns the
            number.
        plan_class: ``module:class`` of the plan, with a ``from_json``.
        plan: The plan as JSON.
        payload: Raw bytes for the entry.
        verbose: Send the log to the driver and to standard error from INFO on, not from WARNING on.
        host: Host at which the other ranks reach this one.
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
        """Return the orders for the worker's input: a line of JSON, then the payload."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        size = None if self.payload is None else len(self.payload)
        line = json.dumps(fields | {"events": dataclasses.asdict(self.events), "payload": size})
        return line.encode() + b"\n" + (self.payload or b"")

    @classmethod
    def read(cls, stream: IO[bytes]) -> "WorkerOrders":
        """Read orders from the output of :meth:`to_bytes`."""
        document = json.loads(stream.readline())
        size = document["payload"]
        payload = None if size is None else stream.read(size)
        return cls(**document | {"events": EventAddress(**document["events"]), "payload": payload})


def main(answers: IO[str]) -> NoReturn:
    """Run the training that the orders name, and answer with its outcome; the task ends this process.

    Args:
        answers: Gets a line when the orders have been read, and one at the end.
    """
    orders = WorkerOrders.read(sys.stdin.buffer)
    sys.stdout, sys.stderr = CleanText(1), CleanText(2)
    # Otherwise ps and top would show a fork under its server's name.
    Path("/proc/self/comm").write_text(f"rank {orders.rank}")
    stop_request = StopSignal()
    for number in PREEMPTION_SIGNALS:
        signal.signal(number, lambda *_: stop_request.request("preempted"))
    threading.Thread(target=_obey, args=(stop_request,), name="task", daemon=True).start()
    _answer(answers, {"ready": os.getpid()})
    peers: SimpleQueue[Command] = SimpleQueue()
    events = CleanEventClient(orders.events, orders.rank, orders.attempt, on_command=peers.put)
    let_the_log_out(events, verbose=orders.verbose)

    def report_phase(phase: Phase) -> None:
        events.send({"event": "phase", "phase": phase, "host": socket.gethostname(), "process": os.getpid()})

    activity = Activity(on_phase=report_phase)
    rendezvous = None if orders.host is None else Rendezvous(orders.rank, orders.host, events, peers, activity)
    control = WorkerControl(orders.rank, events, stop_request, activity, orders.payload, rendezvous)
    threading.Thread(target=_send_heartbeats, args=(control,), name="alive", daemon=True).start()

    def end_well(outcome: Outcome) -> NoReturn:
        activity.enter("ending")
        at_exit.finish(timing.EXIT_WORK_SECONDS)
        events.close()
        _remove_generated_sources()
        _answer(answers, outcome)
        # To peers, the end of a connection looks like a death, so a worker exits only when all have answered.
        while True:
            threading.Event().wait()

    def finish(epochs: int, **more: str) -> NoReturn:
        end_well({"outcome": "finished", "epochs": epochs} | more)

    try:
        finish(_train(orders, control, finish))
    except BaseException as error:
        if (step := _stopped_at(error, activity)) is not None:
            # All workers stop when one of them is asked to: without a reason of its own, this one follows a peer.
            end_well({"outcome": "stopped", "reason": stop_request.reason or "peer", "step": step})
        failure = describe(error, activity.phase) | {"step": activity.step or None}
        events.send(failure)
        print(without_credentials(traceback.format_exc()), end="", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        at_exit.finish(timing.EXIT_WORK_SECONDS)
        events.close()
        # The task reports this outcome even when the driver is out of reach.
        fields = {key: value for key, value in failure.items() if key not in ("event", "traceback")}
        _remove_generated_sources()
        _answer(answers, {"outcome": "failed"} | fields)
    # A plain return could hang: TensorFlow's threads may wait in a collective whose peer has ended.
    os._exit(EXIT_FAILED)


def _remove_generated_sources() -> None:
    """Remove the files that TensorFlow's AutoGraph writes for every function it converts.

    AutoGraph removes them when Python exits, which a worker never does: a day of training leaves thousands in ``/tmp``.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith(_GENERATED_SOURCE) and module.__file__ is not None:
            compiled = Path(cache_from_source(module.__file__))
            for file in (Path(module.__file__), compiled):
                file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # other processes have files there, too
                compiled.parent.rmdir()


def _train(orders: WorkerOrders, control: WorkerControl, finish: Finish) -> int:
    try:
        entry, plan_class = _named(orders.entry), _named(orders.plan_class)
    except Exception as error:
        raise EntryError(f"{orders.entry} cannot be loaded: {type(error).__name__}: {error}") from error
    plan = plan_class.from_json(orders.plan)
    hook = hook_for(os.environ, plan, control.rank, control.activity)
    epochs = entry(plan, dataclasses.replace(control, hook=hook), finish)
    if not isinstance(epochs, int):
        raise TypeError(f"{orders.entry} returned {epochs!r}; return the number of epochs, or call finish with it")
    return epochs


def _stopped_at(error: BaseException, activity: Activity) -> int | None:
    """Return the step at which a training stopped on request; None for every other end."""
    # Compared by name: callbacks import TensorFlow, which this module leaves to the training.
    is_stop = any(kind.__name__ == "TrainingStopped" for kind in type(error).__mro__)
    return int(getattr(error, "step", activity.step)) if is_stop else None


def _named(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _answer(answers: IO[str], message: dict[str, Any]) -> None:
    with contextlib.suppress(ConnectionError):  # The task has ended, and this process is about to end.
        print(json.dumps(message, default=str), file=answers, flush=True)


def _obey(stop_request: StopSignal) -> None:
    """Obey the task's requests until the task ends; then exit."""
    with contextlib.suppress(OSError, ValueError):
        for line in sys.stdin.buffer:
            stop_request.request(json.loads(line)["stop"])
    os._exit(EXIT_ABANDONED)


def _send_heartbeats(control: WorkerControl) -> None:
    over = threading.Event()
    while not over.wait(timing.ALIVE_SECONDS):
        control.events.send({"event": "alive", **control.activity.snapshot()})
