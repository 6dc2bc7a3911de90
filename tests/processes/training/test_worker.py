"""T2, T7: a barrier task starts its rank, speaks for it, obeys the driver, and leaves nothing behind.

Without Spark there is one rank, and its task's outcomes are that rank's alone.
"""

import contextlib
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from mirrorspark.storage import out_of_memory
from mirrorspark.training.executor import worker_process
from mirrorspark.training.executor.task import WorkerTask
from mirrorspark.training.executor.worker_failure import MORE_MEMORY
from mirrorspark.training.executor.worker_process import WorkerProcess, WorkerStartError
from mirrorspark.training.protocol.messages.event_server import EventServer
from mirrorspark.training.protocol.messages.events import Event, EventAddress
from mirrorspark.training.protocol.outcomes.timing import LEASE_SECONDS
from tests.unit.training import rank_entries

SECONDS = 60.0
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True, scope="module")
def no_server_stays() -> Iterator[None]:
    yield
    worker_process.shut_down()


class Driver:
    """Receives the events of a task, and sends it commands."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._arrived: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.server = EventServer("127.0.0.1", self._hear)

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        self._arrived.put(event)

    def next(self, kind: str, **fields: object) -> Event:
        """Return the next event of that kind with these fields."""
        while True:
            event = self._arrived.get(timeout=SECONDS)
            if event["event"] == kind and fields.items() <= event.items():
                return event

    def kinds(self, sender: str | None) -> list[str]:
        return [event["event"] for event in self.events if event.get("from") == sender]


@pytest.fixture
def driver() -> Iterator[Driver]:
    driver = Driver()
    with driver.server:
        yield driver


def task(address: EventAddress, entry: str, note: str = "", **options: Any) -> WorkerTask:
    ours = {name: options.pop(name) for name in ("verbose", "meets_through_driver") if name in options}
    plan: Any = rank_entries.Plan(address, attempt=2, note=note, function=entry, **ours)
    return WorkerTask(plan, preload="json", **options)


@dataclass
class Running:
    """A task in a thread."""

    thread: threading.Thread
    outcomes: list[dict[str, Any]]

    def outcome(self) -> dict[str, Any]:
        self.thread.join(SECONDS)
        (outcome,) = self.outcomes
        return outcome


def ranks() -> list[psutil.Process]:
    """The ranks that the fork server of this process has now."""
    assert worker_process._place_of_tasks.server is not None
    return psutil.Process(worker_process._place_of_tasks.server._process.pid).children()


@contextlib.contextmanager
def running(task: WorkerTask) -> Iterator[Running]:
    outcomes: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: outcomes.extend(task()))
    thread.start()
    yield Running(thread, outcomes)
    thread.join(SECONDS)
    assert not thread.is_alive()


def test_a_rank_that_finishes_says_with_how_many_epochs(driver: Driver) -> None:
    assert task(driver.server.address, "finish_at_once")() == [{"outcome": "finished", "epochs": 7}]
    assert driver.kinds("task") == ["system"]
    assert driver.kinds(None) == ["phase"]


@pytest.mark.full
@pytest.mark.parametrize("note", ["", "made to fail"])
def test_nothing_that_tensorflow_generates_is_left_in_the_temporary_folder(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: str
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (outcome,) = task(driver.server.address, "convert", note)()
    assert outcome.get("message") == (note or None)
    assert list(tmp_path.iterdir()) == []


def test_the_secret_is_in_neither_arguments_nor_environment(driver: Driver) -> None:
    secret = driver.server.address.token
    with running(task(driver.server.address, "train_until_stopped")) as rank:
        process = psutil.Process(driver.next("phase", phase="training")["process"])
        parent = process.parent()
        assert parent is not None
        for one in (process, parent):
            assert secret not in repr(one.cmdline()) + repr(one.environ())
        driver.server.command({"command": "stop", "reason": "driver"})
        rank.outcome()
    assert secret not in repr(task(driver.server.address, "finish_at_once"))


def test_a_users_error_is_reported_with_its_step_and_is_not_the_tasks(driver: Driver) -> None:
    (outcome,) = task(driver.server.address, "fail", "town")()
    assert outcome == {
        "outcome": "failed",
        "cause": "user",
        "type": "ValueError",
        "message": "no such column: town",
        "step": 12,
        "is_from_tensorflow": False,
    }
    assert driver.kinds("task") == ["system"]
    error = driver.next("error")
    assert {name: error[name] for name in ("cause", "rank", "attempt", "step")} == {
        "cause": "user",
        "rank": 0,
        "attempt": 2,
        "step": 12,
    }
    assert "raise ValueError" in error["traceback"]
    assert [event["message"] for event in driver.events if event["event"] == "log"] == ["about to fail"]


def test_an_outcome_is_returned_without_a_driver() -> None:
    begin = time.monotonic()
    (outcome,) = task(EventAddress("127.0.0.1", 9, "token"), "fail", "town")()
    assert (outcome["cause"], outcome["message"]) == ("user", "no such column: town")
    assert time.monotonic() - begin < LEASE_SECONDS / 2


@pytest.mark.parametrize(
    ("entry", "note", "cause", "type_", "message"),
    [
        ("kill_itself", "", "lost", "killed", "killed by signal SIGKILL"),
        ("abort", "", "lost", "killed", "killed by signal SIGABRT"),
        (
            "ask_for_all_memory",
            "",
            "machine",
            "killed",
            "killed by signal SIGABRT when it got no more memory; give the",
        ),
        ("leave", "2", "lost", "exited", "left with status 5 without a report\nline 0\nline 1\n"),
        ("return_nothing", "", "user", "TypeError", "return_nothing returned None; return the number of epochs"),
        ("no_such_function", "", "start", "EntryError", "no_such_function cannot be loaded: AttributeError"),
    ],
)
def test_every_other_end_has_a_cause(
    driver: Driver, entry: str, note: str, cause: str, type_: str, message: str
) -> None:
    (outcome,) = task(driver.server.address, entry, note)()
    assert (outcome["outcome"], outcome["cause"], outcome["type"]) == ("failed", cause, type_)
    assert message in outcome["message"]
    error = driver.next("error")
    assert (error["cause"], error["type"], error["rank"]) == (cause, type_, 0)
    assert driver.kinds("task").count("error") + driver.kinds(None).count("error") == 1


def test_a_rank_that_is_killed_while_the_kernel_counts_a_kill_for_memory_is_named_with_the_remedy(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = tmp_path / "vmstat"
    counters.write_text("pgfault 5\noom_kill 2\n", encoding="ascii")
    monkeypatch.setattr(out_of_memory, "_COUNTERS", counters)
    (outcome,) = task(driver.server.address, "be_killed_for_memory", str(counters))()
    assert (outcome["cause"], outcome["type"]) == ("machine", "killed")
    assert outcome["message"].startswith("killed by signal SIGKILL when the kernel of ")
    assert re.search(r"memory had run out; it last had \d+\.\d GiB", outcome["message"])
    assert outcome["message"].endswith(MORE_MEMORY)


def test_an_abort_on_a_gpu_is_reported_as_a_consequence_of_another_ranks_end(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (outcome,) = task(driver.server.address, "abort")()
    assert outcome["cause"] == "peer"


def test_only_the_last_lines_of_a_talkative_rank_are_quoted(driver: Driver) -> None:
    (outcome,) = task(driver.server.address, "leave", "2000")()
    lines = outcome["message"].splitlines()
    assert lines[1:] == [f"line {line}" for line in range(1960, 2000)]


def test_output_of_a_rank_is_shown_on_request(driver: Driver, capfd: pytest.CaptureFixture[str]) -> None:
    for verbose, shown in ((False, ""), (True, "rank 0: line 0\n")):
        task(driver.server.address, "leave", "1", verbose=verbose)()
        assert capfd.readouterr().err == shown


def told_by_log(driver: Driver) -> list[tuple[str, str]]:
    return [(event["level"], event["message"]) for event in driver.events if event["event"] == "log"]


def test_output_and_log_of_a_rank_are_shown_once_with_its_number(
    driver: Driver, capfd: pytest.CaptureFixture[str]
) -> None:
    task(driver.server.address, "speak", verbose=True)()
    driver.server.__exit__()
    shown = capfd.readouterr().err.splitlines()
    assert all(line.startswith("rank 0: ") for line in shown)
    assert [line.removeprefix("rank 0: ") for line in shown[:3]] == ["printed", "complained", "INFO model: logged"]
    expected = [*(("INFO", line.removeprefix("rank 0: ")) for line in shown[:3]), ("WARNING", "warned\ntwice")]
    assert set(expected) <= set(told_by_log(driver))
    assert {times for line in expected if (times := told_by_log(driver).count(line))} == {1}


def test_a_quiet_rank_sends_only_its_warnings(driver: Driver, capfd: pytest.CaptureFixture[str]) -> None:
    (outcome,) = task(driver.server.address, "speak")()
    assert outcome == {"outcome": "finished", "epochs": 1}
    driver.server.__exit__()
    assert told_by_log(driver) == [("WARNING", "warned\ntwice")]
    assert capfd.readouterr().err == ""


def test_a_flood_of_log_lines_is_sampled(driver: Driver, capfd: pytest.CaptureFixture[str]) -> None:
    task(driver.server.address, "print_many_lines", "3000", verbose=True)()
    driver.server.__exit__()
    assert len(capfd.readouterr().err.splitlines()) == 3000
    assert 50 <= len(told_by_log(driver)) < 300


PLANTED = {
    "a token of the environment": "planted-0123456789",
    "the key of a store": "stores+secret/key0123",
    "a password in an address": "p@ss/word",
    "a key named in a text": "named0123456",
    "a secret of the rank alone": "of-the-rank-alone",
}
NOTE = "postgresql://reader:p@ss/word@db:5432/x secret_access_key=named0123456"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_TOKEN", PLANTED["a token of the environment"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PLANTED["the key of a store"])


def found_in(text: str) -> list[str]:
    return [name for name, secret in PLANTED.items() if secret in text or json.dumps(secret)[1:-1] in text]


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("verbose", [False, True], ids=["quiet", "verbose"])
def test_no_secret_leaves_a_rank_that_fails(
    driver: Driver, capfd: pytest.CaptureFixture[str], *, verbose: bool
) -> None:
    """§5: events, answers, what is shown, and arguments of processes are searched for what was planted."""
    with running(task(driver.server.address, "betray", NOTE, verbose=verbose)) as rank:
        process = psutil.Process(driver.next("phase", phase="training")["process"])
        parent = process.parent()
        assert parent is not None
        arguments = repr([process.cmdline(), parent.cmdline(), process.name()])
        driver.server.command({"command": "stop"})
        outcome = rank.outcome()
    driver.server.__exit__()
    shown = capfd.readouterr().err
    assert (outcome["type"], outcome["message"][:4]) == ("ValueError", "xxxx")
    assert {"progress", "log", "error"} <= set(driver.kinds(None))
    assert ("Traceback" in shown, "secret_access_key=***" in shown) == (verbose, verbose)
    places = {
        "events": json.dumps(driver.events),
        "answers": json.dumps(outcome),
        "standard error": shown,
        "arguments": arguments,
    }
    assert {place: found for place, text in places.items() if (found := found_in(text))} == {}


@pytest.mark.usefixtures("planted")
def test_no_secret_is_in_the_last_lines_of_a_rank(driver: Driver) -> None:
    (outcome,) = task(driver.server.address, "leave_with_secrets", NOTE)()
    assert "postgresql://db:5432/x secret_access_key=*** ***" in outcome["message"]
    assert found_in(json.dumps([outcome, driver.next("error")])) == []


@pytest.mark.usefixtures("planted")
def test_the_error_of_a_rank_that_cannot_start_has_no_secret(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise WorkerStartError(f"{NOTE} {PLANTED['a token of the environment']}")

    monkeypatch.setattr(worker_process, "start", fail)
    (outcome,) = task(driver.server.address, "finish_at_once")()
    assert found_in(json.dumps([outcome, driver.next("error")])) == []


def test_a_rank_that_is_asked_to_stop_does_so_after_its_step(driver: Driver) -> None:
    with running(task(driver.server.address, "train_until_stopped")) as rank:
        driver.next("phase", phase="training")
        driver.server.command({"command": "stop", "reason": "driver"})
        outcome = rank.outcome()
    assert outcome == {"outcome": "stopped", "reason": "driver", "step": outcome["step"]}
    assert driver.kinds("task") == ["system"]


@pytest.mark.parametrize("entry", ["stop_with_work_left", "fail_with_work_left"])
def test_pending_work_of_a_rank_is_done_before_its_exit(driver: Driver, tmp_path: Path, entry: str) -> None:
    """T5: a checkpoint on its way, metrics that nobody could take. Python's own exit never comes."""
    with running(task(driver.server.address, entry, note=str(tmp_path / "done"))) as rank:
        driver.server.command({"command": "stop", "reason": "driver"})
        assert rank.outcome()["outcome"] in ("stopped", "failed")
    assert (tmp_path / "done").exists()


def test_a_rank_that_gets_a_notice_of_preemption_stops(driver: Driver) -> None:
    with running(task(driver.server.address, "train_until_stopped")) as rank:
        os.kill(driver.next("phase", phase="training")["process"], signal.SIGTERM)
        assert rank.outcome()["reason"] == "preempted"


def test_a_task_that_gets_a_notice_of_preemption_passes_it_on(driver: Driver) -> None:
    def preempt() -> None:
        driver.next("phase", phase="training")
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    notice = threading.Thread(target=preempt)
    notice.start()
    (outcome,) = task(driver.server.address, "train_until_stopped")()
    notice.join()
    assert (outcome["outcome"], outcome["reason"]) == ("stopped", "preempted")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM], ids=lambda number: number.name)
def test_a_notice_to_the_whole_group_of_the_task_lets_the_rank_save(driver: Driver, number: signal.Signals) -> None:
    """``pyspark.daemon`` sends SIGHUP to its group, of which its workers are, when it or its JVM is to end."""
    program = """
        import json, sys
        from tests.processes.training.test_worker import task
        from mirrorspark.training.protocol.messages.events import EventAddress
        address = EventAddress(**json.loads(sys.stdin.readline()))
        print(json.dumps(task(address, "train_until_stopped")()))
        """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    ) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(asdict(driver.server.address)) + "\n")
            process.stdin.flush()
            driver.next("phase", phase="training")
            os.killpg(process.pid, number)
            said, _ = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    (outcome,) = json.loads(said)
    assert (outcome["outcome"], outcome["reason"]) == ("stopped", "preempted")
    assert outcome["step"] > 0
    # A JVM that has crashed sends SIGHUP, too.
    assert driver.kinds("task").count("preemption") == (number == signal.SIGTERM)


def test_a_rank_that_begins_early_has_no_place_in_a_cluster_and_no_gpu_left_over(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spark's Python worker is reused: settings that the runner has made there for one attempt remain in the next."""
    monkeypatch.setenv("TF_CONFIG", "of an earlier attempt")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    for begins_early, expected in ((True, (None, "")), (False, ("of an earlier attempt", "3"))):
        task(driver.server.address, "tell_all", str(tmp_path / "seen"), meets_through_driver=begins_early)()
        environment = json.loads((tmp_path / "seen").read_text())["environment"]
        assert (environment.get("TF_CONFIG"), environment["CUDA_VISIBLE_DEVICES"]) == expected


def test_a_rank_that_begins_early_meets_the_others_through_the_driver(driver: Driver, tmp_path: Path) -> None:
    with running(task(driver.server.address, "meet", str(tmp_path / "peers"), meets_through_driver=True)) as rank:
        event = driver.next("listening")
        assert (event["address"], event["rank"], event["attempt"]) == ("127.0.0.1:4321", 0, 2)
        driver.server.command({"command": "peers", "addresses": [event["address"], "host1:5000"]})
        assert rank.outcome() == {"outcome": "finished", "epochs": 1}
    assert json.loads((tmp_path / "peers").read_text()) == ["127.0.0.1:4321", "host1:5000"]


def test_a_rank_is_followed_while_its_task_waits_for_the_runner(driver: Driver) -> None:
    with task(driver.server.address, "train_until_stopped").start_worker() as worker:
        driver.next("phase", phase="training")
        driver.server.command({"command": "stacks"})
        assert "train_until_stopped" in driver.next("stacks")["text"]
        driver.server.command({"command": "stop", "reason": "driver"})
        driver.next("phase", phase="ending")
        assert worker.wait()[0]["reason"] == "driver"


def test_the_death_of_a_rank_is_reported_while_its_task_waits_for_the_runner(driver: Driver) -> None:
    with task(driver.server.address, "kill_itself").start_worker() as worker:
        error = driver.next("error")
        assert (error["cause"], error["message"]) == ("lost", "killed by signal SIGKILL")
        assert worker.wait()[0]["cause"] == "lost"


def test_a_notice_of_preemption_is_passed_on_while_the_task_waits_for_the_runner(driver: Driver) -> None:
    """The main thread, in which signals are handled, waits in a read of the runner's exchange."""
    ours, runners = socket.socketpair()

    def preempt() -> None:
        driver.next("phase", phase="training")
        os.kill(os.getpid(), signal.SIGTERM)
        driver.next("phase", phase="ending")
        runners.sendall(b"all are here")

    with ours, runners, task(driver.server.address, "train_until_stopped").start_worker() as worker:
        notice = threading.Thread(target=preempt)
        notice.start()
        assert ours.recv(100) == b"all are here"
        (outcome,) = worker.wait()
        notice.join()
    assert (outcome["outcome"], outcome["reason"]) == ("stopped", "preempted")


def test_a_rank_ends_without_a_word_of_its_own_when_the_runner_fails(driver: Driver) -> None:
    """T6: no orphan, and no error of a rank that has done nothing wrong."""
    processes: list[psutil.Process] = []

    def fail() -> None:
        with task(driver.server.address, "hang").start_worker():
            processes.append(psutil.Process(driver.next("phase", phase="training")["process"]))
            raise ConnectionError("the barrier is broken")

    begin = time.monotonic()
    with pytest.raises(ConnectionError, match="barrier"):
        fail()
    assert not processes[0].is_running()
    assert time.monotonic() - begin < LEASE_SECONDS / 2  # not for want of a driver
    driver.server.__exit__()
    assert "error" not in driver.kinds("task") + driver.kinds(None)


def test_the_lease_of_a_rank_ends_while_its_task_waits_for_the_runner() -> None:
    nobody = EventAddress("127.0.0.1", 9, "token")
    with task(nobody, "hang", lease_seconds=0.2).start_worker() as worker:
        deadline = time.monotonic() + SECONDS
        while ranks():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert worker.wait()[0]["cause"] == "driver"


def test_a_rank_that_gets_a_hangup_stops(driver: Driver) -> None:
    with running(task(driver.server.address, "train_until_stopped")) as rank:
        os.kill(driver.next("phase", phase="training")["process"], signal.SIGHUP)
        assert rank.outcome()["reason"] == "preempted"


def test_the_end_of_a_rank_is_seen_while_a_process_it_has_started_lives_on(driver: Driver, tmp_path: Path) -> None:
    with running(task(driver.server.address, "be_killed_beside_a_child", str(tmp_path / "child"))) as rank:
        try:
            outcome = rank.outcome()
        finally:
            psutil.Process(int((tmp_path / "child").read_text())).kill()
    assert (outcome["cause"], outcome["message"]) == ("lost", "killed by signal SIGKILL")


def test_a_rank_that_ended_early_is_reported_with_its_exit_status(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    class GoneProcess:
        def __init__(self, pid: int) -> None:
            raise psutil.NoSuchProcess(pid)

    monkeypatch.setattr(psutil, "Process", GoneProcess)
    (outcome,) = task(driver.server.address, "kill_itself")()
    assert (outcome["cause"], outcome["message"]) == ("lost", "killed by signal SIGKILL")


def test_an_abort_is_obeyed_while_a_large_payload_is_on_its_way(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = worker_process.start

    def start_and_stop(*arguments: Any) -> WorkerProcess:
        process = start(*arguments)
        process.send_signal(signal.SIGSTOP)
        return process

    monkeypatch.setattr(worker_process, "start", start_and_stop)
    with running(task(driver.server.address, "hang", payload=b"x" * 4_000_000)) as rank:
        driver.server.command({"command": "abort", "reason": "enough"})
        assert rank.outcome() == {"outcome": "aborted", "reason": "enough"}


def test_a_driver_that_aborts_ends_the_rank_also_when_it_is_stopped(driver: Driver) -> None:
    with running(task(driver.server.address, "hang")) as rank:
        process = psutil.Process(driver.next("phase", phase="training")["process"])
        process.suspend()
        driver.server.command({"command": "abort", "reason": "rank 1 hangs"})
        assert rank.outcome() == {"outcome": "aborted", "reason": "rank 1 hangs"}
    assert not process.is_running()


def test_a_driver_that_is_silent_for_too_long_loses_the_rank(driver: Driver) -> None:
    (outcome,) = task(driver.server.address, "hang", lease_seconds=0.5)()
    assert outcome == {"outcome": "aborted", "reason": "no word from the driver for 0.5 s", "cause": "driver"}
    assert ranks() == []


def test_leases_keep_the_rank(driver: Driver) -> None:
    with running(task(driver.server.address, "train_until_stopped", lease_seconds=3.0)) as rank:
        for _ in range(35):
            driver.server.command({"command": "lease"})
            rank.thread.join(0.1)
        driver.server.command({"command": "stop", "reason": "driver"})
        assert rank.outcome()["outcome"] == "stopped"


def test_stacks_and_state_are_sent_on_command(driver: Driver) -> None:
    with running(task(driver.server.address, "hang")):
        process = psutil.Process(driver.next("phase", phase="training")["process"])
        text = ""
        while "in hang" not in text:
            driver.server.command({"command": "stacks"})
            event = driver.next("stacks", state="sleeping")
            text = event["text"]
        process.suspend()
        driver.server.command({"command": "stacks"})
        assert driver.next("stacks", state="stopped")["text"] == ""
        driver.server.command({"command": "abort"})


def test_the_process_of_a_rank_is_described(driver: Driver) -> None:
    with running(task(driver.server.address, "hang")):
        system = driver.next("system")
        process = driver.next("phase", phase="training")["process"]
        driver.server.command({"command": "abort"})
    assert system["process"] == process
    assert system["memory_bytes"] > 1_000_000
    assert system["threads"] >= 1
    assert (system["from"], system["rank"], system["attempt"]) == ("task", 0, 2)


def test_a_rank_says_again_and_again_that_it_is_alive(driver: Driver) -> None:
    with running(task(driver.server.address, "train_until_stopped")) as rank:
        alive = driver.next("alive")
        driver.server.command({"command": "stop"})
        rank.outcome()
    assert (alive["phase"], alive["waiting_for"]) == ("training", None)
    assert alive["step"] > 0


def test_a_rank_that_cannot_start_is_reported(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise WorkerStartError("no processes left")

    monkeypatch.setattr(worker_process, "start", fail)
    (outcome,) = task(driver.server.address, "finish_at_once")()
    assert (outcome["cause"], outcome["message"]) == ("start", "no processes left")
    assert driver.next("error")["cause"] == "start"


def test_outcomes_travel_as_json(driver: Driver) -> None:
    outcomes = task(driver.server.address, "fail", "ä\n")()
    assert json.loads(json.dumps(outcomes)) == outcomes
