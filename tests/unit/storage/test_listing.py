"""Paths, folders and globs name the files that Spark's own sources would read (T1, S17)."""

import datetime
import itertools
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from mirrorspark.storage.listing import (
    DataFile,
    list_files,
    pack_files,
    partition_column,
    partition_folder,
    partition_schema,
    reads,
)
from mirrorspark.storage.paths import StoragePath, StoredFile
from mirrorspark.storage.publish import WriteJob
from mirrorspark.storage.publish.journal import Journal
from mirrorspark.storage.publish.recovery import WriteInProgressError
from mirrorspark.storage.publish.staging import close_write
from tests.unit.storage.bucket import Bucket
from tests.unit.storage.writes import begin, half_published, in_place, kill_owner_elsewhere, listed, write, written

MB = 2**20
SHOP = StoragePath("memory://store/shop")
OLD_FILES, NEW_FILES = frozenset({"day=1/old"}), frozenset({"day=2/new"})


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """Return a folder with files that count and files that do not."""
    folder = tmp_path / "a lake ü"
    for name in (
        "part-0.tfrecord",
        "day=1/part-1.tfrecord",
        "day=2/part-2.tfrecord.gz",
        "other/part-3.txt",
        "_SUCCESS",
        ".hidden/part-4.tfrecord",
        "_temporary/part-5.tfrecord",
        ".part-0.crc",
        "part-6.tfrecord._COPYING_",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "empty.tfrecord").write_bytes(b"")
    return folder


def names(files: list[DataFile], folder: Path) -> list[str]:
    return sorted(file.path.relative_to(StoragePath.of(folder)) for file in files)


ALL = ["day=1/part-1.tfrecord", "day=2/part-2.tfrecord.gz", "other/part-3.txt", "part-0.tfrecord"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("", ALL),
        ("*", ALL),
        ("*.tfrecord", ["part-0.tfrecord"]),
        ("*/*", ALL[:3]),
        ("day=?", ALL[:2]),
        ("day=[13]/*.tfrecord", ALL[:1]),
        ("day=[!1]", ALL[1:2]),
        ("{day=1,other}", [ALL[0], ALL[2]]),
        ("*/part-{1.tfrecord,3*}", [ALL[0], ALL[2]]),
        ("part-0.tfrecord", ["part-0.tfrecord"]),
        ("_SUCCESS", []),
    ],
)
def test_globs_match_as_hadoops_do(lake: Path, pattern: str, found: list[str]) -> None:
    location = f"{lake}/{pattern}".rstrip("/")

    if pattern == "_SUCCESS":
        assert list_files(location) == []
    else:
        assert names(list_files(location), lake) == found


def test_several_locations_are_read_once_each(lake: Path) -> None:
    assert len(list_files([lake, f"{lake}/day=1", f"file://{lake}/day=2/*"])) > 4 - 1
    assert names(list_files([f"{lake}/day=1", f"{lake}/day=1/*"]), lake) == ALL[:1]


@pytest.mark.parametrize("missing", ["nothing", "nothing*", "day=1/*.parquet"])
def test_nothing_at_a_location_is_an_error_that_names_it(lake: Path, missing: str) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        list_files(f"{lake}/{missing}")


def test_a_name_with_glob_characters_is_taken_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "part[1]{a}.tfrecord").write_bytes(b"x")
    (tmp_path / "part1a.tfrecord").write_bytes(b"x")

    assert names(list_files(tmp_path / "part[1]{a}.tfrecord"), tmp_path) == ["part[1]{a}.tfrecord"]


def test_partition_folders_count_below_the_location_or_the_base_path(lake: Path) -> None:
    in_folder = {file.path.name: file.partition for file in list_files([f"{lake}/day=1", f"{lake}/day=2"])}
    with_base = {
        file.path.name: file.partition for file in list_files([f"{lake}/day=1", f"{lake}/day=2"], base_path=lake)
    }

    assert in_folder == {"part-1.tfrecord": (), "part-2.tfrecord.gz": ()}
    assert with_base == {"part-1.tfrecord": (("day", "1"),), "part-2.tfrecord.gz": (("day", "2"),)}


def test_partition_folder_names_are_sparks_and_come_back(tmp_path: Path) -> None:
    folder = partition_folder(["day", "a place"], ["3", "a/b=ü %"])
    assert folder == "day=3/a place=a%2Fb%3Dü %25"
    assert partition_folder(["x"], [None]) == "x=__HIVE_DEFAULT_PARTITION__"
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "part-0").write_bytes(b"x")

    (found,) = list_files(tmp_path)

    assert found.partition == (("day", "3"), ("a place", "a/b=ü %"))


def in_folders(*values: str | None) -> list[DataFile]:
    return [DataFile(StoragePath.of(f"/x/{number}"), 1, (("p", value),)) for number, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        (("1", "-2", "+3"), pa.int32()),
        (("0x10", "0xff"), pa.string()),
        (("1_0",), pa.string()),
        (("-2147483648",), pa.int32()),
        (("2147483648",), pa.int64()),
        (("1", "20000000000000000000"), pa.string()),
        (("1e3", "-.5", "+2."), pa.float64()),
        (("NaN", "1"), pa.string()),
        (("2024-02-31",), pa.string()),
        (("2024-01-31 12:00:00.5Z", "2024-01-31 12:00:00Z"), pa.timestamp("us", "UTC")),
        (("1", "3000000000", None), pa.int64()),
        (("1", "2.5"), pa.float64()),
        (("2024-01-31",), pa.date32()),
        (("1", "x"), pa.string()),
        ((None,), pa.string()),
    ],
)
def test_partition_values_have_the_type_that_fits_all(values: tuple[str | None, ...], type_: pa.DataType) -> None:
    assert partition_schema(in_folders(*values)) == pa.schema([("p", type_)])


def test_partition_values_become_columns() -> None:
    assert partition_column("2024-01-31", pa.date32(), 2).to_pylist() == [datetime.date(2024, 1, 31)] * 2
    assert partition_column(None, pa.int32(), 2).to_pylist() == [None, None]
    assert partition_column("+3", pa.int32(), 1).to_pylist() == [3]
    noon = datetime.datetime(2024, 1, 31, 12, tzinfo=datetime.UTC)
    for text in ("2024-01-31 12:00:00Z", "2024-01-31 12:00:00"):
        assert partition_column(text, pa.timestamp("us", "UTC"), 1).to_pylist() == [noon]
        assert partition_column(text, pa.timestamp("us"), 1).to_pylist() == [noon.replace(tzinfo=None)]
    assert partition_column(None, pa.timestamp("us", "UTC"), 1).to_pylist() == [None]


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        ("x", pa.int32()),
        ("0x10", pa.int32()),
        ("300", pa.int8()),
        ("noon", pa.timestamp("us")),
        ("1", pa.list_(pa.int8())),
    ],
)
def test_partition_values_of_another_type_are_refused_by_name(value: str, type_: pa.DataType) -> None:
    with pytest.raises(
        ValueError, match=f"partition value '{value}' is not a valid {re.escape(str(type_))}; give its column"
    ):
        partition_column(value, type_, 2)


def test_a_glob_that_is_none_is_named(lake: Path) -> None:
    with pytest.raises(ValueError, match=r"\[z-a\]\* is not a valid glob: bad character range"):
        list_files(f"{lake}/[z-a]*")


def test_files_in_folders_of_other_names_are_refused() -> None:
    files = [*in_folders("1"), DataFile(StoragePath.of("/x/other"), 1)]

    with pytest.raises(ValueError, match="partition folders of /x/other are"):
        partition_schema(files)


def test_large_files_get_a_task_each_and_small_ones_share() -> None:
    sizes = [300 * MB, 1, 1, 1, 200 * MB, 60 * MB]
    files = [DataFile(StoragePath.of(f"/x/{number}"), size) for number, size in enumerate(sizes)]

    tasks = pack_files(files, slots=2)

    assert sorted(file.path.name for task in tasks for file in task) == list("012345")
    assert [[file.path.name for file in task] for task in tasks] == [["0"], ["4"], ["5", "1", "2", "3"]]


def test_few_small_files_still_use_all_slots() -> None:
    files = [DataFile(StoragePath.of(f"/x/{number}"), 20 * MB) for number in range(4)]

    assert len(pack_files(files, slots=4)) == 4
    assert pack_files([], slots=4) == []


@pytest.mark.parametrize(
    "pattern", ["", "*", "*.tfrecord", "*/*", "day=?", "day=[13]/*.tfrecord", "{day=1,other}", "x"]
)
def test_a_file_is_read_at_a_location_if_it_is_listed_there(lake: Path, pattern: str) -> None:
    location = StoragePath.of(lake / pattern if pattern else lake)
    files = [StoragePath.of(file) for file in lake.rglob("*") if file.name in ("part-0.tfrecord", "part-1.tfrecord")]
    files += [StoragePath.of(lake) / name for name in ("other/part-3.txt", "_SUCCESS", "_temporary/part-5.tfrecord")]
    try:
        listed = {file.path for file in list_files(location)}
    except FileNotFoundError:
        listed = set()

    assert [reads(location, file) for file in files] == [file in listed for file in files]


def test_a_file_that_is_yet_to_be_written_is_read_where_it_will_be_listed(tmp_path: Path) -> None:
    folder = StoragePath.of(tmp_path)
    file = folder / "in" / "scores" / "part-0.parquet"
    assert reads(folder / "in", file)
    assert reads(file, file)
    assert reads(folder / "in/*", file)
    assert reads(folder / "in/*/*.parquet", file)
    for other in ("i", "in/sc", "in/*.parquet", "in/2*/*.parquet", "in/scores/part-1.parquet"):
        assert not reads(folder / other, file)
    assert not reads(folder / "in", folder / "in/_scores/part-0.parquet")


@pytest.fixture(params=["disk", "object store"])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoragePath:
    """A place where files are published one by one."""
    in_place(monkeypatch)
    if request.param == "disk":
        return StoragePath.of(tmp_path / "t")
    Bucket.installed(monkeypatch)
    return StoragePath("memory://store/listed")


def at_listings(monkeypatch: pytest.MonkeyPatch, before: Callable[[], object], after: Callable[[], object]) -> None:
    """Have something happen before and after each time that a reader lists files."""
    files = StoragePath.files

    def listing(folder: StoragePath, **options: bool) -> list[StoredFile]:
        monkeypatch.setattr(StoragePath, "files", files)
        before()
        found = files(folder, **options)
        after()
        monkeypatch.setattr(StoragePath, "files", listing)
        return found

    monkeypatch.setattr(StoragePath, "files", listing)


def end_publish(job: WriteJob, first: str, second: str, *, is_closed: bool) -> None:
    """Publish the second of two files and commit; the staging folder stays, closed or not yet."""
    kill_owner_elsewhere(job)
    (job.attempt_folder("0") / second).rename(job.target / second)
    Journal((first, second)).commit(job.staging, job.target).finish(job.staging, job.target)
    if is_closed:
        close_write(job.staging)


@pytest.mark.parametrize("is_closed", [False, True], ids=["the journal was removed", "the write is closed"])
def test_a_publish_that_ends_between_the_listing_and_the_journal_is_seen_whole(
    target: StoragePath, is_closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(target, "error", {"part-0": b"old"})
    job = begin(target, "append")
    half_published(job, "part-1", "part-2")
    ends = [lambda: end_publish(job, "part-1", "part-2", is_closed=is_closed)]
    at_listings(monkeypatch, lambda: None, lambda: [end() for end in ends[:1]] and ends.clear())

    assert sorted(listed(target)) == ["part-0", "part-1", "part-2"]


def test_files_that_change_during_every_listing_are_an_error(
    target: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(target, "error", {"part-0": b"old"})
    writes: list[tuple[WriteJob, str, str]] = []

    def half() -> None:
        writes.append((begin(target, "append"), f"a-{len(writes)}", f"b-{len(writes)}"))
        half_published(*writes[-1])

    at_listings(monkeypatch, half, lambda: end_publish(*writes[-1], is_closed=True))

    with pytest.raises(WriteInProgressError, match=r"changed it while .* 10 times .* read again"):
        list_files(target)
    assert len(writes) == 10


def test_a_committed_write_replaces_old_files_even_if_others_deleted_some_of_its_own(target: StoragePath) -> None:
    written(target, "error", {"part-0": b"old"})
    job = begin(target, "overwrite")
    half_published(job, "part-1", "part-2")
    kill_owner_elsewhere(job)
    Journal(("part-1", "part-2"), deletes=("part-0",), is_moved=True).begin(job.staging, job.target)

    assert sorted(listed(target)) == ["part-1"]


class Interleaved:
    """A write that makes a number of requests, and then some more before and after each request of a reader."""

    def __init__(self, bucket: Bucket, first: int, more: int) -> None:
        self._bucket, self._more = bucket, more
        self._left, self._turn = first, threading.Condition()
        self.has_ended = False

    def files(self) -> set[str]:
        """Return the files that the reader lists."""
        with ThreadPoolExecutor(1) as pool:
            writer = pool.submit(self._write)
            self._wait_for_the_writer()
            self.is_first_part_of_it = not self.has_ended
            try:
                return {file.path.relative_to(SHOP) for file in list_files(SHOP)}
            finally:
                self._let_the_writer_do(MB)
                writer.result(timeout=60)
                self._bucket.at_point = lambda: None

    def _write(self) -> None:
        job = begin(SHOP, "overwrite")
        files = write(job, {"day=2/new": b"n"})
        self._writer = threading.current_thread()
        self._bucket.at_point = self._at_point
        try:
            job.publish(files)
        finally:
            with self._turn:
                self.has_ended = True
                self._turn.notify_all()

    def _at_point(self) -> None:
        if threading.current_thread() is not self._writer:
            self._let_the_writer_do(self._more)
            return
        with self._turn:
            self._left -= 1
            self._turn.notify_all()
            assert self._turn.wait_for(lambda: self._left > 0, 60)

    def _let_the_writer_do(self, points: int) -> None:
        with self._turn:
            self._left += points
            self._turn.notify_all()
        self._wait_for_the_writer()

    def _wait_for_the_writer(self) -> None:
        with self._turn:
            assert self._turn.wait_for(lambda: self.has_ended or self._left <= 0, 60)


@pytest.mark.parametrize("more", [0, 1, 2, 3, 4, 5, 8, 16])
def test_a_reader_beside_a_write_sees_old_or_new_data(monkeypatch: pytest.MonkeyPatch, more: int) -> None:
    """T6: an object store has no moment for all, so files and journal are read one after the other."""
    bucket, seen = Bucket.installed(monkeypatch), set()
    for first in itertools.count(1):
        bucket.objects.clear()
        written(SHOP, "error", {"day=1/old": b"o"})
        both = Interleaved(bucket, first, more)
        found = frozenset(both.files())
        assert found in (OLD_FILES, NEW_FILES), f"after {first} points of the writer"
        seen.add(found)
        if not both.is_first_part_of_it:
            break
    assert NEW_FILES in seen
