"""T7: a delivery that was cut off goes on with what it has exported and registered."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from callbacks import commit
from training import delivery
from training import export as export_module
from training.config import RunConfig
from training.evaluate_run import Verdict
from training.export import EVALUATED_SPLITS, ExportPlan, ExportResult
from training.failure_policy import Attempt
from training.live_view import LiveView
from training.open_run import OpenRun
from training.run_folder import RunFolder
from training.training_job import TrainingJob

ATTEMPTS = (Attempt(1, 2, (), 0, 20, 2),)


class FakeTracked:
    """Knows its run, and remembers what it is told."""

    uri = "sqlite:///mlflow.db"

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def require_run_id(self) -> str:
        return "run-1"

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics |= metrics


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def job(new_config: Callable[..., RunConfig], tmp_path: Path, lines: list[str]) -> TrainingJob:
    """A job whose training is over: two epochs, of which the second is the better one."""
    folder = RunFolder(tmp_path, "identity", None)
    for epoch in (1, 2):
        staging = commit.new_staging(folder.checkpoints)
        (Path(str(staging)) / "ckpt.index").write_text(f"epoch {epoch}")
        metrics = {"val_auc": 0.6 + epoch / 10}
        commit.publish(staging, folder.checkpoints, step=10 * epoch, epoch=epoch, metrics=metrics)
    view = LiveView(epochs=2, is_interactive=False, write=lines.append)
    run = OpenRun(folder, cast(Any, FakeTracked()), view)
    dataset = SimpleNamespace(path=tmp_path / "dataset", steps=lambda split, rows: 10)
    job = TrainingJob(cast(Any, dataset), new_config(output=str(tmp_path)), cast(Any, None), run, lambda: 1)
    for epoch in (1, 2):
        logs = {"loss": 1 / epoch, "val_auc": 0.6 + epoch / 10}
        job.keep_epoch({"event": "epoch_end", "rank": 0, "epoch": epoch, "logs": logs, "examples_per_second": 100.0})
    return job


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[ExportPlan]:
    """Let every export register a version of its own; return their plans."""
    done: list[ExportPlan] = []

    def export(plan: ExportPlan, *, verbose: bool = False) -> ExportResult:
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
    monkeypatch.setattr(delivery, "judge_binary", lambda *_: Verdict({"test": {"auc": 0.7}}, {}, {}))
    trained = delivery.deliver(job, ATTEMPTS)
    assert [Path(plan.checkpoint).name for plan in exports] == ["step-00000020"]
    assert (trained.version_uri, trained.examples_per_second) == ("models:/rides/1", 100.0)
    assert trained.predictions["test"].num_rows == 2
    assert cast(Any, job.tracked).metrics == {"test_auc": 0.7}
    assert "registered as models:/rides/1" in lines[0]


def test_a_delivery_that_was_cut_off_goes_on_with_the_version_it_has_registered(
    job: TrainingJob, exports: list[ExportPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> Verdict:
        raise KeyboardInterrupt

    monkeypatch.setattr(delivery, "judge_binary", interrupt)
    with pytest.raises(KeyboardInterrupt):
        delivery.deliver(job, ATTEMPTS)
    monkeypatch.setattr(delivery, "judge_binary", lambda *_: Verdict({}, {}, {}))
    assert [delivery.deliver(job, ATTEMPTS).model_version for _ in range(2)] == ["1", "1"]
    assert len(exports) == 1
