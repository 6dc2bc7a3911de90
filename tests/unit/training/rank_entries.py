"""Entry points of the tests' ranks, and the plan that selects one; needs neither TensorFlow nor Spark."""

import ctypes
import dataclasses
import importlib.util
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from mirrorspark.callbacks.collectives import at_exit
from mirrorspark.training.executor.worker_control import Finish, WorkerControl
from mirrorspark.training.protocol.messages.events import EventAddress


@dataclasses.dataclass(frozen=True)
class Plan:
    """The parts of a plan that a task needs; ``note`` is for the function of this module that ``function`` names."""

    events: EventAddress
    attempt: int = 1
    threads: int | None = None
    verbose: bool = False
    note: str = ""
    function: str = "finish_at_once"
    meets_through_driver: bool = False

    @property
    def entry(self) -> str:
        return f"{__name__}:{self.function}"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        document = json.loads(text)
        return cls(**document | {"events": EventAddress(**document["events"])})


class TrainingStopped(Exception):  # noqa: N818 - the name that ranks know
    """The exception that our callback raises."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


def finish_at_once(plan: Plan, control: WorkerControl, finish: Finish) -> None:
    finish(7)


def tell_all(plan: Plan, control: WorkerControl, finish: Finish) -> int:
    """Return an epoch, after writing what the rank sees of its surroundings."""
    seen = {
        "arguments": sys.argv,
        "environment": dict(os.environ),
        "rank": control.rank,
        "note": plan.note,
        "payload": (control.payload or b"").hex(),
        "path": sys.path,
        "random": random.random(),
    }
    print("standard output is not the line of answers")
    print("standard error", file=sys.stderr)
    Path(plan.note).write_text(json.dumps(seen))
    return 1


def meet(plan: Plan, control: WorkerControl, finish: Finish) -> None:
    """Write where all ranks listen."""
    assert control.rendezvous is not None
    control.activity.enter("connecting")
    Path(plan.note).write_text(json.dumps(control.rendezvous.exchange_addresses(4321, 20)))
    finish(1)


def fail(plan: Plan, control: WorkerControl, finish: Finish) -> int:
    control.activity.enter("training")
    control.activity.step = 12
    logging.getLogger("model").warning("about to fail")
    raise ValueError(f"no such column: {plan.note}")


def convert(plan: Plan, control: WorkerControl, finish: Finish) -> None:
    """Let AutoGraph write the source of a function that it converts; then fail, where the note says so."""
    import tensorflow as tf

    @tf.function
    def doubled(value: tf.Tensor) -> tf.Tensor:
        for _ in tf.range(1):
            value = value + value
        return value

    doubled(tf.constant(-1.0))
    assert list(Path(tempfile.gettempdir()).iterdir())
    if plan.note:
        raise ValueError(plan.note)
    finish(1)


def return_nothing(plan: Plan, control: WorkerControl, finish: Finish) -> None:
    pass


def kill_itself(plan: Plan, control: WorkerControl, finish: Finish) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def abort(plan: Plan, control: WorkerControl, finish: Finish) -> None:
    os.abort()


def be_killed_for_memory(plan: Plan, control: WorkerControl, finish: Finish) -> None:
    """Count a kill in the file of the kernel's counters that the plan notes, and die as the kernel would have it."""
    Path(plan.note).write_text("pgfault 7\noom_kill 3\n", encoding="ascii")
    os.kill(os.getpid(), signal.SIGKILL)


def ask_for_all_memory(plan: Plan, control: WorkerControl, finish: Finish) -> None:
    """Have C++ abort this process, as its allocator gets no memory."""
    new = ctypes.CDLL("libstdc++.so.6")._Znwm
    new.argtypes, new.restype = [ctypes.c_size_t], ctypes.c_void_p
    new(1 << 62)


def speak(plan: Plan, control: WorkerControl, finish: Finish) -> int:
    print("printed")
    print("complained", file=sys.stderr)
    logging.getLogger("model").info("logged")
    logging.getLogger("model").warning("warned\ntwice")
    logging.getLogger("model").warning("%d is not fitting", "this")
    return 1


def print_many_lines(plan: Plan, control: WorkerControl, finish: Finish) -> int:
    for line in range(int(plan.note)):
        print("line", line)
    return 1


def betray(plan: Plan, control: WorkerControl, finish: Finish) -> None:
    """Let secrets out by all ways: those of the environment, those of the note, and one that only this rank has."""
    os.environ["RANKS_OWN_API_KEY"] = "of-the-rank-" + "alone"
    own = ("PLANTED_TOKEN", "AWS_SECRET_ACCESS_KEY", "RANKS_OWN_API_KEY")
    everything = " ".join([plan.note, *(os.environ[name] for name in own)])
    print(everything)
    print(everything, file=sys.stderr)
    os.write(2, f"{plan.note} {os.environ['PLANTED_TOKEN']}\n".encode())
    for level in (logging.INFO, logging.WARNING):
        logging.getLogger("model").log(level, everything)
    control.events.send({"event": "progress", "logs": {"deep": [everything]}})
    control.activity.enter("training")
    while not control.stop_request.is_set():
        time.sleep(0.005)
    try:
        os.stat(everything)  # noqa: PTH116 - a path would write the address in another way
    except OSError as error:
        raise ValueError("x" * 3950 + everything) from error


def leave_with_secrets(plan: Plan, control: WorkerControl, finish: Finish) -> None:
    os.write(2, f"{plan.note} {os.environ['PLANTED_TOKEN']}\n".encode())
    os._exit(5)


def be_killed_beside_a_child(plan: Plan, control: WorkerControl, finish: Finish) -> None:
    """Die while a process of an own session holds all files of the rank, whose number is in the file of the note."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        threading.Event().wait(60)
        os._exit(0)
    Path(plan.note).write_text(str(pid))
    os.kill(os.getpid(), signal.SIGKILL)


def wait_beside_a_child(plan: Plan, control: WorkerControl, finish: Finish) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(plan.note).write_text(str(child.pid))
    control.activity.enter("training")
    hang(plan, control, finish)


def leave(plan: Plan, control: WorkerControl, finish: Finish) -> None:
    for line in range(int(plan.note)):
        print("line", line, file=sys.stderr, flush=True)
    os._exit(5)


def train_until_stopped(plan: Plan, control: WorkerControl, finish: Finish) -> None:
    """Enter the phase training; stop on request."""
    control.activity.enter("training")
    while not control.stop_request.is_set():
        control.activity.step += 1
        time.sleep(0.005)
    raise TrainingStopped(control.activity.step)


def stop_with_work_left(plan: Plan, control: WorkerControl, finish: Finish) -> None:
    at_exit.register(Path(plan.note).touch)
    train_until_stopped(plan, control, finish)


def fail_with_work_left(plan: Plan, control: WorkerControl, finish: Finish) -> None:
    at_exit.register(Path(plan.note).touch)
    raise ValueError("no such column")


def hang(plan: Plan, control: WorkerControl, finish: Finish) -> None:
    control.activity.enter("training")
    threading.Event().wait(60)


def import_modules(plan: Plan, control: WorkerControl, finish: Finish) -> None:
    """Import small modules again and again for a minute, in three threads whose frames come and go."""
    control.activity.enter("training")

    def work() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for name in ("chunk", "colorsys", "fractions", "sched", "stringprep", "wave"):
                spec = importlib.util.find_spec(name)
                assert spec is not None and spec.loader is not None  # noqa: PT018
                spec.loader.exec_module(importlib.util.module_from_spec(spec))

    for _ in range(2):
        threading.Thread(target=work, daemon=True).start()
    work()


def hold_the_lock(plan: Plan, control: WorkerControl, finish: Finish) -> None:
    """Hang in C without letting go of Python's lock."""
    control.activity.enter("training")
    silent, _ = os.pipe()
    ctypes.PyDLL(None).read(silent, ctypes.create_string_buffer(1), 1)
