"""L4: a version is fetched once, stays as it was fetched, and goes when room is needed and nobody uses it."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from mirrorspark.scoring.model.stored.digest import folder_digest
from mirrorspark.scoring.model.stored.fetched import (
    FetchedModels,
    FetchedModelsError,
    FetchedVersion,
    StoredVersion,
    is_offline_by_environment,
    models_to_fetch_into,
)

REPOSITORY = Path(__file__).resolve().parents[3]
BYTES = 1000

# Fetches the given models, prints a line, and lives until its input ends.
PROGRAM = """
import sys
from pathlib import Path

from mirrorspark.scoring.model.stored.fetched import FetchedModels
from tests.unit.scoring.test_fetched_models import version, write_model

folder, limit_bytes, *names = sys.argv[1:]
for name in names:
    FetchedModels(Path(folder), int(limit_bytes)).fetch(version(name), lambda arriving: write_model(arriving, name))
print("ready", flush=True)
sys.stdin.read()
"""


def version(name: str, location: str = "s3://far/away") -> StoredVersion:
    return StoredVersion("http://store", f"models:/{name}/1", name, "1", location)


def write_model(folder: Path, text: str) -> Path:
    """Write a model of `BYTES` bytes, as a download does: with something around it."""
    model = folder / "artifacts" / "model"
    model.mkdir(parents=True)
    (folder / "artifacts" / "MLmodel").touch()
    (model / "weights").write_text(text[0] * BYTES)
    return model


@dataclass
class Store:
    """Has models whose weights are the letter that they are called by, and counts how often each is downloaded."""

    weights: str = ""
    downloads: list[str] = field(default_factory=list)

    def of(self, name: str) -> Callable[[Path], Path]:
        """Return a function that downloads a model."""

        def download(arriving: Path) -> Path:
            self.downloads.append(name)
            return write_model(arriving, self.weights or name)

        return download


@pytest.fixture
def models(tmp_path: Path) -> FetchedModels:
    return FetchedModels(tmp_path / "cache" / "models")


@pytest.fixture
def store() -> Store:
    return Store()


def weights(models: FetchedModels, fetched: FetchedVersion) -> Path:
    return models.path(fetched) / "weights"


def letters(models: FetchedModels) -> str:
    """Return the models that exist, by the letter that they consist of."""
    return "".join(sorted(path.read_text()[0] for path in models.folder.glob("entries/*/weights")))


def on_the_way(models: FetchedModels) -> list[Path]:
    return list(models.folder.glob("arriving/*"))


@contextmanager
def other_process(models: FetchedModels, *names: str) -> Iterator["subprocess.Popen[str]"]:
    """Have another process fetch `names` one after the other; it lives as the context."""
    command = [sys.executable, "-c", PROGRAM, str(models.folder), str(models.limit_bytes or 10**9), *names]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


def test_a_version_that_is_there_is_not_fetched_again(models: FetchedModels, store: Store) -> None:
    first = models.fetch(version("a"), store.of("a"))
    assert models.fetch(version("a"), store.of("a")) == first
    assert store.downloads == ["a"]
    assert weights(models, first).read_text() == "a" * BYTES
    assert (first.digest, first.bytes) == (folder_digest(models.path(first)), BYTES)
    assert [path.name for path in models.path(first).iterdir()] == ["weights"], "what lay around the model is not kept"
    assert on_the_way(models) == []


def test_equal_versions_of_other_stores_are_fetched_for_themselves_and_share_their_files(
    models: FetchedModels, store: Store
) -> None:
    first = models.fetch(version("a"), store.of("a"))
    second = models.fetch(replace(version("a"), store="http://other"), store.of("a"))
    assert store.downloads == ["a", "a"]
    assert models.path(first) == models.path(second)
    assert letters(models) == "a"


def test_a_version_whose_files_are_elsewhere_now_is_fetched_again(models: FetchedModels, store: Store) -> None:
    """A model that was deleted and registered anew has a version 1 again."""
    before = models.fetch(version("a"), store.of("a"))
    store.weights = "b"
    after = models.fetch(version("a", "s3://far/anew"), store.of("a"))
    assert weights(models, after).read_text() == "b" * BYTES
    assert weights(models, before).read_text() == "a" * BYTES, "this process has pinned it"
    assert models.find("http://store", "models:/a/1") == after


def test_a_possibly_changed_model_is_fetched_again_on_request(models: FetchedModels, store: Store) -> None:
    models.fetch(version("a"), store.of("a"))
    store.weights = "b"
    assert weights(models, models.fetch(version("a"), store.of("a"), again=True)).read_text() == "b" * BYTES


@pytest.mark.parametrize("damage", ["changed", "gone", "more", "no folder"])
def test_a_copy_that_is_not_what_was_fetched_is_not_used_and_fetched_again(
    models: FetchedModels, store: Store, damage: str
) -> None:
    fetched = models.fetch(version("a"), store.of("a"))
    file = weights(models, fetched)
    if damage == "changed":
        file.write_text("a" * (BYTES - 1) + "b")
    elif damage == "gone":
        file.unlink()
    elif damage == "more":
        file.with_name("more").touch()
    else:
        shutil.rmtree(models.path(fetched))
    assert models.recall("http://store", "models:/a/1") is None
    assert models.path(models.fetch(version("a"), store.of("a"))) == models.path(fetched)
    assert file.read_text() == "a" * BYTES
    assert [path.name for path in models.path(fetched).iterdir()] == ["weights"]
    assert store.downloads == ["a", "a"]
    assert models.recall("http://store", "models:/a/1") is not None


def test_a_record_that_was_cut_off_counts_for_nothing(models: FetchedModels, store: Store) -> None:
    models.fetch(version("a"), store.of("a"))
    (record,) = (models.folder / "known").iterdir()
    record.write_text(record.read_text()[:20])
    assert models.find("http://store", "models:/a/1") is None
    models.fetch(version("a"), store.of("a"))
    assert models.find("http://store", "models:/a/1") is not None


def test_an_alias_leads_where_it_was_said_to_lead_last(models: FetchedModels, store: Store) -> None:
    first, second = (models.fetch(version(name), store.of(name)) for name in "ab")
    for fetched in (first, second):
        models.remember("models:/a@champion", fetched)
    found = models.recall("http://store", "models:/a@champion")
    assert found == replace(second, asked=found.asked if found else "")
    assert models.recall("http://other", "models:/a@champion") is None
    assert models.recall("http://store", "models:/a@challenger") is None


def test_spellings_of_a_uri_are_one(models: FetchedModels, store: Store) -> None:
    models.fetch(version("a"), store.of("a"))
    assert models.find("http://store", "models:///a/1/") == models.find("http://store", "models:/a/1") is not None


def test_concurrent_requests_share_one_download(models: FetchedModels, store: Store) -> None:
    """Locks are held by open files, so threads stand for processes."""
    with ThreadPoolExecutor(8) as threads:
        fetched = set(threads.map(lambda _: models.fetch(version("a"), store.of("a")), range(8)))
    assert len(fetched) == 1
    assert store.downloads == ["a"]


@pytest.mark.process
def test_other_processes_use_what_one_has_fetched(models: FetchedModels, store: Store) -> None:
    with other_process(models, "a"):
        models.fetch(version("a"), store.of("a"))
    models.fetch(version("a"), store.of("a"))
    assert store.downloads == []


def test_a_download_that_fails_leaves_nothing(models: FetchedModels, store: Store) -> None:
    def fail(arriving: Path) -> Path:
        write_model(arriving, "a")
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        models.fetch(version("a"), fail)
    assert models.recall("http://store", "models:/a/1") is None
    assert on_the_way(models) == []
    models.fetch(version("a"), store.of("a"))
    assert store.downloads == ["a"]


@pytest.mark.process
def test_an_entry_in_use_by_a_living_process_stays(models: FetchedModels, store: Store) -> None:
    bounded = replace(models, limit_bytes=BYTES)
    with other_process(bounded, "a"):
        bounded.fetch(version("b"), store.of("b"))
        assert letters(models) == "ab"
    bounded.fetch(version("c"), store.of("c"))
    assert letters(models) == "bc", "this process uses both"


def test_a_folder_that_was_emptied_is_filled_again(models: FetchedModels, store: Store) -> None:
    for _ in range(2):
        models.fetch(version("a"), store.of("a"))
        shutil.rmtree(models.folder)
    assert store.downloads == ["a", "a"]


def test_a_folder_that_cannot_be_made_is_told_with_what_names_another(tmp_path: Path, store: Store) -> None:
    (tmp_path / "file").touch()
    models = FetchedModels(tmp_path / "file" / "models")
    assert models.find("http://store", "models:/a/1") is None
    with pytest.raises(FetchedModelsError, match=r"file/models cannot hold copies .* MIRRORSPARK_MODEL_CACHE name"):
        models.fetch(version("a"), store.of("a"))


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MIRRORSPARK_MODEL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


# Fetches into the default folder, and says where that is.
DEFAULT_PROGRAM = """
import logging

from mirrorspark.scoring.model.stored.fetched import models_to_fetch_into
from tests.unit.scoring.test_fetched_models import Store, letters, version

logging.basicConfig(format="%(message)s")
for name in "ab":
    models = models_to_fetch_into()
    models.fetch(version(name), Store().of(name))
assert letters(models) == "ab"
print(models.folder)
"""


@pytest.mark.process
def test_without_a_home_to_write_a_process_keeps_copies_until_it_ends_and_says_so_once(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    environment = {
        name: os.environ[name] for name in os.environ if name not in ("MIRRORSPARK_MODEL_CACHE", "XDG_CACHE_HOME")
    }
    done = subprocess.run(
        [sys.executable, "-c", DEFAULT_PROGRAM],
        env={**environment, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)},
        cwd=REPOSITORY,
        text=True,
        capture_output=True,
        check=True,
    )
    folder = Path(done.stdout.strip())
    assert folder.parent == tmp_path
    assert not folder.exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"models that are fetched are kept in {folder} until this process ends: {tmp_path}/home/")
    assert line.endswith("have MIRRORSPARK_MODEL_CACHE name a folder on a local disk that can be written and has room")


@pytest.mark.usefixtures("no_variables")
def test_a_user_whom_the_system_does_not_know_has_the_home_that_containers_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    assert FetchedModels().folder == Path("/.cache/mirrorspark/models")


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize("name", ["MIRRORSPARK_MODEL_CACHE", "XDG_CACHE_HOME"])
def test_a_folder_that_a_variable_names_is_that_or_an_error(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(name, str(tmp_path / "file" / "models"))
    with pytest.raises(FetchedModelsError, match="have MIRRORSPARK_MODEL_CACHE name"):
        models_to_fetch_into().fetch(version("a"), store.of("a"))


def test_a_file_system_without_locks_is_told_with_what_names_another(
    models: FetchedModels, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(FetchedModelsError, match="No locks available; have MIRRORSPARK_MODEL_CACHE name"):
        models.fetch(version("a"), store.of("a"))


def test_an_existing_copy_is_returned_during_another_download(models: FetchedModels, store: Store) -> None:
    fetched = models.fetch(version("a"), store.of("a"))
    with ThreadPoolExecutor(1) as threads:
        began, go_on = threading.Event(), threading.Event()

        def download(arriving: Path) -> Path:
            began.set()
            assert go_on.wait(60)
            return write_model(arriving, "a")

        again = threads.submit(models.fetch, version("a"), download, again=True)
        assert began.wait(60)
        assert models.fetch(version("a"), store.of("a")) == fetched
        go_on.set()
        again.result()
    assert store.downloads == ["a"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_download_that_the_disk_refuses_is_the_folder_s_fault(models: FetchedModels, number: int) -> None:
    def download(arriving: Path) -> Path:
        raise OSError(number, os.strerror(number))

    with pytest.raises(FetchedModelsError, match=f"{os.strerror(number)}; have MIRRORSPARK_MODEL_CACHE name"):
        models.fetch(version("a"), download)
    assert on_the_way(models) == []


@pytest.mark.parametrize(
    ("said", "offline"), [("1", True), ("True", True), ("0", False), ("false", False), ("", False)]
)
def test_the_environment_asks_to_be_offline(monkeypatch: pytest.MonkeyPatch, said: str, offline: bool) -> None:
    monkeypatch.setenv("MIRRORSPARK_OFFLINE", said)
    assert is_offline_by_environment() == offline


def test_a_word_that_says_neither_yes_nor_no_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRRORSPARK_OFFLINE", "yes")
    with pytest.raises(ValueError, match="MIRRORSPARK_OFFLINE is 'yes'; set it to 1 or true"):
        is_offline_by_environment()


def test_the_folder_is_the_user_s_own_below_the_user_s_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("MIRRORSPARK_MODEL_CACHE", str(tmp_path / "named"))
    folders = []
    for name in ("MIRRORSPARK_MODEL_CACHE", "XDG_CACHE_HOME", "HOME"):
        models = FetchedModels()
        models.fetch(version("a"), Store().of("a"))
        folders.append(models.folder)
        monkeypatch.delenv(name)
    mine = Path("mirrorspark", "models")
    assert folders == [tmp_path / "named", tmp_path / "xdg" / mine, tmp_path / "home" / ".cache" / mine]
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700}
