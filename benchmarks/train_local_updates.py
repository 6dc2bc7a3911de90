"""Does a model of the flights rank as well with local updates as with synchronous training?

The recipe ``flights`` with two workers: every step with the gradients of both, or 8, 16 or 64 steps of each worker on
its own before both go on from their mean (``local_steps``, no outer momentum). Same rows, batch, learning rate and
seeds on all sides, and all of the recipe's epochs, without early stopping. AUC on the test split, of the epoch that was
best on the validation split.
"""

from collections.abc import Sequence
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

LOCAL_STEPS = (8, 16, 64)
SEEDS = (1, 2, 3)
AUC_MARK = 0.002


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
    """Train with every seed all ways."""
    epochs, pairs = in_new_process(_pairs, options.rows, options.scratch)
    return Report(
        BENCHMARK.name,
        BENCHMARK.question,
        tuple(_table(steps, of, epochs, options.rows) for steps, of in pairs.items()),
        tuple(
            Mark(
                f"AUC, synchronous - local updates of {steps} steps, mean over {len(of)} seeds, without its sign",
                abs(_mean_difference(of)),
                AUC_MARK,
                "at most",
            )
            for steps, of in pairs.items()
        ),
        conditions={"rounds": f"one run per side with each of the seeds {', '.join(map(str, SEEDS))}"},
    )


def _table(steps: int, pairs: Sequence[Pair], epochs: int, flights: int) -> Table:
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
    title = f"Test AUC after {epochs} epochs of {flights:,} flights, {WORKERS} workers, {steps} local steps"
    note = (
        f"Mean difference {_mean_difference(pairs):+.4f}. Rows/s: median over the epochs, of both workers together. "
        "The synchronous runs are the same in all tables."
    )
    return Table(title, columns, rows, note)


def _mean_difference(pairs: Sequence[Pair]) -> float:
    return mean(pair.difference for pair in pairs)


def _pairs(rows: int, scratch: Path) -> tuple[int, dict[int, list[Pair]]]:
    """Convert the table once, train on it, and return the epochs of each training and the pairs by local steps."""
    from mirrorspark.data_pipelines.convert import convert

    session, config = usual_session(), flights_config(scratch / "conversion")
    dataset = convert(flights_table(session, config, rows), config.spec, scratch / "dataset", options=config.conversion)

    def outcome(seed: int, local_steps: int) -> Outcome:
        output = scratch / f"seed-{seed}-local-steps-{local_steps}"
        done = trained(dataset.path, flights_config(output, seed=seed, local_steps=local_steps), session)
        return Outcome(float(done.verdict.metrics["test"]["auc"]), done.examples_per_second or 0.0)

    pairs: dict[int, list[Pair]] = {steps: [] for steps in LOCAL_STEPS}
    for seed in SEEDS:
        synchronous = outcome(seed, 1)
        for steps, of in pairs.items():
            of.append(Pair(seed, synchronous, outcome(seed, steps)))
    session.stop()
    return config.epochs, pairs


BENCHMARK = Benchmark("train_local_updates", question_of(__doc__), FLIGHTS, run)

if __name__ == "__main__":
    main(BENCHMARK)
