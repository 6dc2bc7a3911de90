"""T6: the driver's commands to the ranks while an attempt runs, and their times."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mirrorspark.training.driver.running_attempt import RunningAttempt
from mirrorspark.training.protocol.limits import PhaseLimits
from mirrorspark.training.protocol.messages.events import Event
from mirrorspark.training.protocol.messages.stop import StopSignal
from mirrorspark.training.protocol.outcomes.cause import Attempt, RankError
from mirrorspark.training.protocol.outcomes.rounds import every


def system(rank: int, attempt: int = 1) -> Event:
    return {"event": "system", "from": "task", "rank": rank, "attempt": attempt, "state": "running"}


def alive(rank: int, phase: str = "training", step: int = 1) -> Event:
    return {"event": "alive", "rank": rank, "attempt": 1, "phase": phase, "step": step}


def listening(rank: int, address: str, attempt: int = 1) -> Event:
    return {"event": "listening", "rank": rank, "attempt": attempt, "address": address}


def error(rank: int, cause: str = "user", at: float = 1.0, attempt: int = 1) -> Event:
    said = {"type": "ValueError", "message": "shapes differ", "time": at}
    return {"event": "error", "cause": cause, "rank": rank, "attempt": attempt, **said}


class Driver:
    """An attempt of two ranks, with a clock of its own; records what it has sent, reported and cancelled."""

    def __init__(self, dispensable: frozenset[int] = frozenset()) -> None:
        self.now = 100.0
        self.sent: list[str] = []
        self.commands: list[dict[str, Any]] = []
        self.passed_on: list[Event] = []
        self.cancelled = 0
        self.fault: Exception | None = None
        self.signal = StopSignal()
        self.on_passed_event: Callable[[Event], None] = lambda event: None
        self.running = RunningAttempt(
            1,
            2,
            dispensable=dispensable,
            limits=PhaseLimits(step_seconds=20, checkpoint_seconds=50),
            signal=self.signal,
            on_event=self._pass_on,
            cancel=self._cancel,
            clock=lambda: self.now,
        )
        self.running.begin(self)

    def command(self, command: dict[str, Any]) -> None:
        self.commands.append(command)
        self.sent.append(command["command"])

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += 1
            self.running.tick()
            self.running.cancel_when_due()

    def on_events(self, *events: Event) -> None:
        for event in events:
            self.running.on_event(event)

    def kinds(self) -> list[str]:
        return [event["event"] for event in self.passed_on]

    def _pass_on(self, event: Event) -> None:
        self.passed_on.append(event)
        self.on_passed_event(event)

    def _cancel(self) -> None:
        self.cancelled += 1
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def driver() -> Driver:
    return Driver()


def test_ranks_get_all_addresses_when_the_last_rank_reports(driver: Driver) -> None:
    """T2: not at the next tick: a start waits for it."""
    driver.on_events(listening(1, "b:2"))
    assert driver.commands == []
    driver.on_events(listening(0, "a:1"))
    assert driver.commands == [{"command": "peers", "addresses": ["a:1", "b:2"]}]
    driver.tick(5)
    assert driver.sent == ["peers"]
    assert driver.kinds() == ["listening", "listening"]


def test_waiting_ranks_get_the_incomplete_addresses_once(driver: Driver) -> None:
    driver.on_events(listening(1, "b:2"))
    driver.tick(5)
    assert driver.commands == [{"command": "peers", "addresses": [None, "b:2"]}]
    driver.on_events(listening(0, "a:1"))
    assert driver.commands[1:] == [{"command": "peers", "addresses": ["a:1", "b:2"]}]


def test_addresses_of_an_earlier_attempt_are_ignored(driver: Driver) -> None:
    driver.on_events(listening(0, "old:1", attempt=0), listening(1, "b:2"))
    driver.tick()
    assert driver.commands == [{"command": "peers", "addresses": [None, "b:2"]}]
    driver.on_events(listening(0, "a:1"))
    driver.on_events(listening(0, "a:3"))  # begun anew
    assert driver.commands[-1] == {"command": "peers", "addresses": ["a:3", "b:2"]}


def test_leases_go_to_all_tasks(driver: Driver) -> None:
    driver.running.renew_leases()
    assert driver.sent == ["lease"]


def test_the_others_have_a_grace_after_the_first_error_and_are_aborted_once(driver: Driver) -> None:
    driver.on_events(system(0), system(1), error(1))
    driver.tick(4)
    assert driver.sent == []
    driver.on_events(error(0, "peer"))
    driver.tick(10)
    assert driver.commands == [{"command": "abort", "reason": "rank 1: ValueError: shapes differ"}]
    assert driver.cancelled == 0


def test_tasks_that_do_not_end_after_an_abort_are_cancelled_with_the_job(driver: Driver) -> None:
    driver.on_events(system(0), system(1), error(1))
    driver.tick(44)
    assert driver.cancelled == 0
    driver.tick(10)
    assert driver.cancelled > 0


def test_cancelling_is_repeated_until_the_job_has_ended_though_spark_does_not_listen(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.fault = ConnectionError("the JVM is busy")
    driver.signal.request_now("Ctrl-C twice")
    driver.tick(3)
    driver.fault = None
    driver.tick(2)
    assert driver.cancelled == 5
    driver.running.end()
    driver.tick(2)
    assert driver.cancelled == 5
    assert caplog.text.count("the JVM is busy") == 1


def test_a_stop_is_passed_on_once_and_by_a_tick_only(driver: Driver) -> None:
    driver.on_events(system(1))
    driver.signal.request("Ctrl-C")
    driver.signal.request("again")
    assert driver.sent == []  # a signal handler only leaves word
    driver.tick(20)
    assert driver.commands == [{"command": "stop", "reason": "driver"}]
    assert driver.running.stop == "requested"
    assert driver.passed_on[1:] == [{"event": "stopping", "attempt": 1, "reason": "Ctrl-C"}]
    assert driver.cancelled == 0


def test_a_stop_before_any_task_is_there_cancels_the_job(driver: Driver) -> None:
    driver.signal.request("Ctrl-C")
    driver.tick(3)
    assert (driver.cancelled, driver.running.stop, driver.sent) == (3, "requested", ["stop"])


def test_an_urgent_stop_cancels_the_job_and_from_a_tick_only(driver: Driver) -> None:
    driver.on_events(system(0), system(1))
    driver.signal.request_now("Ctrl-C twice")
    assert driver.cancelled == 0
    driver.tick(3)
    assert (driver.cancelled, driver.running.stop, driver.sent) == (3, "requested", ["stop", "abort"])


def test_an_urgent_stop_aborts_the_ranks_though_the_job_was_cancelled_before(driver: Driver) -> None:
    """T6: a rank in local mode, whose task has not reported yet at the first signal, belongs to no job."""
    driver.signal.request("SIGINT")
    driver.tick()
    assert (driver.cancelled, driver.sent) == (1, ["stop"])
    driver.signal.request_now("SIGTERM")
    driver.tick(2)
    assert (driver.cancelled, driver.sent) == (3, ["stop", "abort"])


def test_an_urgent_stop_is_known_as_one_though_no_tick_has_come(driver: Driver) -> None:
    driver.on_events(system(0), system(1))
    driver.signal.request_now("Ctrl-C twice")
    driver.running.cancel_when_due()
    assert (driver.cancelled, driver.running.stop) == (1, "requested")
    cancelled = RankError("cancelled", None, "Cancelled", "Job 1 cancelled", 5.0)
    assert driver.running.errors([], cancelled) == (cancelled,)
    driver.tick()
    assert driver.kinds()[-1] == "stopping"


def test_ranks_that_do_not_stop_in_time_are_aborted(driver: Driver) -> None:
    driver.on_events(system(0), system(1))
    driver.signal.request("Ctrl-C")
    for step in range(60):
        driver.on_events(alive(0, step=step), alive(1, step=step))
        driver.tick()
    assert driver.commands[-1] == {"command": "abort", "reason": "the ranks did not stop within 50 s of being asked to"}
    assert driver.sent.count("abort") == 1


def test_a_hang_is_reported_with_stacks_and_ends_the_attempt(driver: Driver) -> None:
    driver.on_events(system(0), system(1), alive(0), alive(1))
    for _ in range(20):
        driver.tick()
        driver.on_events(alive(0) | {"waiting_for": "rank 1"}, alive(1), system(0), system(1))
    assert driver.sent == []
    driver.tick()
    assert driver.sent == ["stacks"]
    for rank in (0, 1):
        driver.on_events({"event": "stacks", "from": "task", "rank": rank, "attempt": 1, "text": f"stack {rank}"})
    driver.tick(5)
    why = "rank 1 has been at step 1 for 25 s (limit 20 s)"
    assert driver.commands[1:] == [{"command": "abort", "reason": why}]
    hung = driver.passed_on[-1]
    assert hung == {"event": "hung", "attempt": 1, "ranks": [1], "why": why, "stacks": {"0": "stack 0", "1": "stack 1"}}
    (found,) = driver.running.errors([{"outcome": "stopped", "reason": "driver"}] * 2, None)
    assert (found.cause, found.rank, found.type, found.message, found.step) == ("hung", 1, "Hung", why, 1)


def test_an_error_that_comes_while_stacks_are_awaited_explains_the_hang(driver: Driver) -> None:
    driver.on_events(system(0), system(1), alive(0), alive(1))
    driver.tick(21)
    driver.on_events(error(1))
    driver.tick(20)
    assert driver.sent == ["stacks", "abort"]
    assert [error.cause for error in driver.running.errors([], None)] == ["user"]


def test_a_hang_before_any_task_is_there_cancels_the_job_and_is_the_reason_for_that(driver: Driver) -> None:
    driver.tick(306)
    assert driver.cancelled > 0
    cancelled = RankError("cancelled", None, "Cancelled", "Job 1 cancelled", 5.0)
    (found,) = driver.running.errors([], cancelled)
    # Nothing hangs where nothing runs: it could not start.
    assert (found.cause, found.rank, found.message) == (
        "start",
        None,
        "no rank has reported for 305 s since the start; are 2 slots free?",
    )


def test_losing_the_driver_differs_from_never_reaching_it(driver: Driver) -> None:
    driver.on_events(system(0))
    lapsed = {"outcome": "aborted", "reason": "no word from the driver for 30 s", "cause": "driver"}
    assert [error.cause for error in driver.running.errors([lapsed, lapsed], None)] == ["driver", "start"]


def test_a_job_that_somebody_else_cancelled_is_cancelled(driver: Driver) -> None:
    driver.on_events(system(0), error(0, "peer"))
    cancelled = RankError("cancelled", None, "Cancelled", "Job 1 cancelled", 5.0)
    assert driver.running.errors([], cancelled)[-1] is cancelled


@pytest.mark.parametrize("phase", ["building", "first_step", "checkpoint", "ending"])
def test_ranks_are_asked_to_grow_only_while_all_train(driver: Driver, phase: str) -> None:
    asked: list[int] = []

    def to(workers: int) -> int | None:
        asked.append(workers)
        return 4

    driver.on_events(system(0), system(1), alive(0), alive(1, phase))
    driver.running.grow(to)
    assert asked == []
    driver.on_events(alive(1, "validation"))
    driver.running.grow(lambda workers: None)
    driver.tick()
    assert driver.running.stop is None
    driver.running.grow(to)
    driver.running.grow(to)
    driver.tick(2)
    assert asked == [2]
    assert (driver.running.stop, driver.sent) == ("grow", ["stop"])
    driver.signal.request("Ctrl-C")
    driver.tick(2)
    assert (driver.running.stop, len(driver.sent)) == ("requested", 1)


def keep_training(driver: Driver, seconds: int) -> None:
    for step in range(seconds):
        driver.on_events(alive(0, step=step), alive(1, step=step))
        driver.tick()


def test_ranks_that_are_to_grow_may_take_their_time(driver: Driver) -> None:
    """T8: within a long validation they do not ask each other; to end them would lose what they have done."""
    driver.on_events(system(0), system(1), alive(0, "validation"), alive(1, "validation"))
    driver.running.grow(lambda workers: 4)
    keep_training(driver, 200)
    assert driver.sent == ["stop"]
    driver.signal.request("Ctrl-C")
    keep_training(driver, 49)  # a stop that somebody asks for has its limit from then on
    assert driver.sent == ["stop"]
    keep_training(driver, 3)
    assert driver.sent == ["stop", "abort"]


def test_a_worker_that_the_attempt_went_on_without_does_not_explain_its_end() -> None:
    driver = Driver(dispensable=frozenset({1}))
    driver.on_events({"event": "train_begin", "rank": 0, "attempt": 1}, error(1, "lost"), error(0, "user"))
    killed = {"outcome": "failed", "cause": "lost", "type": "killed", "message": "killed by signal SIGKILL"}
    (found,) = driver.running.errors([{"outcome": "finished"}, killed], None)
    assert (found.cause, found.rank) == ("user", 0)


@pytest.mark.parametrize(("is_reported", "expected"), [(True, "preempted"), (False, "spark")])
def test_a_preempted_machine_is_distinguished_from_a_crashed_one(
    driver: Driver, is_reported: bool, expected: str
) -> None:
    """T6: its job fails, and with it go the outcomes of all ranks."""
    driver.on_events(system(0), system(1), *([{"event": "preemption", "rank": 1, "attempt": 1}] if is_reported else []))
    failure = RankError("spark", None, "BarrierJobError", "ExecutorLostFailure", 5.0)
    errors = driver.running.errors([], failure)
    assert errors[-1] is failure
    assert Attempt(1, None, errors, 0).first_error.cause == expected


def test_a_stop_that_comes_while_slots_are_asked_for_is_not_forgotten(driver: Driver) -> None:
    driver.on_events(system(0), system(1), alive(0), alive(1))

    def meanwhile(workers: int) -> int:
        driver.signal.request("Ctrl-C")
        driver.tick()
        return 4

    driver.running.grow(meanwhile)
    assert driver.running.stop == "requested"


def test_events_of_another_attempt_or_after_the_end_are_ignored(driver: Driver) -> None:
    driver.on_events(error(0, attempt=2), system(0, attempt=2))
    driver.running.end()
    driver.on_events(error(0))
    driver.tick(100)
    driver.running.grow(lambda workers: 4)
    assert (driver.passed_on, driver.sent, driver.cancelled) == ([], [], 0)
    assert [error.type for error in driver.running.errors([], None)] == ["NoReason"]


def test_an_event_may_arrive_while_another_is_handled(driver: Driver) -> None:
    """Neither lock nor state stops a receiver from looking at the attempt itself."""
    driver.on_events(system(0))
    driver.signal.request("Ctrl-C")
    driver.on_passed_event = lambda event: driver.running.tick() if event["event"] == "alive" else None
    driver.on_events(alive(0))
    assert driver.sent == ["stop"]


def test_a_stop_wakes_who_sleeps_and_lets_nobody_sleep_again() -> None:
    signal = StopSignal()
    begin = time.monotonic()
    signal.wait(0.01)
    waker = threading.Thread(target=signal.request, args=("Ctrl-C",))
    waker.start()
    signal.wait(60)
    signal.wait(60)
    waker.join()
    assert time.monotonic() - begin < 30
    assert (signal.reason, signal.is_urgent) == ("Ctrl-C", False)


def test_an_action_is_repeated_though_it_fails_and_ends_with_its_block(caplog: pytest.LogCaptureFixture) -> None:
    rounds: list[int] = []
    has_run_twice = threading.Event()

    def stumble() -> None:
        rounds.append(1)
        if len(rounds) == 2:
            has_run_twice.set()
        raise OSError("the line is cut")

    with every(0.001, stumble):
        assert has_run_twice.wait(60)
    done = len(rounds)
    assert "the line is cut" in caplog.text
    assert not [thread for thread in threading.enumerate() if thread.name == "supervision-stumble"]
    assert len(rounds) == done
