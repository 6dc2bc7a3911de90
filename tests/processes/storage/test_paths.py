"""Paths on a local disk, on a server that speaks S3's protocol, and on a store of fsspec's."""

import errno
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pyarrow as pa
import pytest
from pyarrow import fs

from mirrorspark.storage.hadoop_uris import hadoop_path, hadoop_uri
from mirrorspark.storage.lakes import LakeTableError, lake_around
from mirrorspark.storage.listing import list_files
from mirrorspark.storage.paths import StorageError, StoragePath
from mirrorspark.storage.publish import SaveMode, WriteJob


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


def test_a_written_file_is_read_listed_and_deleted(folder: StoragePath) -> None:
    assert not folder.exists()
    assert folder.files() == []
    assert folder.folders() == []
    (folder / "a b" / "eins.txt").write_bytes(b"one")
    (folder / "zwei.txt").write_bytes(b"zwei")

    assert [(file.path.relative_to(folder), file.bytes) for file in folder.files()] == [
        ("a b/eins.txt", 3),
        ("zwei.txt", 4),
    ]
    assert [file.path.name for file in folder.files(recursive=False)] == ["zwei.txt"]
    assert folder.folders() == [folder / "a b"]
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


def test_a_file_that_is_written_again_has_another_version_where_the_store_knows(folder: StoragePath) -> None:
    file = folder / "file"
    file.write_bytes(b"one")
    before = file.version()
    assert file.version() == before
    file.write_bytes(b"two")
    assert (file.version() != before) == (not file.uri.startswith("memory:"))
    file.delete()
    with pytest.raises(FileNotFoundError, match="file"):
        file.version()


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


def test_a_wave_at_the_beginning_is_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.chdir(tmp_path)
    assert StoragePath.of("~/x").uri == "/home/ada/x"
    assert StoragePath.of(Path("~/x")).uri == "/home/ada/x"
    assert StoragePath.of("~").uri == "/home/ada"
    assert StoragePath.of("~x").local == tmp_path / "~x"


def test_a_folder_that_is_kept_is_not_made_again(tmp_path: Path) -> None:
    kept = StoragePath.of(tmp_path / "kept")
    kept.make_folder()
    kept = kept.kept_within()
    (kept / "a" / "b" / "file").write_bytes(b"1")
    assert (kept / "a" / "b" / "file").parent.within == kept.uri
    assert kept.parent.within == ""
    kept.delete()

    for file in (kept / "file", kept / "a" / "file", kept / "a" / "b" / "file"):
        with pytest.raises(FileNotFoundError):
            file.write_bytes(b"2")
    (tmp_path / "source").write_bytes(b"3")
    with pytest.raises(FileNotFoundError, match="the write is over"):
        StoragePath.of(tmp_path / "source").rename(kept / "a" / "file")

    assert not kept.exists()
    assert (kept / "x").is_local
    assert pickle.loads(pickle.dumps(kept)).within == kept.uri  # noqa: S301 - our own bytes


def test_a_missing_file_cannot_be_renamed(folder: StoragePath) -> None:
    with pytest.raises(FileNotFoundError):
        (folder / "nothing").rename(folder / "something")


def test_a_folder_on_s3_is_there_while_it_has_a_file(s3_bucket: str) -> None:
    """Arrow leaves an empty object behind that its listings show as a folder."""
    folder = StoragePath.of(f"s3://{s3_bucket}") / uuid4().hex / "a"
    (folder / "b" / "file").write_bytes(b"1")
    assert folder.parent.is_folder()
    (folder / "b" / "file").delete()
    assert not folder.parent.exists()
    (folder / "file").write_bytes(b"1")
    folder.delete()
    assert not folder.parent.exists()
    assert not folder.parent.is_folder()


def test_a_folder_that_others_delete_too_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = StoragePath.of(tmp_path / "t")
    for name in "abc":
        (folder / name / "file").write_bytes(b"1")
    rmtree, calls = shutil.rmtree, []

    def overtaken(path: Path) -> None:
        calls.append(path)
        if len(calls) == 1:
            (path / "a" / "file").unlink()
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path / "a" / "file"))
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", overtaken)

    folder.delete()

    assert not folder.exists()


def test_a_folder_that_cannot_be_deleted_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t").mkdir()

    def refused(path: str, *, dir_fd: int | None = None) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "rmdir", refused)

    with pytest.raises(PermissionError):
        StoragePath.of(tmp_path / "t").delete()


def test_options_of_the_store_stay_with_every_path_below() -> None:
    root = StoragePath.of("s3://bucket/folder?endpoint_override=127.0.0.1:9000&scheme=http")
    assert str(root / "part") == "s3://bucket/folder/part?endpoint_override=127.0.0.1:9000&scheme=http"
    assert (root / "part").parent == root
    assert (root / "a" / "b").relative_to(root) == "a/b"
    assert pickle.loads(pickle.dumps(root)) == root  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    ("path", "folder", "is_in"),
    [
        ("/lake/in/part", "/lake/in", True),
        ("/lake/in", "/lake/in", True),
        ("/lake/in", "/", True),
        ("/lake/inner", "/lake/in", False),
        ("/lake", "/lake/in", False),
        ("s3://lake/in?region=eu", "s3://lake?endpoint_override=127.0.0.1:9000", True),
        ("/lake/in", "s3://lake", False),
    ],
)
def test_a_path_is_in_a_folder_or_beside_it(path: str, folder: str, is_in: bool) -> None:
    assert StoragePath.of(path).is_in(StoragePath.of(folder)) is is_in


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("", "an empty path names nothing; give a path or a URI"),
        (
            "dbfs:/mnt/x",
            "dbfs:/mnt/x has one slash after dbfs: and names no place; write /dbfs/mnt/x, where it is mounted",
        ),
        ("hdfs:/a/b", "hdfs:/a/b has one slash after hdfs: and names no place; write hdfs://NAMENODE:PORT/a/b"),
        ("s3:/x", "s3:/x has one slash after s3: and names no place; write s3://x, as a string"),
        (
            Path("s3://bucket/x"),
            "s3:/bucket/x has one slash after s3: and names no place; write s3://bucket/x, as a string",
        ),
        ("s3://user:secret@bucket/x", "a s3:// location carries a password; put credentials into the environment"),
    ],
)
def test_refuses_what_names_no_place(location: str | Path, message: str) -> None:
    with pytest.raises(StorageError) as raised:
        StoragePath.of(location)
    assert str(raised.value) == message


def test_an_unknown_store_says_what_can_be_done() -> None:
    with pytest.raises(StorageError, match="no store here serves nowhere://; use a local path"):
        StoragePath.of("nowhere://host/x").exists()


def test_only_a_local_path_has_a_local_form() -> None:
    with pytest.raises(StorageError, match="is not on a local disk"):
        _ = StoragePath.of("s3://bucket/x").local


@pytest.mark.parametrize(
    ("error", "is_unreachable"), [(OSError("Couldn't resolve host name"), True), (pa.ArrowInvalid("bad option"), False)]
)
def test_a_store_that_does_not_answer_is_told_from_one_that_is_none(
    monkeypatch: pytest.MonkeyPatch, error: Exception, is_unreachable: bool
) -> None:
    def fail(uri: str) -> None:
        raise error

    monkeypatch.setattr("mirrorspark.storage.paths.fs", SimpleNamespace(FileSystem=SimpleNamespace(from_uri=fail)))
    with pytest.raises(StorageError, match=f"s3://bucket/x cannot be opened: {error}") as caught:
        StoragePath.of("s3://bucket/x").open_stream()
    assert isinstance(caught.value, OSError) == is_unreachable
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert (type(again), str(again)) == (type(caught.value), str(caught.value))


@pytest.mark.parametrize(
    ("given", "path", "uri"),
    [
        ("s3a://lake/t", "s3://lake/t/a b.parquet", "s3a://lake/t/a b.parquet"),
        ("s3://lake/t?endpoint_override=127.0.0.1:5000", "s3://lake/t", "s3://lake/t"),
        ("hdfs://namenode:8020/t", "hdfs://namenode:8020/t", "hdfs://namenode:8020/t"),
        (Path("/lake"), "/lake/a b.parquet", "file:///lake/a b.parquet"),
        ("file:///lake", "/lake", "file:///lake"),
    ],
)
def test_hadoop_is_told_a_path_as_it_was_spelled(given: str | Path, path: str, uri: str) -> None:
    assert hadoop_uri(StoragePath.of(path), given) == uri
    assert hadoop_uri(StoragePath.of(path), "/other", "gs://other", given) == uri


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:/lake/a%20b.parquet", "/lake/a b.parquet"),
        ("file:///lake/a%20b.parquet", "/lake/a b.parquet"),
        ("s3a://lake/a%20b.parquet", "s3://lake/a b.parquet"),
        ("hdfs://namenode:8020/t", "hdfs://namenode:8020/t"),
        ("dbfs:/mnt/t", "/dbfs/mnt/t"),
        ("dbfs:/Volumes/main/t", "/Volumes/main/t"),
        ("maprfs:/t", "maprfs:///t"),
    ],
)
def test_a_path_that_hadoop_names_is_ours(uri: str, path: str) -> None:
    assert hadoop_path(uri).uri == path


def test_a_lake_table_is_recognised_on_each_store(folder: StoragePath) -> None:
    (folder / "table" / "day=3" / "part.parquet").write_bytes(b"PAR1")
    (folder / "plain" / "part.parquet").write_bytes(b"PAR1")
    assert lake_around(folder / "table") is None
    (folder / "table" / "metadata" / "v1.metadata.json").write_bytes(b"{}")
    for place in (folder / "table", folder / "table" / "day=3" / "part.parquet"):
        found = lake_around(folder / "plain", place)
        assert found is not None
        assert (found.folder, found.format.name) == (folder / "table", "iceberg")
        with pytest.raises(LakeTableError, match="is an Iceberg table"):
            list_files(place)
    with pytest.raises(LakeTableError, match="write to another folder"):
        WriteJob.begin(folder / "table" / "new", SaveMode.APPEND)
    with pytest.raises(LakeTableError, match="is an Iceberg table"):
        list_files(folder)
    assert [file.path for file in list_files(folder / "plain")] == [folder / "plain" / "part.parquet"]


def test_a_place_that_the_store_hides_counts_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights may begin below a bucket: a look above it is then denied, as the words of Arrow's error show."""
    (tmp_path / "seen").mkdir()

    class Denying(fs.FileSystemHandler):  # type: ignore[misc]
        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"{name} is not asked for")

        def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
            if any("hidden" in path for path in paths):
                raise OSError("When getting information for key 'hidden': AWS Error ACCESS_DENIED during HeadObject")
            return fs.LocalFileSystem().get_file_info(paths)

    Denying.__abstractmethods__ = frozenset()
    monkeypatch.setattr(StoragePath, "_open_store", lambda path: (fs.PyFileSystem(Denying()), path.uri))
    assert StoragePath.of(tmp_path).existing(["hidden", "seen", "missing"]) == {"seen"}
