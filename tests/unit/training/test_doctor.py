"""L17, pain 6: the doctor's command line; the findings of the checks are tested with them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.sql import SparkSession

from mirrorspark import spark_session
from mirrorspark.training.entry_points import doctor
from mirrorspark.training.entry_points.doctor import EXIT_FAILED, EXIT_HEALTHY, EXIT_USAGE, main
from mirrorspark.training.job.readiness import preflight
from mirrorspark.training.job.readiness.checks import Check, warning

REPOSITORY = Path(__file__).resolve().parents[3]

Plant = Callable[..., dict[str, Any]]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Plant:
    """Return a function that sets what the checks find, and gives what they were asked."""
    monkeypatch.chdir(tmp_path)

    def prepare(
        driver: list[Check], cluster: list[Check] | None = None, session: Exception | None = None
    ) -> dict[str, Any]:
        asked: dict[str, Any] = {"stopped": 0}

        def stop() -> None:
            asked["stopped"] += 1

        def open_session(master: str | None, workers: int, **_: Any) -> Any:
            asked["session"] = (master, workers)
            if session is not None:
                raise session
            return SimpleNamespace(stop=stop, sparkContext=SimpleNamespace(master="local[2]"))

        def check_driver(output: Path, uri: str, master: str | None) -> list[Check]:
            asked["driver"] = (output, uri, master)
            return driver

        def check_cluster(_: Any, workers: int, output: Path, **rest: Any) -> list[Check]:
            asked["cluster"] = (workers, output, rest)
            return cluster or []

        monkeypatch.setattr(preflight, "check_driver", check_driver)
        monkeypatch.setattr(preflight, "check_cluster", check_cluster)
        monkeypatch.setattr(spark_session, "open_session", open_session)
        monkeypatch.setattr(SparkSession, "getActiveSession", lambda: asked.get("active"))
        return asked

    return prepare


def test_healthy_machines_are_a_table_and_status_0(plant: Plant, capsys: pytest.CaptureFixture[str]) -> None:
    asked = plant([Check("java", True, "17")], [Check("slots", True, "2"), warning("clocks", "2 s apart")])
    assert main(["--master", "spark://a:1", "--workers", "3", "--tracking-uri", "http://b"]) == EXIT_HEALTHY
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["ok   java          17", "ok   slots         2", "warn clocks        2 s apart"]
    assert lines[3] == (
        "ok   scoring       classic Spark: models reach the tasks from this machine's disk, and counters come back by "
        "accumulators"
    )
    assert lines[4].startswith("ok   strategy      ring sums gradients on CPUs")
    assert lines[-1].startswith("training can run here, 1 to look at (")
    assert asked["driver"] == (Path("mirrorspark-output"), "http://b", "spark://a:1")
    assert asked["session"] == ("spark://a:1", 3)
    assert asked["cluster"][2] == {"checkpoints": None, "gpus_per_worker": 0, "asks_local": True}
    assert asked["stopped"] == 1


def test_a_failed_check_is_status_1_and_a_json_document_tells_all(plant: Plant, tmp_path: Path) -> None:
    plant([Check("java", True, "17")], [Check("slots", False, "too few", values={"slots": 1})])
    file = tmp_path / "answers.json"
    assert main(["--json", str(file), "--tracking-uri", "http://b"]) == EXIT_FAILED
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["passed"] is False
    assert [check["status"] for check in document["checks"]] == ["ok", "FAIL", "ok", "ok"]
    assert document["checks"][1]["values"] == {"slots": 1}


def test_no_session_is_started_where_the_driver_is_not_well(plant: Plant, capsys: pytest.CaptureFixture[str]) -> None:
    asked = plant([Check("java", False, "there is none"), Check("output", True, "out")])
    assert main(["--tracking-uri", "http://b"]) == EXIT_FAILED
    assert "session" not in asked
    assert "1 of 2 checks failed; no session was asked (" in capsys.readouterr().out


def test_a_session_that_does_not_start_is_a_failed_check(plant: Plant, capsys: pytest.CaptureFixture[str]) -> None:
    error = spark_session.AnotherSessionError("master is a, but a Spark session on b is active; stop it")
    plant([Check("java", True, "17")], session=error)
    assert main(["--tracking-uri", "http://b"]) == EXIT_FAILED
    assert "FAIL session       cannot be started: master is a, but a Spark session on b" in capsys.readouterr().out


def test_a_session_of_somebody_else_is_left_running(plant: Plant) -> None:
    asked = plant([Check("java", True, "17")], [Check("slots", True, "2")])
    asked["active"] = object()
    assert main(["--tracking-uri", "http://b"]) == EXIT_HEALTHY
    assert asked["stopped"] == 0


@pytest.mark.parametrize(
    "arguments", [["--workers", "0"], ["--workers", "two"], ["--output", "s3://bucket"], ["--nonsense"]]
)
def test_bad_usage_is_status_2_and_looks_at_nothing(plant: Plant, arguments: list[str]) -> None:
    asked = plant([])
    assert main(arguments) == EXIT_USAGE
    assert asked == {"stopped": 0}


def test_answers_that_cannot_be_written_are_told(plant: Plant, capsys: pytest.CaptureFixture[str]) -> None:
    plant([Check("java", True, "17")])
    assert main(["--json", "nowhere/answers.json", "--tracking-uri", "http://b"]) == EXIT_USAGE
    assert "json nowhere/answers.json cannot be written (No such file" in capsys.readouterr().err


def test_an_interrupted_doctor_says_so(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant([])

    def interrupt(*_: Any) -> list[Check]:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupt)
    assert main([]) == 130


@pytest.mark.process
def test_help_needs_none_of_the_heavy_packages() -> None:
    program = (
        "import sys; from mirrorspark.training.entry_points.doctor import main; status = main(['--help'])\n"
        "heavy = {'tensorflow', 'mlflow', 'pyspark'} & set(sys.modules)\n"
        "sys.exit(status or (f'imports {heavy}' if heavy else 0))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--checkpoints" in done.stdout
    assert done.stdout.startswith("usage: mirrorspark doctor ")
    assert "`" not in done.stdout
