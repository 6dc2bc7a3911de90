"""T6, T7: a training keeps its ranks' events, and those sent while no driver listened."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.models.classical import Recommender
from mirrorspark.models.settings import ModelSettingsError
from mirrorspark.training.configuration.config import ConfigError, RunConfig, TrainingConfig
from mirrorspark.training.entry_points.launch import Launched
from mirrorspark.training.job.prepared_run import PreparedRun
from mirrorspark.training.job.program import Cluster, supervisor_of
from mirrorspark.training.job.training_job import TrainingJob, open_job
from mirrorspark.training.programs.keras_fit import interaction_graph
from mirrorspark.training.programs.recommenders import fitting
from mirrorspark.training.programs.recommenders.interactions import Interactions
from mirrorspark.training.protocol.messages.events import Event
from mirrorspark.training.run_records.live.view import LiveView
from mirrorspark.training.run_records.opened_run import OpenRun
from mirrorspark.training.run_records.run_folder import RunFolder
from mirrorspark.training.run_records.tracking import Tracking
from tests.unit.callbacks.committed_files import publish_files


def epoch_end(epoch: int, **more: Any) -> Event:
    return {"event": "epoch_end", "rank": 0, "epoch": epoch, "logs": {"loss": 1 / epoch}} | more


def commit_step(directory: Path, step: int, told: list[Event]) -> Path:
    state = json.dumps({"progress": {"told": told}})
    path = publish_files(directory, {commit.STATE: state}, step=step, epoch=step // 10).path
    assert isinstance(path, Path)
    return path


@pytest.fixture
def heard() -> list[Event]:
    return []


@pytest.fixture
def job(new_config: Callable[..., RunConfig], tmp_path: Path, heard: list[Event]) -> TrainingJob:
    run = SimpleNamespace(folder=RunFolder(tmp_path, "identity", None), on_event=heard.append)
    unused = cast(Any, None)
    return TrainingJob(unused, new_config(output=str(tmp_path)), Cluster(unused, lambda: 1), cast(OpenRun, run))


def test_a_recommender_is_fitted_once_and_exported_from_its_file(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[str] = []

    def fit(asked: Recommender, *_: Any) -> dict[str, np.ndarray]:
        fits.append(asked.label)
        return {"factors": np.ones((2, 3), np.float32)}

    monkeypatch.setattr(fitting, "fit", fit)
    monkeypatch.setattr(TrainingJob, "_log_start", lambda self: None)
    job.config = TrainingConfig(name="movies", model={"name": "als", "rank": 3})
    job.dataset = cast(Any, SimpleNamespace(manifest=SimpleNamespace(rows=lambda split: 10), features=()))
    cast(Any, job.run).view = LiveView(epochs=1, is_interactive=False, write=lambda _: None)
    context = SimpleNamespace(getCheckpointDir=lambda: "theirs")
    job.cluster = Cluster(cast(Any, SimpleNamespace(sparkContext=context)), lambda: 1)
    for _ in range(2):  # Another driver goes on with what the first one has fitted.
        (done,) = job.train()
        assert (done.finished, done.epochs) == (True, 0)
    assert fits == ["als_rank_3"]
    learnt = job.fetch_best(Path("unused"))
    assert learnt.epoch is None
    path = learnt.path
    assert isinstance(path, Path)
    assert fitting.load(path)["factors"].shape == (2, 3)


def test_the_graph_is_read_once_and_every_attempt_gets_its_file(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """#23: the file is checked by the digest in its name."""
    pairs = np.array([[2, 2, 3], [2, 4, 3]], np.int32)
    reads: list[Any] = []
    monkeypatch.setattr(Interactions, "pairs", property(lambda self: reads.append(self) or pairs))
    job.dataset = cast(Any, SimpleNamespace(path=Path("dataset")))
    assert job._training_plan().graph is None
    job.config = TrainingConfig(name="movies", model={"name": "two_tower", "graph_layers": 2})
    first, again = job._training_plan().graph, job._training_plan().graph
    assert first is not None
    assert (first, len(reads)) == (again, 1)
    np.testing.assert_array_equal(interaction_graph.read(Path(first)), pairs)
    whole = Path(first).read_bytes()
    for damaged in (whole[:-1] + b"\x07", whole[:-4]):
        Path(first).write_bytes(damaged)
        with pytest.raises(interaction_graph.DamagedGraphError, match="is damaged; delete it"):
            interaction_graph.read(Path(first))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 2}, "accumulate is 2; set accumulate to 1"),
        ({"local_steps": 4}, "local_steps is 4; set local_steps to 1"),
        ({"strategy": "multi_worker_mirrored"}, "strategy is 'multi_worker_mirrored'; set strategy to 'ring'"),
    ],
)
def test_a_graph_needs_equal_tables_after_every_step(options: dict[str, Any], message: str) -> None:
    config = TrainingConfig(name="movies", model={"name": "two_tower", "graph_layers": 2}, **options)
    with pytest.raises(ConfigError, match=message):
        interaction_graph.check(config)


def attempt(step: int) -> Event:
    return {"event": "attempt", "attempt": 1, "workers": 2, "resumed_from": step}


def test_epochs_that_no_driver_heard_of_come_from_the_checkpoint_that_goes_on(
    job: TrainingJob, heard: list[Event]
) -> None:
    commit_step(job.folder.checkpoints, 10, [epoch_end(1)])
    commit_step(job.folder.checkpoints, 20, [epoch_end(1), epoch_end(2)])
    commit_step(job.folder.checkpoints, 30, [epoch_end(1), epoch_end(2), epoch_end(3)])
    job.on_event(epoch_end(1))
    job.on_event(attempt(20))
    assert heard == [epoch_end(1), epoch_end(2, recovered=True), attempt(20)]
    assert sorted(job.epochs) == [1, 2]


def test_the_checkpoint_is_not_verified_again(
    job: TrainingJob, heard: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_step(job.folder.checkpoints, 10, [epoch_end(1)])

    def read_all(self: commit.CommittedCheckpoint, **how: Any) -> None:
        raise AssertionError("checksums of the whole checkpoint")

    monkeypatch.setattr(commit.CommittedCheckpoint, "damage", read_all)
    job.on_event(attempt(10))
    assert sorted(job.epochs) == [1]


@pytest.mark.parametrize("step", [0, 10, 20])
def test_an_attempt_is_told_whatever_the_checkpoint_says(job: TrainingJob, heard: list[Event], step: int) -> None:
    (commit_step(job.folder.checkpoints, 10, []) / commit.STATE).write_text("{")
    job.on_event(attempt(step))
    assert heard == [attempt(step)]


def test_the_supervisor_has_the_budgets_and_limits_of_the_configuration(new_config: Callable[..., RunConfig]) -> None:
    config = new_config(
        workers="2:4",
        max_restarts=5,
        max_preemptions=6,
        max_start_failures=7,
        start_limit_seconds=11.0,
        first_step_limit_seconds=12.0,
        step_limit_seconds=13.0,
        checkpoint_limit_seconds=14.0,
        end_limit_seconds=15.0,
    )
    spark = SimpleNamespace(sparkContext=SimpleNamespace(master="local[4]"))
    folder = SimpleNamespace(has_begun=True, checkpoints="checkpoints")
    run = SimpleNamespace(folder=folder, on_event=None)
    cluster, records = Cluster(cast(Any, spark), lambda: 3), cast(Any, run)
    program = TrainingJob(cast(Any, SimpleNamespace(path="dataset")), config, cluster, records).program()
    supervisor = supervisor_of(program, cluster, records)
    budgets, limits = supervisor.budgets, supervisor.limits
    assert (budgets.max_restarts, budgets.max_preemptions, budgets.max_start_failures) == (5, 6, 7)
    assert (limits.start_seconds, limits.first_step_seconds, limits.step_seconds) == (11.0, 12.0, 13.0)
    assert (limits.checkpoint_seconds, limits.end_seconds) == (14.0, 15.0)
    assert (supervisor.elastic, supervisor.slots(), supervisor.has_begun) == (config.elastic, 3, True)


@pytest.mark.process
def test_a_cluster_whose_workers_cannot_reach_the_driver_gets_a_channel_of_files_and_a_line(tmp_path: Path) -> None:
    lines: list[str] = []
    folder = SimpleNamespace(has_begun=True, channel=tmp_path / "channel")
    records: Any = SimpleNamespace(folder=folder, on_event=None, view=SimpleNamespace(log=lines.append))
    spark: Any = SimpleNamespace(sparkContext=SimpleNamespace(master="spark://host:7077"))
    program: Any = SimpleNamespace(elastic=None, budgets=None, limits=None, may_grow=None)
    cluster = Cluster(spark, lambda: 2, events_by_files=True)
    supervisor = supervisor_of(program, cluster, records, launch=cast(Any, len))
    with supervisor.open_server(supervisor.host, lambda _: None, supervisor.advertised) as server:
        assert str(server.address.folder).startswith(f"{folder.channel}/")
    assert not folder.channel.exists()
    assert lines == [
        f"the workers' events reach this program by files in {folder.channel}, about a second late",
    ]


def test_a_warm_up_longer_than_the_training_is_refused_before_there_is_a_run(
    new_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = new_config(output=str(tmp_path), epochs=2, warmup_steps=20, learning_rate_schedule="cosine")
    dataset = SimpleNamespace(spec=config.spec, steps=lambda split, rows: 10)
    prepared = PreparedRun(config, cast(Any, dataset), cast(Any, None), Tracking("no store", "rides"))
    with pytest.raises(ModelSettingsError), open_job(prepared, cast(Any, None)):
        pass
    assert not (tmp_path / "runs").exists()


def test_centroids_that_are_too_large_are_refused_before_there_is_a_run(
    new_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = new_config(
        output=str(tmp_path),
        features={"words": {"kind": "sparse", "size": 1_000_000}},
        label={"name": "late", "kind": "multi_label"},
        model={"name": "multi_label"},
        baseline="none",
        calibration="centroids",
    )
    dataset = SimpleNamespace(spec=config.spec, features=SimpleNamespace(classes=300))
    prepared = PreparedRun(config, cast(Any, dataset), cast(Any, None), Tracking("no store", "rides"))
    with pytest.raises(ModelSettingsError, match="1,000,000 columns"), open_job(prepared, cast(Any, None)):
        pass
    assert not (tmp_path / "runs").exists()


def test_a_training_that_is_done_does_not_fail_for_the_words_about_it(
    job: TrainingJob, caplog: pytest.LogCaptureFixture
) -> None:
    """T5: its store may be away for some seconds."""
    assert job._best_in_words(3) == ""
    assert "which epoch was the best is not known yet: " in caplog.text


def test_a_runs_result_shows_no_password_in_a_notebook() -> None:
    launched = Launched("model", (), "run-1", Path("folder"), "https://ann:s3cret@host")
    assert "s3cret" not in repr(launched)
