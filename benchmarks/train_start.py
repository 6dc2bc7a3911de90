"""How long does it take from the launch of an attempt to its first steps, cold and warm?

Cold: a new driver with a new Spark session, whose Python workers have yet to be started. Warm: the next attempt in that
session. What the chief does meanwhile is known from its events.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Mark
from benchmarks.report import Report, Table
from benchmarks.train_work import (
    WORKERS,
    Event,
    config_of,
    first_time,
    in_new_process,
    numbers_dataset,
    read_events,
    trained,
    usual_session,
)

COLD_MARK, WARM_MARK = 12.0, 3.0
# What ends each part of a start: a phase that the chief enters.
PARTS = {
    "Spark's job, and the chief's process": "connecting",
    "workers find each other": "building",
    "model, and its weights on all workers": "first_step",
    "graph, and the first steps": "training",
}


def run(options: Options) -> Report:
    """Train twice in a new driver, as often as there are rounds."""
    dataset = in_new_process(numbers_dataset, options, options.rows)
    rounds = [
        in_new_process(_two_attempts, dataset, options.scratch / f"round-{number}") for number in range(options.rounds)
    ]
    cold, warm = ([parts[start] for parts in rounds] for start in (0, 1))
    note = f"{WORKERS} workers. The first call of TensorFlow's is one step."
    rows = tuple((f"{number}", f"{sum(c):.2f}", f"{sum(w):.2f}") for number, (c, w) in enumerate(rounds, 1))
    table = Table("Seconds from the launch of an attempt to its first steps", ("round", "cold", "warm"), rows, note)
    by_part = zip(PARTS, zip(*cold, strict=True), zip(*warm, strict=True), strict=True)
    parts = Table(
        "Seconds of the chief, medians",
        ("part", "cold", "warm"),
        tuple((name, f"{median(c):.2f}", f"{median(w):.2f}") for name, c, w in by_part),
    )
    marks = (
        Mark("cold start to the first steps, s", median(map(sum, cold)), COLD_MARK, "at most"),
        Mark("warm start to the first steps, s", median(map(sum, warm)), WARM_MARK, "at most"),
    )
    return Report(
        BENCHMARK.name, BENCHMARK.question, (table, parts), marks, conditions={"rounds": f"median of {options.rounds}"}
    )


def _two_attempts(dataset: Path, output: Path) -> tuple[list[float], list[float]]:
    """Return the seconds of the parts of a cold start, and of a warm one."""
    session = usual_session()
    # Two runs, so that the second one has everything to do but to start Python workers.
    folders = [trained(dataset, config_of(output / name, epochs=1), session).run_folder for name in ("cold", "warm")]
    cold, warm = (start_parts(read_events(folder / "events.jsonl")) for folder in folders)
    session.stop()
    return cold, warm


def start_parts(events: Sequence[Event]) -> list[float]:
    """Return the seconds of each of ``PARTS`` in a run's first attempt."""
    ends = [first_time(events, "phase", attempt=1, rank=0, phase=phase) for phase in PARTS.values()]
    return [end - start for start, end in pairwise([first_time(events, "attempt", attempt=1), *ends])]


BENCHMARK = Benchmark("train_start", question_of(__doc__), 100_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
