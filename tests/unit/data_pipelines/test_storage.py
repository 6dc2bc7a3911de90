"""Paths on a local disk, on a server that speaks S3's protocol, and on a store of fsspec's."""

import errno
import pickle
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from data_pipelines.storage import StorageError, StoragePath, scratch_folder


@pytest.fixture(params=["local", "s3", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoragePath]:
    """Return a folder that does not exist yet, its name with a space and an umlaut."""
    name = f"größe {uuid4().hex}"
    if request.param == "s3":
        yield StoragePath.of(f"s3a://{request.getfixturevalue('s3_bucket')}") / name
    elif request.param == "memory":
        yield StoragePath.of("memory://store") / name
    else:
        yield StoragePath.of(tmp_path) / name


def test_what_was_written_is_read_listed_and_deleted(folder: StoragePath) -> None:
    assert not folder.exists()
    assert folder.files() == []
    (folder / "a b" / "eins.txt").write_bytes(b"one")
    (folder / "zwei.txt").write_bytes(b"zwei")

    assert [(file.path.relative_to(folder), file.bytes) for file in folder.files()] == [
        ("a b/eins.txt", 3),
        ("zwei.txt", 4),
    ]
    assert [file.path.name for file in folder.files(recursive=False)] == ["zwei.txt"]
    assert folder.is_folder()
    assert (folder / "zwei.txt").is_file()
    assert (folder / "zwei.txt").size() == 4
    assert (folder / "a b" / "eins.txt").read_bytes() == b"one"

    folder.delete()
    assert not folder.exists()
    folder.delete()


def test_reads_at_random_and_replaces_a_file(folder: StoragePath) -> None:
    file = folder / "file"
    file.write_bytes(b"0123456789")
    file.write_bytes(b"abcdefghij")
    with file.open_read() as opened:
        opened.seek(7)
        assert opened.read(2) == b"hi"
    assert [found.path for found in folder.files()] == [file]


def test_a_renamed_folder_takes_its_files_along(folder: StoragePath) -> None:
    (folder / "old" / "x" / "1").write_bytes(b"1")
    (folder / "old" / "2").write_bytes(b"2")
    (folder / "old").rename(folder / "new")
    assert [file.path.relative_to(folder) for file in folder.files()] == ["new/2", "new/x/1"]
    (folder / "new" / "2").rename(folder / "3")
    assert (folder / "3").read_bytes() == b"2"


def test_a_missing_file_says_which(folder: StoragePath) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        (folder / "nothing").size()
    assert raised.value.errno == errno.ENOENT
    assert str(folder / "nothing") in str(raised.value)
    with pytest.raises(OSError, match="nothing"):
        (folder / "nothing").read_bytes()


def test_download_leaves_a_whole_file_and_nothing_else(folder: StoragePath, tmp_path: Path) -> None:
    (folder / "file").write_bytes(b"content")
    (folder / "file").download(tmp_path / "here" / "copy")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["copy"]
    assert (tmp_path / "here" / "copy").read_bytes() == b"content"


def test_scratch_folder_is_removed_after_an_error(folder: StoragePath) -> None:
    def work() -> None:
        with scratch_folder(folder, ".scratch-") as scratch:
            (scratch / "file").write_bytes(b"1")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        work()
    assert folder.files() == []


@pytest.mark.parametrize(
    ("given", "uri"),
    [
        ("/data/a b", "/data/a b"),
        ("file:///data/a%20b", "/data/a b"),
        ("file:/data/x", "/data/x"),
        (Path("/data/x"), "/data/x"),
        ("s3n://bucket/x/", "s3://bucket/x"),
        ("GS://bucket/x", "gs://bucket/x"),
    ],
)
def test_spellings_of_a_location(given: str | Path, uri: str) -> None:
    assert StoragePath.of(given).uri == uri


def test_a_relative_path_is_taken_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert StoragePath.of("x/y").local == tmp_path / "x" / "y"


def test_options_of_the_store_stay_with_every_path_below() -> None:
    root = StoragePath.of("s3://bucket/folder?endpoint_override=127.0.0.1:9000&scheme=http")
    assert str(root / "part") == "s3://bucket/folder/part?endpoint_override=127.0.0.1:9000&scheme=http"
    assert (root / "part").parent == root
    assert (root / "a" / "b").relative_to(root) == "a/b"
    assert pickle.loads(pickle.dumps(root)) == root  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("", "an empty path names nothing; give a path or a URI"),
        ("s3://user:secret@bucket/x", "a s3:// location carries a password; put credentials into the environment"),
    ],
)
def test_refuses_what_names_no_place(location: str, message: str) -> None:
    with pytest.raises(StorageError) as raised:
        StoragePath.of(location)
    assert str(raised.value) == message


def test_an_unknown_store_says_what_can_be_done() -> None:
    with pytest.raises(StorageError, match="no store here serves nowhere://; use a local path"):
        StoragePath.of("nowhere://host/x").exists()


def test_only_a_local_path_has_a_local_form() -> None:
    with pytest.raises(StorageError, match="is not on a local disk"):
        _ = StoragePath.of("s3://bucket/x").local
