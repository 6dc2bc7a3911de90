"""Does a model of the flights rank as well with local updates as with synchronous training?

The recipe ``flights`` with two workers: every step with the gradients of both, or 8 steps of each worker on its own
before both go on from their mean (``local_steps=8``, no outer momentum). Same rows, batch, learning rate and seeds on
both sides, and all of the recipe's epochs, without early stopping. AUC on the test split, of the epoch that was best on
the validation split.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Mark
from benchmarks.report import Report, Table, rate
from benchmarks.train_work import (
    FLIGHTS,
    WORKERS,
    flights_config,
    flights_table,
    in_new_process,
    trained,
    usual_session,
)

LOCAL_STEPS = 8
SEEDS = (1, 2, 3)
AUC_MARK = 0.002

# Local steps of each side, synchronous training first.
_SIDES = (1, LOCAL_STEPS)


@dataclass(frozen=True)
class Outcome:
    """What came of a training.

    Attributes:
        auc: On the test split.
        examples_per_second: Median over the epochs.
    """

    auc: float
    examples_per_second: float


@dataclass(frozen=True)
class Pair:
    """Both sides with one seed."""

    seed: int
    synchronous: Outcome
    local: Outcome

    @property
    def difference(self) -> float:
        """By how much synchronous training ranks better."""
        return self.synchronous.auc - self.local.auc


def run(options: Options) -> Report:
    """Train with every seed both ways."""
    epochs, pairs = in_new_process(_pairs, options.rows, options.scratch)
    differences = [pair.difference for pair in pairs]
    rows = tuple(
        (
            f"{pair.seed}",
            f"{pair.synchronous.auc:.4f}",
            f"{pair.local.auc:.4f}",
            f"{pair.difference:+.4f}",
            rate(pair.synchronous.examples_per_second),
            rate(pair.local.examples_per_second),
        )
        for pair in pairs
    )
    columns = ("seed", "synchronous", "local updates", "synchronous - local", "synchronous, rows/s", "local, rows/s")
    note = f"Mean difference {mean(differences):+.4f}. Rows/s: median over the epochs, of both workers together."
    title = f"Test AUC after {epochs} epochs of {options.rows:,} flights, {WORKERS} workers"
    mark = Mark(
        f"AUC, synchronous - local updates, mean over {len(pairs)} seeds, without its sign",
        abs(mean(differences)),
        AUC_MARK,
        "at most",
    )
    return Report(
        BENCHMARK.name,
        BENCHMARK.question,
        (Table(title, columns, rows, note),),
        (mark,),
        conditions={"rounds": f"one run per side with each of the seeds {', '.join(map(str, SEEDS))}"},
    )


def _pairs(rows: int, scratch: Path) -> tuple[int, list[Pair]]:
    """Convert the table once, train on it, and return the epochs of each training with what came of all."""
    from data_pipelines.convert import convert

    session, config = usual_session(), flights_config(scratch / "conversion")
    dataset = convert(flights_table(session, config, rows), config.spec, scratch / "dataset", options=config.conversion)

    def outcome(seed: int, local_steps: int) -> Outcome:
        output = scratch / f"seed-{seed}-local-steps-{local_steps}"
        done = trained(dataset.path, flights_config(output, seed=seed, local_steps=local_steps), session)
        return Outcome(float(done.verdict.metrics["test"]["auc"]), done.examples_per_second or 0.0)

    pairs = [Pair(seed, *(outcome(seed, steps) for steps in _SIDES)) for seed in SEEDS]
    session.stop()
    return config.epochs, pairs


BENCHMARK = Benchmark("train_local_updates", question_of(__doc__), FLIGHTS, run)

if __name__ == "__main__":
    main(BENCHMARK)
