"""T6: the attempts of a run: where each goes on, whose error is reported, and when it is over."""

import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from callbacks import commit
from training import events as events_module
from training import supervisor as supervisor_module
from training.events import Event, EventClient
from training.failure_policy import RankError
from training.launcher import BarrierJobError
from training.plan import TrainingPlan
from training.supervisor import Supervisor, TrainingFailedError, no_address, summary_of

# What a rank says, and when: seconds after the attempt's begin, on the ranks' clock.
Said = dict[str, Any]


def user_fault(message: str = "shapes do not match") -> Said:
    return {"event": "error", "cause": "user", "type": "ValueError", "message": message, "traceback": "in model.py"}


def killed() -> Said:
    return {"event": "error", "cause": "lost", "type": "killed", "message": "killed by signal SIGKILL"}


def peer_gone() -> Said:
    return {"event": "error", "cause": "peer", "type": "UnavailableError", "message": "Socket closed"}


def commit_step(directory: str, step: int) -> None:
    staging = commit.new_staging(Path(directory))
    (staging / "ckpt.index").write_text(f"step {step}")
    commit.publish(staging, Path(directory), step=step, epoch=step // 10)


def said_by_spark(message: str) -> RankError:
    return RankError("spark", None, "BarrierJobError", message, time.time())


class FailingLauncher:
    """Fails ``times`` attempts: commits the steps it is given, lets the ranks speak, and ends as Spark would."""

    def __init__(self, times: int, *, said: Sequence[tuple[int, Said]] = (), commits: Sequence[int] = ()) -> None:
        self.times = times
        self.said = said
        self.commits = list(commits)
        self.plans: list[TrainingPlan] = []

    def __call__(self, plan: TrainingPlan) -> int:
        self.plans.append(plan)
        if len(self.plans) > self.times:
            return plan.epochs
        if self.commits:
            commit_step(plan.checkpoints, self.commits.pop(0))
        for rank, event in self.said:
            client = EventClient(plan.events, rank, plan.attempt)
            client.send(event)
            client.close()
        raise BarrierJobError(said_by_spark("Spark says that a task failed"))


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_LATE_EVENTS_SECONDS", 0.3)


@pytest.fixture
def plan(tmp_path: Path) -> TrainingPlan:
    return TrainingPlan(
        dataset="dataset",
        checkpoints=str(tmp_path / "checkpoints"),
        model="multi_field",
        model_options={},
        optimizer="adam",
        learning_rate=0.1,
        epochs=4,
        patience=2,
        monitor="val_auc",
        mode="max",
        global_batch_size=8,
        steps_per_execution=1,
        seed=1,
        workers=2,
        threads=1,
        attempt=1,
        resume_from=None,
        events=no_address(),
    )


def supervised(
    launch: Callable[[TrainingPlan], int], max_restarts: int, heard: list[Event] | None = None
) -> Supervisor:
    return Supervisor(launch, "127.0.0.1", "127.0.0.1", max_restarts, (heard if heard is not None else []).append)


def test_a_training_that_finishes_takes_one_attempt(plan: TrainingPlan) -> None:
    launch = FailingLauncher(times=0)
    heard: list[Event] = []
    (attempt,) = supervised(launch, 3, heard).supervise(plan)
    assert (attempt.number, attempt.epochs, attempt.errors, attempt.resumed_from) == (1, 4, (), 0)
    assert (launch.plans[0].attempt, launch.plans[0].resume_from) == (1, None)
    assert heard == [{"event": "attempt", "attempt": 1, "workers": 2, "resumed_from": 0}]


def test_restart_resumes_from_last_committed_checkpoint(plan: TrainingPlan) -> None:
    launch = FailingLauncher(times=2, said=[(1, killed())], commits=[10, 20])
    heard: list[Event] = []
    attempts = supervised(launch, 3, heard).supervise(plan)
    checkpoints = Path(plan.checkpoints)
    assert [plan.attempt for plan in launch.plans] == [1, 2, 3]
    assert [plan.resume_from for plan in launch.plans] == [
        None,
        str(checkpoints / "step-00000010"),
        str(checkpoints / "step-00000020"),
    ]
    assert [attempt.resumed_from for attempt in attempts] == [0, 10, 20]
    assert attempts[-1].epochs == 4
    kinds = ["attempt", "error", "restart", "attempt", "error", "restart", "attempt"]
    assert [event["event"] for event in heard] == kinds
    assert (heard[2]["attempt"], heard[2]["error"]["rank"]) == (1, 1)


def test_a_damaged_checkpoint_is_passed_over(plan: TrainingPlan) -> None:
    commit_step(plan.checkpoints, 10)
    commit_step(plan.checkpoints, 20)
    (Path(plan.checkpoints) / "step-00000020" / "ckpt.index").write_text("step 21")
    launch = FailingLauncher(times=0)
    (attempt,) = supervised(launch, 0).supervise(plan)
    assert attempt.resumed_from == 10


def test_every_attempt_listens_anew_with_a_token_of_its_own(plan: TrainingPlan) -> None:
    launch = FailingLauncher(times=1, said=[(0, killed())])
    supervised(launch, 1).supervise(plan)
    assert launch.plans[0].events.token != launch.plans[1].events.token
    assert launch.plans[0].events.token not in repr(launch.plans[0])


def test_a_spent_budget_raises_with_the_first_error_of_the_last_attempt(plan: TrainingPlan) -> None:
    launch = FailingLauncher(times=9, said=[(0, peer_gone()), (1, killed())])
    with pytest.raises(TrainingFailedError) as raised:
        supervised(launch, 2).supervise(plan)
    assert len(launch.plans) == 3
    expected = "training failed after 3 attempts: rank 1: killed: killed by signal SIGKILL"
    assert str(raised.value) == expected


def test_a_fault_of_the_user_raises_at_once_though_its_peers_spoke_first(plan: TrainingPlan) -> None:
    launch = FailingLauncher(times=9, said=[(0, peer_gone()), (2, peer_gone()), (1, user_fault())])
    with pytest.raises(TrainingFailedError) as raised:
        supervised(launch, 3).supervise(plan)
    assert len(launch.plans) == 1
    assert str(raised.value) == "training failed: rank 1: ValueError: shapes do not match"
    assert raised.value.attempts[0].first_error.traceback == "in model.py"


def test_a_reason_that_comes_after_spark_has_given_up_still_counts(
    plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_LATE_EVENTS_SECONDS", 10.0)
    monkeypatch.setattr(events_module, "_LAST_WORDS_SECONDS", 0.1)
    clients: list[EventClient] = []
    begin = time.monotonic()

    def launch(plan: TrainingPlan) -> int:
        clients.append(EventClient(plan.events, 1, plan.attempt))
        clients[0].send(user_fault("told late"))
        raise BarrierJobError(said_by_spark("Spark is faster"))

    with pytest.raises(TrainingFailedError, match="rank 1: ValueError: told late"):
        supervised(launch, 3).supervise(plan)
    clients[0].close()
    assert time.monotonic() - begin < 8  # it did not wait longer than for the reason, and for the line to be cut


def test_where_no_rank_could_speak_spark_is_quoted(plan: TrainingPlan) -> None:
    with pytest.raises(TrainingFailedError) as raised:
        supervised(FailingLauncher(times=9), 0).supervise(plan)
    assert str(raised.value) == "training failed: Spark: BarrierJobError: Spark says that a task failed"


def test_an_error_of_an_earlier_attempt_is_not_counted_and_not_passed_on(plan: TrainingPlan) -> None:
    heard: list[Event] = []
    attempts_seen: list[int] = []

    def launch(plan: TrainingPlan) -> int:
        attempts_seen.append(plan.attempt)
        if plan.attempt == 1:
            raise BarrierJobError(said_by_spark("lost"))
        # A rank of the first attempt, as if it had found the second one's address.
        late = EventClient(plan.events, 1, attempt=1)
        late.send(user_fault("from attempt 1"))
        late.close()
        if plan.attempt == 2:
            raise BarrierJobError(said_by_spark("lost again"))
        return 4

    attempts = supervised(launch, 3, heard).supervise(plan)
    assert attempts_seen == [1, 2, 3]
    assert [error.cause for attempt in attempts for error in attempt.errors] == ["spark", "spark"]
    assert "error" not in [event["event"] for event in heard]


def test_an_error_that_is_no_failure_of_the_job_is_not_retried(plan: TrainingPlan) -> None:
    launches: list[int] = []

    def launch(plan: TrainingPlan) -> int:
        launches.append(plan.attempt)
        raise ConnectionError("the session is gone")

    with pytest.raises(ConnectionError, match="the session is gone"):
        supervised(launch, 3).supervise(plan)
    assert launches == [1]


def test_the_failure_survives_pickling(plan: TrainingPlan) -> None:
    with pytest.raises(TrainingFailedError) as raised:
        supervised(FailingLauncher(times=9, said=[(1, user_fault())]), 0).supervise(plan)
    copy = pickle.loads(pickle.dumps(raised.value))  # noqa: S301 - our own bytes
    assert str(copy) == str(raised.value)
    assert copy.attempts == raised.value.attempts


def test_the_record_of_the_attempts_is_plain_data(plan: TrainingPlan) -> None:
    launch = FailingLauncher(times=1, said=[(1, killed())], commits=[10])
    first, second = summary_of(supervised(launch, 1).supervise(plan))
    assert (first["attempt"], first["resumed_from_step"]) == (1, 0)
    assert isinstance(first["error"], dict)
    assert (first["error"]["cause"], first["error"]["rank"]) == ("lost", 1)
    assert second == {"attempt": 2, "resumed_from_step": 10, "error": None}


def test_a_plan_reads_back_from_its_line(plan: TrainingPlan) -> None:
    assert TrainingPlan.from_json(plan.to_json()) == plan
    assert "\n" not in plan.to_json()
