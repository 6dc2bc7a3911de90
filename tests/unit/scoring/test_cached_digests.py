"""L4, S9: a model's files are read again for its digest once one of them has changed, and not before."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorspark.scoring.model.stored import digest
from mirrorspark.scoring.model.stored.digest import cached_digest, folder_digest
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.package import package_model
from tests.unit.scoring.other_models import LINEAR

SECOND_NS = 10**9


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    for name in ("a", "inner/b"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the folders whose files are read, as that happens."""
    folders: list[Path] = []

    def reading(folder: Path) -> str:
        folders.append(folder)
        return folder_digest(folder)

    monkeypatch.setattr(digest, "folder_digest", reading)
    return folders


def latest_change_ns(folder: Path) -> int:
    return max(path.stat().st_ctime_ns for path in folder.rglob("*") if path.is_file())


def long_after(folder: Path) -> Callable[[], int]:
    """Return a clock that shows a time at which the files have been as they are for a minute."""
    return lambda: latest_change_ns(folder) + 60 * SECOND_NS


def test_files_that_are_as_they_were_are_not_read_again(model: Path, read: list[Path]) -> None:
    digests = {cached_digest(model, now_ns=long_after(model)) for _ in range(3)}
    assert digests == {folder_digest(model)}
    assert read == [model]


def test_equal_files_elsewhere_are_read(model: Path, read: list[Path]) -> None:
    copy = Path(shutil.copytree(model, model.with_name("copy")))
    assert cached_digest(copy, now_ns=long_after(copy)) == cached_digest(model, now_ns=long_after(model))
    assert read == [copy, model]


def other_content(folder: Path) -> None:
    (folder / "a").write_text("longer than it was")


def other_file_of_the_same_size_and_time(folder: Path) -> None:
    found = (folder / "a").stat()
    (folder / "new").write_text("A")
    os.utime(folder / "new", ns=(found.st_atime_ns, found.st_mtime_ns))
    (folder / "new").replace(folder / "a")


def other_content_of_the_same_size_with_the_time_set_back(folder: Path) -> None:
    found = (folder / "a").stat()
    # Until the file system's clock has gone on, which takes some milliseconds.
    while (folder / "a").stat().st_ctime_ns == found.st_ctime_ns:
        (folder / "a").write_text("A")
        os.utime(folder / "a", ns=(found.st_atime_ns, found.st_mtime_ns))


def another_name(folder: Path) -> None:
    (folder / "inner" / "b").rename(folder / "inner" / "c")


def one_more(folder: Path) -> None:
    (folder / "more").touch()


def one_less(folder: Path) -> None:
    (folder / "inner" / "b").unlink()


@pytest.mark.parametrize(
    "change",
    [
        other_content,
        other_file_of_the_same_size_and_time,
        other_content_of_the_same_size_with_the_time_set_back,
        another_name,
        one_more,
        one_less,
    ],
)
def test_a_change_of_any_kind_is_seen(model: Path, change: Callable[[Path], None]) -> None:
    before = cached_digest(model, now_ns=long_after(model))
    change(model)
    assert cached_digest(model, now_ns=long_after(model)) == folder_digest(model) != before


def test_files_that_may_change_within_the_same_tick_of_the_clock_are_read_every_time(
    model: Path, read: list[Path]
) -> None:
    latest_ns = latest_change_ns(model)
    for _ in range(2):
        cached_digest(model, now_ns=lambda: latest_ns + SECOND_NS)
    assert read == [model, model]
    for _ in range(2):
        cached_digest(model, now_ns=lambda: latest_ns + 3 * SECOND_NS)
    assert read == [model] * 3


def test_a_uri_is_resolved_without_reading_the_files_again(
    tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is some milliseconds old: no tick of a clock is to be waited for here."""
    monkeypatch.setattr(digest, "_CLOCK_TICK_NS", 0)
    folder = package_model(LINEAR, tmp_path / "linear").resolve()
    first = resolve(folder)
    assert resolve(folder) == first
    assert read == [folder]
    (folder / "README").write_text("version 2")
    assert resolve(folder).digest == folder_digest(folder) != first.digest
