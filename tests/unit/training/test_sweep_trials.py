"""Trials run side by side as far as slots allow, are pruned by their events, and fail or stop on their own."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from training.channel.events import Event
from training.config import RunConfig
from training.supervision.failure_policy import Attempt, Cause, RankError
from training.supervision.supervisor import NotEnoughSlotsError, TrainingFailedError, TrainingStoppedError
from training.sweeping.schedule import SweepLimits
from training.sweeping.specs import read_space
from training.sweeping.study import StudySettings, SweepStudy, TrialRecord, open_study
from training.sweeping.trial import PRUNED, TrialControl, TrialOrder
from training.sweeping.trials import SessionLostError, SweepFailedError, Trials

WAIT_SECONDS = 10.0

NewTrials = Callable[..., Trials]


def epoch_end(epoch: int, value: float, rank: int = 0) -> Event:
    return {"event": "epoch_end", "rank": rank, "attempt": 1, "time": 0.0, "epoch": epoch, "logs": {"val_auc": value}}


def failed(cause: Cause = "user", message: str = "no such layer", kind: str = "ValueError") -> TrainingFailedError:
    return TrainingFailedError((Attempt(1, None, (RankError(cause, 0, kind, message, 0.0),), 0),))


class FakeTraining:
    """Trains a trial for as many epochs as it is told; what it reaches is a function of number and epoch."""

    def __init__(self, *, epochs: int = 2, value: Callable[[int, int], float] = lambda number, epoch: 0.5) -> None:
        self.epochs = epochs
        self.value = value
        self.orders: list[TrialOrder] = []
        self.side_by_side: list[int] = []
        self.stopped: dict[int, str] = {}
        self._lock = threading.Lock()
        self._running = 0

    def __call__(self, order: TrialOrder, control: TrialControl) -> None:
        stop = threading.Event()
        reasons: list[str] = []

        def ask(reason: str) -> None:
            reasons.append(reason)
            stop.set()

        with self._lock:
            self.orders.append(order)
            self._running += order.config.worker_range.most
            self.side_by_side.append(self._running)
        try:
            control.connect(ask, ask)
            for epoch in range(1, self.epochs + 1):
                self.train_epoch(order, epoch, stop)
                if stop.is_set():
                    self.stopped[order.number] = reasons[0]
                    raise TrainingStoppedError((), 100, reasons[0])
                control.on_event(epoch_end(epoch, self.value(order.number, epoch)))
        finally:
            with self._lock:
                self._running -= order.config.worker_range.most

    def train_epoch(self, order: TrialOrder, epoch: int, stop: threading.Event) -> None:
        """Do nothing; others wait or fail here."""


class BlockedTraining(FakeTraining):
    """Waits in its second epoch until it is stopped or let go."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.go = threading.Event()
        self.arrived: threading.Semaphore = threading.Semaphore(0)

    def train_epoch(self, order: TrialOrder, epoch: int, stop: threading.Event) -> None:
        if epoch == 2:
            self.arrived.release()
            deadline = time.monotonic() + WAIT_SECONDS
            while not (self.go.is_set() or stop.is_set()):
                assert time.monotonic() < deadline
                stop.wait(0.01)


class FailingTraining(FakeTraining):
    """Raises in the first epoch of the trials that it is told of."""

    def __init__(self, errors: Callable[[int], Exception | None], **how: Any) -> None:
        super().__init__(**how)
        self.errors = errors

    def train_epoch(self, order: TrialOrder, epoch: int, stop: threading.Event) -> None:
        error = self.errors(order.number)
        if error is not None:
            raise error


@pytest.fixture
def study(new_config: Callable[..., RunConfig]) -> Iterator[SweepStudy]:
    space = read_space(["learning_rate=log:1e-4:1e-1"], None, new_config())
    settings = StudySettings("study", "abc", space, "max", sampler="random", trials=99)
    with open_study(None, settings) as opened:
        yield opened


@pytest.fixture
def new_trials(study: SweepStudy, new_config: Callable[..., RunConfig]) -> NewTrials:
    def build(train: Any, *, slots: int = 1, config: RunConfig | None = None, **limits: Any) -> Trials:
        base = config or new_config()
        space = read_space(["learning_rate=log:1e-4:1e-1"], None, base)
        return Trials(
            study,
            space,
            base,
            train,
            lambda: slots,
            SweepLimits(**{"trials": 3, **limits}),
            say=lambda number, text: None,
            on_end=lambda record: None,
        )

    return build


def states(study: SweepStudy) -> list[str]:
    return [record.state for record in study.records()]


def test_every_trial_is_trained_with_its_own_values_and_kept_with_its_value(
    study: SweepStudy, new_trials: NewTrials
) -> None:
    training = FakeTraining(value=lambda number, epoch: 0.5 + number / 10 + epoch / 100)
    new_trials(training).run()
    assert states(study) == ["complete"] * 3
    assert [record.best for record in study.records()] == pytest.approx([0.52, 0.62, 0.72])
    tried = {order.number: order.config.learning_rate for order in training.orders}
    assert tried == {record.number: record.values["learning_rate"] for record in study.records()}
    best = study.best()
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
    assert len(training.orders) == 6
    assert max(training.side_by_side) == most


def test_a_trial_that_is_worse_than_the_others_is_asked_to_stop_and_pruned(
    study: SweepStudy, new_trials: NewTrials
) -> None:
    # The median of the first five decides, as it is Optuna's default.
    training = FakeTraining(epochs=3, value=lambda number, epoch: 0.2 if number == 5 else 0.6 + number / 100)
    new_trials(training, trials=6).run()
    assert states(study) == ["complete"] * 5 + ["pruned"]
    assert training.stopped == {5: PRUNED}
    assert study.record(5).best == 0.2
    assert study.record(5).epochs == 1


def test_only_the_chiefs_epochs_count(study: SweepStudy, new_trials: NewTrials) -> None:
    def train(order: TrialOrder, control: TrialControl) -> None:
        control.on_event({"event": "progress", "rank": 0, "epoch": 1})
        control.on_event(epoch_end(1, 0.9, rank=1))
        control.on_event(epoch_end(1, 0.5))
        control.on_event({**epoch_end(2, 0.5), "logs": {"loss": 0.1}})

    new_trials(train, trials=1).run()
    assert study.record(0).history == {1: 0.5}


def test_a_failed_trial_does_not_end_the_sweep(study: SweepStudy, new_trials: NewTrials) -> None:
    trials = new_trials(FailingTraining(lambda number: failed() if number == 1 else None))
    trials.run()
    assert states(study) == ["complete", "failed", "complete"]
    assert study.record(1).error == "training failed: rank 0: ValueError: no such layer"


def test_too_many_failures_in_a_row_end_the_sweep(study: SweepStudy, new_trials: NewTrials) -> None:
    trials = new_trials(FailingTraining(lambda number: failed() if number > 1 else None), trials=20, failures=3)
    with pytest.raises(
        SweepFailedError, match=r"3 trials failed one after the other, the last with: training failed.*"
    ):
        trials.run()
    assert states(study) == ["complete", "complete", "failed", "failed", "failed"]


def test_a_sweep_without_a_trained_trial_has_failed(new_trials: NewTrials) -> None:
    trials = new_trials(FailingTraining(lambda number: failed(message="it is too deep")))
    with pytest.raises(SweepFailedError, match=r"no trial was trained to its end; the last error: .*it is too deep"):
        trials.run()


def test_what_keeps_every_trial_from_training_ends_the_sweep_and_leaves_the_trial(
    study: SweepStudy, new_trials: NewTrials
) -> None:
    error = NotEnoughSlotsError("the cluster has 0 slots")
    with pytest.raises(NotEnoughSlotsError):
        new_trials(FailingTraining(lambda number: error if number == 1 else None)).run()
    assert states(study) == ["complete", "running"]


def test_values_that_contradict_each_other_fail_without_a_training(
    study: SweepStudy, new_trials: NewTrials, new_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = FakeTraining()
    trials = new_trials(training)
    built = trials.space.configure

    def configure(base: RunConfig, values: Any) -> RunConfig:
        if len(study.records()) == 2:
            raise ValueError("a batch of 10 does not divide among 3 workers")
        return built(base, values)

    monkeypatch.setattr(type(trials.space), "configure", lambda self, base, values: configure(base, values))
    trials.run()
    assert states(study) == ["complete", "failed", "complete"]
    assert study.record(1).error == "a batch of 10 does not divide among 3 workers"
    assert len(training.orders) == 2


def test_a_stop_lets_running_trials_save_and_the_next_command_goes_on_with_them(
    study: SweepStudy, new_trials: NewTrials
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
    assert sorted(order.number for order in again.orders) == [0, 1, 2, 3]
    assert states(study) == ["complete"] * 4
    # Epoch 1 was told before the stop.
    assert study.record(0).history[1] == 0.6


class MortalSession:
    """A session that says how many slots it has until it is gone."""

    def __init__(self, slots: int) -> None:
        self.count = slots
        self.asked: threading.Semaphore = threading.Semaphore(0)
        self.is_gone = threading.Event()

    def slots(self) -> int:
        self.asked.release()
        if self.is_gone.is_set():
            raise ConnectionRefusedError(111, "Connection refused")
        return self.count


def test_trials_of_a_session_that_is_gone_stop_and_the_next_command_goes_on_with_them(
    study: SweepStudy, new_trials: NewTrials
) -> None:
    """T2: nothing is wrong with the trials."""
    training, session = BlockedTraining(), MortalSession(slots=2)
    trials = new_trials(training, trials=4)
    trials.slots = session.slots
    errors: list[Exception] = []

    def run() -> None:
        try:
            trials.run()
        except Exception as error:
            errors.append(error)

    runner = threading.Thread(target=run)
    runner.start()
    for _ in range(2):
        assert training.arrived.acquire(timeout=WAIT_SECONDS)
    session.is_gone.set()
    runner.join(WAIT_SECONDS)
    assert not runner.is_alive()
    assert [type(error) for error in errors] == [SessionLostError]
    assert str(errors[0]) == (
        "the Spark session does not say how many slots it has (ConnectionRefusedError: [Errno 111] Connection "
        "refused); start a new one: the same command goes on"
    )
    assert isinstance(errors[0].__cause__, ConnectionRefusedError)
    assert states(study) == ["running", "running"]


@pytest.mark.parametrize(
    "error", [failed("spark", "gone", "SessionLost"), AttributeError("'NoneType' object has no attribute 'sc'")]
)
def test_a_trial_that_falls_over_with_its_session_goes_on_later(
    study: SweepStudy, new_trials: NewTrials, error: Exception
) -> None:
    """T2: before its ranks are launched a trial meets whatever py4j raises."""
    session = MortalSession(slots=1)

    def train(order: TrialOrder, control: TrialControl) -> None:
        # To choose the trial, to start it, and whether to wait for it: from now on the sweep waits.
        for _ in range(3):
            assert session.asked.acquire(timeout=WAIT_SECONDS)
        session.is_gone.set()
        raise error

    trials = new_trials(train)
    trials.slots = session.slots
    with pytest.raises(SessionLostError):
        trials.run()
    assert states(study) == ["running"]


def test_a_session_that_ends_beside_a_stopped_sweep_is_no_fault(study: SweepStudy, new_trials: NewTrials) -> None:
    """T2: a SIGTERM may reach the JVM, too."""
    session = MortalSession(slots=1)

    def train(order: TrialOrder, control: TrialControl) -> None:
        trials.request_stop("SIGTERM")
        session.is_gone.set()
        raise TrainingStoppedError((), 10, "SIGTERM")

    trials = new_trials(train)
    trials.slots = session.slots
    trials.run()
    assert trials.stop_reason == "SIGTERM"
    assert states(study) == ["running"]


def test_a_stop_at_once_reaches_a_trial_that_is_about_to_begin(study: SweepStudy, new_trials: NewTrials) -> None:
    stops: list[tuple[str, str]] = []

    def train(order: TrialOrder, control: TrialControl) -> None:
        control.connect(lambda why: stops.append(("save", why)), lambda why: stops.append(("at once", why)))
        raise TrainingStoppedError((), 0, "as asked")

    trials = new_trials(train)
    readings = itertools.count(1)

    def clock() -> float:
        reading = next(readings)
        # After those of the sweep and of its two decisions, the trial's own: no signal handler can find it yet.
        if reading == 4:
            trials.stop_now()
        return float(reading)

    trials.clock = clock
    trials.run()
    assert stops == [("at once", "stopped at once")]


def test_after_the_timeout_no_trial_starts(study: SweepStudy, new_trials: NewTrials) -> None:
    now = [0.0]
    training = FakeTraining()
    trials = new_trials(training, trials=9, timeout_seconds=60.0)
    trials.clock = lambda: now[0]
    trials.on_end = lambda record: now.__setitem__(0, now[0] + 40.0)
    trials.run()
    assert len(training.orders) == 2


def test_trials_of_earlier_commands_count(study: SweepStudy, new_trials: NewTrials) -> None:
    new_trials(FakeTraining(), trials=2).run()
    training = FakeTraining()
    new_trials(training, trials=3).run()
    assert [order.number for order in training.orders] == [2]
    nothing_left = FakeTraining()
    new_trials(nothing_left, trials=3).run()
    assert nothing_left.orders == []


def test_a_trial_may_count_on_the_slots_that_the_others_leave(new_trials: NewTrials) -> None:
    seen: list[int] = []

    def train(order: TrialOrder, control: TrialControl) -> None:
        seen.append(control.slots())
        control.on_event(epoch_end(1, 0.5))

    new_trials(train, slots=3, trials=1).run()
    assert seen == [3]


def test_records_of_ended_trials_reach_the_listener(new_trials: NewTrials) -> None:
    heard: list[TrialRecord] = []
    trials = new_trials(FakeTraining(), trials=2)
    trials.on_end = heard.append
    trials.run()
    assert [record.number for record in heard] == [0, 1]
    assert all(record.seconds >= 0 for record in heard)
