"""How do the ring and TensorFlow's own strategy compare on CPUs: losses, steps per second, and after a kill?

The same training of ``multi_field`` with dropout, on two workers of a local session, with the same batches of 256 rows
per worker and the same seed: by the ring, and by ``multi_worker_mirrored`` with 50 steps per execution and with one, as
``fit`` has by default. Each is trained once as it is; in another run worker 1 is killed in the third epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from pyspark.sql import SparkSession

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Mark
from benchmarks.report import Report, Table, significant
from benchmarks.train_kills import epoch_seconds, moment_after
from benchmarks.train_work import (
    WORKERS,
    Supervised,
    config_of,
    in_new_process,
    numbers_dataset,
    read_events,
    supervised,
    usual_session,
)
from mirrorspark.testing import faults

EPOCHS = 5
BATCH = 256
KILLED_AFTER = 2.5
RING, MANY, ONE = "ring", "multi_worker_mirrored, 50 steps per execution", "multi_worker_mirrored, as `fit` by default"
WAYS: Mapping[str, Mapping[str, Any]] = {
    RING: {"strategy": "ring", "steps_per_execution": 50},
    MANY: {"strategy": "multi_worker_mirrored", "steps_per_execution": 50},
    ONE: {"strategy": "multi_worker_mirrored", "steps_per_execution": 1},
}


@dataclass(frozen=True)
class Found:
    """A way's run that was left alone, and the one that was killed.

    Attributes:
        losses: The training loss of each epoch.
        steps_per_second: The median over the epochs.
        lost_seconds: Extra seconds of the run that was killed.
        killed_losses: Its losses.
    """

    losses: tuple[float, ...]
    steps_per_second: float
    lost_seconds: float
    killed_losses: tuple[float, ...]


def run(options: Options) -> Report:
    """Train every way twice, all in one session."""
    dataset = in_new_process(numbers_dataset, options, options.rows)
    found = in_new_process(_all, dataset, options.scratch)
    marks = (
        Mark("steps per second, ring / `fit` by default", _times(found, ONE), 5.0),
        Mark("steps per second, ring / 50 steps per execution", _times(found, MANY), 3.0),
        Mark("largest relative difference of a loss from the ring's", difference(found), 1e-5, "at most"),
    )
    conditions = {"rounds": f"one run of {EPOCHS} epochs, and one with a kill, per way"}
    return Report(BENCHMARK.name, BENCHMARK.question, (table_of(found),), marks, conditions=conditions)


def table_of(found: Mapping[str, Found]) -> Table:
    """Return a row per way."""
    columns = (
        *("strategy", "steps/s", "ring / this", "loss of epoch 1", f"loss of epoch {EPOCHS}"),
        *("time lost by a kill, s", f"loss of epoch {EPOCHS} after it"),
    )
    rows = tuple(
        (
            *(way, significant(one.steps_per_second), f"{_times(found, way):.1f}"),
            *(f"{one.losses[0]:.7f}", f"{one.losses[-1]:.7f}"),
            *(f"{one.lost_seconds:.1f}", f"{one.killed_losses[-1]:.7f}"),
        )
        for way, one in found.items()
    )
    note = f"{WORKERS} workers of one thread, {BATCH} rows each. A checkpoint every 50 steps; the kill is a SIGKILL."
    return Table("Ring and TensorFlow's strategy", columns, rows, note)


def _times(found: Mapping[str, Found], way: str) -> float:
    return found[RING].steps_per_second / found[way].steps_per_second


def difference(found: Mapping[str, Found]) -> float:
    """Return the largest relative difference of a loss, also after a kill, from that of the ring's run."""
    expected = found[RING].losses
    return max(
        abs(loss / right - 1)
        for one in found.values()
        for losses in (one.losses, one.killed_losses)
        for loss, right in zip(losses, expected, strict=True)
    )


def _all(dataset: Path, scratch: Path) -> dict[str, Found]:
    session = usual_session()
    _trained(session, dataset, scratch / "warm-up", way=RING, epochs=1)
    found = {way: _both(session, dataset, scratch / f"way-{number}", way) for number, way in enumerate(WAYS)}
    session.stop()
    return found


def _both(session: SparkSession, dataset: Path, scratch: Path, way: str) -> Found:
    """Train as it is, then with a kill."""
    train = partial(_trained, session, dataset, way=way)
    plain = train(scratch / "plain")
    events = read_events(plain.folder / "events.jsonl")
    with faults.kill(scratch / "killed", 1, moment_after(KILLED_AFTER, epoch_seconds(events))):
        killed = train(scratch / "killed")
    ends = _epoch_ends(plain)
    rows = median(float(end["examples_per_second"]) for end in ends.values())
    losses, after = (tuple(float(end["logs"]["loss"]) for end in _epoch_ends(one).values()) for one in (plain, killed))
    return Found(losses, rows / (BATCH * WORKERS), killed.seconds - plain.seconds, after)


def _trained(session: SparkSession, dataset: Path, output: Path, *, way: str, epochs: int = EPOCHS) -> Supervised:
    settings = {"model": {"name": "multi_field", "dropout": 0.3}, "global_batch_size": BATCH * WORKERS, **WAYS[way]}
    return supervised(dataset, config_of(output, epochs=epochs, checkpoint_every_steps=50, **settings), session)


def _epoch_ends(run: Supervised) -> dict[int, Mapping[str, Any]]:
    """Return the chief's event of the end of every epoch; of one that was repeated, the last."""
    events = read_events(run.folder / "events.jsonl")
    return {event["epoch"]: event for event in events if event["event"] == "epoch_end" and event.get("rank") == 0}


BENCHMARK = Benchmark("train_strategies", question_of(__doc__), 100_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
