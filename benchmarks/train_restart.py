"""How long does it take from the SIGKILL of a rank until all are back in training?

Rank 1 is killed in the odd rounds, the chief in the even ones, each in the middle of the third epoch.
"""

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Mark
from benchmarks.report import Report, Table
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

EPOCHS_BEFORE, EPOCHS = 2, 4
RESTART_MARK = 15.0

_LIMIT_SECONDS = 600.0
_POLL_SECONDS = 0.05


def run(options: Options) -> Report:
    """Kill one rank per round."""
    dataset = in_new_process(numbers_dataset, options, options.rows)
    rows, totals = [], []
    for number in range(1, options.rounds + 1):
        rank = number % WORKERS
        killed, events = in_new_process(_killed_run, dataset, options.scratch / f"round-{number}", rank)
        parts = restart_seconds(events, killed)
        totals.append(parts[-1])
        rows.append((f"{number}", f"{rank}", *(f"{seconds:.2f}" for seconds in parts)))
    columns = ("round", "killed rank", "restart decided", "next attempt launched", "back in training")
    table = Table("Seconds since the kill", columns, tuple(rows))
    mark = Mark("from the kill to the first steps, s", median(totals), RESTART_MARK, "at most")
    return Report(
        BENCHMARK.name, BENCHMARK.question, (table,), (mark,), conditions={"rounds": f"median of {options.rounds}"}
    )


def restart_seconds(events: Sequence[Event], killed: float) -> tuple[float, float, float]:
    """Return the seconds from the kill until the restart was decided, launched, and had made its first steps."""
    trained = max(first_time(events, "phase", attempt=2, rank=rank, phase="training") for rank in range(WORKERS))
    moments = (first_time(events, "restart"), first_time(events, "attempt", attempt=2), trained)
    return moments[0] - killed, moments[1] - killed, moments[2] - killed


def _killed_run(dataset: Path, output: Path, rank: int) -> tuple[float, list[Event]]:
    """Train, kill ``rank`` on the way, and return when, with the run's events."""
    times: list[float] = []
    killer = threading.Thread(target=_kill_when_due, args=(output, rank, times), daemon=True)
    killer.start()
    session = usual_session()
    folder = trained(dataset, config_of(output, epochs=EPOCHS), session).run_folder
    session.stop()
    killer.join()
    return times[0], read_events(folder / "events.jsonl")


def _kill_when_due(output: Path, rank: int, times: list[float]) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while time.monotonic() < deadline:
        for file in output.glob("runs/*/events.jsonl"):
            events = read_events(file)
            ends = epoch_times(events)
            if len(ends) >= EPOCHS_BEFORE:
                # In the middle of an epoch, when what was before is committed.
                time.sleep((ends[-1] - ends[-2]) / 2)
                times.append(time.time())
                os.kill(process_of(events, rank), signal.SIGKILL)
                return
        time.sleep(_POLL_SECONDS)


def process_of(events: Sequence[Event], rank: int) -> int:
    """Return the process of a rank of the newest attempt."""
    phases = [event for event in events if event["event"] == "phase" and event["rank"] == rank]
    return int(phases[-1]["process"])


BENCHMARK = Benchmark("train_restart", question_of(__doc__), 1_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
