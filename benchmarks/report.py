"""The report of a benchmark: a page of Markdown with its tables, its marks, and its machine and versions."""

import datetime
import os
import platform
import subprocess
import timeit
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import psutil

from benchmarks.measure import Mark, Timing

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("pyspark", "tensorflow", "pyarrow", "numpy", "numba")
_MATRIX_SIDE = 2_048

SKIPPED = "**Skipped**"


@dataclass(frozen=True)
class Table:
    """Cells of text under a heading.

    Attributes:
        title: Its heading.
        columns: Its header.
        rows: One tuple of texts per row.
        note: A sentence or two below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        if odd := [row for row in self.rows if len(row) != len(self.columns)]:
            raise ValueError(f"table '{self.title}' has {len(self.columns)} columns, but a row is {odd[0]}")

    def markdown(self) -> str:
        """Return the table as Markdown, numbers to the right."""
        rules = ["---" if number == 0 else "---:" for number in range(len(self.columns))]
        lines = [f"## {self.title}", "", *(_line(cells) for cells in (self.columns, rules, *self.rows))]
        return "\n".join([*lines, *(["", self.note] if self.note else [])])


@dataclass(frozen=True)
class Report:
    """The answer to one question.

    Attributes:
        name: The benchmark; the page is ``<name>.md``.
        question: The question.
        tables: The figures.
        marks: Figures to reach.
        command: Command that runs it again.
        skipped: Reason for a lack of figures; empty if there are figures.
        conditions: Machine, versions, date and commit.
    """

    name: str
    question: str
    tables: tuple[Table, ...]
    marks: tuple[Mark, ...] = ()
    command: str = ""
    skipped: str = ""
    conditions: Mapping[str, str] = field(default_factory=dict)

    def markdown(self) -> str:
        """Return the page."""
        parts = [f"# {self.name}", self.question]
        if self.skipped:
            parts.append(f"{SKIPPED}: {self.skipped}")
        if self.marks:
            parts.append(marks_table(self.marks).markdown())
        parts += [table.markdown() for table in self.tables]
        parts.append(
            "\n".join(["## Measured on", "", *(f"- {key}: {value}" for key, value in self.conditions.items())])
        )
        if self.command:
            parts.append(f"Run again: `{self.command}`")
        return "\n\n".join(parts) + "\n"

    def save(self, folder: Path) -> Path:
        """Write the page into ``folder`` and return where."""
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / f"{self.name}.md"
        page.write_text(self.markdown(), encoding="utf-8")
        return page


def timing_table(title: str, rows: int, timings: Mapping[str, Timing], reference: str, *, note: str = "") -> Table:
    """Return medians, rows per second, spreads, and how many times the speed of ``reference`` each one reaches."""
    base = timings[reference].median
    cells = tuple(
        (
            name,
            f"{timing.median:.3f}",
            rate(rows / timing.median),
            f"{timing.spread:.0%}",
            f"{base / timing.median:.2f}",
        )
        for name, timing in timings.items()
    )
    columns = ("way", "median seconds", "rows/s", "spread", f"times '{reference}'")
    return Table(title, columns, cells, note)


def marks_table(marks: Sequence[Mark]) -> Table:
    """Return one row per mark: what, found, asked for, and whether it is met."""
    rows = tuple(
        (
            mark.what,
            # Where it is missed by less than three digits show, with as it takes.
            significant(mark.found)
            if mark.is_met or f"{mark.found:.3g}" != f"{mark.limit:.3g}"
            else f"{mark.found:.6g}",
            f"{mark.bound} {significant(mark.limit)}",
            "met" if mark.is_met else "**not met**",
        )
        for mark in marks
    )
    return Table("Marks", ("mark", "found", "asked for", ""), rows)


def print_titles(*names: str) -> None:
    """Print the header of a table, whose rows follow while a measurement goes on."""
    print(flush=True)
    print_cells(*names)
    print(f"|{'---|' * len(names)}", flush=True)


def print_cells(*cells: object) -> None:
    """Print a row of a table."""
    print(_line(list(map(str, cells))), flush=True)


def printed_tables(said: Iterable[str]) -> str:
    """Return the tables among printed lines, an empty line before each; all else is progress."""
    lines: list[str] = []
    for line in said:
        if not line.startswith("|"):
            continue
        if line.startswith("|---") and len(lines) > 1:
            lines.insert(-1, "")
        lines.append(line.rstrip())
    return "\n".join(lines)


def rate(per_second: float) -> str:
    """Return a rate in thousands or millions, three digits."""
    if per_second >= 1e6:
        return f"{significant(per_second / 1e6)} M"
    return f"{significant(per_second / 1e3)} k"


def significant(value: float) -> str:
    """Return ``value`` with three significant digits or all of its whole part, never as a power of ten."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def megabytes(size: float) -> str:
    """Return a size in bytes as millions of bytes."""
    return f"{size / 1e6:,.1f} MB"


def conditions(rounds: int) -> dict[str, str]:
    """Return machine, versions, date, commit and number of rounds, as the page shows them."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(REPOSITORY),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB memory",
        "speed": f"NumPy multiplies float32 matrices at {_matrix_gflops():.0f} GFLOP/s",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}, Java {_java()}",
        "packages": ", ".join(f"{package} {installed}" for package in PACKAGES if (installed := _version(package))),
        "rounds": f"median of {rounds}, interleaved, after one that does not count",
    }


def commit(folder: Path) -> str:
    """Return the commit that is checked out in ``folder``, and whether files differ from it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=, with changes", "--abbrev=10"],  # noqa: S607 - the user's own git
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown (not a git checkout)"
    return described.stdout.strip()


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    """Return the processor's name, with family and model: virtual machines often name only its make."""
    file = Path("/proc/cpuinfo")
    if file.is_file():
        lines = (line.partition(":") for line in file.read_text(encoding="utf-8").splitlines())
        facts = {name.strip(): value.strip() for name, _, value in lines}
        if name := facts.get("model name"):
            return f"{name} (family {facts.get('cpu family', 'unknown')}, model {facts.get('model', 'unknown')})"
    return platform.processor() or platform.machine()


def _matrix_gflops() -> float:
    """Return the speed of a large matrix product, so that pages of different machines can be told apart."""
    matrix = np.ones((_MATRIX_SIDE, _MATRIX_SIDE), np.float32)
    return 2 * _MATRIX_SIDE**3 / min(timeit.repeat(lambda: matrix @ matrix, number=1, repeat=5)) / 1e9


def _java() -> str:
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else "java"
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False).stderr
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    quoted = said.split('"')
    return quoted[1] if len(quoted) > 2 else "unknown"
