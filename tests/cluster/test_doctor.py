"""L17, pains 6, 11 and 12: the doctor on a real session: one barrier job asks every slot."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from mirrorspark.storage.paths import StoragePath
from mirrorspark.training.entry_points.doctor import EXIT_FAILED, EXIT_HEALTHY, main
from mirrorspark.training.job.readiness import executor_checks


def test_doctor_finds_a_local_session_healthy_and_measures_its_all_reduce(
    spark: SparkSession, s3_bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "answers.json"
    bucket, _, options = s3_bucket.partition("?")
    checkpoints = f"s3://{bucket}/checkpoints?{options}"
    arguments = [f"--output={tmp_path / 'output'}", f"--checkpoints={checkpoints}", f"--json={answers}"]
    begin = time.monotonic()
    assert main(["--workers=2", *arguments]) == EXIT_HEALTHY, capsys.readouterr().out
    assert time.monotonic() - begin < 60
    document = json.loads(answers.read_text(encoding="utf-8"))
    found = {check["name"]: check for check in document["checks"]}
    assert {"slots", "executors", "shared output", "checkpoints", "ports", "reach", "events", "clocks"} <= set(found)
    assert 0 < found["all-reduce"]["values"]["latency_seconds"] < 1
    assert found["all-reduce"]["values"]["bytes_per_second"] > 1e6
    assert StoragePath.of(checkpoints).files() == []
    assert {path.name for path in tmp_path.iterdir()} == {"answers.json"}
    # The session is the tests', and goes on.
    assert spark.range(3).count() == 3


def test_doctor_says_at_once_that_a_session_is_too_small(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = time.monotonic()
    assert main(["--workers=3", f"--output={tmp_path / 'output'}"]) == EXIT_FAILED
    assert time.monotonic() - begin < 60
    assert "FAIL slots         local[2] has 2 task slots for 3 workers" in capsys.readouterr().out


@pytest.mark.full
def test_clocks_are_compared_to_within_a_round_trip_by_files_too(spark: SparkSession, tmp_path: Path) -> None:
    """Workers and driver have one clock here."""
    checks = executor_checks.check_executors(spark, 2, 17, {"--output": StoragePath.of(tmp_path)}, events="folder")
    found = {check.name: check for check in checks}
    assert found["clocks"].passed, found["clocks"].detail
    assert 0 < found["clocks"].values["seconds"] < found["events"].values["folder_seconds"] + 0.01


def test_a_job_that_hangs_is_cancelled_and_told(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(_: object) -> Callable[[Iterator[object]], Iterator[object]]:
        def task(rows: Iterator[object]) -> Iterator[object]:
            time.sleep(100)  # what is tested is that nobody waits for this
            return rows

        return task

    monkeypatch.setattr(executor_checks, "portable", hang)
    monkeypatch.setattr(executor_checks, "JOB_SECONDS", 1.0)
    begin = time.monotonic()
    checks = executor_checks.check_executors(spark, 2, 17, {"--output": StoragePath.of(tmp_path)})
    assert time.monotonic() - begin < 60
    assert [(check.name, check.status) for check in checks] == [("executors", "FAIL")]
    assert checks[0].detail.startswith("did not answer within 1 s")
    assert list(tmp_path.iterdir()) == []
    assert spark.range(3).count() == 3
