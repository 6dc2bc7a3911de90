"""The command: flags of its own and those of a run, one line for what is wrong, exit statuses."""

import argparse
import dataclasses
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from mirrorspark.training.commands import EXIT_FAILED, EXIT_FINISHED, EXIT_USAGE
from mirrorspark.training.configuration.config import ConfigError, RunConfig
from mirrorspark.training.sweep.command import _build_parser, main, read_options
from tests.unit.training.test_sweep_run import FakeEngine

SEARCH = ["--search", "learning_rate=log:1e-4:1e-1"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in an empty folder; the command silences warnings for the rest of its process, so give them back."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        yield


class UnreadyEngine(FakeEngine):
    """Raises before anything is trained."""

    def prepare(self, slots: int) -> str:
        assert self.error is not None
        raise self.error


def no_engine(config: RunConfig) -> Any:
    raise AssertionError("nothing may start")


def test_flags_of_a_sweep_stand_beside_those_of_a_run(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("epochs: uniform:2:4\nlearning_rate: uniform:0.1:0.2\n")
    options = read_options(
        [
            *("--recipe", str(recipe), "--workers", "2", *SEARCH, "--search-space", "space.yaml"),
            *("--trials", "7", "--timeout", "60", "--parallel", "2", "--max-failures", "3"),
            *("--sampler", "random", "--pruner", "hyperband", "--study", "night", "--seed=5", "--summary", "sum.json"),
        ]
    )
    assert options.config.workers == 2
    assert options.config.seed == 5
    assert options.space.distributions["learning_rate"] == FloatDistribution(1e-4, 1e-1, log=True)
    assert options.space.distributions["epochs"] == IntDistribution(2, 4)
    assert (options.trials, options.timeout_seconds, options.parallel, options.max_failures) == (7, 60.0, 2, 3)
    assert (options.sampler, options.pruner, options.study) == ("random", "hyperband", "night")
    assert options.arguments == ("--recipe", str(recipe), "--workers", "2", "--seed=5")
    assert options.epochs == 4
    # The trials have no part in the sweep's summary.
    assert (options.summary, options.config.summary) == ("sum.json", None)


def test_no_flag_of_a_sweep_hides_one_of_a_run() -> None:
    actions = [action for action in _build_parser()._actions if not isinstance(action, argparse._HelpAction)]
    # The summary is the sweep's, not that of its trials.
    assert {action.dest for action in actions} & {field.name for field in dataclasses.fields(RunConfig)} == {"summary"}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "nothing is searched; name a field and its values"),
        (["--search", "learning_rate=log:0:1"], "`low > 0` must hold"),
        ([*SEARCH, "--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        ([*SEARCH, "--trials", "0"], "--trials is 0; use 1 or more"),
        ([*SEARCH, "--trials", "many"], "argument --trials: invalid int value: 'many'"),
        ([*SEARCH, "--sampler", "grid"], "sampler grid cannot try every value of ['learning_rate']"),
        ([*SEARCH, "--pruner", "axe"], "argument --pruner: invalid choice: 'axe'"),
        ([*SEARCH, "--search-space", "none.yaml"], "search-space none.yaml cannot be read (No such file"),
        (
            [*SEARCH, "--workers", "3", "--global-batch-size=2048"],
            "global_batch_size 2048 does not divide among 3 workers",
        ),
    ],
)
def test_bad_usage_is_one_line_and_status_2_and_starts_nothing(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path, arguments: list[str], part: str
) -> None:
    assert main(["--recipe", str(recipe), *arguments], engine=no_engine) == EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mirrorspark: ")
    assert part in line
    assert list(tmp_path.iterdir()) == []


def test_a_finished_sweep_prints_its_table_and_writes_its_summary(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    arguments = ["--recipe", str(recipe), *SEARCH, "--trials=2", "--output=out", "--summary=sum.json"]
    assert main(arguments, engine=lambda config: FakeEngine()) == EXIT_FINISHED
    captured = capsys.readouterr()
    assert re.search(r"best: trial [01], val_auc 0\.\d{4} with learning_rate=", captured.out)
    assert "trial 0: begins: learning_rate=" in captured.err
    assert json.loads((tmp_path / "sum.json").read_text())["status"] == "finished"


def test_the_summary_of_a_sweep_that_fails_holds_its_trials_and_its_error(recipe: Path, tmp_path: Path) -> None:
    """A program that waits for the file must not wait for ever."""
    failing = FakeEngine(error=RuntimeError("no such layer"))
    arguments = ["--recipe", str(recipe), *SEARCH, "--trials=2", "--output=out", "--summary=sum.json"]
    assert main(arguments, engine=lambda config: failing) == EXIT_FAILED
    document = json.loads((tmp_path / "sum.json").read_text())
    assert document["status"] == "failed"
    assert "no such layer" in document["error"]
    assert [trial["state"] for trial in document["trials"]] == ["failed", "failed"]


@pytest.mark.parametrize(
    ("arguments", "error", "exit_status", "status"),
    [
        (["--no-such-flag"], OSError("not reached"), EXIT_USAGE, "failed"),
        ([], OSError("no Spark"), EXIT_FAILED, "failed"),
        ([], ConfigError("there is no such table"), EXIT_USAGE, "failed"),
        ([], KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_the_summary_of_a_sweep_that_does_not_begin_says_why(
    recipe: Path, tmp_path: Path, arguments: list[str], error: Exception, exit_status: int, status: str
) -> None:
    """Nor may it be that of an earlier sweep."""
    (tmp_path / "sum.json").write_text("that of yesterday")
    given = ["--recipe", str(recipe), *SEARCH, "--output=out", "--summary=sum.json", *arguments]
    assert main(given, engine=lambda config: UnreadyEngine(error=error)) == exit_status
    document = json.loads((tmp_path / "sum.json").read_text())
    assert document["status"] == status
    assert document["error"]


def test_a_summary_that_cannot_be_written_is_bad_usage_before_anything_starts(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "sum.json").mkdir()
    assert main(["--recipe", str(recipe), *SEARCH, "--summary=sum.json"], engine=no_engine) == EXIT_USAGE
    said = capsys.readouterr().err
    assert said == "mirrorspark: summary sum.json cannot be written (it is not a file); give another file\n"


@pytest.mark.parametrize(
    ("error", "line", "status"), [(OSError("no Spark"), "no Spark", 1), (KeyboardInterrupt(), "interrupted", 130)]
)
def test_a_sweep_that_cannot_begin_is_one_line(
    capsys: pytest.CaptureFixture[str], recipe: Path, error: Exception, line: str, status: int
) -> None:
    arguments = ["--recipe", str(recipe), *SEARCH, "--output=out"]
    assert main(arguments, engine=lambda config: UnreadyEngine(error=error)) == status
    assert f"mirrorspark: {line}" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--trials=2"], ["--no-such-flag"]])
def test_a_device_is_never_replaced_by_the_summary_of_a_sweep(
    recipe: Path, tmp_path: Path, arguments: list[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    given = ["--recipe", str(recipe), *SEARCH, "--summary=pipe", *arguments]
    assert main(given, engine=no_engine) == EXIT_USAGE
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_a_sweep_whose_output_is_closed_ends_well(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """L9: its reader may be `| head`."""
    monkeypatch.setattr("mirrorspark.training.commands.dry_run", lambda config: EXIT_FINISHED)
    read, write = os.pipe()
    os.close(read)
    given = ["--recipe", str(recipe), *SEARCH, "--trials=2", "--output=out", "--summary=sum.json", *arguments]
    with os.fdopen(write, "w") as closed, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", closed)
        assert main(given, engine=lambda config: FakeEngine()) == EXIT_FINISHED
    assert arguments or json.loads((tmp_path / "sum.json").read_text())["status"] == "finished"


def test_help_shows_how_a_space_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "choice:[64],[128,64]" in capsys.readouterr().out
