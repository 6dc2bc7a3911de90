"""Every benchmark runs on a tiny table, by the command that the documentation names, and writes its page."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.benchmark import Benchmark
from benchmarks.report import REPOSITORY, SKIPPED
from benchmarks.suite import SUITES

NAMES = [(suite, name) for suite, each in SUITES.items() for name in each.benchmarks]
# One that takes seconds; most others start Spark or servers, some of them several times.
QUICK = ("lookup_rows",)
SCALE = 0.002
# A run that is killed has to be there for a while; others need a whole batch, or tokens that occur ten times.
LARGER = {"starts": 0.05, "train_kills": 0.1, "train_models": 0.1, "growth": 0.02, "train_end_to_end": 0.02}
LARGER |= {"train_fleet": 0.02, "train_local_updates": 0.02, "score_parity": 0.02}
SECONDS = 900


@pytest.mark.parametrize(("suite", "name"), NAMES)
def test_it_goes_by_the_name_of_its_file_and_asks_a_question(suite: str, name: str) -> None:
    benchmark: Benchmark = importlib.import_module(f"benchmarks.{name}").BENCHMARK

    assert benchmark.name == name
    assert "?" in benchmark.question


def test_every_benchmark_of_the_folder_is_run_by_one_of_the_commands() -> None:
    with_command = {
        path.stem
        for path in (REPOSITORY / "benchmarks").glob("*.py")
        if "BENCHMARK = Benchmark(" in path.read_text(encoding="utf-8")
    }

    assert with_command == {name for _, name in NAMES}


@pytest.mark.process
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize(
    ("suite", "name"), [pytest.param(*each, marks=() if each[1] in QUICK else pytest.mark.full) for each in NAMES]
)
def test_a_tiny_run_writes_a_page(suite: str, name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"benchmarks.{suite}", "--only", name, "--rounds", "1"]
    command += ["--scale", str(LARGER.get(name, SCALE)), "--output", str(tmp_path), "--scratch", str(tmp_path / "work")]

    # Peers that take an environment of their own are left out: PyTorch alone is gigabytes.
    own = {**os.environ, "PIP_NO_INDEX": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=own, timeout=SECONDS, check=False, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr[-4000:]
    page = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
    assert SKIPPED in page or ("## Marks" in page) != (name == "lookup_rows")
    assert f"[{name}]({name}.md)" in (tmp_path / "index.md").read_text(encoding="utf-8")
