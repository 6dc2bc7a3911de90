"""The command: exit statuses, one line for what is wrong, and what it prints and writes at the end."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirrorspark.training import job, pipeline
from mirrorspark.training.configuration.config import ConfigError, RunConfig
from mirrorspark.training.configuration.recipe import RECIPE_FILE
from mirrorspark.training.driver.errors import TrainingFailedError, TrainingStoppedError
from mirrorspark.training.job.readiness.preflight import Check
from mirrorspark.training.protocol.outcomes.cause import Attempt, RankError
from mirrorspark.training.results.report.summary import Summary
from mirrorspark.training.run import EXIT_FAILED, EXIT_FINISHED, EXIT_USAGE, main

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in an empty folder; the command silences warnings for the rest of its process, so give them back."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        yield


OnSummary = Callable[[Summary], None]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[RunConfig]:
    """Let every run finish at once; return the configurations that were run."""
    configs: list[RunConfig] = []

    def run(config: RunConfig, on_summary: OnSummary, *, began: float) -> Summary:
        configs.append(config)
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        return Summary(status="finished", run_folder=str(folder), workers=config.worker_range.most, attempts=1)

    monkeypatch.setattr(pipeline, "run", run)
    return configs


def error_of_an_interrupt() -> Exception:
    """Return the error that py4j raises in the place of an interrupt."""
    error = RuntimeError("Gateway must be connected to send cancel cmd.")
    error.__context__ = KeyboardInterrupt()
    return error


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException, known: Summary | None = None) -> None:
    def run(config: RunConfig, on_summary: OnSummary, *, began: float) -> Summary:
        if known is not None:
            on_summary(known)
        raise error

    monkeypatch.setattr(pipeline, "run", run)


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--workers", "two"], ["workers", "two"]),
        (
            ["--workers", "3", "--global-batch-size=2048"],
            ["global_batch_size 2048 does not divide among 3 workers; use a multiple of 3"],
        ),
        (["--recipe", "flight"], ["recipe 'flight' is unknown"]),
        (["--recipe"], ["--recipe", "expected one argument"]),
        (["--no-such-flag"], ["unrecognized arguments: --no-such-flag"]),
        (["--model.width=3"], ["model 'multi_field' has no setting ['width']"]),
        (["--features.distance.kind=numbers"], ["feature 'distance': kind 'numbers' is unknown"]),
        (["--monitor=val_loss", "--mode=max"], ["mode 'max' does not fit monitor 'val_loss'; set mode to min"]),
        (["--summary", "."], ["summary . cannot be written (it is not a file); give another file"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_bad_usage_is_one_line_and_status_2_and_starts_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, runs: list[RunConfig], arguments: list[str], parts: list[str]
) -> None:
    assert main(arguments) == EXIT_USAGE == 2
    line = only_line(capsys)
    assert line.startswith("mirrorspark: ")
    assert all(part in line for part in parts), line
    assert runs == []
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_of_ones_own_with_a_mistake_is_bad_usage(
    capsys: pytest.CaptureFixture[str], recipe: Path, runs: list[RunConfig]
) -> None:
    knobs = yaml.safe_load((recipe / RECIPE_FILE).read_text())
    (recipe / RECIPE_FILE).write_text(yaml.safe_dump(knobs | {"epoch": 3}))
    assert main(["--recipe", str(recipe)]) == EXIT_USAGE
    assert "sets unknown fields ['epoch']" in only_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--recipe", "movielens"],
            "the recipe brings no data for the tables ['ratings']; give their folder as --data",
        ),
        (["--data", "nowhere"], "data folder nowhere does not exist; give the folder with the tables as --data"),
        (["--data", "."], "table 'flights' has no file in .; expected one of ['flights.parquet', 'flights.csv', "),
    ],
)
def test_data_that_is_not_given_or_not_there_is_bad_usage(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("mirrorspark.training.job.readiness.preflight.java_major_version", lambda: 17)
    assert main(arguments) == EXIT_USAGE
    assert only_line(capsys).startswith(f"mirrorspark: {message}")
    assert main([*arguments, "--dry-run"]) == EXIT_USAGE
    assert only_line(capsys).startswith(f"mirrorspark: {message}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--output", "file"], "output: file cannot be written (Not a directory)"),
        (["--tracking-uri", "http://no-such-host.invalid"], "tracking: http://no-such-host.invalid cannot be reached"),
    ],
)
def test_a_failed_check_is_one_line_and_status_1_before_spark_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], part: str
) -> None:
    monkeypatch.setattr("mirrorspark.training.job.readiness.preflight.java_major_version", lambda: 17)
    (tmp_path / "file").write_text("")
    assert main(arguments) == EXIT_FAILED == 1
    assert part in only_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_finished_run_prints_its_table_and_writes_the_summary_twice(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, runs: list[RunConfig]
) -> None:
    assert main(["--workers", "2", "--summary", "out/summary.json"]) == EXIT_FINISHED == 0
    assert [config.workers for config in runs] == [2]
    captured = capsys.readouterr()
    assert "run folder" in captured.out
    assert captured.err == ""
    document = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (document["status"], document["workers"]) == ("finished", 2)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == document


def test_a_failed_run_says_why_in_one_line_and_in_the_summary(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(monkeypatch, RuntimeError("http://ann:s3cret@host refused\n  because of that"))
    assert main(["--summary", "summary.json"]) == EXIT_FAILED
    assert only_line(capsys) == "mirrorspark: http://host refused because of that"
    document = json.loads((tmp_path / "summary.json").read_text())
    assert (document["status"], document["error"]) == ("failed", "http://host refused because of that")


OLD = '{"status": "finished", "run_id": "an older run"}\n'


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return the summary that an earlier run left."""
    (tmp_path / "summary.json").write_text(OLD)
    return tmp_path / "summary.json"


def test_the_summary_of_an_earlier_run_is_gone_before_the_work_begins(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[bool] = []

    def run(config: RunConfig, on_summary: OnSummary, *, began: float) -> Summary:
        there.append(old.exists())
        return Summary(status="finished", run_id="new")

    monkeypatch.setattr(pipeline, "run", run)
    assert main(["--summary", "summary.json"]) == EXIT_FINISHED
    assert there == [False]
    assert json.loads(old.read_text())["run_id"] == "new"
    assert list(old.parent.iterdir()) == [old]


@pytest.mark.parametrize(
    ("flags", "error", "status", "ending", "message"),
    [
        ([], KeyboardInterrupt(), 130, "stopped", "interrupted; the same command goes on from the last"),
        ([], error_of_an_interrupt(), 130, "stopped", "interrupted; the same command goes on from the last"),
        ([], TrainingStoppedError((), 7, "SIGINT"), 130, "stopped", "stopped at step 7 (SIGINT); the"),
        ([], TrainingStoppedError((), 1234, "SIGTERM"), EXIT_FAILED, "stopped", "stopped at step 1,234 (SIGTERM); the"),
        ([], ConfigError("no data"), EXIT_USAGE, "failed", "no data"),
        ([], RuntimeError("no luck"), EXIT_FAILED, "failed", "no luck"),
        (["--workers", "0"], None, EXIT_USAGE, "failed", "workers 0 begins below 1; use 1 or more"),
        (["--recipe", "flight"], None, EXIT_USAGE, "failed", "recipe 'flight' is unknown"),
    ],
    ids=[
        "interrupted",
        "interrupted in a call of Java",
        "stopped by Ctrl-C",
        "stopped",
        "configuration",
        "failure",
        "bad value",
        "bad recipe",
    ],
)
def test_every_way_out_replaces_the_summary_of_an_earlier_run(
    old: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    error: BaseException | None,
    status: int,
    ending: str,
    message: str,
) -> None:
    if error is not None:
        fail_with(monkeypatch, error)
    assert main([*flags, f"--summary={old}"]) == status
    document = json.loads(old.read_text())
    assert document["status"] == ending
    assert document["error"].startswith(message)
    assert document["run_id"] is None


def test_a_dry_run_leaves_the_summary_of_the_last_run(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "dry_run", lambda _: [])
    assert main(["--dry-run", "--summary", "summary.json"]) == EXIT_FINISHED
    assert old.read_text() == OLD


def test_the_summary_of_a_failed_run_holds_what_was_known_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("parity could not be computed")
    known = Summary(status="running", run_id="run-1", attempts=2, timings={"train": 3.0}, run_folder=str(tmp_path))
    fail_with(monkeypatch, error, known)
    assert main(["--summary", "out/s.json"]) == EXIT_FAILED
    document = json.loads((tmp_path / "out" / "s.json").read_text())
    assert (document["status"], document["error"]) == ("failed", "parity could not be computed")
    assert (document["run_id"], document["attempts"], document["timings"]) == ("run-1", 2, {"train": 3.0})
    assert json.loads((tmp_path / "summary.json").read_text()) == document


def test_a_summary_that_cannot_be_written_is_told_before_the_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, runs: list[RunConfig]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--summary", "file/summary.json"]) == EXIT_USAGE
    line = only_line(capsys)
    assert line.startswith("mirrorspark: summary file/summary.json cannot be written (")
    assert line.endswith("; give another file")
    assert runs == []


def test_a_device_is_never_replaced_by_a_summary(tmp_path: Path, runs: list[RunConfig]) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert main(["--summary", "pipe"]) == EXIT_USAGE
    assert main(["--workers", "0", "--summary", "pipe"]) == EXIT_USAGE
    assert (tmp_path / "pipe").is_fifo()
    assert runs == []


def test_a_summary_that_can_no_longer_be_written_at_the_end_is_a_line_and_status_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(config: RunConfig, on_summary: OnSummary, *, began: float) -> Summary:
        (tmp_path / "out" / "summary.json").mkdir(parents=True)
        return Summary(status="finished")

    monkeypatch.setattr(pipeline, "run", run)
    assert main(["--summary", "out/summary.json"]) == EXIT_FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "mirrorspark: summary out/summary.json cannot be written (it is not a file); status: finished"


def test_an_error_without_words_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, MemoryError())
    assert main([]) == EXIT_FAILED
    assert only_line(capsys) == "mirrorspark: MemoryError"


def test_the_failing_line_of_the_users_code_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = RankError(
        "user", 1, "ValueError", "shapes differ", 1.0, 'File "model.py", line 3\nValueError: shapes differ'
    )
    peer = RankError("peer", 0, "UnavailableError", "Socket closed", 0.5, "pages of another trace")
    fail_with(monkeypatch, TrainingFailedError((Attempt(1, None, (peer, fault), 0),)))
    assert main([]) == EXIT_FAILED
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        'File "model.py", line 3',
        "ValueError: shapes differ",
        "mirrorspark: training failed: rank 1: ValueError: shapes differ",
    ]


def test_a_lost_worker_needs_no_trace(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lost = RankError("lost", 1, "killed", "killed by signal SIGKILL", 1.0)
    fail_with(monkeypatch, TrainingFailedError((Attempt(1, None, (lost,), 0),)))
    assert main([]) == EXIT_FAILED
    assert only_line(capsys) == "mirrorspark: training failed: rank 1: killed by signal SIGKILL"


def test_the_whole_trace_is_shown_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(monkeypatch, RuntimeError("no luck"))
    assert main(["--verbose"]) == EXIT_FAILED
    assert "Traceback" in capsys.readouterr().err


def test_no_trace_shows_a_password(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, RuntimeError("http://ann:s3/cr@et@host refused"))
    assert main(["--verbose"]) == EXIT_FAILED
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "RuntimeError: http://host refused" in said
    assert "cr@et" not in said
    fault = RankError("user", 1, "ValueError", "no", 1.0, "ValueError: http://ann:s3cret@host")
    fail_with(monkeypatch, TrainingFailedError((Attempt(1, None, (fault,), 0),)))
    assert main([]) == EXIT_FAILED
    assert "s3cret" not in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    assert main([]) == 130
    assert only_line(capsys) == "mirrorspark: interrupted; the same command goes on from the last checkpoint"


@pytest.mark.parametrize(("passed", "status"), [(True, EXIT_FINISHED), (False, EXIT_FAILED)])
def test_a_dry_run_prints_plan_and_preflight_and_runs_nothing(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runs: list[RunConfig],
    passed: bool,
    status: int,
) -> None:
    checks = [Check("java", True, "17"), Check("slots", passed, "2 on local[2]")]
    monkeypatch.setattr(job, "dry_run", lambda _: checks)
    assert main(["--dry-run", "--epochs", "3", "--tracking-uri", "http://ann:s3cret@127.0.0.1:5000"]) == status
    out = capsys.readouterr().out
    plan, _, table = out.partition("\n\n")
    document: dict[str, Any] = yaml.safe_load(plan)
    assert (document["epochs"], document["recipe"]) == (3, "flights")
    assert document["tracking_uri"] == "http://127.0.0.1:5000"
    marks = {line.split()[1]: line.split()[0] for line in table.splitlines() if line}
    assert marks == {"java": "ok", "slots": "ok" if passed else "FAIL"}
    assert runs == []
    assert list(tmp_path.iterdir()) == []


def test_the_summary_is_written_although_the_output_is_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runs: list[RunConfig]
) -> None:
    """The output is closed as by `| head`, which has ended by then."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        assert main(["--workers", "2", "--summary", "summary.json"]) == EXIT_FINISHED
    for file in (tmp_path / "summary.json", tmp_path / "run" / "summary.json"):
        assert json.loads(file.read_text())["status"] == "finished"


@pytest.mark.process
def test_the_module_is_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mirrorspark.training.run", "--workers", "two"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == EXIT_USAGE
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
