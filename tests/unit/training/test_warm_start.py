"""T12: the model that a training begins from: found before anything starts, kept with the run, given to every rank."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from mlflow import MlflowClient

from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.scoring.model.catalogue import Catalogue
from mirrorspark.scoring.model.folder.directory import ModelDescription
from mirrorspark.scoring.model.stored.digest import folder_digest
from mirrorspark.scoring.model.stored.pinned import PinnedModel
from mirrorspark.scoring.package import package_model
from mirrorspark.storage.paths import StoragePath
from mirrorspark.training.configuration.config import ConfigError, RunConfig
from mirrorspark.training.driver.watchdog import Watch
from mirrorspark.training.executor.training_hook import TrainingHook
from mirrorspark.training.job import training_job, warm_start
from mirrorspark.training.job.prepared_run import PreparedRun
from mirrorspark.training.job.program import Cluster
from mirrorspark.training.job.training_job import TrainingJob, open_job
from mirrorspark.training.job.warm_start import WarmStart, find_model, resolve_warm_start
from mirrorspark.training.protocol.limits import PhaseLimits
from mirrorspark.training.protocol.messages.events import Event
from mirrorspark.training.protocol.outcomes.activity import Activity
from mirrorspark.training.protocol.plan import TrainingPlan
from mirrorspark.training.run_records.find_run import hold_run_folder
from mirrorspark.training.run_records.live.view import LiveView
from mirrorspark.training.run_records.opened_run import OpenRun
from mirrorspark.training.run_records.run_folder import RunFolder
from mirrorspark.training.run_records.tracked_run import TrackingError
from mirrorspark.training.run_records.tracking import Tracking
from tests.unit.mlflow_stores import new_store
from tests.unit.scoring.exported_models import export_flights, flights_features, log_flights
from tests.unit.scoring.other_models import LINEAR
from tests.unit.training.test_function_rank import Twin

NewConfig = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a store of these tests' own: others register models of the same names."""
    return new_store(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(scope="module")
def flights_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_flights(tmp_path_factory.mktemp("export") / "flights", seed=1)


@pytest.fixture(scope="module")
def registered(mlflow_store: str, tmp_path_factory: pytest.TempPathFactory, flights_model: Path) -> Any:
    """Return MLflow's description of version 1 of ``flights``; version 2 has the same weights."""
    artifacts = tmp_path_factory.mktemp("artifacts")
    first = log_flights(mlflow_store, artifacts, flights_model)
    log_flights(mlflow_store, artifacts, flights_model)
    MlflowClient(mlflow_store).set_registered_model_alias("flights", "champion", "1")
    return first


@pytest.fixture
def config(new_config: NewConfig, tmp_path: Path) -> RunConfig:
    return new_config(output=str(tmp_path / "output"))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run", "identity", None)


def found(config: RunConfig, name: str | Path, store: str) -> PinnedModel:
    model = find_model(replace(config, warm_start=str(name)), store)
    assert model is not None
    return model


@pytest.mark.process
def test_an_alias_a_version_a_run_and_folders_lead_to_the_model(
    config: RunConfig, mlflow_store: str, registered: Any, flights_model: Path, tmp_path: Path
) -> None:
    assert found(config, "models:/flights@champion", mlflow_store).uri == "models:/flights/1"
    names: list[str | Path] = ["models:/flights/2", f"runs:/{registered.run_id}", f"runs:/{registered.run_id}/model"]
    run = tmp_path / "runs" / "flights-20260131"
    shutil.copytree(flights_model, run / "model")
    digest = folder_digest(flights_model)
    for name in (*names, flights_model, run, run / "model"):
        assert found(config, name, mlflow_store).digest == digest, name
    assert find_model(config, mlflow_store) is None


def test_a_model_with_a_later_catalogue_leads_to_the_trained_one(
    config: RunConfig, mlflow_store: str, flights_model: Path, tmp_path: Path
) -> None:
    catalogue = Catalogue("d", "2026-01-31", 9, 9, 5, refreshed_from="e", trained_model=str(flights_model))
    shutil.copytree(flights_model, tmp_path / "refreshed")
    description = ModelDescription.load(flights_model)
    replace(description, catalogue=asdict(catalogue)).save(tmp_path / "refreshed")
    assert found(config, tmp_path / "refreshed", mlflow_store).path == flights_model


def test_other_versions_of_the_libraries_of_encoders_are_told(
    config: RunConfig, mlflow_store: str, flights_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """L10: the weights were trained on the vectors of another version."""
    shutil.copytree(flights_model, tmp_path / "model")
    description = ModelDescription.load(flights_model)
    replace(description, versions={**description.versions, "onnxruntime": "0.0.3"}).save(tmp_path / "model")
    found(config, flights_model, mlflow_store)
    assert not caplog.messages
    found(config, tmp_path / "model", mlflow_store)
    (told,) = caplog.messages
    assert f"has onnxruntime {version('onnxruntime')} instead of 0.0.3, which ran the encoders of a model when" in told


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models:/flights/9", r"has the versions \[1, 2\] and the aliases \['champion'\]: use one of them"),
        ("models:/flihgts@champion", "has no model 'flihgts'"),
        ("runs:/0123456789abcdef0123456789abcdef", "there is no run '0123456789abcdef0123456789abcdef'"),
        ("nowhere", "model 'nowhere' does not exist: there is no such folder"),
        (".", "holds no exported model"),
        ("packaged", "is a model of another library; give one that was trained here"),
    ],
)
def test_a_model_that_is_not_there_is_a_usage_error_in_one_line(
    config: RunConfig,
    mlflow_store: str,
    registered: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    package_model(LINEAR, "packaged")
    with pytest.raises(ConfigError, match=message) as raised:
        found(config, name, mlflow_store)
    assert str(raised.value).startswith(f"warm_start {name}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("hist_gradient_boosting", "gradient boosting"),
        ("blend", "a blend"),
        ("item_knn", "item_knn"),
    ],
)
def test_a_version_that_is_no_network_is_refused(
    config: RunConfig, mlflow_store: str, flights_model: Path, tmp_path: Path, architecture: str, kind: str
) -> None:
    """F15, T8: ``--register better`` leaves versions without weights, and so does a classical recommender."""
    boosted = tmp_path / "boosted"
    shutil.copytree(flights_model, boosted)
    description = ModelDescription.load(boosted)
    replace(description, architecture=architecture).save(boosted)
    with pytest.raises(ConfigError, match=f"is {kind}, which has no weights to begin from; give a version"):
        found(config, boosted, mlflow_store)


@pytest.mark.parametrize("options", ["", "?timeout=60"])
def test_a_store_that_is_not_there_is_not_made(config: RunConfig, tmp_path: Path, options: str) -> None:
    with pytest.raises(ConfigError, match="there is no MLflow store sqlite:"):
        found(config, "models:/flights/1", f"sqlite:///{tmp_path / 'mlflow.db'}{options}")
    assert list(tmp_path.iterdir()) == []


def test_options_of_a_store_are_no_part_of_its_file(config: RunConfig, mlflow_store: str, registered: Any) -> None:
    assert found(config, "models:/flights/1", f"{mlflow_store}?timeout=60").uri == "models:/flights/1"


def test_a_registry_that_is_away_is_told_without_its_password(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise ConnectionRefusedError("[Errno 111] Connection refused")

    monkeypatch.setattr(warm_start, "resolve", away)
    expected = r"warm_start models:/flights/1 cannot be looked up in http://mlflow:5000: .*Connection refused"
    with pytest.raises(TrackingError, match=expected):
        found(config, "models:/flights/1", "http://ann:s3cret@mlflow:5000")


def test_a_registry_that_is_away_is_not_asked_for_minutes(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """T7: a limit that somebody has set stays."""
    asked: list[tuple[str | None, str | None]] = []

    def away(*_: Any) -> None:
        asked.append((os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES"), os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]))
        raise ConnectionRefusedError

    monkeypatch.setattr(warm_start, "resolve", away)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")  # for the environment to be as it was afterwards
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    with pytest.raises(TrackingError):
        found(config, "models:/flights/1", "http://mlflow:5000")
    assert asked == [("2", "5")]


def test_a_run_keeps_what_it_began_from_whatever_becomes_of_alias_and_files(
    config: RunConfig, mlflow_store: str, flights_model: Path, folder: RunFolder, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(flights_model, tmp_path / "champion"))
    config = replace(config, warm_start=str(source))
    begun = resolve_warm_start(config, mlflow_store, folder.warm_start, find_model(config, mlflow_store))
    assert begun == WarmStart(str(source), folder_digest(flights_model), folder.warm_start)
    shutil.rmtree(source)
    assert resolve_warm_start(config, mlflow_store, folder.warm_start) == begun
    kept = {path.relative_to(folder.warm_start).as_posix() for path in folder.warm_start.rglob("*") if path.is_file()}
    assert {"features/features.json", "saved_model/variables/variables.index", "source.json"} < kept
    assert "saved_model/saved_model.pb" not in kept
    assert [path.name for path in folder.path.iterdir()] == ["warm_start"]
    assert resolve_warm_start(replace(config, warm_start=None), mlflow_store, folder.warm_start) is None


def test_a_copy_that_was_cut_off_is_made_again(
    config: RunConfig, mlflow_store: str, flights_model: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, warm_start=str(flights_model))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(warm_start.atomic_file, "write_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            resolve_warm_start(config, mlflow_store, folder.warm_start)
    assert list(folder.path.iterdir()) == []
    assert resolve_warm_start(config, mlflow_store, folder.warm_start) is not None


def test_an_unfinished_run_goes_on_without_the_model_being_there_any_more(
    config: RunConfig, mlflow_store: str, flights_model: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(flights_model, tmp_path / "champion"))
    config = replace(config, warm_start=str(source))
    with hold_run_folder(config, "da7a") as folder:
        resolve_warm_start(config, mlflow_store, folder.warm_start)
        folder.save_state("stopped", None)
    shutil.rmtree(source)
    assert find_model(config, mlflow_store) is None
    for other in (replace(config, resume=False), replace(config, seed=2)):
        with pytest.raises(ConfigError, match="there is no such folder"):
            find_model(other, mlflow_store)
    folder.save_state("finished", None)
    with pytest.raises(ConfigError, match="there is no such folder"):
        find_model(config, mlflow_store)


def test_a_failed_run_does_not_hide_that_the_model_is_another_by_now(
    config: RunConfig, mlflow_store: str, flights_model: Path, tmp_path: Path
) -> None:
    config = replace(config, warm_start=str(flights_model))
    with hold_run_folder(config, "da7a") as folder:
        resolve_warm_start(config, mlflow_store, folder.warm_start)
        folder.save_state("failed", None)
    model = find_model(config, mlflow_store)
    assert model is not None
    assert model.digest == folder_digest(flights_model)


def test_a_sweep_goes_on_without_the_model_being_there_any_more(
    config: RunConfig, mlflow_store: str, flights_model: Path, tmp_path: Path
) -> None:
    """T12: with further trials even after its end."""
    source = Path(shutil.copytree(flights_model, tmp_path / "champion"))
    config = replace(config, warm_start=str(source))
    path = Path(config.output) / "sweeps" / "night"
    path.mkdir(parents=True)
    sweep = RunFolder(path, "of searches", None)
    begun = resolve_warm_start(config, mlflow_store, sweep.warm_start)
    sweep.save_state("finished", None)
    shutil.rmtree(source)
    assert find_model(config, mlflow_store) is None
    assert resolve_warm_start(config, mlflow_store, sweep.warm_start, has_begun=True) == begun


def test_a_run_whose_weights_come_of_a_copy_that_is_gone_takes_no_other_model(
    config: RunConfig, mlflow_store: str, flights_model: Path, folder: RunFolder
) -> None:
    config = replace(config, warm_start=str(flights_model))
    expected = r"run/warm_start, from which the run began, is missing; put it back, or begin anew with --no-resume"
    with pytest.raises(ConfigError, match=expected):
        resolve_warm_start(config, mlflow_store, folder.warm_start, has_begun=True)
    assert list(folder.path.iterdir()) == []


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"uri": "models:/flights/1"}'])
def test_a_copy_of_which_nobody_knows_what_it_is_is_a_usage_error(
    config: RunConfig, mlflow_store: str, flights_model: Path, folder: RunFolder, text: str | None
) -> None:
    config = replace(config, warm_start=str(flights_model))
    resolve_warm_start(config, mlflow_store, folder.warm_start)
    file = folder.warm_start / "source.json"
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    expected = r"source\.json, the record of the run's initial model, cannot be read \(.+\); put it back, or begin anew"
    with pytest.raises(ConfigError, match=expected):
        resolve_warm_start(config, mlflow_store, folder.warm_start)


def test_a_partial_copy_of_a_killed_driver_is_removed(
    config: RunConfig, mlflow_store: str, flights_model: Path, folder: RunFolder
) -> None:
    (folder.path / ".warm_start.0123456789abcdef" / "saved_model").mkdir(parents=True)
    resolve_warm_start(replace(config, warm_start=str(flights_model)), mlflow_store, folder.warm_start)
    assert [path.name for path in folder.path.iterdir()] == ["warm_start"]


def test_a_copy_is_on_the_disk_before_it_has_its_name(
    config: RunConfig,
    mlflow_store: str,
    flights_model: Path,
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """T6: a power cut leaves all of it or nothing."""
    flushed: list[tuple[Path, bool]] = []
    flush = StoragePath.flush_to_disk

    def flushing(self: StoragePath) -> None:
        flushed.append((self.local, folder.warm_start.exists()))
        flush(self)

    monkeypatch.setattr(StoragePath, "flush_to_disk", flushing)
    resolve_warm_start(replace(config, warm_start=str(flights_model)), mlflow_store, folder.warm_start)
    *before, last = flushed
    assert last == (folder.path, True)
    assert not any(has_its_name for _, has_its_name in before)
    (partial,) = {path for path, _ in before if path.parent == folder.path}
    there = {path.relative_to(folder.warm_start) for path in folder.warm_start.rglob("*")}
    assert {path.relative_to(partial) for path, _ in before} == there | {Path()}


@pytest.mark.parametrize("is_of_a_sweep", [False, True])
def test_a_run_settles_what_it_begins_from_and_a_trial_takes_what_its_sweep_keeps(
    config: RunConfig, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, is_of_a_sweep: bool
) -> None:
    resolved: list[tuple[Path, bool]] = []
    own = WarmStart("models:/flights/4", "d4", folder.warm_start)
    of_sweep = WarmStart("models:/flights/3", "d3", Path("the sweep's"))

    @contextlib.contextmanager
    def open_run(*_: Any, **__: Any) -> Iterator[Any]:
        yield SimpleNamespace(folder=folder, recall=lambda keep: None)

    def resolve(config: RunConfig, store: str, target: Path, model: Any, *, has_begun: bool) -> WarmStart:
        resolved.append((target, has_begun))
        return resolve_warm_start(config, store, target, own, has_begun=has_begun) if model is None else model

    monkeypatch.setattr(training_job, "open_run", open_run)
    monkeypatch.setattr(training_job, "resolve_warm_start", resolve)
    monkeypatch.setattr(RunFolder, "has_begun", True)
    manifest = SimpleNamespace(content_hash="da7a")
    dataset = cast(Any, SimpleNamespace(spec=config.spec, steps=lambda split, rows: 10, manifest=manifest))
    prepared = PreparedRun(
        config, dataset, cast(Any, None), Tracking("no store", "rides"), of_sweep if is_of_a_sweep else None
    )
    with open_job(prepared, LiveView(epochs=1)) as job:
        assert job.warm_start == (of_sweep if is_of_a_sweep else own)
    assert resolved == [(folder.warm_start, True)]


def test_the_warm_start_is_part_of_a_runs_identity(new_config: NewConfig, tmp_path: Path) -> None:
    configs = [new_config(warm_start=name) for name in (None, "models:/flights/1", "models:/flights/2")]
    assert len({config.identity for config in configs}) == 3
    assert new_config(warm_start=tmp_path).warm_start == str(tmp_path)


def test_tables_that_no_rank_holds_whole_cannot_be_begun_from(new_config: NewConfig) -> None:
    with pytest.raises(ConfigError, match="warm_start does not go with the strategy parameter_server"):
        new_config(warm_start="models:/flights/1", strategy="parameter_server", parameter_servers=1)


def test_a_rank_takes_the_weights_without_a_collective_and_the_chief_tells(
    flights_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks that read the same file agree: nothing has to travel."""
    import tf_keras

    from mirrorspark.models import multi_field
    from mirrorspark.training.programs.keras_fit import fit
    from mirrorspark.training.protocol.ring.strategy import RingStrategy

    settings = multi_field.Settings(embedding_dim=4, hidden_units=(8,))
    ring = Twin()
    tf_keras.utils.set_random_seed(2)
    with RingStrategy(cast(Any, ring)).scope():
        model = multi_field.build(settings, flights_features(), seed=2)
    for name in ("all_reduce", "all_gather", "broadcast"):
        monkeypatch.setattr(ring, name, None, raising=False)
    told: list[Event] = []
    dataset = cast(Any, SimpleNamespace(features=flights_features()))
    activity = Activity()
    for rank in (1, 0):
        events = SimpleNamespace(send=told.append)
        control = cast(Any, SimpleNamespace(rank=rank, events=events, activity=activity))
        fit._apply_warm_start(flights_model, model, dataset, control)
    assert activity.beats >= 2 * 5  # per rank one for each weight
    tf_keras.utils.set_random_seed(1)
    original = multi_field.build(settings, flights_features(), seed=1)
    for mine, theirs in zip(model.get_weights(), original.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    (event,) = told
    assert (event["event"], event["weights"], event["tokens"]) == ("warm_start", 5, 9)
    assert event["message"] == "5 of 5 weights, 9 of 9 tokens"


def test_a_rank_that_reads_a_large_table_does_not_count_as_hung() -> None:
    """T6: weights that a training begins from are read in the phase `restoring`."""
    watch = Watch(1, PhaseLimits(start_seconds=10.0), now=0.0)
    for beats in range(5):
        watch.feed({"event": "alive", "rank": 0, "phase": "restoring", "beats": beats}, now=8.0 * beats)
        assert watch.verdict(now=8.0 * beats) is None
    watch.feed({"event": "alive", "rank": 0, "phase": "restoring", "beats": 4}, now=43.0)
    assert watch.verdict(now=43.0) is not None


@pytest.mark.parametrize(("resume_from", "is_begun"), [(None, True), ("checkpoints/step-00000010", False)])
def test_a_training_that_goes_on_from_a_checkpoint_is_not_begun_again(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, resume_from: str | None, is_begun: bool
) -> None:
    from mirrorspark.training.programs.keras_fit import fit

    begun: list[Path] = []
    model = SimpleNamespace(fit=lambda *_, **__: begun.append(Path("fit")))
    dataset = SimpleNamespace(steps=lambda split, rows: 1)
    fakes: dict[str, Any] = {
        "with_local_checkpoint": lambda plan, activity: plan,
        "open_strategy": lambda *_: None,
        "read_start": lambda *_: SimpleNamespace(epoch=0, step_in_epoch=0),
        "build_model": lambda *_: model,
        "fit_callbacks": lambda *_, **__: [],
        "_batches": lambda *_: None,
        "_apply_warm_start": lambda folder, *_: begun.append(folder),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(fit, name, fake)
    monkeypatch.setattr(Dataset, "open", lambda path: dataset)
    plan = TrainingPlan(
        config,
        "dataset",
        checkpoints="checkpoints",
        workers=1,
        global_batch_size=8,
        resume_from=resume_from,
        warm_start="the run's own",
    )
    control = cast(Any, SimpleNamespace(rank=0, activity=Activity(), rendezvous=None, hook=TrainingHook()))
    fit.train(plan, control, cast(Any, None))
    assert begun == [*([Path("the run's own")] if is_begun else []), Path("fit")]


def test_people_read_once_what_was_taken_and_every_attempt_gets_the_folder(
    config: RunConfig, folder: RunFolder
) -> None:
    lines: list[str] = []
    view = LiveView(epochs=1, is_interactive=False, write=lines.append)
    tracked = cast(Any, SimpleNamespace(on_event=lambda event: None))
    begin = WarmStart("models:/flights/3", "d1", folder.warm_start)
    dataset = cast(Any, SimpleNamespace(path=folder.path))
    run = OpenRun(folder, tracked, view)
    job = TrainingJob(dataset, config, Cluster(cast(Any, None), lambda: 1), run, warm_start=begin)
    event: Event = {"event": "warm_start", "rank": 0, "message": "5 of 6 weights; not taken: a (not there)"}
    job.on_event(event)
    assert lines == ["warm start from models:/flights/3: 5 of 6 weights; not taken: a (not there)"]
    assert job._training_plan().warm_start == str(folder.warm_start)
    again = TrainingJob(dataset, config, Cluster(cast(Any, None), lambda: 1), run)
    run.recall(again.remember)
    assert again.warm_start_event == event
    assert len(lines) == 1
    assert again._training_plan().warm_start is None
