"""How long does it take from the launch of an attempt to its first steps, cold and warm?

Cold: a new driver with a new Spark session, whose Python workers have yet to be started. Warm: the next attempt in that
session.
"""

from pathlib import Path
from statistics import median

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Mark
from benchmarks.report import Report, Table
from benchmarks.train_work import (
    WORKERS,
    config_of,
    in_new_process,
    numbers_dataset,
    read_events,
    start_seconds,
    trained,
    usual_session,
)

COLD_MARK, WARM_MARK = 12.0, 3.0


def run(options: Options) -> Report:
    """Train twice in a new driver, as often as there are rounds."""
    dataset = in_new_process(numbers_dataset, options, options.rows)
    rounds = [
        in_new_process(_two_attempts, dataset, options.scratch / f"round-{number}") for number in range(options.rounds)
    ]
    rows = tuple((f"{number}", f"{cold:.2f}", f"{warm:.2f}") for number, (cold, warm) in enumerate(rounds, 1))
    note = f"{WORKERS} workers. The first steps are one call of TensorFlow's, up to 50 of them."
    table = Table("Seconds from the launch of an attempt to its first steps", ("round", "cold", "warm"), rows, note)
    marks = (
        Mark("cold start to the first steps, s", median(cold for cold, _ in rounds), COLD_MARK, "at most"),
        Mark("warm start to the first steps, s", median(warm for _, warm in rounds), WARM_MARK, "at most"),
    )
    return Report(
        BENCHMARK.name, BENCHMARK.question, (table,), marks, conditions={"rounds": f"median of {options.rounds}"}
    )


def _two_attempts(dataset: Path, output: Path) -> tuple[float, float]:
    session = usual_session()
    # Two runs, so that the second one has everything to do but to start Python workers.
    folders = [trained(dataset, config_of(output / name, epochs=1), session).run_folder for name in ("cold", "warm")]
    cold, warm = (start_seconds(read_events(folder / "events.jsonl"), attempt=1) for folder in folders)
    session.stop()
    return cold, warm


BENCHMARK = Benchmark("train_start", question_of(__doc__), 100_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
