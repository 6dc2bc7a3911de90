"""T7: a delivery that was cut off goes on with what it has exported and registered."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mlflow
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure
from mlflow.tracking import fluent

from mirrorspark.models.calibration import Calibration
from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.configuration.tasks import DEFAULT_BOOSTING as BASELINE
from mirrorspark.training.job.program import Cluster
from mirrorspark.training.job.training_job import TrainingJob
from mirrorspark.training.protocol.outcomes.cause import Attempt
from mirrorspark.training.results import alias, delivery, kept_result
from mirrorspark.training.results import export as export_module
from mirrorspark.training.results.evaluation.evaluate_run import BaselineComparison
from mirrorspark.training.results.evaluation.explanation import EXPLANATION_FILE, Explanation
from mirrorspark.training.results.evaluation.model_choice import BLEND, NETWORK, OTHERS_FOLDER, Choice
from mirrorspark.training.results.export_plan import ExportPlan, ExportResult
from mirrorspark.training.results.predictions import EVALUATED_SPLITS
from mirrorspark.training.results.report import each_baseline
from mirrorspark.training.run_records.live.view import LiveView
from mirrorspark.training.run_records.opened_run import OpenRun
from mirrorspark.training.run_records.run_folder import RunFolder
from tests.unit.callbacks.committed_files import publish_files

ATTEMPTS = (Attempt(1, 2, (), 0, 20, 2),)


class FakeTracked:
    """Knows its run, and records its calls."""

    uri = "sqlite:///mlflow.db"
    registry_uri = uri

    page = "http://mlflow:5000/#/experiments/1/runs/run-1"

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.described: list[tuple[str, ...]] = []
        self.tags: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.is_users = False

    def require_run_id(self) -> str:
        return "run-1"

    def require_server(self) -> str:
        return self.require_run_id()

    def log_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags

    def log_figure(self, figure: Any, file: Path) -> None:
        file.parent.mkdir(exist_ok=True)
        figure.savefig(file, dpi=20)

    def log_model_metrics(self, model_uri: str, metrics: dict[str, float], step: int) -> None:
        self.metrics |= metrics

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics |= metrics

    def log_file(self, file: Path) -> None:
        self.texts[file.name] = file.read_text()

    def describe_model(self, *description: str) -> None:
        self.described.append(description)


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def job(new_config: Callable[..., RunConfig], tmp_path: Path, lines: list[str]) -> TrainingJob:
    """A job whose training is over: two epochs, of which the second is the better one."""
    folder = RunFolder(tmp_path, "identity", None)
    for epoch in (1, 2):
        metrics = {"val_auc": 0.6 + epoch / 10}
        files = {"ckpt.index": f"epoch {epoch}"}
        publish_files(folder.checkpoints, files, step=10 * epoch, epoch=epoch, metrics=metrics)
    view = LiveView(epochs=2, is_interactive=False, write=lines.append)
    run = OpenRun(folder, cast(Any, FakeTracked()), view)
    manifest = SimpleNamespace(splits=["test"], rows=lambda split: 2, findings=())
    spec = new_config().spec
    session = SimpleNamespace(conf=SimpleNamespace(get=lambda name, default: default))
    dataset = SimpleNamespace(path=tmp_path / "dataset", steps=lambda split, rows: 10, spec=spec, manifest=manifest)
    config = new_config(output=str(tmp_path), global_batch_size=64)
    job = TrainingJob(cast(Any, dataset), config, Cluster(cast(Any, session), lambda: 1), run)
    for epoch in (1, 2):
        logs = {"loss": 1 / epoch, "val_auc": 0.6 + epoch / 10}
        job.keep_epoch({"event": "epoch_end", "rank": 0, "epoch": epoch, "logs": logs, "examples_per_second": 100.0})
    return job


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[ExportPlan]:
    """Let every export register a version of its own; return their plans."""
    done: list[ExportPlan] = []

    def export(plan: ExportPlan, **_: Any) -> ExportResult:
        done.append(plan)
        Path(plan.predictions).mkdir(exist_ok=True)
        for split in EVALUATED_SPLITS:
            pq.write_table(pa.table({"score": [0.1, 0.9]}), Path(plan.predictions) / f"{split}.parquet")
        return ExportResult(f"models:/m-{len(done)}", str(len(done)))

    monkeypatch.setattr(export_module, "export", export)
    return done


def test_the_best_epoch_is_exported_and_judged(
    job: TrainingJob, exports: list[ExportPlan], monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    apart = {"auc": {"difference": 0.1, "low": 0.05, "high": 0.15}}
    compared = {"name": "popularity", "metrics": {"auc": 0.5}, "intervals": {}}
    compared |= {"others": [{"name": "ease", "metrics": {"auc": 0.6}, "intervals": apart}]}
    monkeypatch.setattr(
        delivery.evaluate_run, "compare_binary", lambda *_: BaselineComparison({"test": {"auc": 0.7}}, compared, {})
    )
    trained = delivery.deliver(job, ATTEMPTS)
    assert [Path(plan.checkpoint).name for plan in exports] == ["step-00000020"]
    assert (trained.version_uri, trained.examples_per_second) == ("models:/rides/1", 100.0)
    assert trained.predictions["test"].num_rows == 2
    # The first baseline's metrics have the same names in every run.
    logged = {"test_auc": 0.7, "baseline_auc": 0.5, "ease_auc": 0.6}
    logged |= {"difference_ease_auc": 0.1, "difference_ease_auc_low": 0.05, "difference_ease_auc_high": 0.15}
    assert cast(Any, job.tracked).metrics == logged
    assert "registered as models:/rides/1" in lines[0]
    assert "compared with popularity, ease" in lines[1]
    assert trained.run_page == FakeTracked.page


@pytest.mark.parametrize(
    ("register", "baseline", "has_alias"),
    [("model", True, False), ("model", False, False), ("always", True, True), ("always", False, True)],
)
def test_a_model_below_its_baseline_or_the_base_rate_gets_an_alias_only_if_asked(
    job: TrainingJob,
    exports: list[ExportPlan],
    monkeypatch: pytest.MonkeyPatch,
    lines: list[str],
    register: Any,
    baseline: bool,
    has_alias: bool,
) -> None:
    apart = {"auc": {"difference": -0.1, "low": -0.15, "high": -0.05}}
    compared = {"name": "popularity" if baseline else "base_rate", "metrics": {"auc": 0.8}, "intervals": apart}
    sides = (compared, {}) if baseline else ({}, compared)
    verdict = BaselineComparison({"test": {"auc": 0.7}}, sides[0], {}, sides[1])
    monkeypatch.setattr(delivery.evaluate_run, "compare_binary", lambda *_: verdict)
    job.config = dataclasses.replace(job.config, register=register)
    trained = delivery.deliver(job, ATTEMPTS)
    aliases: list[tuple[str, ...]] = []
    cast(Any, job.tracked).name_version = lambda *named: aliases.append(named)
    alias.name_version(job, trained)
    assert aliases == ([("rides", "1", "challenger")] if has_alias else [])
    assert ("--register always" in lines[-1]) is not has_alias
    better = "popularity" if baseline else "the base rate"
    assert has_alias or f"no alias, because {better} is better in AUC: improve" in lines[-1]
    kept_result.keep_delivery(trained, job.folder)
    recalled = kept_result.recall_delivery(job.folder, "store")
    assert (recalled.withheld, recalled.verdict.compared) == (trained.withheld, compared)


def test_the_version_is_named_after_its_run_with_tags_and_a_card(
    job: TrainingJob, exports: list[ExportPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """L6: the description of a model in MLflow's pages."""
    monkeypatch.setattr(
        delivery.evaluate_run, "compare_binary", lambda *_: BaselineComparison({"test": {"auc": 0.7}}, {}, {})
    )
    delivery.deliver(job, ATTEMPTS)
    assert exports[0].model_name == job.folder.path.name
    tags = {"recipe": "rides", "dataset": "dataset", "label": "late", "architecture": "multi_field"}
    assert exports[0].model_tags == tags | {"run": job.folder.path.name}
    ((name, version, uri, card),) = cast(Any, job.tracked).described
    assert (name, version, uri) == ("rides", "1", "models:/m-1")
    assert card.startswith("Predicts `late` (binary) from ")
    assert 'ms.score(table, "models:/rides/1", keys=' in card
    assert cast(Any, job.tracked).tags == {"mlflow.note.content": card}


def test_the_registered_model_may_have_a_name_of_its_own(
    job: TrainingJob, exports: list[ExportPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """L5: that of Unity Catalog would name no folders."""
    job.config = dataclasses.replace(job.config, registered_model="prod.travel.late")
    monkeypatch.setattr(
        delivery.evaluate_run, "compare_binary", lambda *_: BaselineComparison({"test": {"auc": 0.7}}, {}, {})
    )
    assert delivery.deliver(job, ATTEMPTS).version_uri == "models:/prod.travel.late/1"
    assert exports[0].registered_model == "prod.travel.late"
    ((name, _, _, card),) = cast(Any, job.tracked).described
    assert name == "prod.travel.late"
    assert "models:/prod.travel.late/1" in card
    assert job.config.identity == dataclasses.replace(job.config, registered_model=None).identity


def test_the_description_of_a_users_run_stays_the_users(
    job: TrainingJob, exports: list[ExportPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """L5."""
    monkeypatch.setattr(delivery.evaluate_run, "compare_binary", lambda *_: BaselineComparison({}, {}, {}))
    cast(Any, job.tracked).is_users = True
    delivery.deliver(job, ATTEMPTS)
    assert cast(Any, job.tracked).tags == {}
    assert len(cast(Any, job.tracked).described) == 1


def test_autologging_of_the_notebook_opens_no_run_for_the_baseline(
    job: TrainingJob, exports: list[ExportPlan], monkeypatch: pytest.MonkeyPatch, mlflow_store: str, tmp_path: Path
) -> None:
    """L5: ``mlflow.autolog()`` is the user's, and goes on for the user's own models."""
    from sklearn.linear_model import LinearRegression

    def fit(*_: Any) -> BaselineComparison:
        LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
        return BaselineComparison({}, {}, {})

    monkeypatch.setattr(delivery.evaluate_run, "compare_binary", fit)
    mlflow.set_tracking_uri(mlflow_store)
    monkeypatch.setattr(fluent, "_active_experiment_id", None)  # so that it is taken back
    mlflow.create_experiment("autologging", (tmp_path / "artifacts").as_uri())
    experiment = mlflow.set_experiment("autologging").experiment_id
    mlflow.sklearn.autolog(log_models=False, log_input_examples=False, log_model_signatures=False, silent=True)
    try:
        delivery.deliver(job, ATTEMPTS)
        assert mlflow.MlflowClient().search_runs([experiment]) == []
        fit()
        assert len(mlflow.MlflowClient().search_runs([experiment])) == 1
    finally:
        mlflow.sklearn.autolog(disable=True)
        mlflow.set_tracking_uri(None)
        os.environ.pop("MLFLOW_EXPERIMENT_ID", None)


@pytest.mark.parametrize("registered", [BASELINE, BLEND])
def test_a_better_rival_is_judged_in_the_networks_place_and_next_to_it(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch, lines: list[str], registered: str
) -> None:
    """F15, T8: the run's metrics and report are about the model that the export registered."""
    job.config = dataclasses.replace(job.config, baseline="hist_gradient_boosting", register="better")
    choice = Choice(
        registered,
        "auc",
        {NETWORK: 0.6, BASELINE: 0.7, BLEND: 0.65} | {registered: 1.0},
        {NETWORK: 0.5, BASELINE: 0.5},
        {BASELINE: 2.0},
    )

    def export(plan: ExportPlan, **_: Any) -> ExportResult:
        assert (plan.register, plan.monitor) == ("better", "val_auc")
        folder = Path(plan.predictions)
        for split in EVALUATED_SPLITS:
            labels = {"label": [0.0, 1.0, 1.0], "weight": [1.0, 1.0, 1.0]}
            for other in choice.others:
                (folder / OTHERS_FOLDER / other).mkdir(parents=True, exist_ok=True)
                scores = pa.table({"score": [0.5, 0.4, 0.6], **labels})
                pq.write_table(scores, folder / OTHERS_FOLDER / other / f"{split}.parquet")
            pq.write_table(pa.table({"score": [0.1, 0.9, 0.8], **labels}), folder / f"{split}.parquet")
        choice.save(folder)
        return ExportResult("models:/m-1", "1")

    monkeypatch.setattr(export_module, "export", export)
    trained = delivery.deliver(job, ATTEMPTS)
    assert trained.verdict.metrics["test"]["auc"] == 1.0
    compared = each_baseline(trained.verdict.baseline)
    assert [entry["name"] for entry in compared] == choice.others
    assert [entry["metrics"]["auc"] for entry in compared] == [0.5, 0.5]
    tracked = cast(Any, job.tracked)
    assert (tracked.metrics["test_auc"], tracked.metrics["network_auc"]) == (1.0, 0.5)
    assert tracked.tags["registered"] == registered
    assert f"Architecture: `{registered}`" in tracked.tags["mlflow.note.content"]
    assert trained.chosen == choice.in_words()
    assert f"registered as models:/rides/1: {choice.in_words()}" in lines[0]
    # The ends of the interval are metrics, too: three rows prove nothing about the difference.
    difference = "difference_network" if registered == BLEND else "difference"
    assert tracked.metrics[f"{difference}_auc"] == 0.5
    assert tracked.metrics[f"{difference}_auc_low"] <= 0.5 <= tracked.metrics[f"{difference}_auc_high"]
    kept = delivery.keep_report(job, trained)
    kept_result.keep_delivery(kept, job.folder)
    assert kept_result.recall_delivery(job.folder, FakeTracked.uri).leaderboard == list(trained.leaderboard)
    assert next(row["model"] for row in trained.leaderboard) == registered
    assert "Leaderboard" in tracked.texts["report.html"]


def test_a_finished_run_is_recalled_with_its_plots_cost_and_explanation(
    job: TrainingJob, exports: list[ExportPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """L6: ``result.plots`` of a run that had finished before."""
    figures = {"roc": Figure(), "lift": Figure()}
    monkeypatch.setattr(
        delivery.evaluate_run, "compare_binary", lambda *_: BaselineComparison({"test": {"auc": 0.7}}, {}, figures)
    )
    table = pd.DataFrame({"feature": ["town"], "importance": [0.5], "deviation": [0.1]})
    Path(job.folder.predictions).mkdir()
    Explanation(table, {}, table, table, "log loss", 9).save(job.folder.predictions / EXPLANATION_FILE)
    job.config = dataclasses.replace(job.config, calibration="temperature")
    measured = {"before": {"log_loss": 0.4, "calibration_error": 0.03}}
    measured |= {"after": {"log_loss": 0.39, "calibration_error": 0.01}}
    Calibration("temperature", temperature=1.25).save(job.folder.model, measured)
    trained = delivery.deliver(job, ATTEMPTS)
    assert trained.explanation is not None
    assert (exports[0].explain, exports[0].calibration) == (True, "temperature")
    trained = delivery.keep_report(job, trained)
    kept_result.keep_delivery(trained, job.folder)
    again = kept_result.recall_delivery(job.folder, FakeTracked.uri)
    assert set(again.verdict.figures) == {"roc", "lift"}
    assert again.cost == trained.cost
    assert again.cost is not None
    assert cast(Any, job.tracked).metrics["system/core_seconds"] == again.cost.total_core_seconds
    assert again.explanation is not None
    assert (again.explanation.rows, again.seconds) == (9, trained.seconds)
    # #23: the calibration, and what it changed.
    calibration = "temperature 1.25, fitted on the validation rows: log loss 0.3900 (was 0.4000), expected calibration"
    assert again.calibration == f"{calibration} error 0.0100 (was 0.0300)"
    assert again.calibration in cast(Any, job.tracked).texts["report.html"]
    assert again.calibration in again._repr_html_()


def test_a_delivery_that_was_cut_off_goes_on_with_the_version_it_has_registered(
    job: TrainingJob, exports: list[ExportPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> BaselineComparison:
        raise KeyboardInterrupt

    monkeypatch.setattr(delivery.evaluate_run, "compare_binary", interrupt)
    with pytest.raises(KeyboardInterrupt):
        delivery.deliver(job, ATTEMPTS)
    monkeypatch.setattr(delivery.evaluate_run, "compare_binary", lambda *_: BaselineComparison({}, {}, {}))
    assert [delivery.deliver(job, ATTEMPTS).model_version for _ in range(2)] == ["1", "1"]
    assert len(exports) == 1


def test_the_process_that_is_ready_gets_the_plan(
    job: TrainingJob, exports: list[ExportPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def export_once(plan: ExportPlan, kept: Path, *, verbose: bool, process: Any, on_progress: Any) -> ExportResult:
        given.append(process)
        return export_module.export(plan)

    monkeypatch.setattr(delivery, "export_once", export_once)
    monkeypatch.setattr(delivery.evaluate_run, "compare_binary", lambda *_: BaselineComparison({}, {}, {}))
    process = cast(Any, object())
    delivery.deliver(job, ATTEMPTS, process)
    assert given == [process]
