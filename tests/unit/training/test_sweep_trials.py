"""Trials run side by side as slots allow, are pruned by their events, and fail or stop on their own."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest

from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.driver.errors import NotEnoughSlotsError, TrainingFailedError, TrainingStoppedError
from mirrorspark.training.protocol.messages.events import Event
from mirrorspark.training.protocol.outcomes.cause import Attempt, Cause, RankError
from mirrorspark.training.run_records.run_state import RunUnderWayError
from mirrorspark.training.run_records.tracked_run import TrackingError
from mirrorspark.training.sweep.options import SweepOptions
from mirrorspark.training.sweep.space import SearchSpace, read_space
from mirrorspark.training.sweep.study import TrialRecord, best_record, open_study, records
from mirrorspark.training.sweep.trials import (
    PRUNED,
    SessionLostError,
    SweepFailedError,
    TrialControl,
    TrialPlan,
    Trials,
    end_of_trial,
)

WAIT_SECONDS = 60.0
SEARCH = ["learning_rate=log:1e-4:1e-1"]

NewTrials = Callable[..., Trials]


def epoch_end(epoch: int, value: float, rank: int = 0) -> Event:
    return {"event": "epoch_end", "rank": rank, "attempt": 1, "time": 0.0, "epoch": epoch, "logs": {"val_auc": value}}


def failed(cause: Cause = "user", message: str = "no such layer", kind: str = "ValueError") -> TrainingFailedError:
    return TrainingFailedError((Attempt(1, None, (RankError(cause, 0, kind, message, 0.0),), 0),))


class FakeTraining:
    """Trains a trial for ``epochs`` epochs; its metric is a function of number and epoch."""

    def __init__(self, *, epochs: int = 2, value: Callable[[int, int], float] = lambda number, epoch: 0.5) -> None:
        self.epochs = epochs
        self.value = value
        self.plans: list[TrialPlan] = []
        self.side_by_side: list[int] = []
        self.stopped: dict[int, str] = {}
        self._lock = threading.Lock()
        self._running = 0

    def __call__(self, plan: TrialPlan, control: TrialControl) -> None:
        stop = threading.Event()
        reasons: list[str] = []

        def ask(reason: str) -> None:
            reasons.append(reason)
            stop.set()

        with self._lock:
            self.plans.append(plan)
            self._running += plan.config.worker_range.most
            self.side_by_side.append(self._running)
        try:
            control.connect(ask, ask)
            for epoch in range(1, self.epochs + 1):
                self.train_epoch(plan, epoch, stop)
                if stop.is_set():
                    self.stopped[plan.number] = reasons[0]
                    raise TrainingStoppedError((), 100, reasons[0])
                control.on_event(epoch_end(epoch, self.value(plan.number, epoch)))
        finally:
            with self._lock:
                self._running -= plan.config.worker_range.most

    def train_epoch(self, plan: TrialPlan, epoch: int, stop: threading.Event) -> None:
        """Do nothing; others wait or fail here."""


class BlockedTraining(FakeTraining):
    """Waits in its second epoch until it is stopped or let go."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.go = threading.Event()
        self.arrived: threading.Semaphore = threading.Semaphore(0)

    def train_epoch(self, plan: TrialPlan, epoch: int, stop: threading.Event) -> None:
        if epoch == 2:
            self.arrived.release()
            deadline = time.monotonic() + WAIT_SECONDS
            while not (self.go.is_set() or stop.is_set()):
                assert time.monotonic() < deadline
                stop.wait(0.01)


class FailingTraining(FakeTraining):
    """Raises in the first epoch of the trials for which ``errors`` returns one."""

    def __init__(self, errors: Callable[[int], Exception | None], **how: Any) -> None:
        super().__init__(**how)
        self.errors = errors

    def train_epoch(self, plan: TrialPlan, epoch: int, stop: threading.Event) -> None:
        error = self.errors(plan.number)
        if error is not None:
            raise error


@pytest.fixture
def study(new_config: Callable[..., RunConfig]) -> Iterator[optuna.Study]:
    space = read_space(SEARCH, None, new_config())
    with open_study(None, SweepOptions(new_config(), space, sampler="random")) as opened:
        yield opened


@pytest.fixture
def new_trials(study: optuna.Study, new_config: Callable[..., RunConfig]) -> NewTrials:
    def build(train: Any, *, slots: Any = 1, config: RunConfig | None = None, **how: Any) -> Trials:
        base = config or new_config()
        space = read_space(SEARCH, None, base)
        return Trials(
            study,
            SweepOptions(base, space, **{"trials": 3, **how}),
            train,
            slots if callable(slots) else lambda: slots,
            say=lambda number, text: None,
            on_end=lambda record, ended: None,
        )

    return build


def states(study: optuna.Study) -> list[str]:
    return [record.state for record in records(study)]


def test_every_trial_is_trained_with_its_own_values_and_kept_with_its_value(
    study: optuna.Study, new_trials: NewTrials
) -> None:
    training = FakeTraining(value=lambda number, epoch: 0.5 + number / 10 + epoch / 100)
    new_trials(training).run()
    assert states(study) == ["complete"] * 3
    assert [record.best for record in records(study)] == pytest.approx([0.52, 0.62, 0.72])
    tried = {plan.number: plan.config.learning_rate for plan in training.plans}
    assert tried == {record.number: record.values["learning_rate"] for record in records(study)}
    best = best_record(study)
    assert best is not None
    assert best.number == 2


@pytest.mark.parametrize(
    ("slots", "workers", "servers", "parallel", "most"),
    [(1, 1, 0, None, 1), (5, 2, 0, None, 4), (6, 2, 0, None, 6), (6, 2, 0, 2, 4), (5, 1, 1, None, 1)],
)
def test_as_many_train_side_by_side_as_have_slots(
    new_trials: NewTrials,
    new_config: Callable[..., RunConfig],
    slots: int,
    workers: int,
    servers: int,
    parallel: int | None,
    most: int,
) -> None:
    training = BlockedTraining()
    strategy = "parameter_server" if servers else None
    config = new_config(workers=workers, strategy=strategy, parameter_servers=servers)
    trials = new_trials(training, slots=slots, config=config, trials=6, parallel=parallel)
    runner = threading.Thread(target=trials.run)
    runner.start()
    for _ in range(most // workers):
        assert training.arrived.acquire(timeout=WAIT_SECONDS)
    training.go.set()
    runner.join(WAIT_SECONDS)
    assert not runner.is_alive()
    assert len(training.plans) == 6
    assert max(training.side_by_side) == most


def test_trials_side_by_side_get_their_values_from_the_seed(new_config: Callable[..., RunConfig]) -> None:
    """Study.optimize would seed the sampler at random for each of them."""
    options = SweepOptions(new_config(), read_space(SEARCH, None, new_config()), trials=6, sampler="random")
    tried = []
    for epochs in (1, 3):
        training = FakeTraining(epochs=epochs)
        with open_study(None, options) as study:
            Trials(study, options, training, lambda: 3, lambda number, text: None, lambda record, ended: None).run()
        tried.append({plan.number: plan.config.learning_rate for plan in training.plans})
    assert tried[0] == tried[1]
    assert len(set(tried[0].values())) == 6


def test_a_trial_that_is_worse_than_the_others_is_asked_to_stop_and_pruned(
    study: optuna.Study, new_trials: NewTrials
) -> None:
    # The median of the first five decides, as it is Optuna's default.
    training = FakeTraining(epochs=3, value=lambda number, epoch: 0.2 if number == 5 else 0.6 + number / 100)
    new_trials(training, trials=6).run()
    assert states(study) == ["complete"] * 5 + ["pruned"]
    assert training.stopped == {5: PRUNED}
    assert records(study)[5].best == 0.2
    assert records(study)[5].epochs == 1


def test_only_the_chiefs_epochs_count(study: optuna.Study, new_trials: NewTrials) -> None:
    def train(plan: TrialPlan, control: TrialControl) -> None:
        control.on_event({"event": "progress", "rank": 0, "epoch": 1})
        control.on_event(epoch_end(1, 0.9, rank=1))
        control.on_event(epoch_end(1, 0.5))
        control.on_event({**epoch_end(2, 0.5), "logs": {"loss": 0.1}})

    new_trials(train, trials=1).run()
    assert records(study)[0].history == {1: 0.5}


def test_a_failed_trial_does_not_end_the_sweep(study: optuna.Study, new_trials: NewTrials) -> None:
    trials = new_trials(FailingTraining(lambda number: failed() if number == 1 else None))
    trials.run()
    assert states(study) == ["complete", "failed", "complete"]
    assert records(study)[1].error == "training failed: rank 0: ValueError: no such layer"


def test_too_many_failures_in_a_row_end_the_sweep(study: optuna.Study, new_trials: NewTrials) -> None:
    trials = new_trials(FailingTraining(lambda number: failed() if number > 1 else None), trials=20, max_failures=3)
    with pytest.raises(
        SweepFailedError, match=r"3 trials failed one after the other, the last with: training failed.*"
    ):
        trials.run()
    assert states(study) == ["complete", "complete", "failed", "failed", "failed"]


def test_a_sweep_without_a_trained_trial_has_failed(new_trials: NewTrials) -> None:
    trials = new_trials(FailingTraining(lambda number: failed(message="it is too deep")))
    with pytest.raises(SweepFailedError, match=r"no trial was trained to its end; the last error: .*it is too deep"):
        trials.run()


def test_an_error_of_all_trials_ends_the_sweep_and_leaves_the_trial_running(
    study: optuna.Study, new_trials: NewTrials
) -> None:
    error = NotEnoughSlotsError("the cluster has 0 slots")
    with pytest.raises(NotEnoughSlotsError):
        new_trials(FailingTraining(lambda number: error if number == 1 else None)).run()
    assert states(study) == ["complete", "running"]


def test_values_that_contradict_each_other_fail_without_a_training(
    study: optuna.Study, new_trials: NewTrials, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = FakeTraining()
    configure = SearchSpace.configure

    def refuse_third(space: SearchSpace, base: RunConfig, values: Any) -> RunConfig:
        if len(study.trials) == 2:
            raise ValueError("a batch of 10 does not divide among 3 workers")
        return configure(space, base, values)

    monkeypatch.setattr(SearchSpace, "configure", refuse_third)
    new_trials(training).run()
    assert states(study) == ["complete", "failed", "complete"]
    assert records(study)[1].error == "a batch of 10 does not divide among 3 workers"
    assert len(training.plans) == 2


def test_a_stop_lets_running_trials_save_and_the_next_command_goes_on_with_them(
    study: optuna.Study, new_trials: NewTrials
) -> None:
    training = BlockedTraining(value=lambda number, epoch: 0.5 + epoch / 10)
    trials = new_trials(training, slots=2, trials=4)
    runner = threading.Thread(target=trials.run)
    runner.start()
    for _ in range(2):
        assert training.arrived.acquire(timeout=WAIT_SECONDS)
    trials.request_stop("SIGINT")
    runner.join(WAIT_SECONDS)
    assert not runner.is_alive()
    assert trials.stop_reason == "SIGINT"
    assert training.stopped == {0: "SIGINT", 1: "SIGINT"}
    assert states(study) == ["running", "running"]

    again = FakeTraining()
    new_trials(again, slots=2, trials=4).run()
    assert sorted(plan.number for plan in again.plans)[:2] == [0, 1]
    assert states(study) == ["complete"] * 4
    # Epoch 1 was reported before the stop.
    assert records(study)[0].history == {1: 0.6, 2: 0.5}


class MortalSession:
    """A session that answers until it is lost."""

    def __init__(self, slots: int) -> None:
        self.count = slots
        self.is_gone = False

    def __call__(self) -> int:
        if self.is_gone:
            raise ConnectionRefusedError(111, "Connection refused")
        return self.count


@pytest.mark.parametrize(
    "error", [failed("spark", "gone", "SessionLost"), AttributeError("'NoneType' object has no attribute 'sc'")]
)
def test_trials_of_a_session_that_is_gone_stop_and_go_on_later(
    study: optuna.Study, new_trials: NewTrials, error: Exception
) -> None:
    """T2: nothing is wrong with the trials, which meet whatever py4j raises."""
    session, other = MortalSession(slots=2), BlockedTraining()

    def train(plan: TrialPlan, control: TrialControl) -> None:
        if plan.number == 0:
            other(plan, control)
        assert other.arrived.acquire(timeout=WAIT_SECONDS)
        session.is_gone = True
        raise error

    with pytest.raises(SessionLostError) as caught:
        new_trials(train, slots=session, trials=4).run()
    assert str(caught.value) == (
        "the Spark session does not answer (ConnectionRefusedError: [Errno 111] Connection refused); start a new one: "
        "the same command goes on"
    )
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert other.stopped == {0: "the Spark session is lost"}
    assert states(study) == ["running", "running"]


def test_a_session_that_ends_beside_a_stopped_sweep_is_no_fault(study: optuna.Study, new_trials: NewTrials) -> None:
    """T2: a SIGTERM may reach the JVM, too."""
    session = MortalSession(slots=1)

    def train(plan: TrialPlan, control: TrialControl) -> None:
        trials.request_stop("SIGTERM")
        session.is_gone = True
        raise TrainingStoppedError((), 10, "SIGTERM")

    trials = new_trials(train, slots=session)
    trials.run()
    assert trials.stop_reason == "SIGTERM"
    assert states(study) == ["running"]


def test_a_stop_at_once_reaches_a_trial_that_is_about_to_begin(
    study: optuna.Study, new_trials: NewTrials, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops: list[tuple[str, str]] = []
    configure = SearchSpace.configure

    def configure_late(space: SearchSpace, base: RunConfig, values: Any) -> RunConfig:
        trials.stop_now()  # no signal handler can find the trial yet
        return configure(space, base, values)

    def train(plan: TrialPlan, control: TrialControl) -> None:
        control.connect(lambda why: stops.append(("save", why)), lambda why: stops.append(("at once", why)))
        raise TrainingStoppedError((), 0, "as asked")

    monkeypatch.setattr(SearchSpace, "configure", configure_late)
    trials = new_trials(train)
    trials.run()
    assert stops == [("at once", "stopped at once")]
    assert states(study) == ["running"]


def test_an_error_while_recording_a_trial_stops_the_others(study: optuna.Study, new_trials: NewTrials) -> None:
    training = BlockedTraining()

    def train(plan: TrialPlan, control: TrialControl) -> None:
        if plan.number == 0:
            training(plan, control)
        assert training.arrived.acquire(timeout=WAIT_SECONDS)
        control.on_event(epoch_end(1, 0.5))

    def full(record: TrialRecord, ended: int) -> None:
        raise OSError("No space left on device")

    trials = new_trials(train, slots=2)
    trials.on_end = full
    with pytest.raises(OSError, match="No space left"):
        trials.run()
    assert training.stopped == {0: "stopped at once"}


def test_after_the_timeout_no_trial_starts_and_the_one_under_way_ends(new_trials: NewTrials) -> None:
    plans: list[TrialPlan] = []

    def train(plan: TrialPlan, control: TrialControl) -> None:
        plans.append(plan)
        time.sleep(1.1)
        control.on_event(epoch_end(1, 0.5))

    new_trials(train, trials=9, timeout_seconds=1.0).run()
    assert len(plans) == 1


def test_a_trial_may_count_on_the_slots_that_the_others_leave(new_trials: NewTrials) -> None:
    seen: list[int] = []

    def train(plan: TrialPlan, control: TrialControl) -> None:
        seen.append(control.slots())
        control.on_event(epoch_end(1, 0.5))

    new_trials(train, slots=3, trials=1).run()
    assert seen == [3]


SESSION_LOST = failed("spark", "the JVM does not answer any more", "SessionLost")


def test_a_stop_before_the_training_has_begun_reaches_it() -> None:
    control = TrialControl(lambda event: None, lambda: 1, lambda text: None, lambda name, value: None)
    control.stop("SIGTERM")
    asked: list[tuple[str, str]] = []
    control.connect(lambda reason: asked.append(("stop", reason)), lambda reason: asked.append(("now", reason)))
    control.stop("again", now=True)
    assert asked == [("stop", "SIGTERM"), ("now", "SIGTERM")]


@pytest.mark.parametrize(
    ("error", "reason", "state"),
    [
        (None, None, "complete"),
        (None, PRUNED, "complete"),  # it ended before the command arrived
        (TrainingStoppedError((), 5, PRUNED), PRUNED, "pruned"),
        (TrainingStoppedError((), 5, "SIGINT"), "SIGINT", "running"),
        (failed(), None, "failed"),
        (failed(), PRUNED, "failed"),
        (ConnectionError("gone"), "SIGINT", "running"),  # torn down by a second Ctrl-C
        (ConnectionError("gone"), None, "failed"),
        (TrackingError("the store says no"), None, "running"),
        (RunUnderWayError("run rides-0003 is under way in another driver"), None, "running"),
        (SESSION_LOST, None, "running"),
        (SESSION_LOST, PRUNED, "running"),
    ],
)
def test_how_a_training_ends_says_what_becomes_of_its_trial(
    error: Exception | None, reason: str | None, state: str
) -> None:
    assert end_of_trial(error, reason) == state


def test_an_error_is_kept_in_one_line_and_without_passwords(study: optuna.Study, new_trials: NewTrials) -> None:
    error = OSError("cannot reach\nhttp://me:secret@host/")
    new_trials(FailingTraining(lambda number: error if number == 1 else None)).run()
    kept = records(study)[1].error
    assert kept is not None
    assert "secret" not in kept
    assert "\n" not in kept
