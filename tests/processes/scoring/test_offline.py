"""L4: a model that was fetched is used again, also where its store does not answer any more."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks.servers import TrackingServer
from mirrorspark.scoring.model.stored.fetched import FetchedModelsError
from mirrorspark.scoring.model.stored.pinned import PinnedModel
from mirrorspark.scoring.model.stored.uri import ModelStoreError, resolve
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.predictor import Predictor
from tests.unit.scoring.exported_models import log_flights
from tests.unit.scoring.other_models import LINEAR

# An MLflow server is started.
pytestmark = pytest.mark.timeout(180)

ROW = dict.fromkeys(LINEAR["coefficients"], 0.0)


@dataclass(frozen=True)
class Far:
    """An SQLite store with two versions of ``boxes``, and with runs, whose files are far away.

    Attributes:
        database: The store.
        ended: Id of a run that has ended.
        running: Id of one that has not.
        downloads: The downloads of this test, with their sources.
    """

    database: Path
    ended: str
    running: str
    downloads: list[str] = field(default_factory=list)

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.database}"

    def let_champion_be(self, version: int) -> None:
        from mlflow import MlflowClient

        MlflowClient(self.uri).set_registered_model_alias("boxes", "champion", str(version))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Far:
    from mlflow import MlflowClient

    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    client = MlflowClient(f"sqlite:///{database}")
    client.create_registered_model("boxes")
    for number in (1, 2):
        client.create_model_version("boxes", f"s3://far/boxes-{number}")
    experiment = client.create_experiment("far", artifact_location="s3://far/runs")
    ended, running = (client.create_run(experiment).info.run_id for _ in range(2))
    client.set_terminated(ended)
    return Far(database, ended, running)


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that copies are kept in."""
    monkeypatch.setenv("MIRRORSPARK_MODEL_CACHE", str(tmp_path / "copies"))
    return tmp_path / "copies"


@pytest.fixture
def far(made: Far, copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Far:
    """Return a store of this test's own, whose champion is version 1."""
    store = Far(Path(shutil.copy(made.database, tmp_path / "mlflow.db")), made.ended, made.running)
    store.let_champion_be(1)

    def download_artifacts(artifact_uri: str, dst_path: str, tracking_uri: str) -> str:
        assert tracking_uri == store.uri
        store.downloads.append(artifact_uri)
        model = {**LINEAR, "intercept": float(artifact_uri == "s3://far/boxes-2")}
        return str(package_model(model, Path(dst_path) / "boxes"))

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", download_artifacts)
    return store


def test_a_version_is_downloaded_once_by_whatever_name_it_is_asked_for(far: Far, copies: Path) -> None:
    pinned = resolve("models:/boxes/1", far.uri)
    assert resolve("models:/boxes/1", far.uri) == pinned == resolve("models:/boxes@champion", far.uri)
    assert far.downloads == ["s3://far/boxes-1"]
    assert pinned.path.is_relative_to(copies)
    assert resolve("models:/boxes/2", far.uri).digest != pinned.digest


def test_files_of_a_run_are_downloaded_once_it_has_ended_and_each_time_before(far: Far) -> None:
    """A run that goes on may log its model again."""
    for run_id in (far.ended, far.running):
        assert {resolve(f"runs:/{run_id}/boxes", far.uri).label for _ in range(2)} == {f"boxes/{run_id}"}
    assert [uri.split("/")[4] for uri in far.downloads] == [far.ended, far.running, far.running]


def test_files_that_are_here_are_not_copied(copies: Path, tmp_path: Path, flights_model: Path) -> None:
    store = f"sqlite:///{tmp_path / 'here.db'}"
    log_flights(store, tmp_path / "artifacts", flights_model)
    assert resolve("models:/flights/1", store).path.is_relative_to(tmp_path / "artifacts")
    assert not copies.exists()


@pytest.mark.parametrize("is_text", [False, True])
def test_a_disk_that_is_full_is_told_as_one(far: Far, monkeypatch: pytest.MonkeyPatch, is_text: bool) -> None:
    """MLflow makes text of the errors of several files."""
    from mlflow.exceptions import MlflowException

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    failures = f"The following failures occurred while downloading:\n##### File a/b #####\n{full}"

    def download_artifacts(**where: str) -> str:
        raise MlflowException(failures) if is_text else full

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", download_artifacts)
    with pytest.raises(FetchedModelsError, match=r"No space left on device; have MIRRORSPARK_MODEL_CACHE name"):
        resolve("models:/boxes/1", far.uri)


def test_offline_an_alias_leads_where_it_led_last_and_the_log_says_so(
    far: Far, caplog: pytest.LogCaptureFixture
) -> None:
    fetched = resolve("models:/boxes@champion", far.uri)
    far.database.unlink()
    assert resolve("models:/boxes@champion", far.uri, offline=True) == fetched
    said = r"'models:/boxes@champion' is models:/boxes/1 \(fetched 2\S+\), as the MLflow store last said at 2\S+"
    assert re.search(said, caplog.text)
    caplog.clear()
    assert resolve("models:/boxes/1", far.uri, offline=True) == fetched
    assert caplog.text == "", "a version is what it is"
    assert not far.database.exists(), "MLflow has not been asked"


def test_offline_by_the_environment_holds_for_every_way_in(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve("models:/boxes@champion", far.uri)
    far.database.unlink()
    monkeypatch.setenv("MIRRORSPARK_OFFLINE", "1")
    assert Predictor("models:/boxes@champion", tracking_uri=far.uri).predict(ROW)["model_version"] == "boxes/1"
    assert far.downloads == ["s3://far/boxes-1"]


@pytest.mark.parametrize(
    "uri", ["models:/boxes/2", "models:/boxes@challenger", "models:/others/1", f"runs:/{'0' * 32}/a"]
)
def test_offline_a_model_that_was_never_fetched_is_told_with_what_to_do(far: Far, copies: Path, uri: str) -> None:
    resolve("models:/boxes@champion", far.uri)
    far.database.unlink()
    with pytest.raises(ModelStoreError) as failure:
        resolve(uri, far.uri, offline=True)
    store = f"{copies} has no whole copy of it from the MLflow store {far.uri}"
    assert str(failure.value).startswith(f"offline there is no model '{uri}': {store}; resolve it once where")
    assert "MIRRORSPARK_MODEL_CACHE" in str(failure.value)


def test_offline_a_copy_of_another_store_does_not_count(far: Far) -> None:
    resolve("models:/boxes/1", far.uri)
    with pytest.raises(ModelStoreError, match="from the MLflow store http://ann"):
        resolve("models:/boxes/1", "http://ann.example:5000", offline=True)


def test_offline_a_store_in_a_file_is_asked_and_nothing_is_downloaded(far: Far) -> None:
    first = resolve("models:/boxes@champion", far.uri)
    far.let_champion_be(2)
    with pytest.raises(ModelStoreError, match="offline there is no model 'models:/boxes/2'"):
        resolve("models:/boxes@champion", far.uri, offline=True)
    assert far.downloads == ["s3://far/boxes-1"]
    second = resolve("models:/boxes/2", far.uri)
    assert resolve("models:/boxes@champion", far.uri, offline=True) == second != first


def test_a_damaged_copy_is_refused_offline_and_fetched_again_otherwise(far: Far) -> None:
    pinned = resolve("models:/boxes/1", far.uri)
    (pinned.path / "more").touch()
    for _ in range(2):
        with pytest.raises(ModelStoreError, match="has no whole copy of it"):
            resolve("models:/boxes/1", far.uri, offline=True)
    assert resolve("models:/boxes/1", far.uri) == pinned
    assert not (pinned.path / "more").exists()
    assert far.downloads == ["s3://far/boxes-1"] * 2


@pytest.fixture
def make_read_only(copies: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that makes the system refuse to open the copies for writing, which root, as here, may do."""
    system = os.open

    def refuse(path: str | Path, flags: int, *mode: int, **options: int) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY) and Path(path).is_relative_to(copies):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return system(path, flags, *mode, **options)

    return lambda: monkeypatch.setattr(os, "open", refuse)


@pytest.mark.parametrize("is_asked", [True, False])
def test_offline_a_folder_that_is_read_only_will_do(
    far: Far, make_read_only: Callable[[], None], is_asked: bool
) -> None:
    pinned = resolve("models:/boxes@champion", far.uri)
    if not is_asked:
        far.database.unlink()
    make_read_only()
    assert resolve("models:/boxes@champion", far.uri, offline=True) == pinned
    (pinned.path / "more").write_text("damage")
    with pytest.raises(ModelStoreError, match="has no whole copy of it"):
        resolve("models:/boxes@champion", far.uri, offline=True)


def test_a_folder_that_is_read_only_is_an_error_unless_offline(far: Far, make_read_only: Callable[[], None]) -> None:
    resolve("models:/boxes@champion", far.uri)
    make_read_only()
    with pytest.raises(FetchedModelsError, match="Read-only file system"):
        resolve("models:/boxes@champion", far.uri)


@dataclass(frozen=True)
class Gone:
    """A server that was killed.

    Attributes:
        uri: Where it was.
        copies: Folder of the copies that were fetched from it.
        pinned: Its output and scores, by URI.
    """

    uri: str
    copies: Path
    pinned: Mapping[str, PinnedModel]


@pytest.fixture(scope="module")
def gone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gone]:
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("gone")
    with pytest.MonkeyPatch.context() as patch:
        # Settings that other tests of this process made in MLflow are not for this server.
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setenv("MIRRORSPARK_MODEL_CACHE", str(folder / "copies"))
        with TrackingServer(folder / "server") as server:
            client = MlflowClient(server.uri)
            run = client.create_run("0")
            run_id = run.info.run_id
            client.log_artifacts(run_id, str(package_model(LINEAR, folder / "boxes")), "boxes")
            client.set_terminated(run_id)
            client.create_registered_model("boxes")
            client.create_model_version("boxes", f"{run.info.artifact_uri}/boxes", run_id)
            client.set_registered_model_alias("boxes", "champion", "1")
            uris = ("models:/boxes/1", "models:/boxes@champion", f"runs:/{run_id}/boxes")
            pinned = {uri: resolve(uri, server.uri) for uri in uris}
        yield Gone(server.uri, folder / "copies", pinned)


def test_a_model_fetched_from_a_server_is_used_offline_later(gone: Gone) -> None:
    assert {uri: resolve(uri, gone.uri, offline=True) for uri in gone.pinned} == gone.pinned
    assert {pinned.path.is_relative_to(gone.copies) for pinned in gone.pinned.values()} == {True}
    champion = Predictor(resolve("models:/boxes@champion", f"{gone.uri}/", offline=True))
    assert champion.predict(ROW)["model_version"] == "boxes/1"


@pytest.mark.parametrize(
    ("uri", "copy"),
    [
        ("models:/boxes/1", r"models:/boxes/1 \(fetched \S+\)"),
        ("models:/boxes@champion", r"models:/boxes/1 \(fetched \S+\), where it led \S+,"),
    ],
)
def test_a_server_that_is_gone_is_told_with_the_copy_that_there_is(gone: Gone, uri: str, copy: str) -> None:
    # Refused, or reset where the client has kept a connection to it.
    where = rf"in the MLflow store {gone.uri}: [^;]*Connection re[^;]+; a copy of {copy} is in {gone.copies}"
    with pytest.raises(ModelStoreError, match=rf"{where}: offline=True, --offline or MIRRORSPARK_OFFLINE=1 uses it$"):
        resolve(uri, gone.uri)


def test_a_server_that_is_gone_is_told_where_there_is_no_home_for_copies(
    gone: Gone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("MIRRORSPARK_MODEL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(ModelStoreError, match=r"Connection re(fused|set)"):
        resolve("models:/boxes/1", gone.uri)


def test_a_server_that_is_gone_is_told_without_a_copy_where_there_is_none(gone: Gone) -> None:
    with pytest.raises(ModelStoreError, match=r"Connection re(fused|set)"):
        resolve("models:/boxes/2", gone.uri)
