"""What do leases, claims and journals cost who publishes a folder of files on the local disk?

Beside today's program the one of a commit before them, in a process of its own; both take turns. A write that is cut
off is finished or taken back by any later writer, of any host: before, only by one of the same host.
"""

import io
import shutil
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Timing, interleave, paired_ratio
from benchmarks.other_environment import OtherProcess, UnavailableError, started
from benchmarks.report import REPOSITORY, Report, Table

BEFORE = "d619dd4"
AFTER = "today"
TURNS = 7  # for each round that is asked for
NEW, OVERWRITE, APPEND = "error", "overwrite", "append"
_SMALL_FOLDER = 10
_PROCESS = Path(__file__).with_name("publish_process.py")


def run(options: Options) -> Report:
    """Publish small folders and large ones in each mode."""
    former = options.scratch / "former"
    try:
        _check_out(former)
        with (
            started(
                [sys.executable, str(_PROCESS), "data_pipelines.publish", "data_pipelines.storage"],
                {"PYTHONPATH": str(former)},
                options.scratch / "before.log",
            ) as before,
            started(
                [sys.executable, str(_PROCESS), "mirrorspark.storage.publish", "mirrorspark.storage.paths"],
                {"PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}"},
                options.scratch / "after.log",
            ) as after,
        ):
            table = _table(options, {BEFORE: before, AFTER: after})
    except UnavailableError as error:
        return Report(BENCHMARK.name, BENCHMARK.question, (), skipped=str(error))
    rounds = f"median of {TURNS * options.rounds} turns of each, after one that does not count"
    return Report(BENCHMARK.name, BENCHMARK.question, (table,), conditions={"rounds": rounds})


def _check_out(folder: Path) -> None:
    """Put the former program into ``folder``.

    Raises:
        UnavailableError: The repository does not have its commit.
    """
    command = ["git", "archive", BEFORE, "data_pipelines", "benchmarks"]
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False)
    if found.returncode:
        raise UnavailableError(f"This clone has no commit {BEFORE} ({found.stderr.decode().strip()}).")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(folder, filter="data")


def _table(options: Options, versions: dict[str, OtherProcess]) -> Table:
    rows = []
    for files in sorted({_SMALL_FOLDER, options.rows}):
        for mode in (NEW, OVERWRITE, APPEND):
            timings = _timings(options, versions, mode, files)
            rows.append(
                (
                    f"{'new folder' if mode == NEW else mode}, {files:,} files",
                    *(f"{1e3 * timing.median:.1f} ({timing.spread:.0%})" for timing in timings.values()),
                    f"{paired_ratio(timings, AFTER, BEFORE):.2f}",
                )
            )
    note = (
        "What the driver does before and after the tasks write. As many files are there where others are added to "
        "them or take their place. The last column is the median of the ratios of neighbouring turns."
    )
    columns = ("write", *(f"{name}: ms (spread)" for name in versions), f"{AFTER} / {BEFORE}")
    return Table("Milliseconds to publish files of 1 kB", columns, tuple(rows), note)


def _timings(options: Options, versions: dict[str, OtherProcess], mode: str, files: int) -> dict[str, Timing]:
    target = options.scratch / "target"

    def prepare() -> None:
        shutil.rmtree(target, ignore_errors=True)
        if mode != NEW:
            target.mkdir()
            for number in range(files):
                (target / f"part-{number:05d}").write_bytes(b"x")

    def seconds(process: OtherProcess) -> float:
        return float(process.ask(target=str(target), mode=mode, files=files)["seconds"])

    contenders = [Contender(name, partial(seconds, process), prepare) for name, process in versions.items()]
    return interleave(contenders, TURNS * options.rounds)


BENCHMARK = Benchmark("publish", question_of(__doc__), 1_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
