"""The pipeline of a recipe on Spark: a fault in each stage, the weeks after, and the sandbox (L7, L9, L11)."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mirrorspark.lifecycle.pipeline import weekly
from mirrorspark.lifecycle.pipeline.command import main
from mirrorspark.lifecycle.pipeline.record import ChangedSettingsError, PipelineRecord
from mirrorspark.lifecycle.pipeline.run import folder_of_date, run_pipeline, sandbox
from mirrorspark.lifecycle.pipeline.settings import PipelineSettings
from mirrorspark.lifecycle.pipeline.stages import Facts, StageFailedError, StageRecord, run_stages
from mirrorspark.lifecycle.promotion.promotions import CHAMPION, PREVIOUS, audit_trail
from mirrorspark.lifecycle.promotion.registry import MLflowRegistry
from mirrorspark.serving.precomputed.store import PrecomputedScores
from mirrorspark.training.configuration.config import RunConfig
from tests.cluster.test_bad_input import write_data, write_job
from tests.cluster.test_retraining import KNOBS, days_rows

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# With ``--full`` a fault in each stage is twelve runs, and the weeks after it are whole ones.
pytestmark = pytest.mark.timeout(600)

MANY_FROM_BERN = (*("Bern",) * 5, "Rome", "Oslo", "Bonn")
STAGES = ("ingest", "data", "convert", "train", "evaluate", "parity", "gate", "deploy", "smoke", "promote", "notify")
ASKED: Mapping[str, Any] = {
    "slices": ["city"],
    "gates": {
        "thresholds": [{"metric": "auc", "at_least": 0.75}, {"metric": "auc", "gain_at_least": -0.05}],
        "min_examples": 20,
    },
    "precompute": {"sql": "SELECT id, age, city FROM people", "key": "id"},
    "alerts": ["log"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = write_job(tmp_path_factory.mktemp("weekly"), **KNOBS)
    write_data(job, days_rows("Oslo", "Rome", "Bonn", "Bern"))
    (job / "recipe" / "pipeline.yaml").write_text(json.dumps(ASKED), encoding="utf-8")  # JSON is YAML
    return job


def config(folder: Path, run_date: str) -> RunConfig:
    places = {name: str(folder / name) for name in ("data", "output")}
    return RunConfig.from_recipe(str(folder / "recipe"), **places, run_date=run_date, workers=1, name="buyers")


def registry_of(folder: Path) -> MLflowRegistry:
    return MLflowRegistry(f"sqlite:///{folder / 'output' / 'mlflow.db'}")


@pytest.fixture(scope="module")
def faulty(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Return the stages that fail once: those whose work would show if it were done twice, with ``--full`` all."""
    return STAGES if request.config.getoption("full") else ("train", "promote")


@pytest.fixture(scope="module")
def first(spark: "SparkSession", folder: Path, faulty: tuple[str, ...]) -> PipelineRecord:
    """Return the record of a first week in which stages have failed once, after their work was done."""
    failed: list[str] = []
    settings = PipelineSettings.of({**ASKED, "cache_table": True}, "here")

    def breaking(name: str) -> Any:
        work = getattr(weekly.WeeklyPipeline, f"_{name}")

        def once(self: weekly.WeeklyPipeline, found: Mapping[str, Facts]) -> Facts:
            facts: Facts = work(self, found)
            if name not in failed:
                failed.append(name)
                # By this or the stage before it, with which the command went on.
                assert len(self.cached) == (name not in ("ingest", "gate", "notify"))
                raise OSError(f"the machine of '{name}' was lost")
            return facts

        return once

    with pytest.MonkeyPatch.context() as patch:
        for name in faulty:
            patch.setattr(weekly.WeeklyPipeline, f"_{name}", breaking(name))
        for name in faulty:
            expected = f"stage '{name}' has failed: the machine of '{name}' was lost"
            with pytest.raises(StageFailedError, match=expected):
                run_pipeline(config(folder, "2026-01-03"), settings)
            is_published = (folder / "output" / "pipelines" / "buyers" / "scores.db").exists()
            assert is_published is (name in ("promote", "notify"))
        assert failed == list(faulty)
        return run_pipeline(config(folder, "2026-01-03"), settings)


def test_after_a_fault_in_a_stage_the_same_call_goes_on_there(
    first: PipelineRecord, faulty: tuple[str, ...], folder: Path
) -> None:
    found = {name: (one.state, one.attempts) for name, one in first.stages.items()}
    assert found == {name: ("passed", 1 + (name in faulty)) for name in STAGES}
    registry = registry_of(folder)
    # Trained twice would be two versions; promoted twice, two entries.
    assert (registry.alias("buyers", CHAMPION), registry.alias("buyers", PREVIOUS)) == ("1", None)
    assert [entry["why"] for entry in audit_trail("buyers", "1", registry)] == ["pipeline of 2026-01-03"]
    with pytest.raises(Exception, match="no version 2"):
        registry.tags("buyers", "2")
    with PrecomputedScores.open(folder / "output" / "pipelines" / "buyers" / "scores.db") as scores:
        row = scores.get(5)
        assert row is not None
        assert row["model_version"] == "buyers/1"
        assert 0 < row["score"] < 1


def test_a_date_that_has_finished_is_not_run_again(first: PipelineRecord, folder: Path) -> None:
    lines: list[str] = []
    dates = folder / "output" / "pipelines" / "buyers"
    pages = (dates / "2026-01-03" / "pipeline.html", dates / "index.html")
    for page in pages:  # as if the command had been killed once the record had said that it has finished
        page.unlink()

    assert run_pipeline(config(folder, "2026-01-03"), say=lines.append) == first

    assert "Version 1 is the champion." in pages[0].read_text(encoding="utf-8")
    assert "finished" in pages[1].read_text(encoding="utf-8")
    assert lines == ["buyers of 2026-01-03 has finished before"]
    settings = PipelineSettings.of({**ASKED, "min_rows": 2}, "here")
    with pytest.raises(ChangedSettingsError, match=r"was begun with pipeline\.min_rows=1, not 2"):
        run_pipeline(config(folder, "2026-01-03"), settings)


@pytest.mark.full
def test_a_week_later_the_champion_is_where_training_begins_and_what_it_is_compared_with(
    first: PipelineRecord,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Week 2 has many more rows from one city, which is reported; week 3's labels are noise, which stops it.

    Week 3 has no training: its candidate is week 1's. ``test_a_date_that_was_stopped_is_run_anew`` trains on noise.
    """
    write_data(folder, days_rows(*MANY_FROM_BERN))
    command = ["run", f"--recipe={folder / 'recipe'}", f"--data={folder / 'data'}", f"--output={folder / 'output'}"]
    command += ["--workers=1", "--name=buyers"]

    assert main([*command, "--run-date=2026-01-10"]) == 0

    said = capsys.readouterr()
    assert re.search(r"champion +models:/buyers/2\nbefore +1\nmetrics +auc 0\.", said.out)
    assert "warning    columns have drifted since the former date: city (index 0." in said.out
    assert "buyers/2 is the champion of 2026-01-10, with warnings" in caplog.text
    dates = folder / "output" / "pipelines" / "buyers"
    record = PipelineRecord.load(dates / "2026-01-10")
    assert record is not None
    assert record.stages["train"].facts["warm_start"]["model"] == "models:/buyers/1"
    assert record.stages["evaluate"].facts["champion"] == "1"
    page = (dates / "2026-01-10" / "pipeline.html").read_text(encoding="utf-8")
    assert "Version 2 is the champion." in page
    assert "Since 2026-01-03" in page
    for link in re.findall('<a href="([^"]+)"', page):
        assert (dates / "2026-01-10" / link).is_file(), link

    caplog.clear()
    write_data(folder, noise())
    monkeypatch.setattr(weekly.WeeklyPipeline, "_train", lambda *_: first.stages["train"].facts)

    assert main([*command, "--run-date=2026-01-17"]) == 1

    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("mirrorspark: stage 'gate' has failed: auc in overall is 0.")
    assert message.endswith("With other data or settings, begin the date anew: --from ingest.")
    assert "buyers of 2026-01-17: stage 'gate' has failed" in caplog.text
    assert "The champion is unchanged. With other data or settings" in caplog.text
    assert registry_of(folder).alias("buyers", CHAMPION) == "2"
    assert "Stopped at &#39;gate&#39;" in (dates / "2026-01-17" / "pipeline.html").read_text(encoding="utf-8")
    history = (dates / "index.html").read_text(encoding="utf-8")
    assert '<td><span class="error">stopped at gate</span></td>' in history
    assert set(re.findall('<a href="([^"]+)"', history)) == {
        f"{path.name}/pipeline.html" for path in dates.iterdir() if path.is_dir()
    }


def noise() -> list[str]:
    """Return rows whose labels follow from nothing."""
    rows = [row.split(",") for row in days_rows(*MANY_FROM_BERN)]
    return [f"{n},{age},{city},{n * 7919 % 13 % 2},{part}" for n, (_, age, city, _, part) in enumerate(rows)]


@pytest.mark.full
def test_a_date_that_was_stopped_is_run_anew_with_other_data_and_settings(first: PipelineRecord, folder: Path) -> None:
    write_data(folder, noise())
    with pytest.raises(StageFailedError, match="stage 'gate' has failed"):
        run_pipeline(config(folder, "2026-02-07"))
    write_data(folder, days_rows("Oslo", "Rome", "Bonn", "Bern"))

    settings = PipelineSettings.of({**ASKED, "min_rows": 2}, "here")
    record = run_pipeline(config(folder, "2026-02-07"), settings, again_from="ingest")

    assert record.settings["pipeline"]["min_rows"] == 2
    assert record.stages["gate"].attempts == 1
    assert registry_of(folder).alias("buyers", CHAMPION) == record.stages["train"].facts["version"]


def test_single_rows_that_differ_end_it_before_the_gate(folder: Path, tmp_path: Path) -> None:
    report = {"rows": 9, "max": 0.25, "mean": 0.1, "p99": 0.2, "passed": False}
    evidence = tmp_path / "validation.json"
    evidence.write_text(json.dumps({"parity": {"single rows and table": report}}), encoding="utf-8")
    facts = {"evaluate": {"evidence": str(evidence)}, "train": {"parity": report | {"passed": True}}}
    records = {name: StageRecord("passed", 0.0, facts=of) for name, of in facts.items()}
    pipeline = weekly.WeeklyPipeline(config(folder, "2026-01-03"), PipelineSettings(), tmp_path, "sqlite://")
    begun: list[str] = []

    with pytest.raises(StageFailedError, match=r"single rows and table: scores differ by up to 2\.5e-01") as raised:
        run_stages(pipeline.stages()[5:], records, lambda now: begun.extend(now))

    assert (raised.value.stage, raised.value.again_from) == ("parity", "evaluate")
    assert "gate" not in begun


def test_too_few_rows_end_it_before_anything_is_converted_and_other_files_make_no_half_of_a_date(
    first: PipelineRecord, folder: Path
) -> None:
    write_data(folder, days_rows("Oslo", "Rome", "Bonn", "Bern")[:300])

    with pytest.raises(StageFailedError, match="has 300 rows, -67% against the 900 of 2026-01-03"):
        run_pipeline(config(folder, "2026-01-04"))

    write_data(folder, days_rows("Oslo", "Rome", "Bonn", "Bern")[:400])
    with pytest.raises(StageFailedError, match="source files of 2026-01-04 are not those with which") as raised:
        run_pipeline(config(folder, "2026-01-04"))
    assert raised.value.again_from == "ingest"
    with pytest.raises(StageFailedError, match="has 400 rows"):
        run_pipeline(config(folder, "2026-01-04"), again_from="ingest")


def test_a_sandbox_keeps_what_it_trains_to_itself_and_changes_no_file_before_it_runs(folder: Path) -> None:
    given = replace(
        config(folder, "2026-01-31"), register="better", baseline="hist_gradient_boosting", checkpoints="s3://weekly/a"
    )
    record = folder / "output" / "sandbox" / "pipelines" / "buyers" / "2026-01-31" / "record.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}", encoding="utf-8")

    small, _ = sandbox(given, PipelineSettings(), 0.5)

    assert (small.register, small.baseline, small.checkpoints) == ("model", "none", None)
    assert folder_of_date(small) == record.parent
    assert record.read_text(encoding="utf-8") == "{}"


@pytest.mark.full
def test_the_sandbox_tries_a_share_of_the_rows_and_touches_nothing_else(
    spark: "SparkSession", folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(folder, days_rows("Oslo", "Rome", "Bonn", "Bern"))
    output, own = folder / "output", folder / "output" / "sandbox"

    def files() -> dict[Path, int]:
        found = (path for path in output.rglob("*") if path.is_file() and own not in path.parents)
        return {path: path.stat().st_mtime_ns for path in found}

    known = files()
    command = ["run", f"--recipe={folder / 'recipe'}", f"--data={folder / 'data'}", f"--output={folder / 'output'}"]

    assert main([*command, "--run-date=2026-01-31", "--sample=0.5", "--workers=4"]) == 0

    assert re.search(r"champion +models:/recipe/1\n", capsys.readouterr().out)
    record = PipelineRecord.load(own / "pipelines" / "recipe" / "2026-01-31")
    assert record is not None
    assert 350 < record.stages["data"].facts["rows"] < 550
    assert files() == known


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "a pipeline runs for a date; give run_date, 2026-01-31 say"),
        (["--run-date=2026-01-03", "--from=smok"], "there is no stage 'smok'; use one of ['ingest', "),
        (["--run-date=2026-01-03", "--alert=pager"], "alert target 'pager' is unknown"),
        (["--run-date=2026-01-03", "--sample=2"], "sample is 2; give the share of the rows"),
        (["--run-date=2026-01-03", "--settings=nowhere.yaml"], "there is no file nowhere.yaml"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_runs(
    folder: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", f"--recipe={folder / 'recipe'}", f"--data={folder / 'data'}", f"--output={folder / 'output'}"]

    assert main([*command, *flags]) == 2

    assert message in capsys.readouterr().err
