"""Do runs whose ranks are killed at random moments end with the weights of a run that is not, and what does it cost?

Every run is killed once, at a moment and on a rank drawn from a seed. The weights, and the optimizer's state, are
compared by the checksums of the last checkpoints' files.
"""

import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Mark
from benchmarks.report import Report, Table
from benchmarks.train_work import WORKERS, config_of, in_new_process, numbers_dataset, usual_session
from data_pipelines.dataset import Dataset
from training import faults

KILLS = 20
EPOCHS = 6
SEED = 1

# A kill has to strike before the run's end, which comes the earlier the warmer the session is.
_LATEST_SHARE = 0.8


@dataclass(frozen=True)
class Run:
    """How a run went: how long it took, the checksums of its weights, and who was killed when."""

    seconds: float
    weights: str
    rank: int | None = None
    moment: float = 0.0


def run(options: Options) -> Report:
    """Kill one rank in each of twenty runs."""
    dataset = in_new_process(numbers_dataset, options, options.rows)
    unbroken, *killed = in_new_process(_runs, dataset, options.scratch)
    lost = [one.seconds - unbroken.seconds for one in killed]
    is_equal = [one.weights == unbroken.weights for one in killed]
    rows = tuple(
        (f"{number}", f"{one.rank}", f"{one.moment:.2f}", f"{seconds:.1f}", "yes" if equal else "NO")
        for number, (one, seconds, equal) in enumerate(zip(killed, lost, is_equal, strict=True), 1)
    )
    columns = ("run", "killed rank", "killed after, s", "time lost, s", "equal weights")
    note = (
        f"{WORKERS} workers, {EPOCHS} epochs, a checkpoint every 50 steps. The run that nobody killed took "
        f"{unbroken.seconds:.1f} s from its launch to its end."
    )
    marks = (
        Mark("runs that ended with the weights of the unbroken one", float(sum(is_equal)), float(KILLS)),
        Mark("time lost per kill, s, median", median(lost), 15.0, "at most"),
    )
    table = Table(f"{KILLS} runs, each killed once", columns, rows, note)
    return Report(BENCHMARK.name, BENCHMARK.question, (table,), marks, conditions={"seed": f"{SEED}"})


def _runs(dataset: Path, scratch: Path) -> list[Run]:
    """Return a run that nobody kills, and those that are killed."""
    draw = random.Random(SEED)
    session = usual_session()
    _trained(dataset, scratch / "warm-up")
    unbroken = _trained(dataset, scratch / "unbroken")
    runs = [unbroken]
    for number in range(KILLS):
        rank, moment = draw.randrange(WORKERS), draw.uniform(0, _LATEST_SHARE) * unbroken.seconds
        output = scratch / f"killed-{number}"
        with faults.kill(output, rank, faults.Moment(phase="training", seconds=moment)):
            runs.append(replace(_trained(dataset, output), rank=rank, moment=moment))
    session.stop()
    return runs


def _trained(dataset: Path, output: Path) -> Run:
    """Train, and return how that went."""
    from callbacks import commit
    from training.live_view import LiveView
    from training.spark_session import open_session
    from training.training_job import open_job

    config = config_of(output, epochs=EPOCHS, checkpoint_every_steps=50, max_restarts=3)
    session = open_session(None, WORKERS)
    with open_job(Dataset.open(dataset), config, session, LiveView(epochs=EPOCHS, is_interactive=False)) as job:
        begin = time.monotonic()
        job.train()
        seconds = time.monotonic() - begin
        last = commit.latest_committed(job.folder.checkpoints)
    assert last is not None
    return Run(seconds, " ".join(file.sha256 for file in last.files if file.name.startswith(commit.TENSORS)))


BENCHMARK = Benchmark("train_kills", question_of(__doc__), 200_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
