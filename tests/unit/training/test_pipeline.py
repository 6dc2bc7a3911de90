"""S7: decisions of the main job."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.kinds import Label
from mirrorspark.data_pipelines.quality.page import PAGE_FILE
from mirrorspark.scoring.parity import parity
from mirrorspark.training import pipeline
from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.driver.errors import TrainingFailedError
from mirrorspark.training.job.prepared_run import PreparedRun
from mirrorspark.training.job.program import Cluster
from mirrorspark.training.job.source_tables import SourceTables
from mirrorspark.training.job.warm_start import WarmStart
from mirrorspark.training.protocol.names import SUMMARY_FILE
from mirrorspark.training.protocol.outcomes.cause import Attempt, RankError
from mirrorspark.training.results import delivery, scored
from mirrorspark.training.results.evaluation.evaluate_run import BaselineComparison
from mirrorspark.training.results.report.summary import Summary
from mirrorspark.training.results.scored import ParityFailedError, require_parity
from mirrorspark.training.results.trained import Trained
from mirrorspark.training.run_records.live.view import LiveView
from mirrorspark.training.run_records.tracking import Tracking


def test_equal_scores_are_let_through() -> None:
    require_parity(parity(np.array([0.2, 0.8]), np.array([0.2, 0.8])))


def test_one_row_that_differs_is_named_though_the_99th_percentile_passes() -> None:
    reference = np.full(10_000, 0.2)
    candidate = reference.copy()
    candidate[7] += 7e-3
    report = parity(reference, candidate, keys={"flight_id": np.arange(10_000)})
    assert report.p99 == 0
    with pytest.raises(ParityFailedError, match=r"up to 7\.0e-03 .* on 1 of 10000 rows .*flight_id.*7"):
        require_parity(report)


@dataclass
class Attempted:
    """A training and its delivery; the next one fails with ``error``, if that is set."""

    summaries: list[Summary] = field(default_factory=list)
    error: BaseException | None = None
    attempts: tuple[Attempt, ...] = (Attempt(1, None, (), 0, 10, workers=4), Attempt(2, 5, (), 10, 50, workers=2))
    scores: list[float] = field(default_factory=lambda: [0.2, 0.8])
    aliases: list[str] = field(default_factory=list)
    job: Any = None


@pytest.fixture
def attempted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, new_config: Callable[..., RunConfig]) -> Attempted:
    """Replace Spark, the training and MLflow."""
    this = Attempted()
    manifest = SimpleNamespace(
        splits=["test"], rows=lambda split: 2, bytes=12, layout="block", findings=(), content_hash="da7a"
    )
    (tmp_path / PAGE_FILE).write_text("<html>")
    spec = SimpleNamespace(keys=["ride_id"], label=Label("late"))
    dataset = SimpleNamespace(path=tmp_path, manifest=manifest, spec=spec)
    tracked = SimpleNamespace(
        page=None,
        run_id="run-1",
        uri="sqlite:///mlflow.db",
        experiment="flights",
        log_text=lambda text, name: None,
        log_file=lambda file: None,
        log_document=lambda document, name: None,
        share_comparison=lambda metric: None,
        name_version=lambda model, version, alias: this.aliases.append(f"{model}/{version}: {alias}"),
    )
    view = LiveView(epochs=5, is_interactive=False, write=lambda line: None)

    def train() -> tuple[Attempt, ...]:
        if this.error is not None:
            raise this.error
        return this.attempts

    job = SimpleNamespace(
        tracked=tracked,
        folder=SimpleNamespace(path=tmp_path, events=tmp_path / "events.jsonl"),
        config=new_config(),
        view=view,
        cluster=Cluster(cast(Any, SimpleNamespace(conf=SimpleNamespace(get=lambda name, default: default))), lambda: 2),
        dataset=dataset,
        run=SimpleNamespace(replay="the command that replays"),
        train=train,
        warm_start=None,
        warm_start_event=None,
        warnings=[],
        log_metrics=lambda metrics: None,
        log_work=lambda values: None,
    )

    this.job = job

    @contextlib.contextmanager
    def open_job(*_: Any, **how: Any) -> Iterator[Any]:
        yield job

    def deliver(job: Any, attempts: tuple[Attempt, ...], process: Any) -> Trained:
        reference = pa.table({"ride_id": [1, 2], "score": [0.2, 0.8]})
        verdict = BaselineComparison({"test": {"auc": 0.7}}, {}, {})
        return Trained("run-1", "models:/m-1", "rides", "3", attempts, 9.0, verdict, {"test": reference}, tmp_path, "")

    def prepare(config: RunConfig, tracking: Tracking, view: LiveView, sources: SourceTables) -> PreparedRun:
        table = cast(Any, "a table")
        return PreparedRun(
            config, cast(Any, dataset), cast(Any, None), Tracking("the store", "rides"), table=table, is_reused=True
        )

    sources = SourceTables({}, {}, None, tmp_path / "not converted")
    monkeypatch.setattr(SourceTables, "find", lambda config: sources)
    monkeypatch.setattr(pipeline, "prepare", prepare)
    monkeypatch.setattr(pipeline, "open_job", open_job)
    monkeypatch.setattr(delivery, "deliver", deliver)
    monkeypatch.setattr(scored, "_scored", lambda *_: pa.table({"ride_id": [1, 2], "score": this.scores}))
    return this


def test_a_run_names_the_version_and_tells_how_many_workers_came_to_its_end(
    attempted: Attempted, new_config: Callable[..., RunConfig]
) -> None:
    """Elastic workers: the most that may train are not those that did."""
    summary = pipeline.run(new_config(workers="1:4", global_batch_size=2400), attempted.summaries.append)
    assert (summary.status, summary.workers, summary.attempts) == ("finished", 2, 2)
    assert (summary.model_version, summary.replay) == ("3", "the command that replays")
    assert attempted.aliases == ["rides/3: challenger"]
    assert [(known.run_id, known.workers) for known in attempted.summaries] == [("run-1", None)]


def test_the_attempts_of_earlier_drivers_count(
    attempted: Attempted, new_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    events = [{"event": "attempt", "attempt": number, "time": float(number)} for number in (1, 2, 3)]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert pipeline.run(new_config(), attempted.summaries.append).attempts == 3


def test_a_scheduler_learns_which_run_failed(
    attempted: Attempted, new_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    fault = RankError("user", 1, "ValueError", "no such layer", 0.0)
    attempted.error = TrainingFailedError((Attempt(1, None, (fault,), 0, 0, workers=3),))
    with pytest.raises(TrainingFailedError):
        pipeline.run(new_config(), attempted.summaries.append)
    known = attempted.summaries[-1]
    assert (known.run_id, known.run_folder, known.workers, known.attempts) == ("run-1", str(tmp_path), 3, 1)
    assert not hasattr(attempted.error, "partial_summary")


def test_a_parity_that_fails_leaves_the_version_without_alias_and_the_same_command_gives_it(
    attempted: Attempted, new_config: Callable[..., RunConfig]
) -> None:
    attempted.scores = [0.2, 0.9]
    with pytest.raises(ParityFailedError):
        pipeline.run(new_config(), attempted.summaries.append)
    assert attempted.aliases == []
    known = attempted.summaries[-1]
    assert (known.workers, known.attempts) == (2, 2)
    assert {"score", "parity"} <= set(known.timings)
    attempted.scores = [0.2, 0.8]
    assert pipeline.run(new_config()).model_version == "3"
    assert attempted.aliases == ["rides/3: challenger"]


def test_a_day_leaves_its_summary_before_the_run_counts_as_finished(
    attempted: Attempted, new_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """T12: whoever asks for the day again gets it; without a day the command alone writes it."""
    pipeline.run(new_config(output=str(tmp_path / "output")))
    assert not (tmp_path / SUMMARY_FILE).exists()
    summary = pipeline.run(new_config(output=str(tmp_path / "output"), run_date="2026-01-31"))
    kept = Summary.load(tmp_path / SUMMARY_FILE)
    assert kept.status == "finished"
    assert kept == replace(summary, replay=None)


def test_the_summary_tells_what_the_weights_began_from(
    attempted: Attempted, new_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """T12."""
    attempted.job.warm_start = WarmStart("models:/rides/2", "d1", tmp_path)
    attempted.job.warm_start_event = {
        "event": "warm_start",
        "weights": 5,
        "of_weights": 6,
        "tokens": 1200,
        "of_tokens": 1300,
    }
    summary = pipeline.run(new_config(), attempted.summaries.append)
    expected = {"model": "models:/rides/2", "weights": 5, "of_weights": 6, "tokens": 1200, "of_tokens": 1300}
    assert summary.warm_start == expected
    assert "warm start    models:/rides/2: 5 of 6 weights, 1,200 of 1,300 tokens" in summary.as_text()
