"""Does an MLflow server that is killed for 60 s in the middle of a run cost metrics, or time?

A run that tells a server of its own, and the same one whose server is killed (SIGKILL) after a quarter of its epochs
and started again 60 s later, on the same port and store. What the run told is known from its events: heard again by a
store that is always there, they make every point that the server ought to have. The ranks do the same on both sides,
and runs differ by more than is looked for, so that the CPU time of the driver, which tells the server, is shown, too.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Mark
from benchmarks.report import Report, Table, rate
from benchmarks.tracking_server import TrackingServer
from benchmarks.train_work import (
    WORKERS,
    Event,
    config_of,
    epoch_times,
    in_new_process,
    numbers_dataset,
    supervised,
    unwatched,
    usual_session,
)
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.training.fault_injection import faults

if TYPE_CHECKING:
    from mirrorspark.training.config import TrainingConfig

UP, OUTAGE = "server there all the time", "server killed for 60 s"
OUTAGE_SECONDS = 60.0
# Six runs of it, with what they take to start and end, stay below twelve minutes.
RUN_SECONDS = 100.0
SLOWDOWN_MARK = 2.0

_CALIBRATION_EPOCHS = 6
_NEVER = (0.0, 0.0)

# A metric's name, its step, its value.
Point = tuple[str, int, float]


@dataclass(frozen=True)
class Outage:
    """When the server went and came, in seconds since the epoch."""

    killed: float
    started: float
    answering: float


@dataclass(frozen=True)
class Outcome:
    """How a run went.

    Attributes:
        ends: When each of its epochs ended, in seconds since the epoch.
        told: What it told.
        stored: What the server has in the end.
        outage: None where there was none.
        driver_cpu: CPU seconds that the driver's process had taken when each epoch ended.
    """

    ends: tuple[float, ...]
    told: frozenset[Point]
    stored: frozenset[Point]
    outage: Outage | None = None
    driver_cpu: tuple[float, ...] = ()

    @property
    def epochs_of_outage(self) -> tuple[int, ...]:
        """The epochs of which at least a part passed without the server; its start does not count to that."""
        gone, back = (self.outage.killed, self.outage.started) if self.outage else _NEVER
        return tuple(epoch for epoch, (begin, end) in enumerate(pairwise(self.ends), 2) if begin < back and end > gone)

    def median_rate(self, rows: int, epochs: Sequence[int] = ()) -> float:
        """Return the rows per second of whole epochs, validation and checkpoint included, in the median.

        Args:
            rows: Training rows of an epoch.
            epochs: Of these; by default of all but the first, which has the start in it.
        """
        seconds = {epoch: end - begin for epoch, (begin, end) in enumerate(pairwise(self.ends), 2)}
        return rows / median(seconds[epoch] for epoch in epochs or seconds)

    def driver_share(self, epochs: Sequence[int]) -> float:
        """Return what the driver's process took of a core while neighbouring epochs passed, in percent."""
        before, last = epochs[0] - 2, epochs[-1] - 1
        return 100 * (self.driver_cpu[last] - self.driver_cpu[before]) / (self.ends[last] - self.ends[before])


@dataclass(frozen=True)
class Round:
    """Both sides, one behind the other."""

    up: Outcome
    outage: Outcome

    def slowdowns(self, rows: int) -> tuple[float, float]:
        """Return by how many percent the run with the outage was slower: in all epochs, and in those of the outage.

        The latter are compared with the epochs of the same numbers.
        """
        epochs = self.outage.epochs_of_outage
        return (
            100 * (1 - self.outage.median_rate(rows) / self.up.median_rate(rows)),
            100 * (1 - self.outage.median_rate(rows, epochs) / self.up.median_rate(rows, epochs)),
        )

    @property
    def lacking(self) -> int:
        """Points over epochs that the server has of the run without an outage, and not of the one with it."""
        of_up, of_outage = ({(name, step) for name, step, _ in over_epochs(side.stored)} for side in self.sides)
        return len(of_up - of_outage)

    @property
    def sides(self) -> tuple[Outcome, Outcome]:
        """Both, in the order of the tables."""
        return self.up, self.outage


def run(options: Options) -> Report:
    """Train with and without an outage, in turns."""
    dataset = in_new_process(numbers_dataset, options, options.rows)
    rows = Dataset.open(dataset).manifest.rows("train")
    rounds = []
    with TrackingServer(options.scratch / "server") as server:
        new_config = partial(config_of, tracking_uri=server.uri)
        _, events, _ = in_new_process(
            _trained, dataset, new_config(options.scratch / "calibration", epochs=_CALIBRATION_EPOCHS)
        )
        epochs = epochs_of(epoch_times(events), RUN_SECONDS)
        for number in range(options.rounds):
            # None always runs behind the same neighbour.
            order = (UP, OUTAGE) if number % 2 == 0 else (OUTAGE, UP)
            found = {}
            for side in order:
                config = new_config(options.scratch / f"{number}-{'up' if side == UP else 'outage'}", epochs=epochs)
                found[side] = _measured(server, dataset, config, has_outage=side == OUTAGE)
            rounds.append(Round(found[UP], found[OUTAGE]))
    slowdowns = [each.slowdowns(rows) for each in rounds]
    missing = sum(len(each.outage.told - each.outage.stored) + each.lacking for each in rounds)
    marks = (
        Mark("metric points missing in MLflow after the outages", float(missing), 0.0, "at most"),
        Mark("slow-down, all epochs, %, median", median(of_all for of_all, _ in slowdowns), SLOWDOWN_MARK, "at most"),
        Mark("slow-down, epochs of the outage, %, median", median(of for _, of in slowdowns), SLOWDOWN_MARK, "at most"),
    )
    return Report(
        BENCHMARK.name,
        BENCHMARK.question,
        (speed_table(rounds, rows), points_table(rounds)),
        marks,
        conditions={"rounds": f"{options.rounds}, interleaved, after a short run that does not count"},
    )


def epochs_of(ends: Sequence[float], seconds: float) -> int:
    """Return how many epochs take about so many seconds, from when the epochs of a short run ended."""
    return max(_CALIBRATION_EPOCHS, round(seconds / median(end - begin for begin, end in pairwise(ends))))


def over_epochs(points: frozenset[Point]) -> frozenset[Point]:
    """Return the points whose number and steps do not depend on how fast a run is."""
    return frozenset(point for point in points if not _by_the_clock(point[0]))


def speed_table(rounds: Sequence[Round], rows: int) -> Table:
    """Return how fast both sides were, per round."""
    cells = []
    for number, both in enumerate(rounds, 1):
        epochs = both.outage.epochs_of_outage
        for name, side, slower in zip((UP, OUTAGE), both.sides, (None, both.slowdowns(rows)), strict=True):
            cells.append(
                (
                    f"{number}",
                    name,
                    rate(side.median_rate(rows)),
                    rate(side.median_rate(rows, epochs)),
                    f"{side.ends[-1] - side.ends[0]:.1f}",
                    f"{side.driver_share(epochs):.2f}",
                    *(("", "") if slower is None else (f"{percent:+.2f}" for percent in slower)),
                )
            )
    columns = (
        *("round", "side", "rows/s, all epochs", "rows/s, epochs of the outage", "2nd to last epoch, s"),
        *("driver's CPU in those, % of a core", "slow-down, all, %", "slow-down, outage, %"),
    )
    away = [each.outage.outage for each in rounds if each.outage.outage]
    epochs_told = ", ".join(
        f"{each.outage.epochs_of_outage[0]} to {each.outage.epochs_of_outage[-1]}" for each in rounds
    )
    note = (
        f"{WORKERS} workers. Rows/s: those of whole epochs, validation and checkpoint included, in the median. Epochs "
        f"of the outage: {epochs_told} of {len(rounds[0].up.ends)}, on both sides. The server was away for "
        f"{median(each.started - each.killed for each in away):.1f} s, and took "
        f"{median(each.answering - each.started for each in away):.1f} s more to start, on the same cores as the "
        f"training: that is in the time from the 2nd to the last epoch."
    )
    return Table(f"Speed, {rows:,} rows an epoch", columns, tuple(cells), note)


def points_table(rounds: Sequence[Round]) -> Table:
    """Return how many points each run told, and what the server has of them."""
    cells = tuple(
        (
            f"{number}",
            name,
            f"{len(side.told):,}",
            f"{len(over_epochs(side.told)):,}",
            f"{len(side.stored):,}",
            f"{len(side.told - side.stored):,}",
            f"{len(side.stored - side.told):,}",
            f"{both.lacking:,}" if side is both.outage else "",
        )
        for number, both in enumerate(rounds, 1)
        for name, side in zip((UP, OUTAGE), both.sides, strict=True)
    )
    columns = (
        *("round", "side", "told", "of these over epochs", "in MLflow"),
        *("told, not in MLflow", "in MLflow, not told", "lacking of the other side's epochs"),
    )
    note = (
        "A point is a metric's name, its step and its value. Points over steps and those of the workers' processes are "
        "samples, one in 5 s and one in 10 s: two runs have different ones, so that each is compared with what itself "
        "told. Those over epochs have to be the same on both sides, by name and step."
    )
    return Table("Metric points", columns, cells, note)


def _by_the_clock(name: str) -> bool:
    return name.startswith(("step/", "system/"))


def _measured(server: TrackingServer, dataset: Path, config: "TrainingConfig", *, has_outage: bool) -> Outcome:
    """Train in a new driver, with an outage or without, and see what the server has afterwards."""
    times: list[float] = []
    fault: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if has_outage:
        after = faults.Trigger(epoch=config.epochs // 4)
        fault = faults.inject_when(config.output, after, _away(server, times), for_seconds=OUTAGE_SECONDS)
    with fault:
        run_id, events, driver_cpu = in_new_process(_trained, dataset, config)
    outage = Outage(*times) if has_outage else None
    if len(ends := epoch_times(events)) != config.epochs:
        raise RuntimeError(f"the run told of {len(ends)} epochs, but {config.epochs} were ordered: {config.output}")
    with unwatched(Path(config.output)):
        told, stored = _told(config, events, server.uri, run_id), _stored(server.uri, run_id)
    if len(losses := [point for point in told if point[0] == "loss"]) != config.epochs:
        raise RuntimeError(f"the run told of {len(losses)} losses in {config.epochs} epochs: {config.output}")
    return Outcome(tuple(ends), told, stored, outage, tuple(driver_cpu))


@contextlib.contextmanager
def _away(server: TrackingServer, times: list[float]) -> Iterator[None]:
    """Let the server be dead while the block runs, and note when it was killed, started and listening."""
    times.append(time.time())
    server.kill()
    yield
    times.append(time.time())
    server.start()
    times.append(time.time())


def _trained(dataset: Path, config: "TrainingConfig") -> tuple[str, list[Event], list[float]]:
    """Return the id of a new run, all its events, and the CPU seconds of this process at the end of each epoch."""
    events: list[Event] = []
    cpu: list[float] = []

    def listen(event: Event) -> None:
        events.append(event)
        if event["event"] == "epoch_end" and event.get("rank") == 0:
            cpu.append(time.process_time())

    session = usual_session()
    done = supervised(dataset, config, session, listen)
    session.stop()
    return done.run_id, events, cpu


def _told(config: "TrainingConfig", events: Sequence[Event], server: str, run_id: str) -> frozenset[Point]:
    """Return the points that those events make in a store that is always there."""
    from mlflow import MlflowClient

    from mirrorspark.callbacks.mlflow.store import own_store
    from mirrorspark.training.records.tracking import TrackedRun

    output = Path(config.output)
    twin = MlflowClient(own_store(output))
    # Steps of system metrics count from the start of their run.
    began = MlflowClient(server).get_run(run_id).info.start_time
    twin_id = twin.create_run(twin.create_experiment("told"), start_time=began).info.run_id
    tracked = TrackedRun(own_store(output), "told", output, twin_id, "told")
    for event in events:
        tracked.events.append(dict(event))
    assert tracked.finish("FINISHED") is None
    return _stored(own_store(output), twin_id)


def _stored(store: str, run_id: str) -> frozenset[Point]:
    """Return all points that a store has of a run."""
    from mlflow import MlflowClient

    client = MlflowClient(store)
    names: Mapping[str, Any] = client.get_run(run_id).data.metrics
    return frozenset(
        (name, int(point.step), float(point.value))
        for name in names
        for point in client.get_metric_history(run_id, name)
    )


BENCHMARK = Benchmark("train_outage", question_of(__doc__), 500_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
