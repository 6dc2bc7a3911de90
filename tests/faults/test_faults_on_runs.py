"""T2 to T9: hangs, lost slots, other numbers of workers, stores that are away or far, and notices, on real ranks."""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.callbacks.checkpoints.fetching import copies_folder
from mirrorspark.data_pipelines.conversion import ConversionOptions, convert
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.storage.host_cache import HostCache
from mirrorspark.storage.paths import StoragePath
from mirrorspark.testing import faults
from mirrorspark.testing.faults import Fault, Run, Trigger
from mirrorspark.training.configuration.config import TrainingConfig
from mirrorspark.training.driver import failure_policy, supervisor
from mirrorspark.training.driver.errors import TrainingFailedError
from mirrorspark.training.executor.worker_failure import MORE_MEMORY
from mirrorspark.training.job.prepared_run import PreparedRun
from mirrorspark.training.job.training_job import open_job
from mirrorspark.training.protocol.messages.events import Event
from mirrorspark.training.protocol.outcomes.cause import Attempt
from mirrorspark.training.protocol.outcomes.timing import ALIVE_SECONDS, TICK_SECONDS
from mirrorspark.training.run_records.live import drawing
from mirrorspark.training.run_records.live.picture import Picture
from mirrorspark.training.run_records.live.screen import Screen
from mirrorspark.training.run_records.live.view import LiveView
from mirrorspark.training.run_records.tracking import Tracking
from tests.cluster.conftest import Events, kill_within_an_epoch, wait_until
from tests.conftest import PATIENCE

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.timeout(240)

BATCH = 128
STEPS = 48
EPOCHS = 5
# Validation is one step: it should not be what these trainings spend their time with.
TRAIN_ROWS = STEPS * BATCH
ROWS = TRAIN_ROWS + 2 * BATCH

SPEC = FeatureSpec.from_dict(
    {
        "features": {"town": {"kind": "categorical"}, "distance": {"kind": "numeric"}},
        "label": "late",
        "keys": "ride",
    }
)
# Late is who comes from far away, or from an odd town, and now and then somebody else.
TABLE = f"""
    SELECT id AS ride, concat('town ', town) AS town, distance, split,
           CAST(distance + town % 2 + pmod(hash(id, 3), 1000) / 1000 > 1.5 AS INT) AS late
    FROM (
        SELECT id, pmod(hash(id, 1), 9) AS town, pmod(hash(id, 2), 1000) / 1000.0D AS distance,
               CASE WHEN id < {TRAIN_ROWS} THEN 'train' WHEN id % 2 = 0 THEN 'validation' ELSE 'test' END AS split
        FROM range({ROWS})
    )
"""  # noqa: S608 - of numbers

Values = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Trained:
    """Result of a training."""

    folder: Path
    best: commit.CommittedCheckpoint
    attempts: tuple[Attempt, ...]
    events: Events
    lines: list[str]

    @property
    def checkpoints(self) -> Path | StoragePath:
        """The store of its checkpoints, where that is a folder of this machine."""
        return self.best.path.parent

    def logs(self) -> dict[int, dict[str, float]]:
        """Return the metrics of every epoch; of one that was repeated, those of the last time."""
        return {event["epoch"]: event["logs"] for event in self.of("epoch_end") if event["rank"] == 0}

    def of(self, kind: str) -> Events:
        """Return the events of that kind."""
        return [event for event in self.events if event["event"] == kind]

    def values(self) -> Values:
        """Return the values of the newest checkpoint."""
        newest = commit.latest_committed(self.checkpoints)
        assert newest is not None
        return values_of(newest)


def values_of(checkpoint: commit.CommittedCheckpoint) -> Values:
    """Return weights, optimizer slots and counters."""
    reader = tf.train.load_checkpoint(checkpoint.prefix)
    read = {name: np.asarray(reader.get_tensor(name)) for name in reader.get_variable_to_shape_map()}
    return {name: value for name, value in read.items() if value.dtype.kind in "fiu"}


@dataclass(frozen=True)
class Place:
    """Session, dataset and output folder of the trainings of this file."""

    spark: "SparkSession"
    dataset: Dataset
    output: Path

    def train(
        self,
        name: str,
        *,
        screen: Screen | None = None,
        slots: Callable[[], int] | None = None,
        listener: Callable[[Event], None] | None = None,
        **knobs: Any,
    ) -> Trained:
        """Train under supervision, without what comes afterwards (export, scores)."""
        usual: dict[str, Any] = {
            "workers": 2,
            "epochs": EPOCHS,
            "patience": 0,
            "global_batch_size": BATCH,
            "learning_rate": 0.01,
            "steps_per_execution": 1,
            "checkpoint_every_steps": 10,
            "model": {"name": "multi_field", "embedding_dim": 4, "hidden_units": [16]},
        }
        config = TrainingConfig(**usual | knobs, name=name, output=str(self.output))
        lines: list[str] = []
        view = LiveView(epochs=config.epochs, is_interactive=screen is not None, screen=screen, write=lines.append)
        prepared = PreparedRun(config, self.dataset, self.spark, Tracking.find(config))
        with open_job(prepared, view, slots=slots, listener=listener) as job:
            attempts = job.train()
            best = commit.read_committed(job.fetch_best(job.folder.path / "fetched").path)
        return Trained(job.folder.path, best, attempts, list(job.folder.past_events()), lines)


@pytest.fixture(scope="module")
def place(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> Place:
    output = tmp_path_factory.mktemp("faults")
    # T2: fewer files than workers, who all read the same one.
    dataset = convert(spark.sql(TABLE), SPEC, output / "rides", options=ConversionOptions(shards=1))
    return Place(spark, dataset, output)


@pytest.fixture(scope="module")
def unbroken(place: Place, request: pytest.FixtureRequest) -> Trained:
    """Two workers that nobody disturbs; the usual tests compare no more than three epochs."""
    return place.train("unbroken", epochs=EPOCHS if request.config.getoption("full") else 3)


@pytest.mark.full
def test_a_profile_of_every_rank_is_left_in_the_runs_folder(place: Place) -> None:
    """T7: ``--profile`` is what TensorBoard's profiler reads, a folder for each rank."""
    folder = place.train("profiled", epochs=2, profile=True).folder
    captured = {path.relative_to(folder) for path in folder.rglob("*.xplane.pb")}
    assert {path.parts[:2] for path in captured} == {("profile", "rank-0"), ("profile", "rank-1")}
    assert all(path.parts[2:4] == ("plugins", "profile") for path in captured)
    assert all((folder / path).stat().st_size > 1000 for path in captured)


@pytest.mark.full
def test_slow_steps_are_not_taken_for_a_hang_however_many_an_execution_may_have(place: Place) -> None:
    """T6: an epoch is one execution here, and takes three times as a step may; nobody else moves for it."""
    told: Events = []
    with faults.injected(place.spark, Fault("slow_input", seconds=0.25)):
        slow = place.train(
            "slow", workers=1, epochs=2, steps_per_execution=STEPS, step_limit_seconds=4, listener=told.append
        )

    assert len(slow.attempts) == 1
    assert slow.of("hung") == []
    seen = [event["step_in_epoch"] for event in told if event["event"] == "progress" and event["epoch"] == 2]
    assert len(seen) >= 4


class OtherJob:
    """A Spark job of another user that takes up a slot from the moment one is free until it is ended."""

    def __init__(self, spark: "SparkSession", folder: Path) -> None:
        self._context = spark.sparkContext
        self._end = folder / "end-of-the-other-job"
        self._thread = threading.Thread(target=self._run, name="other job", daemon=True)

    def submit(self) -> None:
        """Return once Spark has it, whether or not there is a slot for it."""
        tracker = self._context.statusTracker()
        before = set(tracker.getActiveStageIds())
        self._thread.start()
        wait_until(lambda: bool(set(tracker.getActiveStageIds()) - before), 30, "the start of the other job")

    def end(self) -> None:
        self._end.touch()

    def _run(self) -> None:
        end = str(self._end)

        def work(_: int) -> None:
            import time
            from pathlib import Path

            limit = time.monotonic() + 480
            while not Path(end).exists() and time.monotonic() < limit:
                time.sleep(0.02)

        self._context.parallelize([0], 1).foreach(work)


@pytest.fixture
def other_job(place: Place, tmp_path: Path) -> Iterator[OtherJob]:
    job = OtherJob(place.spark, tmp_path)
    yield job
    job.end()
    if job._thread.is_alive():
        job._thread.join(30)


@pytest.fixture
def quick_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for more workers again and again, not every half minute and later every five; these trainings are short."""
    monkeypatch.setattr(failure_policy, "_GROWTH_SECONDS", 0.2)
    monkeypatch.setattr(failure_policy, "_GROWTH_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(supervisor.timing, "TICK_SECONDS", 0.1)


@pytest.mark.full
@pytest.mark.usefixtures("quick_growth")
def test_a_training_that_loses_a_rank_and_its_slot_goes_on_alone_grows_back_and_ends_as_one_that_did_not(
    place: Place, unbroken: Trained, other_job: OtherJob
) -> None:
    """T6: two workers, then one within an epoch, then two again within one: the same global batches all along."""

    @contextlib.contextmanager
    def take_its_slot_and_kill(run: Run) -> Iterator[int]:
        other_job.submit()  # it gets the slot as the rank's task is over
        with kill_within_an_epoch(1, until=STEPS / 2)(run) as process:
            yield process

    def free_the_slot_later(event: Event) -> None:
        if event["event"] == "attempt" and event["workers"] == 1:
            other_job.end()

    with faults.inject_when(place.output, Trigger(epoch=1), take_its_slot_and_kill):
        broken = place.train("elastic", workers="1:2", start_limit_seconds=PATIENCE * 8, listener=free_the_slot_later)

    lost, unheard, alone, together = broken.attempts
    assert [attempt.workers for attempt in broken.attempts] == [2, 2, 1, 2]
    assert (lost.first_error.cause, unheard.first_error.cause, alone.stop) == ("lost", "start", "grow")
    assert alone.resumed_from == lost.committed
    assert alone.resumed_from % STEPS != 0
    assert together.resumed_from == alone.committed > alone.resumed_from
    assert [event["workers"] for event in broken.of("attempt")] == [2, 2, 1, 2]
    assert {event["global_batch_size"] for event in broken.of("train_begin")} == {BATCH}
    assert [line.strip() for line in broken.lines if "before" in line] == [
        "attempt 3: 1 worker, 2 before",
        "attempt 4: 2 workers, 1 before",
    ]
    _assert_same_training(broken, unbroken)


@pytest.mark.full
def test_a_rank_that_gets_no_memory_is_named_with_the_remedy_and_the_training_goes_on_and_ends_equal(
    place: Place, unbroken: Trained
) -> None:
    with faults.injected(place.spark, Fault("no_memory", rank=1, step=STEPS + 20)):
        broken = place.train("no-memory")
    lost, finished = broken.attempts
    assert (lost.first_error.cause, lost.first_error.rank) == ("machine", 1)
    assert lost.first_error.message == f"killed by signal SIGABRT when it got no more memory; {MORE_MEMORY}"
    assert finished.resumed_from == lost.committed > 0
    _assert_same_training(broken, unbroken)


@pytest.mark.full
def test_a_rank_that_gets_too_little_memory_from_the_start_ends_the_training_at_once(place: Place) -> None:
    with (
        faults.injected(place.spark, Fault("no_memory", rank=0, step=5, attempt=None)),
        pytest.raises(TrainingFailedError) as failed,
    ):
        place.train("never-memory", epochs=1, max_restarts=1)
    assert len(failed.value.attempts) == 1
    assert f"{MORE_MEMORY}; the same workers on the same machine would run out of memory again" in str(failed.value)


@pytest.mark.full
def test_bfloat16_clipping_a_warm_up_a_cosine_and_gathered_gradients_go_together(place: Place) -> None:
    """T9: one run with all of them finishes and learns, and its weights stay float32."""
    trained = place.train(
        "all-at-once",
        epochs=3,
        precision="mixed_bfloat16",
        clip_norm=1.0,
        learning_rate=0.03,
        learning_rate_schedule="cosine",
        warmup_steps=STEPS // 2,
        accumulate=2,
    )
    (attempt,) = trained.attempts
    assert (attempt.finished, attempt.epochs) == (True, 3)
    logs = trained.logs()
    assert logs[3]["loss"] < 0.8 * logs[1]["loss"]
    assert logs[3]["val_auc"] > 0.9
    assert {value.dtype for value in trained.values().values() if value.dtype.kind == "f"} == {np.dtype(np.float32)}


@pytest.fixture
def own_copies() -> Iterator[None]:
    """Remove the copies of checkpoints that ranks have fetched meanwhile."""
    cache = HostCache(copies_folder())
    before = {entry.key for entry in cache.entries()}
    yield
    for entry in cache.entries():
        if entry.key not in before:
            cache.evict(entry)


@pytest.mark.full
@pytest.mark.usefixtures("own_copies")
def test_local_updates_that_lose_a_rank_go_on_from_an_object_store_and_end_equal(
    place: Place, s3_bucket: str, tmp_path: Path
) -> None:
    """T5, T6: the ranks fetch the checkpoint that they go on from; the best one is there for the export."""
    bucket, _, options = s3_bucket.partition("?")
    store = StoragePath.of(f"s3://{bucket}/{tmp_path.name}?{options}")
    unbroken = place.train("local", epochs=4, local_steps=4, outer_momentum=0.5)
    # To publish takes longer than an epoch: later ones may have no checkpoint within.
    kill = kill_within_an_epoch(1, epoch=0, where=lambda run: store / run.folder.name)
    with faults.inject_when(place.output, Trigger(phase="training"), kill):
        broken = place.train("local-far", epochs=4, local_steps=4, outer_momentum=0.5, checkpoints=str(store))

    lost, finished = broken.attempts
    assert lost.first_error.cause == "lost"
    assert finished.resumed_from == lost.committed > 0
    newest = commit.latest_committed(store / broken.folder.name)
    assert newest is not None
    assert newest.step == 4 * STEPS
    assert broken.logs() == unbroken.logs()
    assert broken.best.damage() is None
    assert broken.best.step == unbroken.best.step
    ours, theirs = values_of(broken.best), values_of(unbroken.best)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        np.testing.assert_array_equal(ours[name], expected, err_msg=name)


def _assert_same_epochs(broken: Trained, unbroken: Trained, epochs: int) -> None:
    """Compare the logs of two trainings, whose sums were made in another order, in their first epochs."""
    ours, theirs = broken.logs(), unbroken.logs()
    assert list(ours) == list(range(1, epochs + 1))
    for epoch in ours:
        for name, value in theirs[epoch].items():
            assert ours[epoch][name] == pytest.approx(value, abs=1e-3), (epoch, name)
        # The mean over all batches of the epoch: a batch that is left out or seen twice shows.
        assert ours[epoch]["loss"] == pytest.approx(theirs[epoch]["loss"], abs=1e-5), epoch


def _assert_same_training(broken: Trained, unbroken: Trained) -> None:
    """Compare two trainings whose sums were made in another order, by another number of workers."""
    _assert_same_epochs(broken, unbroken, EPOCHS)
    ours, theirs = broken.values(), unbroken.values()
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, atol=1e-3, err_msg=name)


@pytest.mark.full
@pytest.mark.usefixtures("quick_growth")
def test_a_batch_that_is_kept_per_worker_grows_with_the_workers_and_the_learning_rate_with_it(place: Place) -> None:
    """T6: ``--batch-rule keep_batch_per_worker``, reported by the events and used by the ranks."""
    slots = [1]

    def come(event: Event) -> None:
        if event["event"] == "epoch_end":
            slots[0] = 2

    grown = place.train(
        "per-worker", workers="1:2", batch_rule="keep_batch_per_worker", slots=lambda: slots[0], listener=come
    )
    alone, together = grown.attempts
    assert (alone.workers, alone.stop, together.workers, together.finished) == (1, "grow", 2, True)
    assert [event["learning_rate_scale"] for event in grown.of("attempt")] == [0.5, 1.0]
    said = [line.strip() for line in grown.lines if "attempt " in line and "ended" not in line]
    assert said == ["attempt 1: 1 worker; learning rate x 0.5", "attempt 2: 2 workers, 1 before"]
    begun = [event for event in grown.of("train_begin") if event["rank"] == 0]
    assert [event["global_batch_size"] for event in begun] == [BATCH // 2, BATCH]
    # Until then it trained as one that was configured with half the batch and half the rate.
    half = place.train("half", workers=1, epochs=1, global_batch_size=BATCH // 2, learning_rate=0.005)
    assert half.logs()[1] == grown.logs()[1]


# How a wait names a store that is not there.
GONE = "No such file or directory"


@dataclass
class Outage:
    """The newest checkpoint before and after its store was away.

    Attributes:
        newest: The newest one when the store vanished.
        damage: Its damage right after the store had come back, if any.
    """

    newest: commit.CommittedCheckpoint | None = None
    damage: str | None = "not looked at"


class RecordedScreen:
    """Keeps what a terminal of 120 columns would show."""

    def __init__(self) -> None:
        self.console = Console(width=120, color_system=None)
        self.shown: list[str] = []

    shows_history = False

    def show(self, picture: Picture) -> None:
        with self.console.capture() as drawn:
            self.console.print(drawing.block(picture) or "")
        self.shown += drawn.get().splitlines()

    def write(self, line: str) -> None:
        """Lines go elsewhere."""

    def input_shares(self, rank: int) -> list[int]:
        """Return the rank's input utilisation, in percent, from each of its lines that has it."""
        found = (re.match(rf"  rank {rank} .* (\d+)%  ", line) for line in self.shown)
        return [int(match[1]) for match in found if match]


@dataclass(frozen=True)
class Ordeal:
    """A training with a slow input, whose store was away twice, and whose rank 1 got a notice of preemption."""

    trained: Trained
    outage: Outage
    screen: RecordedScreen
    heard: Events


@pytest.fixture(scope="module")
def ordeal(place: Place) -> Ordeal:
    outage = Outage()
    screen = RecordedScreen()
    stores = place.output / "stores"
    # All that the driver hears: of signs of life the file has a sample.
    heard: Events = []

    @contextlib.contextmanager
    def vanish(run: Run) -> Iterator[None]:
        store = stores / run.folder.name
        wait_until(lambda: commit.latest_committed(store, verify=False) is not None, 30, "the first checkpoint")
        outage.newest = commit.latest_committed(store)
        with faults.vanished(store):
            yield
            # However slow the machine: a checkpoint has met the outage.
            wait_until(lambda: any(GONE in event.get("message", "") for event in heard), 30, "a checkpoint that waits")
        assert outage.newest is not None
        outage.damage = outage.newest.damage()

    # One environment for all: Spark starts new Python workers for every other one. An epoch takes five seconds.
    slow = Fault("slow_input", rank=1, seconds=5 / STEPS, attempt=None)
    full = Fault("full_disk", rank=0, step=9, seconds=4.0, path=str(stores))
    with (
        faults.injected(place.spark, slow, full),
        faults.inject_when(place.output, Trigger(phase="training", seconds=2), vanish, for_seconds=1.5),
        faults.preempt(place.output, 1, Trigger(epoch=1, seconds=2)),
    ):
        trained = place.train("ordeal", epochs=3, checkpoints=str(stores), screen=screen, listener=heard.append)
    return Ordeal(trained, outage, screen, heard)


def test_a_store_that_is_full_and_one_that_vanishes_are_waited_for_and_nothing_good_is_deleted(
    ordeal: Ordeal, unbroken: Trained
) -> None:
    """T6: the training goes on meanwhile, in the same attempt, and no checkpoint is missing afterwards."""
    trained = ordeal.trained
    waits = [event["message"] for event in trained.of("log") if "waits" in event["message"]]
    assert any("No space left on device" in message for message in waits)
    assert any(GONE in message for message in waits)
    assert "store" not in {error.cause for attempt in trained.attempts for error in attempt.errors}
    assert ordeal.outage.newest is not None
    assert ordeal.outage.damage is None
    kept = commit.committed(trained.checkpoints)
    assert kept[0].step == 3 * STEPS
    assert 2 <= len(kept) <= 3  # the newest two, and the best, which may be one of them
    assert all(commit.is_whole(checkpoint) for checkpoint in kept)
    assert not list(StoragePath.of(trained.checkpoints).local.glob(".staging-*"))


def test_a_rank_whose_machine_is_taken_away_saves_first_and_nothing_is_done_twice(
    ordeal: Ordeal, unbroken: Trained
) -> None:
    """T6: a notice within an epoch costs a restart from that very step; every metric is that of an unbroken run."""
    noticed, finished = ordeal.trained.attempts
    assert noticed.first_error.cause == "preempted"
    assert finished.resumed_from == noticed.committed == noticed.first_error.step
    assert STEPS < finished.resumed_from < 2 * STEPS
    told = [event["decision"] for event in ordeal.trained.of("restart")]
    assert told == [f"restart 1 of 100 (max_preemptions) from step {finished.resumed_from:,} with 2 workers"]
    # Bit for bit, though the input was slow and the store away; of an epoch, its mean loss over all batches as well.
    assert ordeal.trained.logs() == {epoch: unbroken.logs()[epoch] for epoch in (1, 2, 3)}


def test_an_input_that_is_slow_is_seen_in_the_line_of_its_rank_and_in_the_events(ordeal: Ordeal) -> None:
    """T7: how much of the time a rank's input is busy; the other rank only waits for that one."""
    assert max(ordeal.screen.input_shares(1)) > 90
    assert max(ordeal.screen.input_shares(0)) < 50
    alive = [event for event in ordeal.heard if event["event"] == "alive" and event["phase"] == "training"]
    assert max(event["input_share"] for event in alive if event["rank"] == 1) > 0.9
    assert max(event["input_share"] for event in alive if event["rank"] == 0) < 0.5


STEP_LIMIT_SECONDS = 6.0
# Beyond the limit: a rank's last word, two looks of the watchdog, five seconds for the stacks of a process that gives
# none, and five for a machine that runs other tests in parallel.
SLACK_SECONDS = ALIVE_SECONDS + 2 * TICK_SECONDS + 5.0 + 5.0


# Each with what is said of it, and the function in which its rank is found.
HANGS = (
    (Fault("hang", rank=1, step=STEPS + 1), "", ("injected.py", "_inject")),
    (Fault("hang_input", rank=0, step=STEPS + 2, attempt=2), "waiting for input", ("injected.py", "_wait")),
    (Fault("freeze", rank=1, step=3 * STEPS + 1, attempt=3), "", ("injected.py", "_inject")),
    (Fault("stop", rank=1, step=4 * STEPS + 1, attempt=4), "is stopped", None),
)


@pytest.mark.parametrize("kinds", [1, pytest.param(len(HANGS), marks=pytest.mark.full)])
def test_ranks_that_stand_still_are_named_within_the_limit_with_all_stacks_and_the_training_ends_equal(
    place: Place, unbroken: Trained, kinds: int
) -> None:
    """T6: a hang in Python, one in the input, a process that is frozen and one that is stopped."""
    expected = HANGS[:kinds]
    with faults.injected(place.spark, *(fault for fault, *_ in expected)):
        trained = place.train(f"hangs-{kinds}", epochs=kinds + 1, step_limit_seconds=STEP_LIMIT_SECONDS)

    assert [attempt.resumed_from for attempt in trained.attempts] == [step * STEPS for step in range(kinds + 1)]
    for event, (fault, why, within) in zip(trained.of("hung"), expected, strict=True):
        assert event["ranks"] == [fault.rank]
        assert why in event["why"]
        seconds = event["time"] - _struck(trained, event["attempt"])
        assert STEP_LIMIT_SECONDS - ALIVE_SECONDS <= seconds <= STEP_LIMIT_SECONDS + SLACK_SECONDS, event["why"]
        hanging, waiting = (event["stacks"][str(rank)] for rank in (fault.rank, 1 - fault.rank))
        assert _is_within(*within, hanging) if within else hanging == ""
        assert _is_within("ring.py", r"\w+", waiting)
    assert trained.logs() == {epoch: unbroken.logs()[epoch] for epoch in range(1, kinds + 2)}


def _struck(trained: Trained, attempt: int) -> float:
    """Return when the fault of an attempt struck: as it said, or where it could not, at the end of the epoch before."""
    events = [event for event in trained.events if event.get("attempt") == attempt]
    said = [event["time"] for event in events if event["event"] == "log" and "injecting fault" in event["message"]]
    ends = [event["time"] for event in events if event["event"] == "epoch_end"]
    return float(said[0] if said else ends[-1])


def _is_within(file: str, function: str, stacks: str) -> bool:
    """Return true if a thread is within a function."""
    return re.search(rf'/{re.escape(file)}", line \d+ in {function}$', stacks, re.MULTILINE) is not None
