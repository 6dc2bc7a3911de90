"""M5-M8, M14-M16: a fleet is scored in microbatches; models fail on their own, and unfinished ones are resumed."""

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.models import infer_signature

from mirrorspark.callbacks.mlflow.tracking_store import store_client
from mirrorspark.data_pipelines.spark.tasks import WriteError
from mirrorspark.fleet.coefficients import fleet_from_coefficients
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.imports.packaged import fleet_from_models
from mirrorspark.fleet.runs import command, tables
from mirrorspark.fleet.runs import run as run_module
from mirrorspark.fleet.runs.claims import Claims
from mirrorspark.fleet.runs.failures import CheckedFleet, ModelFailure
from mirrorspark.fleet.runs.ledger import Claim, Ledger, LedgerError
from mirrorspark.fleet.runs.plan import RunPlan
from mirrorspark.fleet.runs.planning import command as planning
from mirrorspark.fleet.runs.planning.probe import plan_fleet
from mirrorspark.fleet.runs.progress import Progress
from mirrorspark.fleet.runs.report.call import fleet_report
from mirrorspark.fleet.runs.run import FleetRun, FleetRunError, resume_fleet, run_fleet
from mirrorspark.fleet.score import score_fleet
from mirrorspark.scoring import file_job
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.model.stored.consent import UntrustedModelError
from mirrorspark.scoring.package import package_model
from mirrorspark.storage.paths import StoragePath
from tests.unit.scoring.other_models import NAMES, logistic, save_logistic_onnx

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.timeout(300)

ROWS, MODELS = 1_200, 12
BAD = ("m2", "m5", "m7")
# Two groups, of 7 and 5 models, in sets of 4, on three shares of the rows.
SIZES: dict[str, Any] = {"models_per_microbatch": 4, "rows_per_microbatch": 400}
MICROBATCHES = 12

Begin = Callable[..., FleetRun]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    random = np.random.default_rng(3)
    columns = {f"c{number}": random.normal(size=ROWS) for number in range(3)}
    table = pa.table({"key": np.arange(ROWS), **columns, "state": ["CA", "NY"] * (ROWS // 2)})
    for number, part in enumerate((table.slice(0, 500), table.slice(500))):
        pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=100)
    return folder


def fleet_of(names: list[str], **coefficients: float) -> Fleet:
    terms = [(name, f"c{place % 3}", coefficients.get(name, 1.0 + place)) for place, name in enumerate(names)]
    models = pd.DataFrame(
        {"model": names, "group": ["spring" if number < 7 else "autumn" for number in range(len(names))]}
    )
    return fleet_from_coefficients(pd.DataFrame(terms, columns=["model", "column", "coefficient"]), models)


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return fleet_of([f"m{number}" for number in range(MODELS)])


@pytest.fixture
def begin(spark: "SparkSession", files: Path, fleet: Fleet) -> Begin:
    def call(output: Path, **others: Any) -> FleetRun:
        given = {"keys": "key", "layout": "long", "at_once": 1, **SIZES} | others
        return run_fleet(spark, given.pop("fleet", fleet), given.pop("paths", files), output, **given)

    return call


@pytest.fixture(scope="module")
def clean(spark: "SparkSession", files: Path, fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests of the files of an undisturbed run."""
    output = tmp_path_factory.mktemp("clean") / "scores"
    run = run_fleet(spark, fleet, files, output, keys="key", layout="long", **SIZES)
    assert (run.microbatches, run.scored, run.models, run.rows) == (MICROBATCHES, MICROBATCHES, MODELS, ROWS)
    return digests(output)


def digests(output: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a run's output, by its path."""
    found = [file for file in output.rglob("*") if file.is_file() and "_run" not in file.parts]
    return {str(file.relative_to(output)): hashlib.sha256(file.read_bytes()).hexdigest() for file in found}


def rows_of(table: Any, run: str, output: Path) -> list[dict[str, Any]]:
    with Ledger.open(output / "_run" / "ledger.db") as ledger:
        return ledger.rows(table, run)


def scores(folder: Path) -> list[dict[str, Any]]:
    rows = pq.read_table(folder, partitioning=None).to_pylist()
    return sorted(rows, key=lambda row: (row["model"], row["key"]))


def failing_writes(monkeypatch: pytest.MonkeyPatch, fails: Callable[[int], BaseException | None]) -> list[int]:
    """Let the Spark job of some microbatches fail; return the numbers of the jobs that were started."""
    started, write = list[int](), file_job.write_files

    def write_files(*arguments: Any, **others: Any) -> Any:
        started.append(len(started))
        if (error := fails(started[-1])) is not None:
            arguments[1].abort()
            raise error
        return write(*arguments, **others)

    monkeypatch.setattr(file_job, "write_files", write_files)
    return started


def test_a_run_gives_the_scores_of_score_fleet_and_records_every_microbatch(
    spark: "SparkSession", begin: Begin, fleet: Fleet, files: Path, clean: dict[str, str], tmp_path: Path
) -> None:
    run = begin(tmp_path / "scores", at_once=2)
    assert digests(tmp_path / "scores") == clean
    score_fleet(files, fleet, tmp_path / "at once", keys="key", layout="long", spark=spark)
    assert scores(tmp_path / "scores") == scores(tmp_path / "at once")
    read = spark.read.parquet(str(tmp_path / "scores"))
    counted = read.groupBy("group", "step", "rows").count().collect()
    assert len(counted) == MICROBATCHES
    assert {row["count"] for row in counted if row["step"] == 0} == {4 * 400}
    (row,) = rows_of(tables.RUNS, run.run, tmp_path / "scores")
    assert (row["state"], row["models"], row["microbatches"]) == ("finished", MODELS, MICROBATCHES)
    attempts = rows_of(tables.ATTEMPTS, run.run, tmp_path / "scores")
    assert [(one["microbatch"], one["attempt"], one["outcome"]) for one in attempts] == [
        (number, 1, "done") for number in range(MICROBATCHES)
    ]
    assert {one["rows"] for one in attempts} == {400}
    assert min(min(one["seconds"], one["bytes"], one["write_seconds"]) for one in attempts) > 0
    for one in attempts:
        by_model = json.loads(one["model_seconds"])
        assert len(by_model) in (1, 3, 4)
        assert min(by_model) > 0
        assert sum(by_model) < one["score_seconds"]
    assert {one["state"] for one in rows_of(tables.MICROBATCHES, run.run, tmp_path / "scores")} == {"done"}
    manifest = json.loads((tmp_path / "scores/group=spring/step=00001/rows=00002/_manifest.json").read_text())
    assert (manifest["models"], manifest["failed"]) == (3, [])
    for file in manifest["files"]:
        name = f"group=spring/step=00001/rows=00002/{file['path']}"
        assert file["sha256"] == clean[name]


@pytest.fixture
def models_of_which_three_are_bad(fleet: Fleet, tmp_path: Path) -> dict[str, Fleet | Path]:
    """A model without a column of the input, one whose coefficient is not a number, and one without a file."""
    models: dict[str, Fleet | Path] = {name: fleet.select([name]) for name in fleet.names}
    models["m2"] = fleet_from_coefficients(pa.table({"model": ["m2"], "column": ["absent"], "coefficient": [1.0]}))
    models["m5"] = tmp_path / "m5.csv"
    (tmp_path / "m5.csv").write_text("model,column,coefficient\nm5,c0,nan\n")
    models["m7"] = tmp_path / "m7.csv"
    return models


def test_three_bad_models_have_null_outputs_and_a_row_in_the_ledger(
    begin: Begin, models_of_which_three_are_bad: dict[str, Fleet | Path], clean: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "scores"
    run = begin(output, fleet=models_of_which_three_are_bad, failure_budget=0.25)
    assert run.failed_models == BAD
    begin(tmp_path / "clean")
    found, expected = scores(output), scores(tmp_path / "clean")
    assert [row for row in found if row["model"] not in BAD] == [row for row in expected if row["model"] not in BAD]
    bad = [row for row in found if row["model"] in BAD]
    assert len(bad) == len(BAD) * ROWS
    assert {row["score"] for row in bad} == {None}
    errors = rows_of(tables.ERRORS, run.run, output)
    assert {one["model"]: (one["stage"], one["error"], one["microbatch"]) for one in errors} == {
        "m2": ("columns", "ColumnError", -1),
        "m5": ("check", "FleetError", -1),
        "m7": ("load", "FileNotFoundError", -1),
    }
    assert "m7.csv" in next(one["traceback"] for one in errors if one["model"] == "m7")
    states = {one["model"]: one["state"] for one in rows_of(tables.MODELS, run.run, output)}
    assert {name for name, state in states.items() if state == "failed"} == {*BAD}


def test_a_report_has_speed_cost_failures_and_drift_as_tables_page_and_mlflow_run(
    begin: Begin, models_of_which_three_are_bad: dict[str, Fleet | Path], files: Path, tmp_path: Path
) -> None:
    former, output = tmp_path / "former", tmp_path / "scores"
    begin(former)
    moved = pq.read_table(files)
    moved = moved.set_column(1, "c0", pa.array(moved["c0"].to_numpy() + 3))
    pq.write_table(moved, tmp_path / "moved.parquet", row_group_size=100)
    given = {"fleet": models_of_which_three_are_bad, "failure_budget": 0.25, "paths": tmp_path / "moved.parquet"}
    run = begin(output, **given)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    store_client(store).create_experiment("fleets", (tmp_path / "artifacts").as_uri())
    shared = {"former": former, "experiment": "fleets", "tracking_uri": store}
    report = fleet_report(output, price_per_core_hour=0.36, **shared)
    totals = report.totals
    counts = ("rows", "models", "models_failed", "models_drifted", "microbatches_done", "inferences")
    # Of the models that read c0, m0, m3, m6 and m9, none is bad; m5, m2 and m7 now have no outputs.
    assert [totals[name] for name in counts] == [ROWS, MODELS, 3, 7, MICROBATCHES, ROWS * MODELS]
    # The rest of a task is what the machine gives to others meanwhile.
    spent = [totals[f"{step}_seconds"] for step in ("read", "score", "write")]
    assert min(spent) > 0
    assert sum(spent) <= totals["task_seconds"] < totals["wall_seconds"] * 16
    assert totals["cost"] == pytest.approx(totals["task_seconds"] * 0.0001)
    assert totals["cost_per_million"] == pytest.approx(totals["cost"] / (ROWS * MODELS) * 1e6)
    assert totals["inferences_per_core_second"] == pytest.approx(ROWS * MODELS / totals["task_seconds"])
    assert totals["skew_largest"] >= totals["skew_median"] >= 1
    models = {row["model"]: row for row in report.models.to_pylist()}
    assert {name for name, row in models.items() if row["state"] == "failed"} == {*BAD}
    assert models["m7"]["problem"].startswith("load: ")
    assert (models["m0"]["rows"], models["m0"]["nulls"], models["m2"]["nulls"]) == (ROWS, 0, ROWS)
    assert {name for name, row in models.items() if row["drifted"] == "large"} == {"m0", "m3", "m6", "m9", *BAD}
    assert models["m0"]["median"] == pytest.approx(float(np.median(moved["c0"])), rel=1 / 8)
    assert sum(row["core_seconds"] for row in models.values()) == pytest.approx(totals["task_seconds"])
    assert {row["core_seconds_from"] for row in models.values()} == {"measured"}
    microbatches = report.microbatches.to_pylist()
    assert len(microbatches) == MICROBATCHES
    assert {(row["rows"], row["attempts"], row["state"]) for row in microbatches} == {(400, 1, "done")}
    assert pq.read_table(output / "_run" / "report_models.parquet").to_pylist() == report.models.to_pylist()
    page = (output / "_run" / "report.html").read_text()
    assert all(text in page for text in (run.run, "m7.csv", "Drift", "cost per million", "<svg"))
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    client = store_client(store)
    fleet_report(output, **shared)  # the run of the first report gets the second one, too
    (logged,) = client.search_runs([client.get_experiment_by_name("fleets").experiment_id])
    assert logged.data.metrics["inferences_per_core_second"] == totals["inferences_per_core_second"]
    assert logged.data.tags["fleet.run"] == run.run
    names = {file.path for file in client.list_artifacts(logged.info.run_id)}
    assert names == {"report.html", "report_models.parquet", "report_microbatches.parquet"}


@pytest.mark.full
def test_a_report_of_an_unfinished_run_says_what_has_no_times(
    begin: Begin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scores"
    with pytest.MonkeyPatch.context() as patch:
        failing_writes(patch, lambda job: WriteError("no space left on device") if job in (1, 4) else None)
        with pytest.raises(FleetRunError, match="2 of the 12 microbatches"):
            begin(output)
    totals = fleet_report(output).totals
    assert [totals[name] for name in ("microbatches_done", "microbatches_timed", "attempts_not_done")] == [10, 10, 2]
    assert (totals["inferences"], "cost" in totals) == (ROWS * MODELS - (4 + 3) * 400, False)
    assert command.main(["report", str(output), "--price-per-core-hour", "-1"]) == command.EXIT_USAGE
    for arguments in (["report"], ["status"], ["status", "--watch"]):
        wrong = [*arguments, str(output), "--ledger", str(tmp_path / "leger.db")]
        assert command.main(wrong) == command.EXIT_FAILED
        assert "leger.db does not have fleet-" in capsys.readouterr().err
    assert not (tmp_path / "leger.db").exists()
    begin(tmp_path / "begun", begin_only=True)
    assert command.main(["report", str(tmp_path / "begun"), "--price-per-core-hour", "1"]) == command.EXIT_DONE
    assert "0 inferences/s/core" in capsys.readouterr().out
    assert command.main(["report", str(tmp_path / "none")]) == command.EXIT_USAGE


@pytest.mark.full
def test_more_bad_models_than_the_budget_end_the_run_before_it_begins(
    begin: Begin, models_of_which_three_are_bad: dict[str, Fleet | Path], tmp_path: Path
) -> None:
    output = tmp_path / "scores"
    message = (
        r"3 of the 12 models of fleet-\w+ have failed \('m\d', 'm\d', 'm\d'\), and failure_budget allows 10.0%; the "
        r"table fleet_errors of sqlite:.*ledger.db has each of them"
    )
    with pytest.raises(FleetRunError, match=message):
        begin(output, fleet=models_of_which_three_are_bad)
    with pytest.raises(FleetRunError, match="and fail_fast allows none"):
        begin(output, fleet=models_of_which_three_are_bad, failure_budget=1.0, fail_fast=True)
    assert digests(output) == {}
    # The output can be used when the models have been corrected.
    assert begin(output).failed_models == ()


def test_only_what_has_failed_is_resumed_and_the_result_is_that_of_a_clean_run(
    spark: "SparkSession", begin: Begin, clean: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "scores"
    with pytest.MonkeyPatch.context() as patch:
        started = failing_writes(patch, lambda job: WriteError("no space left on device") if job in (1, 4) else None)
        with pytest.raises(FleetRunError, match=r"2 of the 12 microbatches .* one because no space left on device"):
            begin(output)
        assert len(started) == MICROBATCHES
    assert command.main(["status", str(output), "--json"]) == command.EXIT_LEFT
    started = failing_writes(monkeypatch, lambda _: None)
    run = resume_fleet(spark, output)
    assert (len(started), run.scored, run.microbatches) == (2, 2, MICROBATCHES)
    assert digests(output) == clean
    attempts = rows_of(tables.ATTEMPTS, run.run, output)
    outcomes = {number: [one["outcome"] for one in attempts if one["microbatch"] == number] for number in (0, 1, 4)}
    assert outcomes == {0: ["done"], 1: ["failed", "done"], 4: ["failed", "done"]}
    errors = rows_of(tables.ERRORS, run.run, output)
    assert [(one["microbatch"], one["attempt"], one["stage"], one["message"]) for one in errors] == [
        (number, 1, "write", "no space left on device") for number in (1, 4)
    ]
    assert command.main(["status", str(output)]) == command.EXIT_DONE


@pytest.mark.full
def test_a_run_whose_disk_is_full_goes_on_once_there_is_room(
    spark: "SparkSession", begin: Begin, clean: dict[str, str], tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M10: no file is half-written, neither in the output nor in the ledger next to it."""
    output, ballast = tiny_disk / "scores", tiny_disk / "ballast"
    begin(output, begin_only=True)
    ballast.write_bytes(bytes(shutil.disk_usage(tiny_disk).free - 80 * 1024))
    impatient = replace(run_module.DEFAULT_TIMES, patience_seconds=1.0, poll_seconds=0.1)
    monkeypatch.setattr(run_module, "DEFAULT_TIMES", impatient)
    with pytest.raises((FleetRunError, LedgerError), match=r"No space left on device|disk is full"):
        resume_fleet(spark, output, lease_seconds=5)
    assert len(list(output.glob("group=*/step=*/rows=*/_manifest.json"))) < MICROBATCHES
    ballast.unlink()
    resume_fleet(spark, output)
    assert digests(output) == clean
    assert command.main(["status", str(output)]) == command.EXIT_DONE


@pytest.mark.full
def test_a_run_that_is_only_begun_is_scored_by_drivers_of_some_microbatches_each(
    spark: "SparkSession", begin: Begin, clean: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scores"
    run = begin(output, begin_only=True)
    assert (run.scored, run.microbatches, digests(output)) == (0, MICROBATCHES, {})
    assert command.main(["status", str(output), "--json"]) == command.EXIT_LEFT
    assert json.loads(capsys.readouterr().out)["left"] == [*range(MICROBATCHES)]
    assert resume_fleet(spark, output, microbatches=[3, 7]).scored == 2
    assert resume_fleet(spark, output, microbatches=[3]).scored == 0
    (row,) = rows_of(tables.RUNS, run.run, output)
    assert (row["state"], row["ended"]) == ("running", None)
    with pytest.raises(ScoringError, match=rf"{run.run} has no microbatch 12; its numbers are 0 to 11"):
        resume_fleet(spark, output, microbatches=[0, 12])
    with pytest.MonkeyPatch.context() as patch:
        failing_writes(patch, lambda _: WriteError("the store is offline"))
        with pytest.raises(FleetRunError, match="1 of the 12 microbatches"):
            resume_fleet(spark, output, microbatches=[5])
    rest = [number for number in range(MICROBATCHES) if number not in (3, 7)]
    assert resume_fleet(spark, output, microbatches=rest).scored == len(rest)
    (row,) = rows_of(tables.RUNS, run.run, output)
    assert row["state"] == "finished"
    assert digests(output) == clean


@pytest.mark.full
def test_a_model_that_raises_an_error_in_a_task_has_null_outputs_in_that_microbatch(
    spark: "SparkSession", begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, write = tmp_path / "scores", file_job.write_files
    failure = asdict(ModelFailure("m5", "score", "ZeroDivisionError", "division by zero", "Traceback", 1))
    reports = [{"failures": [failure | {"partition": 1}]}, {"failures": []}, {"failures": [failure | {"partition": 0}]}]
    started = []

    def write_files(*arguments: Any, **others: Any) -> Any:
        """Report a failed model in place of the tasks of the microbatch that has number 4 in its first attempt."""
        started.append(arguments[1].target.uri)
        if started.count(started[-1]) == 1 and len(started) == 5:
            arguments[1].abort()
            others["seal"]([], reports)
        return write(*arguments, **others)

    monkeypatch.setattr(file_job, "write_files", write_files)
    run = begin(output, failure_budget=0.1)
    assert (run.failed_models, run.scored, len(started)) == (("m5",), MICROBATCHES, MICROBATCHES + 1)
    assert started[4] == started[5] == str(output / "group=spring/step=00001/rows=00001")
    rows = scores(output)
    assert {row["key"] for row in rows if row["score"] is None} == {*range(400, 800)}
    assert {row["model"] for row in rows if row["score"] is None} == {"m5"}
    (error,) = rows_of(tables.ERRORS, run.run, output)
    assert (error["microbatch"], error["model"], error["stage"], error["partition"]) == (4, "m5", "score", 0)
    (failed,) = json.loads((Path(started[4]) / "_manifest.json").read_text())["failed"]
    assert failed == {"model": "m5", "stage": "score", "error": "ZeroDivisionError", "message": "division by zero"} | {
        "partition": 0
    }
    # The ledger is lost; the manifests still have what it had of models.
    (output / "_run" / "ledger.db").unlink()
    assert resume_fleet(spark, output).failed_models == ("m5",)
    (error,) = rows_of(tables.ERRORS, run.run, output)
    assert (error["microbatch"], error["attempt"], error["model"], error["partition"]) == (4, 1, "m5", 0)
    assert [one["model"] for one in rows_of(tables.MODELS, run.run, output) if one["state"] == "failed"] == ["m5"]
    started.clear()
    with pytest.raises(FleetRunError, match=r"1 of the 12 models of .* \('m5'\), and failure_budget allows 5.0%"):
        begin(tmp_path / "other", failure_budget=0.05)
    assert len(digests(tmp_path / "other")) > 0


RAISES_IN_SOME_ROWS = """
class Model:
    def predict(self, rows):
        if (rows["c0"] > 3.0).any():
            raise ArithmeticError("c0 is above what I was made for")
        return rows["c0"].to_numpy() * 2

def _load_pyfunc(path):
    return Model()
"""


@pytest.mark.filterwarnings("ignore:.*An input example was not provided:UserWarning")
def test_models_of_other_libraries_are_scored_in_the_same_pass_and_fail_alone(
    begin: Begin, fleet: Fleet, files: Path, tmp_path: Path
) -> None:
    """M8, M17, S12: a model of ONNX, and one of Python code that raises an error for some rows."""
    (tmp_path / "raising_model.py").write_text(RAISES_IN_SOME_ROWS)
    raising = tmp_path / "raising"
    mlflow.pyfunc.save_model(
        str(raising),
        loader_module="raising_model",
        code_paths=[str(tmp_path / "raising_model.py")],
        signature=infer_signature(pd.DataFrame({"c0": [0.5]}), np.array([1.0])),
        pip_requirements=[],
    )
    onnx = package_model(save_logistic_onnx(tmp_path / "m.onnx"), tmp_path / "box", columns=["c0", "c1", "c2"])
    packages = fleet_from_models({"onnx": onnx, "raising": raising}, group="spring")
    both = fleet.select(["m0", "m8"]).with_models(packages)
    given: dict[str, Any] = {"fleet": both, "layout": "packed"}
    with pytest.raises(UntrustedModelError, match="'raising' of the fleet brings Python code"):
        begin(tmp_path / "refused", **given)
    assert not (tmp_path / "refused").exists()
    run = begin(tmp_path / "scores", trust=True, failure_budget=0.5, **given)
    assert run.failed_models == ("raising",)
    errors = rows_of(tables.ERRORS, run.run, tmp_path / "scores")
    assert {(one["model"], one["stage"], one["error"]) for one in errors} == {("raising", "score", "ArithmeticError")}
    read = pq.read_table(files, partitioning=None).to_pandas().set_index("key")
    found = pq.read_table(tmp_path / "scores", partitioning=None).to_pandas()
    spring = pd.DataFrame(found[found["score"].map(len) == 3].set_index("key")["score"].to_dict()).T
    rows = read.loc[spring.index]
    boxes = pa.table({name: rows[column].to_numpy() for name, column in zip(NAMES, ["c0", "c1", "c2"], strict=True)})
    np.testing.assert_allclose(spring[0], rows["c0"], rtol=1e-6)
    np.testing.assert_allclose(spring[1], logistic(boxes), atol=1e-6)
    # The shares of 400 rows in which one is above it have no scores of this model; the others have.
    is_above = (read["c0"] > 3.0).groupby(np.arange(ROWS) // 400).transform("any").loc[spring.index]
    assert is_above.nunique() == 2
    assert (spring[2].isna() == is_above).all()
    np.testing.assert_allclose(spring[2][~is_above], 2 * rows["c0"][~is_above], rtol=1e-6)


@pytest.mark.full
def test_models_that_fail_in_another_driver_count_for_the_result_and_the_budget(
    spark: "SparkSession",
    begin: Begin,
    clean: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    output, write, others = tmp_path / "scores", file_job.write_files, list[tuple[int, str]]()

    def write_files(*arguments: Any, **given: Any) -> Any:
        """Let another driver score a microbatch, in which a model fails, before this one goes on."""
        if others:
            number, model = others.pop()
            failure = asdict(ModelFailure(model, "score", "ZeroDivisionError", "division by zero", "Traceback", 1))
            monkeypatch.setattr(file_job, "write_files", partial(failing, {"failures": [failure | {"partition": 0}]}))
            resume_fleet(spark, output, microbatches=[number], failure_budget=1.0)
        return write(*arguments, **given)

    def failing(report: dict[str, Any], *arguments: Any, **given: Any) -> Any:
        monkeypatch.setattr(file_job, "write_files", write_files)
        arguments[1].abort()
        given["seal"]([], [report])

    begin(output, begin_only=True)
    monkeypatch.setattr(file_job, "write_files", write_files)
    others.append((4, "m5"))
    caplog.clear()
    assert resume_fleet(spark, output, microbatches=[0], at_once=1).failed_models == ("m5",)
    # The other driver has warned, and this one.
    assert len([one for one in caplog.messages if "1 of 12 models" in one and "('m5')" in one]) == 2
    others.append((8, "m8"))
    with pytest.raises(FleetRunError, match=r"2 of the 12 models .* \('m5', 'm8'\), and failure_budget allows 10.0%"):
        resume_fleet(spark, output, at_once=1)
    assert digests(output).keys() == clean.keys()
    run = resume_fleet(spark, output, failure_budget=0.2)
    assert (run.scored, run.failed_models) == (0, ("m5", "m8"))


@pytest.mark.full
def test_three_failures_in_a_row_or_one_with_fail_fast_end_the_run(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = failing_writes(monkeypatch, lambda job: WriteError("the store is offline") if job else None)
    with pytest.raises(FleetRunError, match=r"11 of the 12 microbatches .*3 have failed one after the other"):
        begin(tmp_path / "scores")
    assert len(started) == 4
    started.clear()
    with pytest.raises(FleetRunError, match=r"11 of the 12 microbatches .*fail_fast ends the run"):
        begin(tmp_path / "other", fail_fast=True)
    assert len(started) == 2


@pytest.mark.full
def test_a_driver_that_ends_in_the_middle_and_a_part_that_is_deleted_leave_no_trace(
    spark: "SparkSession", begin: Begin, clean: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "scores"
    with pytest.MonkeyPatch.context() as patch:
        failing_writes(patch, lambda job: KeyboardInterrupt() if job == 5 else None)
        with pytest.raises(KeyboardInterrupt):
            begin(output)
    # One file was published by another driver that had no chance to record it, and one was damaged.
    done = [name for name in digests(output) if name.endswith(".parquet")]
    (output / done[0]).unlink()
    (output / "_run" / "ledger.db").unlink()
    run = resume_fleet(spark, output)
    assert run.scored == MICROBATCHES - 5 + 1
    assert digests(output) == clean
    assert {one["state"] for one in rows_of(tables.MICROBATCHES, run.run, output)} == {"done"}


def test_a_stale_driver_is_fenced_and_the_next_owners_outputs_stay(
    begin: Begin, clean: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, confirm = tmp_path / "scores", Claims.confirm
    fenced = []

    def paused(claims: Claims, claim: Claim) -> None:
        """Let another driver take the first microbatch before it is published, and give it up again."""
        if not fenced:
            fenced.append(claim)
            with Ledger.open(output / "_run" / "ledger.db", lambda _: 1e12) as other:
                (row,) = other.rows(tables.RUNS, claims._run)
                taken, _ = other.take(row["run_id"], "other", 1, -1e12, ())
                assert taken == [Claim(claim.number, claim.fence + 1)]
        confirm(claims, claim)

    monkeypatch.setattr(Claims, "confirm", paused)
    run = begin(output)
    assert run.scored == MICROBATCHES
    attempts = [one for one in rows_of(tables.ATTEMPTS, run.run, output) if one["microbatch"] == fenced[0].number]
    # The second attempt was the other driver's, which has left no entry.
    assert [(one["attempt"], one["outcome"]) for one in attempts] == [(1, "superseded"), (3, "done")]
    assert digests(output) == clean


@pytest.mark.full
def test_a_run_that_another_driver_begins_at_the_same_time_is_shared_or_left_alone(
    begin: Begin, clean: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, others = CheckedFleet.of, list[dict[str, Any]]()

    def meanwhile(given: Any) -> CheckedFleet:
        """Let another driver run after this one has found the output empty."""
        if others:
            begin(**others.pop())
        return check(given)

    monkeypatch.setattr(CheckedFleet, "of", meanwhile)
    others.append({"output": tmp_path / "scores"})
    assert begin(tmp_path / "scores").scored == 0
    assert digests(tmp_path / "scores") == clean
    others.append({"output": tmp_path / "other", "groups": ["autumn"]})
    with pytest.raises(ScoringError, match=r"other has a run, fleet-.*; resume it, or choose another output"):
        begin(tmp_path / "other")
    assert len(RunPlan.load(StoragePath.of(tmp_path / "other")).models) == 5


def test_what_does_not_fit_is_refused_before_a_task_starts(
    spark: "SparkSession", begin: Begin, fleet: Fleet, files: Path, tmp_path: Path
) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"keys": "id"}, r"key columns \['id'\] are missing"),
        ({"groups": ["sprign"]}, r"the fleet has no group 'sprign' \(did you mean 'spring'\?\)"),
        ({"groups": []}, "groups is empty"),
        ({"failure_budget": 2}, "failure_budget 2 is not a share of the models"),
        ({"at_once": 0}, "at_once 0 is not above 0"),
        ({"layout": "tall"}, "layout 'tall' is unknown"),
        ({"paths": tmp_path / "none"}, "nothing is at"),
        ({"fleet": tmp_path / "none.csv"}, "none.csv"),
        ({"fleet": {}}, "a fleet needs at least one model"),
    ]
    for others, message in refused:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            begin(tmp_path / "scores", **others)
    with pytest.raises(ScoringError, match=r"the output .* lies in the input"):
        begin(files / "scores")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(ScoringError, match="has 1 other files or folders; name a new folder"):
        begin(tmp_path / "full")
    assert not (tmp_path / "scores").exists()
    with pytest.raises(FileNotFoundError, match="has no run of a fleet"):
        resume_fleet(spark, tmp_path / "scores")
    run = begin(tmp_path / "scores", groups=["autumn"])
    assert (run.models, run.microbatches) == (5, 6)
    with pytest.raises(ScoringError, match=rf"has a run, {run.run}; resume it"):
        begin(tmp_path / "scores")
    changed = fleet_of([*fleet.names], m8=7.0)
    with pytest.raises(ScoringError, match=r"models have changed since fleet-\w+ began: 'm8';"):
        resume_fleet(spark, tmp_path / "scores", fleet=changed)


def test_a_table_without_rows_is_published_with_its_columns(begin: Begin, files: Path, tmp_path: Path) -> None:
    pq.write_table(pq.read_table(files).slice(0, 0), tmp_path / "empty.parquet")
    run = begin(tmp_path / "scores", paths=tmp_path / "empty.parquet", models_per_microbatch=100)
    assert (run.rows, run.microbatches) == (0, 2)
    assert pq.read_table(tmp_path / "scores", partitioning=None).column_names == ["key", "model", "score"]


def test_a_model_over_its_time_has_null_outputs_and_a_resumed_run_keeps_the_limit(
    spark: "SparkSession", begin: Begin, tmp_path: Path
) -> None:
    # No model is so fast.
    message = r"7 of the 12 models of .* have failed .*, and failure_budget allows 10.0%"
    with pytest.raises(FleetRunError, match=message):
        begin(tmp_path / "scores", model_seconds=1e-12, models_per_microbatch=12)
    with pytest.raises(FleetRunError, match="have failed"):
        resume_fleet(spark, tmp_path / "scores")
    run = resume_fleet(spark, tmp_path / "scores", failure_budget=1.0)
    assert len(run.failed_models) == MODELS
    assert {row["score"] for row in scores(tmp_path / "scores")} == {None}
    errors = rows_of(tables.ERRORS, run.run, tmp_path / "scores")
    assert {(one["stage"], one["error"]) for one in errors} == {("score", "ModelTimeError")}


@pytest.mark.full
def test_a_model_over_its_memory_has_null_outputs_and_the_others_are_scored(
    begin: Begin, fleet: Fleet, clean: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ScoringError, match="model_bytes 0 is not above 0"):
        begin(tmp_path / "scores", model_bytes=0)
    (row,) = fleet.select(["m0"]).table.to_pylist()
    row |= {"model": "wide", "layer_sizes": [1, 500, 1], "weights": [0.0] * 1_501, "activations": ["relu"]}
    wide = Fleet.of(pa.Table.from_pylist([row | {"group": "winter"}], fleet.table.schema))
    run = begin(tmp_path / "scores", fleet=fleet.with_models(wide), model_bytes=2**20)
    assert run.failed_models == ("wide",)
    (error,) = rows_of(tables.ERRORS, run.run, tmp_path / "scores")
    assert (error["stage"], error["error"], error["microbatch"]) == ("check", "ModelMemoryError", -1)
    assert "4,116,600 bytes of memory, and model_bytes allows 1,048,576" in error["message"]
    found, expected = scores(tmp_path / "scores"), ROWS * MODELS
    assert [row["score"] is None for row in found] == [False] * expected + [True] * ROWS


def test_a_run_is_watched_while_it_goes_on(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, statuses, threads = tmp_path / "scores", list[int](), list[threading.Thread]()
    watch = ["status", str(output), "--watch", "--every-seconds", "0.05"]
    write, has_seen = file_job.write_files, threading.Event()

    def write_files(*arguments: Any, **others: Any) -> Any:
        if not threads:
            threads.append(threading.Thread(target=lambda: statuses.append(command.main(watch))))
            threads[0].start()
            assert has_seen.wait(120)
        return write(*arguments, **others)

    def seen(*arguments: Any) -> Any:
        found = progress_of(*arguments)
        has_seen.set()
        return found

    progress_of = Progress.of
    monkeypatch.setattr(Progress, "of", seen)
    monkeypatch.setattr(file_job, "write_files", write_files)
    begin(output)
    threads[0].join(120)
    assert statuses == [command.EXIT_DONE]
    found = capsys.readouterr()
    lines = found.err.splitlines()
    assert lines[0].startswith("0 of 12 microbatches done, ")
    assert re.fullmatch(r"12 of 12 microbatches done, 0 running, 0 failed; .* inferences/s, 0:00:00 left", lines[-1])
    assert "12 of 12 microbatches published" in found.out


def test_a_plan_is_measured_on_a_sample_and_a_run_takes_its_sizes(
    spark: "SparkSession", begin: Begin, fleet: Fleet, files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given: dict[str, Any] = {"keys": "key", "layout": "long", "models_per_microbatch": 4, "seconds": 0.2}
    plan = plan_fleet(spark, fleet, files, cores=2, **given)
    assert (plan.workload.rows, plan.workload.models, plan.workload.row_groups) == (
        ROWS,
        {"spring": 7, "autumn": 5},
        12,
    )
    # Key and three columns of 64 bits that no encoding makes smaller, in adjacent chunks.
    assert 24 < plan.workload.read_bytes_per_row < 100
    assert 1 <= plan.workload.gets_per_row_group < 2
    assert plan.throughput.inferences_per_second > 1_000
    assert plan.throughput.worker_bytes > 2**20
    assert 0 < plan.throughput.microbatch_seconds < 60
    assert 0 < plan.throughput.start_seconds < 60
    assert plan.hours * 3600 > plan.throughput.start_seconds
    assert (plan.steps, plan.microbatches, plan.rows_per_microbatch) == (4, 4, ROWS)
    assert plan.with_hours(plan.hours).hours <= plan.hours
    bad = fleet_from_coefficients(
        pd.DataFrame([("m2", "nowhere", 1.0)], columns=["model", "column", "coefficient"]), group="spring"
    )
    whole = plan_fleet(spark, fleet.with_models(bad), files, hours=15, rows=620_000_000, models=4_500, **given)
    assert "have failed" not in caplog.text  # a run will say so, and have a ledger with the reasons
    assert whole.hours <= 15
    assert (sum(whole.workload.models.values()), whole.workload.row_groups) == (4_500, 6_200_000)
    run = begin(tmp_path / "scores", rows_per_microbatch=plan.rows_per_microbatch, prefixes=2, at_once=plan.at_once)
    assert run.microbatches == plan.microbatches
    begin(tmp_path / "without")
    assert scores(tmp_path / "scores") == scores(tmp_path / "without")
    read = spark.read.parquet(str(tmp_path / "scores"))
    assert read.select("prefix").distinct().count() == 2
    assert resume_fleet(spark, tmp_path / "scores").scored == 0


def test_a_plan_that_cannot_be_made_is_refused(
    spark: "SparkSession", fleet: Fleet, files: Path, tmp_path: Path
) -> None:
    for others, message in (
        ({}, "give either hours or cores"),
        ({"hours": 1, "cores": 1}, "give either hours or cores"),
        ({"cores": 2, "seconds": 0}, "seconds 0 is not above 0"),
        ({"cores": 2, "keys": "id"}, r"key columns \['id'\] are missing"),
        ({"cores": 2, "groups": ["sprign"]}, "did you mean 'spring'"),
        ({"cores": 0, "keys": "id"}, "cores 0 is not above 0"),  # before the input is looked at
        ({"hours": 0, "keys": "id"}, "hours 0 is not above 0"),
        ({"cores": 2, "keys": "id", "rows": 0}, "rows 0 is not above 0"),
        ({"cores": 2, "keys": "id", "prefixes": 0}, "prefixes 0 is not above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            plan_fleet(spark, fleet, files, **({"keys": "key"} | others))


@pytest.mark.full
def test_microbatches_at_a_time_are_in_pools_of_their_own(
    spark: "SparkSession", begin: Begin, clean: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools, together, write = [], threading.Barrier(2), file_job.write_files

    def write_files(*arguments: Any, **others: Any) -> Any:
        pools.append(spark.sparkContext.getLocalProperty("spark.scheduler.pool"))
        if len(pools) <= 2:
            together.wait(120)  # breaks unless two are begun before one ends
        return write(*arguments, **others)

    monkeypatch.setattr(file_job, "write_files", write_files)
    begin(tmp_path / "scores", at_once=2)
    assert digests(tmp_path / "scores") == clean
    assert len({*pools}) == 2


@pytest.mark.full
def test_the_plan_of_the_command_has_a_run_for_each_cluster_which_together_are_the_whole(
    spark: "SparkSession",
    fleet: Fleet,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(planning, "open_command_session", lambda *_, **__: spark)
    monkeypatch.setattr(command, "open_command_session", lambda *_, **__: spark)
    monkeypatch.setattr(type(spark), "stop", lambda _: None)
    fleet.save(tmp_path / "fleet")
    plan = ["plan", "--fleet", str(tmp_path / "fleet"), "--input", str(files), "--keys", "key", "--layout", "long"]
    plan += ["--cores", "2", "--seconds", "0.1", "--price-per-core-hour", "0.05"]
    runs = ["--clusters", "2", "--output", str(tmp_path / "scores"), "--submissions", str(tmp_path / "runs.json")]
    runs += ["--ledger", str(tmp_path / "ledger.db")]
    assert command.main([*plan, *runs]) == 0
    said = capsys.readouterr().out
    assert "1,200 rows x 12 models = 14,400 inferences" in said
    assert "divided among 2 clusters: 12 models, 4 cores" in said
    assert "--conf spark.scheduler.mode=FAIR" in said
    written = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert [one["groups"] for one in written] == [{"spring": 7}, {"autumn": 5}]
    for one in written:
        assert one["command"][:3] == ["mirrorspark", "fleet", "run"]
        assert command.main(one["command"][2:]) == command.EXIT_DONE
    with Ledger.open(tmp_path / "ledger.db") as book:
        for number in (1, 2):
            run = RunPlan.load(StoragePath.of(tmp_path / "scores" / f"cluster-{number}")).run
            assert {row["state"] for row in book.rows(tables.MICROBATCHES, run)} == {"done"}
    parts = [row for number in (1, 2) for row in scores(tmp_path / "scores" / f"cluster-{number}")]
    score_fleet(files, fleet, tmp_path / "at once", keys="key", layout="long", spark=spark)
    assert sorted(parts, key=lambda row: (row["model"], row["key"])) == scores(tmp_path / "at once")
    assert command.main([*plan, "--clusters", "2"]) == command.EXIT_USAGE
    assert command.main([*plan, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["cores"] == 2


def test_the_command_scores_and_tells_what_is_wrong_by_its_status(
    spark: "SparkSession",
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "open_command_session", lambda *_, **__: spark)
    monkeypatch.setattr(type(spark), "stop", lambda _: None)
    (tmp_path / "fleet.csv").write_text("model,column,coefficient\na,c0,1\nb,c9,1\n")
    run = ["run", "--fleet", str(tmp_path / "fleet.csv"), "--input", str(files), "--output", str(tmp_path / "scores")]
    assert command.main([*run, "--keys", "id"]) == command.EXIT_USAGE
    assert command.main([*run, "--keys", "key"]) == command.EXIT_FAILED
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("mirrorspark: key columns ['id'] are missing")
    assert "1 of the 2 models of fleet-" in said[1]
    assert len(said) == 2
    assert command.main([*run, "--keys", "key", "--failure-budget", "0.5", "--json"]) == command.EXIT_DONE
    assert json.loads(capsys.readouterr().out)["failed_models"] == ["b"]
    assert command.main(["resume", str(tmp_path / "scores")]) == command.EXIT_DONE
    assert "0 of 1 microbatches" in capsys.readouterr().out
    assert command.main(["resume", str(tmp_path / "scores"), "--ledger", "mysql://host/db"]) == command.EXIT_FAILED
