"""Do runs that are killed at random moments end with the weights of a run that is not, and what does it cost?

Every run is killed once, at a moment that is drawn from a seed: a rank of a local session, drawn as well; on a
standalone cluster the JVM of an executor; and there the driver, whose command is then given again. One rank in five is
killed while it connects, builds its model, compiles or ends, the others while they train. The model drops units at
random. Every weight of the last checkpoint, and the optimizer's state, is compared bit by bit.
"""

import contextlib
import functools
import hashlib
import random
import time
from collections.abc import Collection, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pyspark.sql import SparkSession

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Mark
from benchmarks.report import Report, Table
from benchmarks.servers import standalone_cluster
from benchmarks.train_work import (
    WORKERS,
    Event,
    config_of,
    epoch_times,
    first_time,
    in_new_process,
    numbers_dataset,
    read_events,
    supervised,
    usual_session,
)
from mirrorspark.testing import faults

KILLS = 20
"""The most runs in which a rank is killed: there are seven per round."""
EPOCHS = 6
SEED = 1
EXECUTOR = "executor JVM killed"
DRIVER = "driver killed and restarted"

# A kill must happen before the run's end, on a machine that may be faster by then.
_LATEST_EPOCHS = 0.8 * EPOCHS
# Phases of a rank before and after its training.
_OTHER_PHASES = ("connecting", "building", "first_step", "ending")
_OTHER_PHASES_SHARE = 0.2
# TensorFlow's own entry of a checkpoint.
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


@dataclass(frozen=True)
class Run:
    """Result of a run.

    Attributes:
        seconds: Its duration.
        folder: Its folder.
    """

    seconds: float
    folder: Path

    @property
    def epoch_seconds(self) -> float:
        """Seconds per epoch; only of a run that was not killed."""
        return epoch_seconds(read_events(self.folder / "events.jsonl"))


@dataclass(frozen=True)
class Kill:
    """A run that was killed.

    Attributes:
        when: In epochs since it began to train, or the phase that it was in.
        run: Its result.
        base: Result of a run without a kill, in the same surroundings.
    """

    what: str
    when: str
    run: Run
    base: Run

    @property
    def lost_seconds(self) -> float:
        """Extra seconds of the run because of the kill."""
        return self.run.seconds - self.base.seconds


def run(options: Options) -> Report:
    """Kill one rank in each of up to twenty runs, and executors and drivers of a cluster as there are rounds."""
    count = min(KILLS, 7 * options.rounds)
    dataset = in_new_process(numbers_dataset, options, options.rows)
    ranks = in_new_process(_killed_ranks, dataset, options.scratch, count)
    others = _killed_on_a_cluster(dataset, options.scratch / "on-a-cluster", options.rounds)
    equal = in_new_process(_with_equal_weights, [*ranks, *others])
    setting = f"{WORKERS} workers, {EPOCHS} epochs, a checkpoint every 50 steps."
    local_note = f"{setting} The run that nobody killed took {ranks[0].base.seconds:.1f} s from its launch to its end."
    cluster_note = (
        f"One master, {WORKERS} workers of one core, {WORKERS} executors. Each run is a driver of its own; its time is "
        f"that of its whole process, with the start of its session: {others[0].base.seconds:.1f} s for the run that "
        f"nobody killed. A driver that is killed is started again at once, and the time goes on until the second one "
        f"has ended."
    )
    tables = (
        kill_table(f"{count} runs, each killed once", ranks, equal, local_note),
        kill_table("Runs on a standalone cluster, each killed once", others, equal, cluster_note),
    )
    marks = (
        Mark("runs that ended with the weights of the unbroken one", _count(ranks, equal), float(count)),
        Mark("time lost per kill, s, median", median(kill.lost_seconds for kill in ranks), 15.0, "at most"),
        *(
            Mark(
                f"{what}, runs that ended with the weights of the unbroken one",
                _count([kill for kill in others if kill.what == what], equal),
                float(options.rounds),
            )
            for what in (EXECUTOR, DRIVER)
        ),
    )
    rounds = f"{count} kills of ranks, {options.rounds} of executors and of drivers"
    return Report(BENCHMARK.name, BENCHMARK.question, tables, marks, conditions={"seed": f"{SEED}", "rounds": rounds})


def kill_table(title: str, kills: Sequence[Kill], equal: Collection[Kill], note: str) -> Table:
    """Return a row per run that was killed; ``equal`` are those that ended with the weights of the unbroken one."""
    rows = tuple(
        (
            f"{number}",
            kill.what,
            kill.when,
            f"{kill.lost_seconds:.1f}",
            "yes" if kill in equal else "NO",
        )
        for number, kill in enumerate(kills, 1)
    )
    return Table(title, ("run", "what happened", "when, in epochs", "time lost, s", "equal weights"), rows, note)


def epoch_seconds(events: Sequence[Event]) -> float:
    """Return the seconds of an epoch: the mean of all, from the chief's first steps on."""
    ends = epoch_times(events)
    return (ends[-1] - first_time(events, "phase", attempt=1, rank=0, phase="training")) / len(ends)


def moment_after(epochs: float, epoch_seconds: float) -> faults.Trigger:
    """Return the trigger after ``epochs`` of training; only the part of an epoch is measured by the clock."""
    whole = int(epochs)
    return faults.Trigger(phase="training", epoch=whole or None, seconds=(epochs - whole) * epoch_seconds)


def drawn_moment(draw: random.Random, epoch_seconds: float) -> tuple[str, faults.Trigger]:
    """Draw when a rank is killed; return it in words, too."""
    if draw.random() < _OTHER_PHASES_SHARE:
        phase = draw.choice(_OTHER_PHASES)
        return phase, faults.Trigger(phase=phase)
    return drawn_training_moment(draw, epoch_seconds)


def drawn_training_moment(draw: random.Random, epoch_seconds: float) -> tuple[str, faults.Trigger]:
    """Draw a moment of the training; return it in words, too."""
    epochs = draw.uniform(0, _LATEST_EPOCHS)
    return f"{epochs:.2f}", moment_after(epochs, epoch_seconds)


def weights_of(checkpoint: str) -> str:
    """Return a checksum of all values of a checkpoint: weights, optimizer's state, counters.

    Not of its files: they hold names of the optimizer's variables, too, and those of a training that goes on are other
    ones.
    """
    import tensorflow as tf

    reader = tf.train.load_checkpoint(checkpoint)
    digest = hashlib.sha256()
    for name in sorted(set(reader.get_variable_to_shape_map()) - {_OBJECT_GRAPH}):
        value = reader.get_tensor(name)
        digest.update(repr((name, value.dtype, value.shape)).encode() + value.tobytes())
    return digest.hexdigest()


def _with_equal_weights(kills: Sequence[Kill]) -> list[Kill]:
    """Return those that ended with the weights of the run that nobody killed."""
    from mirrorspark.callbacks.checkpoints import commit

    @functools.cache
    def weights(folder: Path) -> str:
        last = commit.latest_committed(folder / "checkpoints")
        assert last is not None
        return weights_of(last.prefix)

    return [kill for kill in kills if weights(kill.run.folder) == weights(kill.base.folder)]


def _count(kills: Sequence[Kill], equal: Collection[Kill]) -> float:
    return float(sum(kill in equal for kill in kills))


def _killed_ranks(dataset: Path, scratch: Path, count: int) -> list[Kill]:
    """Kill a rank in each of ``count`` runs of a local session."""
    draw = random.Random(SEED)
    session = usual_session()
    _trained(session, dataset, scratch / "warm-up")
    base = _trained(session, dataset, scratch / "unbroken")
    kills = []
    for number in range(count):
        rank, (when, after) = draw.randrange(WORKERS), drawn_moment(draw, base.epoch_seconds)
        output = scratch / f"killed-{number}"
        with faults.kill(output, rank, after):
            kills.append(Kill(f"rank {rank} killed", when, _trained(session, dataset, output), base))
    session.stop()
    return kills


def _killed_on_a_cluster(dataset: Path, scratch: Path, rounds: int) -> list[Kill]:
    """Kill executors and drivers of a cluster that is there as that takes."""
    draw = random.Random(SEED)
    kills: dict[str, list[Kill]] = {EXECUTOR: [], DRIVER: []}
    with standalone_cluster(scratch / "cluster", WORKERS) as master:
        _commanded(master, dataset, scratch / "warm-up")
        base = _commanded(master, dataset, scratch / "unbroken")
        for number in range(rounds):
            for what, done in kills.items():
                rank, (when, after) = draw.randrange(WORKERS), drawn_training_moment(draw, base.epoch_seconds)
                output = scratch / f"{what.split()[0]}-{number}"
                if what == EXECUTOR:
                    with faults.kill_executor(output, rank, after):
                        run = _commanded(master, dataset, output)
                else:
                    run = _commanded(master, dataset, output, faults.kill_driver(output, after))
                done.append(Kill(what, when, run, base))
    return [*kills[EXECUTOR], *kills[DRIVER]]


def _commanded(
    master: str, dataset: Path, output: Path, driver_fault: AbstractContextManager[object] | None = None
) -> Run:
    """Train in a new driver; where a fault kills that, in a second one with the same order. The time is of both."""
    begin = time.monotonic()
    if driver_fault is not None:
        with driver_fault, contextlib.suppress(BrokenProcessPool):
            in_new_process(_drive, master, dataset, output)
    done = in_new_process(_drive, master, dataset, output)
    return Run(time.monotonic() - begin, done.folder)


def _drive(master: str, dataset: Path, output: Path) -> Run:
    """Be a driver on the cluster, which goes on with the unfinished run in ``output`` where there is one."""
    session = usual_session(master)
    done = _trained(session, dataset, output, resume=True)
    session.stop()
    return done


def _trained(session: SparkSession, dataset: Path, output: Path, *, resume: bool = False) -> Run:
    """Train, and return the result."""
    model = {"name": "multi_field", "dropout": 0.3}
    config = config_of(output, epochs=EPOCHS, model=model, checkpoint_every_steps=50, max_restarts=3, resume=resume)
    done = supervised(dataset, config, session)
    return Run(done.seconds, done.folder)


BENCHMARK = Benchmark("train_kills", question_of(__doc__), 200_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
