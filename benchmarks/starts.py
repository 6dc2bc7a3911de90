"""How long does it take until a training makes its first steps, cold, warm and after a kill, and a score its first row?

Cold: a new driver with a new Spark session, whose Python workers have yet to be started. Warm: the next attempt, or the
next call of ``score``, in that session. (Not right after the first row: Spark ends a Python worker of which it wants no
more rows, and starts another for the next task; a job over the whole table comes between.) After a kill: from the
SIGKILL of a rank, in the middle of the third epoch, until all ranks are back in training; rank 1 in the odd rounds, the
chief in the even ones. The chief's events show its work in the meantime.
"""

import os
import signal
import threading
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Mark
from benchmarks.report import Report, Table
from benchmarks.score_model import export_model
from benchmarks.tables import Kind, parquet_files
from benchmarks.train_work import (
    WORKERS,
    Event,
    config_of,
    epoch_times,
    first_time,
    in_new_process,
    numbers_dataset,
    read_events,
    trained,
    usual_session,
)

COLD_MARK, WARM_MARK, RESTART_MARK = 12.0, 3.0, 15.0
FIRST_ROW_COLD_MARK, FIRST_ROW_WARM_MARK = 12.0, 1.0
# The end of each part of a start: a phase that the chief enters.
PARTS = {
    "Spark's job, and the chief's process": "connecting",
    "workers find each other": "building",
    "model, and its weights on all workers": "first_step",
    "graph, and the first steps": "training",
}
EPOCHS_BEFORE, EPOCHS = 2, 4

_LIMIT_SECONDS = 600.0
_POLL_SECONDS = 0.05


def run(options: Options) -> Report:
    """Start everything in a new driver, as there are rounds; runs with a kill have ten times the rows."""
    numbers = range(1, options.rounds + 1)
    small, large = (in_new_process(numbers_dataset, options, rows) for rows in (options.rows, 10 * options.rows))
    starts = [in_new_process(_two_attempts, small, options.scratch / f"starts-{number}") for number in numbers]
    kills = [
        restart_seconds(*in_new_process(_killed_run, large, options.scratch / f"kill-{number}", number % WORKERS))
        for number in numbers
    ]
    files = parquet_files(options.scratch, Kind.CLICKS, 2 * options.rows)
    model = in_new_process(export_model, options.scratch / "model", files[0])
    first_rows = [in_new_process(_first_rows, files, model) for _ in numbers]
    cold, warm = ([parts[start] for parts in starts] for start in (0, 1))
    tables = (*_start_tables(cold, warm), _restart_table(kills), _row_table(first_rows))
    limits = (COLD_MARK, WARM_MARK, RESTART_MARK, FIRST_ROW_COLD_MARK, FIRST_ROW_WARM_MARK)
    found = {
        "training, cold start to the first steps, s": map(sum, cold),
        "training, warm start to the first steps, s": map(sum, warm),
        "training, from the kill to the first steps, s": (back for *_, back in kills),
        "score, cold start to the first row, s": (seconds for seconds, _ in first_rows),
        "score, warm start to the first row, s": (seconds for _, seconds in first_rows),
    }
    marks = [
        Mark(what, median(seconds), limit, "at most")
        for (what, seconds), limit in zip(found.items(), limits, strict=True)
    ]
    conditions = {"rounds": f"median of {options.rounds}"}
    return Report(BENCHMARK.name, BENCHMARK.question, tables, tuple(marks), conditions=conditions)


def _start_tables(cold: Sequence[Sequence[float]], warm: Sequence[Sequence[float]]) -> tuple[Table, Table]:
    note = f"{WORKERS} workers. The first call of TensorFlow's is one step."
    rounds = enumerate(zip(cold, warm, strict=True), 1)
    rows = tuple((f"{number}", f"{sum(c):.2f}", f"{sum(w):.2f}") for number, (c, w) in rounds)
    by_part = zip(PARTS, zip(*cold, strict=True), zip(*warm, strict=True), strict=True)
    parts = tuple((name, f"{median(c):.2f}", f"{median(w):.2f}") for name, c, w in by_part)
    return (
        Table("Seconds from the launch of an attempt to its first steps", ("round", "cold", "warm"), rows, note),
        Table("Seconds of the chief, medians", ("part", "cold", "warm"), parts),
    )


def _restart_table(kills: Sequence[tuple[float, float, float]]) -> Table:
    columns = ("round", "killed rank", "restart decided", "next attempt launched", "back in training")
    rows = (
        (f"{number}", f"{number % WORKERS}", *(f"{seconds:.2f}" for seconds in parts))
        for number, parts in enumerate(kills, 1)
    )
    return Table("Seconds since the kill", columns, tuple(rows))


def _row_table(first_rows: Sequence[tuple[float, float]]) -> Table:
    rows = tuple((f"{number}", f"{cold:.2f}", f"{warm:.2f}") for number, (cold, warm) in enumerate(first_rows, 1))
    return Table("Seconds from the call of score to its first row", ("round", "cold", "warm"), rows)


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


def restart_seconds(events: Sequence[Event], killed: float) -> tuple[float, float, float]:
    """Return the seconds from the kill until the restart was decided, launched, and had made its first steps."""
    trained = max(first_time(events, "phase", attempt=2, rank=rank, phase="training") for rank in range(WORKERS))
    moments = (first_time(events, "restart"), first_time(events, "attempt", attempt=2), trained)
    return moments[0] - killed, moments[1] - killed, moments[2] - killed


def _killed_run(dataset: Path, output: Path, rank: int) -> tuple[list[Event], float]:
    """Train, kill ``rank`` on the way, and return the run's events, and when the kill was."""
    times: list[float] = []
    killer = threading.Thread(target=_kill_when_due, args=(output, rank, times), daemon=True)
    killer.start()
    session = usual_session()
    folder = trained(dataset, config_of(output, epochs=EPOCHS), session).run_folder
    session.stop()
    killer.join()
    return read_events(folder / "events.jsonl"), times[0]


def _kill_when_due(output: Path, rank: int, times: list[float]) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while time.monotonic() < deadline:
        for file in output.glob("runs/*/events.jsonl"):
            events = read_events(file)
            ends = epoch_times(events)
            if len(ends) >= EPOCHS_BEFORE:
                # In the middle of an epoch, when the earlier checkpoints are committed.
                time.sleep((ends[-1] - ends[-2]) / 2)
                times.append(time.time())
                os.kill(process_of(events, rank), signal.SIGKILL)
                return
        time.sleep(_POLL_SECONDS)


def process_of(events: Sequence[Event], rank: int) -> int:
    """Return the process of a rank of the newest attempt."""
    phases = [event for event in events if event["event"] == "phase" and event["rank"] == rank]
    return int(phases[-1]["process"])


def _first_rows(files: Sequence[Path], model: Path) -> tuple[float, float]:
    """Return the seconds until ``score`` gave its first row, cold and warm."""
    from mirrorspark.scoring.batch import score

    session = spark_work.session()
    scores = partial(score, spark_work.table(session, files), model, keys="key")

    def seconds() -> float:
        begin = time.perf_counter()
        scores().take(1)
        return time.perf_counter() - begin

    cold = seconds()
    spark_work.drain(scores())
    warm = seconds()
    session.stop()
    return cold, warm


BENCHMARK = Benchmark("starts", question_of(__doc__), 100_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
