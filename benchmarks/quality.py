"""All measurements of quality, one after the other: ``python -m benchmarks.quality FOLDER``, or ``make quality``.

FOLDER has the data sets. The output of each command goes to the terminal, and its tables to
``docs/benchmarks/quality.md``; ``docs/quality.md`` explains the figures and compares them with published ones.
``--only Gowalla Ratings`` measures two sections of the page again, and leaves the others as they are.
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import REPOSITORY, conditions, printed_tables

PAGE = REPOSITORY / "docs" / "benchmarks" / "quality.md"
# Where the sets are, in the commands.
DATA = "DATA"
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "Adult": (
        "quality_tables DATA/adult",
        "quality_tables DATA/adult --recipes ensemble --options \"{'members': 32}\" --refit",
    ),
    "Flights": ("quality_tables --set flights --recipes plain ensemble",),
    "Identifiers": ("quality_id_tables DATA/id_tables",),
    "Twelve tables": ("quality_twelve DATA",),
    "Several labels": ("quality_multi_label DATA",),
    "Ratings": ("quality_ratings DATA/ml_latest_small",),
    "Sequences": ("quality_sequences DATA/amazon_beauty_seq --every 3 --limit 395 --patience 8 --threads 2",),
    "Cold items": ("cold_items --data DATA/ml_latest_small",),
    "Classical recommenders": ("quality_recommenders --data DATA/ml_latest_small",),
    "Several models together": ("quality_hybrid --data DATA/ml_latest_small",),
    "Gowalla": (
        "quality_gowalla DATA/gowalla_lightgcn",
        "quality_gowalla DATA/gowalla_lightgcn --settings \"{'name': 'bspm', 'neighbours': 3000}\"",
    ),
}


@dataclass(frozen=True)
class Run:
    """A command that was run, its time, and the lines that it printed."""

    command: str
    seconds: float
    said: Sequence[str]


def run(command: str, folder: Path) -> Run:
    """Run a command, and show its output.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    arguments = [part.replace(DATA, str(folder)) for part in shlex.split(command)]
    begin, lines = time.monotonic(), []
    with subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{arguments[0]}", *arguments[1:]], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Run(command, time.monotonic() - begin, lines)


def section(runs: Sequence[Run], measured_on: Mapping[str, str]) -> str:
    """Return the text below the title of a section."""
    parts = []
    for one in runs:
        parts.append(f"`python -m benchmarks.{one.command}`, {one.seconds:.0f} s:")
        parts.append(printed_tables(one.said))
    parts.append("Measured: " + "; ".join(f"{key} {value}" for key, value in measured_on.items()) + ".")
    return "\n\n".join(parts)


def page(sections: Mapping[str, str]) -> str:
    """Return the page, of sections by title."""
    begin = (
        "# quality\n\nThe tables of `make quality`, as it printed them. [Quality](../quality.md) says what the figures "
        "mean, how they were chosen, and what others have published."
    )
    parts = [f"## {title}\n\n{sections[title]}" for title in COMMANDS if title in sections]
    return "\n\n".join([begin, *parts]) + "\n"


def sections_of(text: str) -> dict[str, str]:
    """Return the sections of a page by title."""
    _, *parts = text.split("\n## ")
    return {title: body.strip() for title, _, body in (part.partition("\n") for part in parts)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--output", type=Path, default=PAGE, help="the page (default: docs/benchmarks/quality.md)")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=[*COMMANDS], help="sections (default: all)")
    options = parser.parse_args(arguments)
    facts = {name: value for name, value in conditions(1).items() if name != "rounds"}
    sections = sections_of(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    for title in options.only:
        sections[title] = section([run(command, options.data) for command in COMMANDS[title]], facts)
        # An hour of figures must not be lost to an error in the last command.
        options.output.write_text(page(sections), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
