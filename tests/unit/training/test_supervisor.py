"""T6: the attempts of a run: where each goes on, whose error is reported, and when it is over."""

import contextlib
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mirrorspark.callbacks.checkpoints import commit, retention
from mirrorspark.callbacks.checkpoints.fencing import Fence, read_fence
from mirrorspark.storage.paths import StorageError
from mirrorspark.training.driver import resume, running_attempt, store_reads
from mirrorspark.training.driver.errors import NotEnoughSlotsError, TrainingFailedError, TrainingStoppedError
from mirrorspark.training.driver.launcher import BarrierJobError
from mirrorspark.training.driver.supervisor import Supervisor
from mirrorspark.training.protocol.elastic import Elastic, WorkerRange
from mirrorspark.training.protocol.limits import Budgets, PhaseLimits
from mirrorspark.training.protocol.messages import event_server
from mirrorspark.training.protocol.messages.event_client import EventClient
from mirrorspark.training.protocol.messages.event_server import EventServer
from mirrorspark.training.protocol.messages.events import Event, EventAddress
from mirrorspark.training.protocol.outcomes import rounds
from mirrorspark.training.protocol.outcomes.cause import Attempt, RankError
from mirrorspark.training.protocol.plan import TrainingPlan
from tests.unit.callbacks.committed_files import publish_files

Outcome = dict[str, Any]
FINISHED: Outcome = {"outcome": "finished", "epochs": 4}
ABORTED: Outcome = {"outcome": "aborted", "reason": "another rank failed"}


@dataclass(frozen=True)
class Plan:
    """The part of a plan that supervision looks at."""

    checkpoints: str
    workers: int = 0
    global_batch_size: int = 0
    learning_rate_scale: float = 0.0
    attempt: int = 0
    resume_from: str | None = None
    events: EventAddress = field(default_factory=lambda: EventAddress("", 0, ""))
    token: str = ""
    fence: str | None = None
    servers: int = 0

    @property
    def ranks(self) -> int:
        return self.workers + (1 + self.servers if self.servers else 0)

    @property
    def dispensable_ranks(self) -> frozenset[int]:
        return frozenset(range(1, 1 + self.workers)) if self.servers else frozenset()


def stopped(step: int, reason: str = "driver") -> Outcome:
    return {"outcome": "stopped", "reason": reason, "step": step}


def failed(
    cause: str, type_: str = "killed", message: str = "killed by signal SIGKILL", step: int | None = None
) -> Outcome:
    return {"outcome": "failed", "cause": cause, "type": type_, "message": message, "step": step}


def lost_by_spark(message: str = "Spark says that a task failed", cause: Any = "spark") -> BarrierJobError:
    return BarrierJobError(RankError(cause, None, "BarrierJobError", message, time.time()))


def commit_step(directory: str, step: int) -> None:
    publish_files(Path(directory), {"ckpt.index": f"step {step}"}, step=step, epoch=step // 10)


class Cluster:
    """Replaces Spark, the event channel and time: a test's actions during an attempt decide how it ends.

    ``during`` gets the attempts' functions in order, the last one again and again. Each is given this object, and
    returns the outcomes or raises what Spark would.
    """

    def __init__(self, *during: Callable[["Cluster"], Sequence[Outcome]], slots: int = 2) -> None:
        self.during = during
        self.now = 1000.0
        self.number_of_slots = slots
        self.plans: list[Plan] = []
        self.told: list[Event] = []
        self.sent: list[str] = []
        self.cancelled = 0
        self._hear: Callable[[Event], None] = lambda event: None
        self._rounds: list[tuple[float, float, Callable[[], None]]] = []

    # Arguments of the supervisor.

    def __call__(self, plan: Plan) -> tuple[Outcome, ...]:
        self.plans.append(plan)
        return tuple(self.during[min(len(self.plans), len(self.during)) - 1](self))

    def cancel(self) -> None:
        self.cancelled += 1

    def clock(self) -> float:
        return self.now

    def slots(self) -> int:
        return self.number_of_slots

    @contextlib.contextmanager
    def open_server(self, host: str, on_event: Callable[[Event], None], advertised: str) -> Iterator["Cluster"]:
        self.address = EventAddress(advertised, 1234, f"token {len(self.plans) + 1}")
        self._hear = on_event
        yield self

    @contextlib.contextmanager
    def every(self, seconds: float, action: Callable[[], None]) -> Iterator[None]:
        mine = (self.now, seconds, action)
        self._rounds.append(mine)
        yield
        self._rounds.remove(mine)

    def command(self, command: dict[str, Any]) -> None:
        self.sent.append(command["command"])

    # Actions of a test while an attempt runs.

    @property
    def plan(self) -> Plan:
        return self.plans[-1]

    def send_event(self, rank: int, kind: str, **said: Any) -> None:
        event = {"event": kind, "rank": rank, "attempt": self.plan.attempt, "time": self.now}
        self._hear(event | said)

    def train(self, step: int = 1) -> None:
        """Let all ranks and their tasks report the phase training."""
        for rank in range(self.plan.workers):
            self.send_event(rank, "alive", phase="training", step=step)
            self.send_event(rank, "system", **{"from": "task"}, state="running")

    def commit(self, step: int) -> None:
        commit_step(self.plan.checkpoints, step)

    def run(self, seconds: int) -> None:
        """Let time go by."""
        for _ in range(seconds):
            self.now += 1
            for begin, every, action in list(self._rounds):
                if (self.now - begin) % every == 0:
                    action()

    def kinds(self) -> list[str]:
        return [event["event"] for event in self.told]


def finishes(cluster: Cluster) -> list[Outcome]:
    return [FINISHED] * cluster.plan.workers


def loses_rank_1(cluster: Cluster) -> list[Outcome]:
    return [failed("peer", "RingError", "rank 1 disconnected", 7), failed("lost")]


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_attempt, "_LATE_EVENTS_SECONDS", 0.0)


@pytest.fixture
def plan(tmp_path: Path) -> TrainingPlan:
    return Plan(str(tmp_path / "checkpoints"))  # type: ignore[return-value]


def supervised(cluster: Cluster, budgets: Budgets | None = None, elastic: Elastic | None = None) -> Supervisor:
    return Supervisor(
        launch=cluster,  # type: ignore[arg-type]
        host="127.0.0.1",
        advertised="driver",
        elastic=elastic or Elastic(WorkerRange(2, 2), 8),
        slots=cluster.slots,
        on_event=cluster.told.append,
        budgets=budgets or Budgets(first_delay_seconds=0.0),
        limits=PhaseLimits(step_seconds=20),
        clock=cluster.clock,
        open_server=cluster.open_server,  # type: ignore[arg-type]
        every=cluster.every,
    )


def test_a_training_that_finishes_takes_one_attempt(plan: TrainingPlan) -> None:
    cluster = Cluster(finishes)
    assert supervised(cluster).supervise(plan) == (Attempt(1, 4, (), resumed_from=0, committed=0, workers=2),)
    (mine,) = cluster.plans
    address = EventAddress("driver", 1234, "token 1")
    assert mine == Plan(plan.checkpoints, 2, 8, 1.0, 1, None, address, mine.token, mine.fence)
    (told,) = cluster.told
    assert told == {
        "event": "attempt",
        "attempt": 1,
        "workers": 2,
        "resumed_from": 0,
        "learning_rate_scale": 1.0,
        "time": told["time"],
    }


def test_a_second_signal_ends_the_job_although_a_listener_blocks(plan: TrainingPlan) -> None:
    """T7: for example, a terminal that is held by Ctrl-S."""
    held, cancelled = threading.Event(), threading.Event()

    def blocks(event: Event) -> None:
        if event["event"] == "stopping":
            held.wait(90)

    def waits(cluster: Cluster) -> list[Outcome]:
        supervisor.request_stop("Ctrl-C")
        supervisor.stop_now("Ctrl-C twice")
        assert cancelled.wait(60)
        held.set()
        return [stopped(3)] * 2

    cluster = Cluster(waits)
    cluster.cancel = cancelled.set  # type: ignore[method-assign]
    supervisor = replace(supervised(cluster), on_event=blocks, every=rounds.every)
    with pytest.raises(TrainingStoppedError):
        supervisor.supervise(plan)


def test_restart_resumes_from_last_committed_checkpoint(plan: TrainingPlan) -> None:
    steps = iter([10, 20])

    def killed_after_a_checkpoint(cluster: Cluster) -> list[Outcome]:
        cluster.commit(next(steps))
        cluster.send_event(1, "error", cause="lost", type="killed", message="killed by signal SIGKILL")
        return loses_rank_1(cluster)

    cluster = Cluster(killed_after_a_checkpoint, killed_after_a_checkpoint, finishes)
    attempts = supervised(cluster).supervise(plan)
    checkpoints = Path(plan.checkpoints)
    assert [plan.attempt for plan in cluster.plans] == [1, 2, 3]
    assert [plan.resume_from for plan in cluster.plans] == [
        None,
        str(checkpoints / "step-00000010"),
        str(checkpoints / "step-00000020"),
    ]
    assert [(attempt.resumed_from, attempt.committed) for attempt in attempts] == [(0, 10), (10, 20), (20, 20)]
    assert attempts[-1].epochs == 4
    assert cluster.kinds() == ["attempt", "error", "restart", "attempt", "error", "restart", "attempt"]
    restart = cluster.told[2]
    assert (restart["attempt"], restart["error"]["rank"], restart["workers"]) == (1, 1, 2)
    assert restart["decision"] == "restart 1 of 3 (max_restarts) from step 10 with 2 workers"


def test_every_attempt_has_an_address_and_a_secret_of_its_own(plan: TrainingPlan) -> None:
    cluster = Cluster(loses_rank_1, finishes)
    supervised(cluster).supervise(plan)
    first, second = cluster.plans
    assert first.events.token != second.events.token
    assert first.token != second.token
    assert len(first.token) == 64


def test_every_attempt_gets_its_own_fence(plan: TrainingPlan) -> None:
    """A chief that reads the fence itself may take a later driver's for its own."""
    held: list[Fence | None] = []

    def looks(cluster: Cluster) -> list[Outcome]:
        held.append(read_fence(cluster.plan.checkpoints))
        return loses_rank_1(cluster) if len(held) == 1 else finishes(cluster)

    cluster = Cluster(looks)
    supervised(cluster).supervise(plan)
    told = [(plan.attempt, plan.fence) for plan in cluster.plans]
    assert [found and (found.attempt, found.id) for found in held] == told
    assert told[0][1] != told[1][1]


def test_a_damaged_checkpoint_is_passed_over_and_is_no_progress(plan: TrainingPlan) -> None:
    commit_step(plan.checkpoints, 10)
    commit_step(plan.checkpoints, 20)
    next(Path(plan.checkpoints).glob("step-00000020/**/ckpt.index")).write_text("step 21")
    attempts = supervised(Cluster(loses_rank_1, finishes)).supervise(plan)
    assert [(attempt.resumed_from, attempt.committed) for attempt in attempts] == [(10, 10), (10, 10)]


def test_outcomes_count_where_events_were_lost(plan: TrainingPlan) -> None:
    cluster = Cluster(lambda _: [ABORTED, failed("user", "ValueError", "shapes do not match", 7)])
    with pytest.raises(TrainingFailedError) as raised:
        supervised(cluster).supervise(plan)
    assert str(raised.value) == "training failed: rank 1: ValueError: shapes do not match"
    assert raised.value.attempts[0].first_error.step == 7


def test_a_fault_of_the_user_raises_at_once_though_its_peers_spoke_first(plan: TrainingPlan) -> None:
    def fails(cluster: Cluster) -> list[Outcome]:
        gone = {"cause": "peer", "type": "RingError", "message": "rank 1 disconnected"}
        cluster.send_event(0, "error", **gone)
        cluster.send_event(
            1, "error", cause="user", type="ValueError", message="shapes differ", traceback="in model.py"
        )
        return [failed(**{"cause": "peer", "type_": "RingError"}), failed("user", "ValueError", "shapes differ", 7)]

    cluster = Cluster(fails)
    with pytest.raises(TrainingFailedError) as raised:
        supervised(cluster).supervise(plan)
    assert len(cluster.plans) == 1
    assert str(raised.value) == "training failed: rank 1: ValueError: shapes differ"
    assert raised.value.attempts[0].first_error.traceback == "in model.py"


def test_a_spent_budget_raises_with_the_first_error_of_the_last_attempt(plan: TrainingPlan) -> None:
    cluster = Cluster(loses_rank_1)
    with pytest.raises(TrainingFailedError) as raised:
        supervised(cluster, Budgets(max_restarts=2, first_delay_seconds=0)).supervise(plan)
    assert len(cluster.plans) == 3
    assert str(raised.value) == (
        "training failed after 3 attempts: rank 1: killed by signal SIGKILL; "
        "max_restarts is 2 and used up; the same command starts anew"
    )


def test_a_training_survives_more_losses_than_its_budget_as_long_as_it_completes_epochs(plan: TrainingPlan) -> None:
    def is_killed_after_an_epoch(cluster: Cluster) -> list[Outcome]:
        cluster.commit(10 * cluster.plan.attempt)
        return loses_rank_1(cluster)

    cluster = Cluster(*[is_killed_after_an_epoch] * 5, finishes)
    attempts = supervised(cluster, Budgets(max_restarts=1, first_delay_seconds=0)).supervise(plan)
    assert [attempt.committed_epochs for attempt in attempts] == [1, 2, 3, 4, 5, 5]


def test_a_driver_that_was_out_of_reach_costs_no_restart(plan: TrainingPlan) -> None:
    def sleeps(cluster: Cluster) -> list[Outcome]:
        cluster.train()
        lapsed = {"outcome": "aborted", "reason": "no word from the driver for 30 s", "cause": "driver"}
        return [failed("peer", "RingError", "rank 1 disconnected", 7), lapsed]

    cluster = Cluster(sleeps, sleeps, finishes)
    attempts = supervised(cluster, Budgets(0, 0, 0, 0, first_delay_seconds=0)).supervise(plan)
    assert [attempt.first_error.cause for attempt in attempts[:-1]] == ["driver", "driver"]
    restarts = [event["decision"] for event in cluster.told if event["event"] == "restart"]
    assert restarts[0] == "the driver was out of reach; restart from step 0 with 2 workers"


def test_a_preempted_worker_costs_no_restart(plan: TrainingPlan) -> None:
    def preempted(cluster: Cluster) -> list[Outcome]:
        cluster.commit(7)
        return [stopped(7), stopped(7, "preempted")]

    cluster = Cluster(preempted, finishes)
    first, second = supervised(cluster, Budgets(0, 1, 0, 0)).supervise(plan)
    assert (first.first_error.cause, first.first_error.rank, second.resumed_from) == ("preempted", 1, 7)


def test_sparks_error_is_quoted_if_no_rank_reported_one(plan: TrainingPlan) -> None:
    def fails(cluster: Cluster) -> list[Outcome]:
        raise lost_by_spark()

    with pytest.raises(TrainingFailedError) as raised:
        supervised(Cluster(fails), Budgets(max_restarts=0)).supervise(plan)
    assert str(raised.value).startswith("training failed: Spark: BarrierJobError: Spark says that a task failed; max_")


@pytest.mark.parametrize("outcomes", [[], [FINISHED, stopped(7)]])
def test_ranks_that_end_early_without_a_reason_do_not_go_on_for_ever(
    plan: TrainingPlan, outcomes: list[Outcome]
) -> None:
    with pytest.raises(TrainingFailedError, match="the ranks ended before the training did and do not say why"):
        supervised(Cluster(lambda _: outcomes), Budgets(max_restarts=1)).supervise(plan)


def test_an_error_of_an_earlier_attempt_is_not_counted_and_not_passed_on(plan: TrainingPlan) -> None:
    def late_words(cluster: Cluster) -> list[Outcome]:
        cluster.send_event(1, "error", attempt=1, cause="user", type="ValueError", message="from attempt 1")
        return finishes(cluster)

    cluster = Cluster(loses_rank_1, late_words)
    attempts = supervised(cluster).supervise(plan)
    assert [error.cause for error in attempts[0].errors] == ["peer", "lost"]
    assert "error" not in cluster.kinds()


def test_an_error_event_after_the_end_changes_nothing(plan: TrainingPlan) -> None:
    cluster = Cluster(finishes)
    attempts = supervised(cluster).supervise(plan)
    cluster.send_event(1, "error", cause="user", type="ValueError", message="after the end")
    assert attempts[0].errors == ()
    assert cluster.kinds() == ["attempt"]


def test_an_error_that_is_no_failure_of_the_job_is_not_retried(plan: TrainingPlan) -> None:
    def breaks(cluster: Cluster) -> list[Outcome]:
        raise ConnectionError("the session was stopped")

    cluster = Cluster(breaks)
    with pytest.raises(ConnectionError, match="the session was stopped"):
        supervised(cluster).supervise(plan)
    assert len(cluster.plans) == 1


def test_a_receiver_that_fails_does_not_end_the_training(plan: TrainingPlan, caplog: pytest.LogCaptureFixture) -> None:
    def stumble(event: Event) -> None:
        raise OSError("no space left on device")

    cluster = Cluster(loses_rank_1, finishes)
    assert len(replace(supervised(cluster), on_event=stumble).supervise(plan)) == 2
    assert "no space left on device" in caplog.text


def test_the_driver_sends_a_heartbeat_to_tasks_every_five_seconds(plan: TrainingPlan) -> None:
    def takes_long(cluster: Cluster) -> list[Outcome]:
        cluster.run(20)
        return finishes(cluster)

    cluster = Cluster(takes_long)
    supervised(cluster).supervise(plan)
    assert cluster.sent == ["lease"] * 4


def test_a_hang_ends_the_attempt_and_the_next_one_goes_on(plan: TrainingPlan) -> None:
    def hangs(cluster: Cluster) -> list[Outcome]:
        cluster.commit(10)
        cluster.train(step=12)
        cluster.send_event(0, "alive", phase="training", step=12, waiting_for="rank 1", waiting_seconds=1)
        cluster.run(30)
        assert [command for command in cluster.sent if command != "lease"] == ["stacks", "abort"]
        return [ABORTED, ABORTED]

    cluster = Cluster(hangs, finishes)
    first, second = supervised(cluster).supervise(plan)
    assert cluster.kinds().count("hung") == 1
    assert (first.first_error.cause, first.first_error.rank, second.resumed_from) == ("hung", 0, 10)


def test_a_stop_ends_the_run_at_the_checkpoint_it_asked_for(plan: TrainingPlan) -> None:
    def is_stopped(cluster: Cluster) -> list[Outcome]:
        cluster.train()
        for _ in range(3):
            run.request_stop("SIGTERM")
        cluster.run(2)
        cluster.commit(1234)
        return [stopped(1234), stopped(1234)]

    cluster = Cluster(is_stopped)
    run = supervised(cluster)
    with pytest.raises(TrainingStoppedError) as raised:
        run.supervise(plan)
    assert str(raised.value) == "stopped at step 1,234 (SIGTERM); the same command goes on"
    assert cluster.sent.count("stop") == 1
    assert cluster.kinds()[-1] == "stopping"
    copy = pickle.loads(pickle.dumps(raised.value))  # noqa: S301 - our own bytes
    assert (str(copy), copy.attempts, copy.step) == (str(raised.value), raised.value.attempts, 1234)
    # The same command, from a new driver:
    (attempt,) = supervised(Cluster(finishes)).supervise(plan)
    assert attempt.resumed_from == 1234


def test_a_stop_before_the_first_launch_launches_nothing(plan: TrainingPlan) -> None:
    cluster = Cluster(finishes)
    run = supervised(cluster)
    run.request_stop("Ctrl-C")
    with pytest.raises(TrainingStoppedError) as raised:
        run.supervise(plan)
    assert str(raised.value) == "stopped before the first launch (Ctrl-C); the same command tries again"
    assert cluster.plans == []


def test_a_stop_during_the_launch_cancels_the_job(plan: TrainingPlan) -> None:
    def waits_for_spark(cluster: Cluster) -> list[Outcome]:
        run.request_stop("Ctrl-C")
        cluster.run(2)
        assert cluster.cancelled > 0
        raise lost_by_spark("Job 1 cancelled", "cancelled")

    cluster = Cluster(waits_for_spark)
    run = supervised(cluster)
    with pytest.raises(TrainingStoppedError):
        run.supervise(plan)


def test_a_second_ctrl_c_stops_at_once(plan: TrainingPlan) -> None:
    def is_stopped_twice(cluster: Cluster) -> list[Outcome]:
        cluster.train()
        run.request_stop("SIGINT")
        cluster.run(2)
        assert cluster.cancelled == 0
        run.stop_now()
        run.stop_now()
        cluster.run(2)
        assert cluster.cancelled > 0
        raise lost_by_spark("Job 1 cancelled", "cancelled")

    cluster = Cluster(is_stopped_twice)
    run = supervised(cluster)
    with pytest.raises(TrainingStoppedError, match="SIGINT"):
        run.supervise(plan)


@pytest.mark.parametrize("call", ["fence", "committed"])
def test_a_second_ctrl_c_does_not_wait_for_a_store_that_hangs(
    plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    is_hanging, answers = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> None:
        is_hanging.set()
        answers.wait(60)

    monkeypatch.setattr(*((resume.fencing, "fence") if call == "fence" else (commit, "committed")), hang)
    cluster = Cluster(finishes)
    run = supervised(cluster)

    def ask_twice() -> None:
        assert is_hanging.wait(60)
        run.request_stop("SIGINT")
        run.stop_now()

    thread = threading.Thread(target=ask_twice)
    thread.start()
    begin = time.monotonic()
    try:
        with pytest.raises(TrainingStoppedError, match=r"stopped before the first launch \(SIGINT\)"):
            run.supervise(plan)
        assert time.monotonic() - begin < 30
    finally:
        answers.set()
        thread.join()
    assert cluster.plans == []


def test_a_stop_while_the_store_is_read_launches_nothing(plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_step(plan.checkpoints, 30)
    cluster = Cluster(finishes)
    run = supervised(cluster)
    put_up = resume.fencing.fence

    def fence(directory: str, attempt: int) -> Fence:
        run.request_stop("SIGINT")
        return put_up(directory, attempt)

    monkeypatch.setattr(resume.fencing, "fence", fence)
    with pytest.raises(TrainingStoppedError, match=r"stopped at step 30 \(SIGINT\); the same command goes on"):
        run.supervise(plan)
    assert cluster.plans == []


class HangingStore:
    """Lets the store hang when the fence is put up, until ``answers`` is set; the fences go up in ``order``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_hanging, self.answers = threading.Event(), threading.Event()
        self.order: list[int] = []
        self._put_up = resume.fencing.fence
        monkeypatch.setattr(resume.fencing, "fence", self._fence)

    def _fence(self, directory: str, attempt: int) -> Fence:
        self.is_hanging.set()
        assert self.answers.wait(60)
        self.order.append(attempt)
        return self._put_up(directory, attempt)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[HangingStore]:
    hanging = HangingStore(monkeypatch)
    yield hanging
    hanging.answers.set()
    for thread in threading.enumerate():
        if thread.name == "reading the store":
            thread.join(60)


def test_the_first_ctrl_c_does_not_wait_long_for_a_store_that_hangs(
    plan: TrainingPlan, store: HangingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_reads, "_LAST_ANSWER_SECONDS", 0.1)
    cluster = Cluster(finishes)
    run = replace(supervised(cluster), clock=time.monotonic)
    thread = threading.Thread(target=lambda: store.is_hanging.wait(60) and run.request_stop("SIGINT"))
    thread.start()
    with pytest.raises(TrainingStoppedError, match=r"stopped before the first launch \(SIGINT\)"):
        run.supervise(plan)
    thread.join()
    assert not store.answers.is_set()
    assert cluster.plans == []


def test_a_hanging_store_is_reported_as_a_failure_of_the_store(plan: TrainingPlan, store: HangingStore) -> None:
    """T6: a hung operation does not undo the work of the next attempt."""
    cluster = Cluster(finishes)

    def on_event(event: Event) -> None:
        cluster.told.append(event)
        if cluster.kinds().count("restart") == 2:
            store.answers.set()

    def clock() -> float:
        if not store.answers.is_set():
            cluster.now += 300
        return cluster.now

    run = replace(supervised(cluster), clock=clock, limits=PhaseLimits(checkpoint_seconds=600), on_event=on_event)
    attempts = run.supervise(plan)
    assert [attempt.first_error.cause for attempt in attempts[:-1]] == ["store", "store"]
    error = attempts[0].first_error
    assert error.type == "TimeoutError"
    assert error.message.startswith(f"{plan.checkpoints} has not answered for ")
    assert cluster.kinds() == ["waiting", "restart", "waiting", "restart", "attempt"]
    assert cluster.told[0]["store"] == plan.checkpoints
    # The second attempt was given up before its turn came.
    assert len(store.order) == 2
    found = read_fence(plan.checkpoints)
    assert found is not None
    assert (found.attempt, found.id) == (1, cluster.plan.fence)


def test_a_checkpoint_that_takes_long_to_check_is_no_store_that_hangs(
    plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_step(plan.checkpoints, 10)
    cluster, has_looked = Cluster(finishes), threading.Event()

    def clock() -> float:
        if threading.current_thread() is threading.main_thread():
            has_looked.set()
        return cluster.now

    def is_whole(checkpoint: commit.CommittedCheckpoint, beat: Callable[[], None]) -> bool:
        for _ in range(3):
            cluster.now += 400
            has_looked.clear()
            assert has_looked.wait(60)
            beat()
        return True

    monkeypatch.setattr(commit, "is_whole", is_whole)
    run = replace(supervised(cluster), clock=clock, limits=PhaseLimits(checkpoint_seconds=600))
    (attempt,) = run.supervise(plan)
    assert attempt.resumed_from == 10


def test_a_store_that_hangs_at_the_end_of_an_attempt_does_not_keep_a_stop_waiting(
    plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_reads, "_LAST_ANSWER_SECONDS", 0.1)
    answers, find = threading.Event(), commit.committed

    def committed(directory: str) -> list[commit.CommittedCheckpoint]:
        if cluster.plans:
            assert answers.wait(60)
        return find(directory)

    def is_stopped(cluster: Cluster) -> list[Outcome]:
        cluster.train()
        run.request_stop("SIGTERM")
        cluster.run(2)
        return [stopped(30), stopped(30)]

    monkeypatch.setattr(commit, "committed", committed)
    commit_step(plan.checkpoints, 20)
    cluster = Cluster(is_stopped)
    ticking = supervised(cluster)
    run = replace(ticking, clock=lambda: cluster.now + time.monotonic())
    try:
        with pytest.raises(TrainingStoppedError, match="stopped at step 20"):
            run.supervise(plan)
        assert not answers.is_set()
    finally:
        answers.set()


def test_a_stop_between_the_failure_and_the_next_attempt_counts(plan: TrainingPlan) -> None:
    def fails_while_stopped(cluster: Cluster) -> list[Outcome]:
        cluster.commit(30)
        run.request_stop("Ctrl-C")  # and no tick comes any more
        return loses_rank_1(cluster)

    cluster = Cluster(fails_while_stopped)
    run = supervised(cluster)
    with pytest.raises(TrainingStoppedError, match="stopped at step 30"):
        run.supervise(plan)
    assert len(cluster.plans) == 1


def test_a_stop_wakes_a_run_that_waits_before_its_next_attempt(plan: TrainingPlan) -> None:
    cluster = Cluster(loses_rank_1)
    run = supervised(cluster, Budgets(first_delay_seconds=3600, longest_delay_seconds=3600))
    is_waiting = threading.Event()

    def on_event(event: Event) -> None:
        if event["event"] == "restart" and event["delay_seconds"]:
            is_waiting.set()

    run = replace(run, on_event=on_event)
    thread = threading.Thread(target=lambda: is_waiting.wait(60) and run.request_stop("Ctrl-C"))
    thread.start()
    begin = time.monotonic()
    with pytest.raises(TrainingStoppedError):
        run.supervise(plan)
    thread.join()
    assert len(cluster.plans) == 2
    assert time.monotonic() - begin < 60


def test_a_stop_that_comes_too_late_leaves_a_finished_training_finished(plan: TrainingPlan) -> None:
    def finishes_all_the_same(cluster: Cluster) -> list[Outcome]:
        cluster.train()
        run.request_stop("Ctrl-C")
        cluster.run(2)
        return finishes(cluster)

    run = supervised(Cluster(finishes_all_the_same))
    (attempt,) = run.supervise(plan)
    assert attempt.finished


def test_ranks_that_would_leave_no_checkpoint_are_not_asked_to_grow(plan: TrainingPlan) -> None:
    """T6: they would lose all they have done, because a slot has come back."""
    kept: list[str] = []

    def loses_its_machine(cluster: Cluster) -> list[Outcome]:
        cluster.number_of_slots = 3
        raise lost_by_spark("executor lost")

    def has_its_slots_back(cluster: Cluster) -> list[Outcome]:
        cluster.number_of_slots = 4
        for step in range(100):
            if step == 60:
                kept.append("a checkpoint")
            cluster.train(10 + step)
            cluster.run(1)
            if "stop" in cluster.sent:
                assert step > 60
                return [stopped(10 + step)] * 2
        raise AssertionError("it was not asked to grow")

    cluster = Cluster(loses_its_machine, has_its_slots_back, finishes, slots=4)
    run = supervised(cluster, Budgets(max_restarts=1, first_delay_seconds=0), Elastic(WorkerRange(2, 4), 8))
    attempts = replace(run, may_grow=lambda: bool(kept)).supervise(plan)
    assert [attempt.workers for attempt in attempts] == [4, 2, 4]


def test_a_training_goes_on_with_the_slots_that_are_left_and_grows_back(plan: TrainingPlan) -> None:
    def loses_its_machine(cluster: Cluster) -> list[Outcome]:
        cluster.commit(10)
        cluster.number_of_slots = 3
        raise lost_by_spark("executor lost")

    def goes_on_with_less(cluster: Cluster) -> list[Outcome]:
        assert cluster.plan.workers == 2  # 8 rows do not divide among 3
        for step in range(100):
            cluster.train(10 + step)
            if step == 60:
                cluster.number_of_slots = 4
            cluster.run(1)
            if "stop" in cluster.sent:
                cluster.commit(10 + step)
                return [stopped(10 + step)] * 2
        raise AssertionError("it was not asked to grow")

    cluster = Cluster(loses_its_machine, goes_on_with_less, finishes, slots=4)
    elastic = Elastic(WorkerRange(2, 4), 8)
    attempts = supervised(cluster, Budgets(max_restarts=1, first_delay_seconds=0), elastic).supervise(plan)
    assert [attempt.workers for attempt in attempts] == [4, 2, 4]
    assert [plan.global_batch_size for plan in cluster.plans] == [8, 8, 8]
    assert [attempt.stop for attempt in attempts] == [None, "grow", None]
    assert attempts[2].resumed_from == attempts[1].committed > 60
    restarts = [event["decision"] for event in cluster.told if event["event"] == "restart"]
    assert restarts[1] == "4 workers go on instead of 2"
    assert [event["workers"] for event in cluster.told if event["event"] == "attempt"] == [4, 2, 4]


def test_slots_that_somebody_else_occupies_are_done_without(plan: TrainingPlan) -> None:
    """Spark counts all slots of the cluster, those of other jobs included."""

    def finds_no_room(cluster: Cluster) -> list[Outcome]:
        cluster.run(310)
        assert cluster.cancelled
        raise lost_by_spark("Job 1 cancelled", "cancelled")

    def trains(cluster: Cluster) -> list[Outcome]:
        for step in range(200):
            cluster.train(step)
            cluster.run(1)
        assert "stop" not in cluster.sent  # it has just been shown that there is no room
        return finishes(cluster)

    cluster = Cluster(finds_no_room, trains, slots=4)
    attempts = supervised(cluster, elastic=Elastic(WorkerRange(2, 4), 8)).supervise(plan)
    assert [attempt.workers for attempt in attempts] == [4, 2]
    assert attempts[0].first_error.cause == "start"
    (restart,) = (event for event in cluster.told if event["event"] == "restart")
    assert restart["decision"] == "restart 1 of 3 (max_start_failures) from step 0 with 2 workers"


def test_a_batch_that_is_kept_per_worker_shrinks_with_the_workers(plan: TrainingPlan) -> None:
    cluster = Cluster(finishes, slots=3)
    supervised(cluster, elastic=Elastic(WorkerRange(2, 4), 256, "keep_batch_per_worker")).supervise(plan)
    assert (cluster.plan.workers, cluster.plan.global_batch_size, cluster.plan.learning_rate_scale) == (3, 192, 0.75)
    assert [event["learning_rate_scale"] for event in cluster.told if event["event"] == "attempt"] == [0.75]


def test_too_few_slots_are_waited_for_and_then_reported(plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(finishes, slots=1)
    run = supervised(cluster, Budgets(slots_wait_seconds=60))

    def wait(seconds: float) -> None:
        cluster.now += seconds

    monkeypatch.setattr(run.stop, "wait", wait)
    begin = cluster.now
    with pytest.raises(NotEnoughSlotsError) as raised:
        run.supervise(plan)
    assert cluster.now - begin == 60
    assert str(raised.value) == (
        "the cluster has 1 slots, the training needs 2; it has waited 60 s for them. "
        "Add executors, or use fewer workers"
    )
    (told,) = cluster.told
    assert {name: value for name, value in told.items() if name != "time"} == {
        "event": "waiting",
        "attempt": 1,
        "slots": 1,
        "needed": 2,
        "limit_seconds": 60,
    }
    assert cluster.plans == []


def test_a_store_that_vanishes_is_waited_for_and_never_begun_anew(plan: TrainingPlan) -> None:
    checkpoints, away = Path(plan.checkpoints), Path(plan.checkpoints).with_name("unmounted")

    def loses_the_store(cluster: Cluster) -> list[Outcome]:
        cluster.commit(10)
        checkpoints.rename(away)
        return loses_rank_1(cluster)

    cluster = Cluster(loses_the_store, finishes)
    run = supervised(cluster)

    def on_event(event: Event) -> None:
        if event["event"] == "restart" and event["attempt"] == 3:
            away.rename(checkpoints)

    attempts = replace(run, on_event=on_event).supervise(plan)
    assert [attempt.first_error.cause for attempt in attempts[:-1]] == ["lost", "store", "store"]
    assert [attempt.workers for attempt in attempts] == [2, 0, 0, 2]
    assert [plan.attempt for plan in cluster.plans] == [1, 4]
    assert attempts[-1].resumed_from == 10


def test_a_store_that_stays_away_ends_the_run_when_its_budget_is_spent(plan: TrainingPlan) -> None:
    Path(plan.checkpoints).write_text("a file, not a folder")
    cluster = Cluster(finishes)
    with pytest.raises(
        TrainingFailedError, match=r"after 3 attempts: driver: .*; max_store_faults is 2 and used up; .* tries again"
    ):
        supervised(cluster, Budgets(max_store_faults=2, first_delay_seconds=0)).supervise(plan)
    assert cluster.plans == []


@pytest.mark.parametrize("is_mount_point", [True, False])
def test_a_new_driver_does_not_begin_afresh_where_the_checkpoints_are_not_mounted(
    plan: TrainingPlan, is_mount_point: bool
) -> None:
    checkpoints, away = Path(plan.checkpoints), Path(plan.checkpoints).with_name("unmounted")
    supervised(Cluster(finishes)).supervise(plan)
    commit_step(plan.checkpoints, 10)
    checkpoints.rename(away)
    if is_mount_point:
        checkpoints.mkdir()

    def on_event(event: Event) -> None:
        if event["event"] == "restart" and event["attempt"] == 2:
            if is_mount_point:
                assert list(checkpoints.iterdir()) == []  # nothing was written onto it
                checkpoints.rmdir()
            away.rename(checkpoints)

    run = replace(supervised(Cluster(finishes)), has_begun=True, on_event=on_event)
    attempts = run.supervise(plan)
    assert [attempt.first_error.cause for attempt in attempts[:-1]] == ["store", "store"]
    assert attempts[0].first_error.message.startswith(
        f"{checkpoints} has no FENCE-*.json, though this run has put one there"
    )
    assert attempts[-1].resumed_from == 10


def test_a_new_driver_of_a_run_that_was_killed_before_its_first_checkpoint_begins_afresh(plan: TrainingPlan) -> None:
    supervised(Cluster(finishes)).supervise(plan)
    (attempt,) = replace(supervised(Cluster(finishes)), has_begun=True).supervise(plan)
    assert attempt.resumed_from == 0


def test_a_store_that_cannot_be_opened_is_a_store_that_is_away(
    plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some stores raise a StorageError, which is not an OSError."""
    find, is_away = commit.committed, [True]

    def committed(directory: str) -> list[commit.CommittedCheckpoint]:
        if is_away[0]:
            raise StorageError("s3://bucket/a cannot be opened")
        return find(directory)

    def is_lost_with_the_store(cluster: Cluster) -> list[Outcome]:
        is_away[0] = True
        return loses_rank_1(cluster)

    def on_event(event: Event) -> None:
        if event["event"] == "restart":
            is_away[0] = False

    monkeypatch.setattr(commit, "committed", committed)
    cluster = Cluster(is_lost_with_the_store, finishes)
    attempts = replace(supervised(cluster), on_event=on_event).supervise(plan)
    assert [attempt.first_error.cause for attempt in attempts[:-1]] == ["store", "lost"]


def test_checkpoints_that_were_there_are_not_replaced_by_a_fresh_start(plan: TrainingPlan) -> None:
    def commits(cluster: Cluster) -> list[Outcome]:
        cluster.commit(10)
        return loses_rank_1(cluster)

    def on_event(event: Event) -> None:
        if event["event"] == "restart":
            retention.discard(Path(plan.checkpoints) / "step-00000010")

    cluster = Cluster(commits)
    run = replace(supervised(cluster, Budgets(max_store_faults=0)), on_event=on_event)
    with pytest.raises(TrainingFailedError, match=r"no whole checkpoint is left in .*, which held step 10; make the"):
        run.supervise(plan)
    assert len(cluster.plans) == 1


def test_the_failure_survives_pickling(plan: TrainingPlan) -> None:
    with pytest.raises(TrainingFailedError) as raised:
        supervised(Cluster(loses_rank_1), Budgets(max_restarts=0)).supervise(plan)
    copy = pickle.loads(pickle.dumps(raised.value))  # noqa: S301 - our own bytes
    assert str(copy) == str(raised.value)
    assert copy.attempts == raised.value.attempts


@pytest.mark.process
def test_a_reason_that_comes_after_spark_has_given_up_still_counts(
    plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the real event channel, with real threads."""
    monkeypatch.setattr(running_attempt, "_LATE_EVENTS_SECONDS", 100.0)
    monkeypatch.setattr(event_server, "_LAST_WORDS_SECONDS", 0.1)
    clients: list[EventClient] = []

    def fails(cluster: Cluster) -> list[Outcome]:
        clients.append(EventClient(cluster.plan.events, 1, cluster.plan.attempt))
        clients[0].send({"event": "error", "cause": "user", "type": "ValueError", "message": "sent late"})
        raise lost_by_spark("Spark is faster")

    run = supervised(Cluster(fails))
    run = replace(run, advertised="127.0.0.1", open_server=EventServer, every=rounds.every)
    begin = time.monotonic()
    with pytest.raises(TrainingFailedError, match="rank 1: ValueError: sent late"):
        run.supervise(plan)
    clients[0].close()
    assert time.monotonic() - begin < 60  # it did not wait longer than for the reason


def test_a_signal_may_ask_for_a_stop_wherever_it_interrupts_the_main_thread(plan: TrainingPlan) -> None:
    cluster = Cluster(loses_rank_1)

    def interrupt(event: Event) -> None:
        signal.raise_signal(signal.SIGUSR1)  # while the supervisor holds its lock for reporting an event

    run = replace(supervised(cluster), on_event=interrupt)

    def handle(number: int, frame: FrameType | None) -> None:
        run.request_stop("SIGUSR1")
        run.request_stop("SIGUSR1")

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with pytest.raises(TrainingStoppedError, match="SIGUSR1"):
            run.supervise(plan)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(cluster.plans) == 1


def test_a_signal_wakes_a_main_thread_that_sleeps(plan: TrainingPlan) -> None:
    is_about_to_sleep = threading.Event()

    def on_event(event: Event) -> None:
        if event["event"] == "restart" and event["delay_seconds"]:
            is_about_to_sleep.set()

    def send_signal() -> None:
        if is_about_to_sleep.wait(60):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    cluster = Cluster(loses_rank_1)
    budgets = Budgets(first_delay_seconds=3600, longest_delay_seconds=3600)
    run = replace(supervised(cluster, budgets), on_event=on_event)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: run.request_stop("SIGUSR1"))
    sender = threading.Thread(target=send_signal)
    sender.start()
    begin = time.monotonic()
    try:
        with pytest.raises(TrainingStoppedError, match="SIGUSR1"):
            run.supervise(plan)
        sender.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(cluster.plans) == 2
    assert time.monotonic() - begin < 60


def test_a_session_that_dies_between_two_attempts_ends_the_run_with_all_of_them(plan: TrainingPlan) -> None:
    def slots() -> int:
        if cluster.plans:
            raise ConnectionRefusedError(111, "Connection refused")
        return 2

    cluster = Cluster(loses_rank_1)
    with pytest.raises(TrainingFailedError) as raised:
        replace(supervised(cluster), slots=slots).supervise(plan)
    assert str(raised.value) == (
        "training failed after 2 attempts: Spark: SessionLost: it does not say how many slots it has "
        "(ConnectionRefusedError: [Errno 111] Connection refused); start a new session"
    )
    assert [attempt.first_error.cause for attempt in raised.value.attempts] == ["lost", "spark"]
    assert pickle.loads(pickle.dumps(raised.value)).attempts == raised.value.attempts  # noqa: S301 - our own bytes


def test_a_session_that_is_dead_does_not_hide_why_it_died(plan: TrainingPlan) -> None:
    def is_shut_down(cluster: Cluster) -> list[Outcome]:
        raise lost_by_spark("SparkContext was shut down", "cancelled")

    def slots() -> int:
        if cluster.plans:
            raise ConnectionError("no JVM")
        return 2

    cluster = Cluster(is_shut_down)
    with pytest.raises(TrainingFailedError, match=r"Spark: BarrierJobError: SparkContext was shut down$"):
        replace(supervised(cluster), slots=slots).supervise(plan)
