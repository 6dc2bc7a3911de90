"""Remote datasets on this machine: copied once, checked, evicted for want of room, never while in use (pain 26)."""

import dataclasses
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from mirrorspark.data_pipelines.dataset.cache import CacheError, DatasetCache
from mirrorspark.data_pipelines.dataset.manifest import DatasetError, Manifest
from mirrorspark.data_pipelines.quality.page import PAGE_FILE
from mirrorspark.data_pipelines.quality.profile import PROFILE_FILE
from mirrorspark.data_pipelines.reading.batching import LABEL
from mirrorspark.data_pipelines.reading.dataset import Dataset, ReadPlan, batches
from mirrorspark.storage.host_cache import Lease
from mirrorspark.storage.paths import StoragePath, StoredFile

WriteDataset = Callable[..., Dataset]
Upload = Callable[..., StoragePath]


@pytest.fixture
def remote(tmp_path: Path, write_dataset: WriteDataset) -> Iterator[Upload]:
    """Return a function that writes a dataset to another store and returns where."""
    root = StoragePath.of("memory://store") / uuid4().hex

    def upload(name: str, shards: list[list[int]], root: StoragePath = root) -> StoragePath:
        local = write_dataset(tmp_path / "written" / name, shards).path
        for file in StoragePath.of(local).files():
            (root / name / file.path.relative_to(StoragePath.of(local))).write_bytes(file.path.read_bytes())
        return root / name

    yield upload
    root.delete()


@pytest.fixture
def cache(tmp_path: Path) -> DatasetCache:
    return DatasetCache(tmp_path / "cache")


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return the number of downloads of each file, by its name."""
    counts: Counter[str] = Counter()
    download = StoragePath.download

    def counted(path: StoragePath, target: Path) -> None:
        counts[path.name] += 1
        download(path, target)

    monkeypatch.setattr(StoragePath, "download", counted)
    return counts


def use(cache: DatasetCache, location: StoragePath, at: float) -> Lease:
    """Stage, and let it look as if that had been ``at`` seconds after the epoch."""
    lease = cache.stage(location)
    os.utime(lease.path, (at, at))
    return lease


def bytes_of(location: StoragePath) -> int:
    return sum(file.bytes for file in location.files())


def test_a_dataset_on_s3_is_read_like_a_local_one(
    remote: Upload, cache: DatasetCache, s3_bucket: str, write_dataset: WriteDataset, tmp_path: Path
) -> None:
    location = remote("flüge 2013", [[5, 4], [], [3]], StoragePath.of(f"s3://{s3_bucket}"))
    plan = ReadPlan("train", 4, seed=1)
    dataset = Dataset.open(str(location), cache=cache)
    local = Dataset.open(tmp_path / "written" / "flüge 2013")
    for one, other in zip(batches(dataset, plan), batches(local, plan), strict=True):
        np.testing.assert_array_equal(one["row"], other["row"])
        np.testing.assert_array_equal(one[LABEL], other[LABEL])
    assert dataset.path.is_relative_to(cache.folder)
    (entry,) = cache.entries()
    assert (entry.path, entry.source, entry.bytes) == (dataset.path, location.uri, bytes_of(location))


def test_a_copy_has_the_profile_and_the_page_where_the_dataset_has_them(remote: Upload, cache: DatasetCache) -> None:
    plain, described = remote("plain", [[3]]), remote("described", [[4]])
    for name in (PROFILE_FILE, PAGE_FILE, "notes of somebody.txt"):
        (described / name).write_bytes(name.encode())
    assert sorted(path.name for path in cache.stage(plain).path.iterdir()) == ["features", "manifest.json", "train"]
    copy = cache.stage(described).path
    assert {path.name for path in copy.iterdir()} == {"features", "manifest.json", "train", PROFILE_FILE, PAGE_FILE}
    assert (copy / PROFILE_FILE).read_bytes() == PROFILE_FILE.encode()


def test_many_that_ask_at_once_copy_once(
    remote: Upload, cache: DatasetCache, downloads: Counter[str], s3_bucket: str
) -> None:
    # Locks belong to open files, so threads stand for processes here.
    location = remote("asked at once", [[3], [3]], StoragePath.of(f"s3://{s3_bucket}"))
    begin = threading.Barrier(6)
    leases: list[Lease] = []

    def ask() -> None:
        begin.wait()
        leases.append(cache.stage(location))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({lease.path for lease in leases}) == 1
    assert set(downloads.values()) == {1}
    assert cache.stage(location).path == leases[0].path
    assert downloads["part-00000.tfrecord"] == 1


def test_the_longest_unused_is_evicted_and_what_is_in_use_stays(remote: Upload, cache: DatasetCache) -> None:
    locations = [remote(name, [[40]]) for name in "abcd"]
    size = max(map(bytes_of, locations))
    cache = dataclasses.replace(cache, limit_bytes=3 * size)
    held = use(cache, locations[0], at=1)
    for number in (1, 2):
        use(cache, locations[number], at=10 - number).release()
    fourth = use(cache, locations[3], at=4)
    # The first is the longest unused but in use; of the others the third.
    assert [entry.source[-1] for entry in cache.entries()] == ["a", "d", "b"]
    Manifest.load(held.path)
    held.release()
    fourth.release()
    assert [entry.source[-1] for entry in cache.clean_up(unused_seconds=0)] == ["a", "d", "b"]
    assert cache.entries() == []


def test_when_all_is_in_use_the_error_says_how_much(remote: Upload, cache: DatasetCache) -> None:
    first, second = remote("first", [[10]]), remote("second", [[10]])
    size = bytes_of(first)
    cache = dataclasses.replace(cache, limit_bytes=size + 10)
    lease = cache.stage(first)
    with pytest.raises(CacheError, match=rf"may take {size + 10}, of which {size} are in use; give .* limit_bytes"):
        cache.stage(second)
    assert cache.clean_up() == []
    lease.release()
    assert cache.stage(second).path.name.startswith("second-")


def test_a_dataset_that_is_no_longer_held_can_be_evicted(remote: Upload, cache: DatasetCache) -> None:
    dataset = Dataset.open(remote("flights", [[3]]), cache=cache)
    assert cache.clean_up() == []
    del dataset
    assert len(cache.clean_up()) == 1


def test_copies_that_were_used_lately_are_not_cleaned_up(remote: Upload, cache: DatasetCache) -> None:
    use(cache, remote("old", [[3]]), at=1).release()
    cache.stage(remote("new", [[3]])).release()
    assert [entry.source[-3:] for entry in cache.clean_up(unused_seconds=3600)] == ["old"]
    assert [entry.source[-3:] for entry in cache.entries()] == ["new"]


def test_a_copy_that_broke_off_is_continued(
    remote: Upload, cache: DatasetCache, downloads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    location = remote("flights", [[3], [3], [3]])
    with monkeypatch.context() as broken:
        download = StoragePath.download

        def fail_at_second_shard(path: StoragePath, target: Path) -> None:
            if path.name == "part-00001.tfrecord":
                raise OSError("connection reset")
            download(path, target)

        broken.setattr(StoragePath, "download", fail_at_second_shard)
        with pytest.raises(OSError, match="connection reset"):
            cache.stage(location)
    assert [entry.source for entry in cache.entries()] == [location.uri]
    assert cache.stage(location).path.is_dir()
    assert {name: count for name, count in downloads.items() if name.startswith("part")} == {
        "part-00000.tfrecord": 1,
        "part-00001.tfrecord": 1,
        "part-00002.tfrecord": 1,
    }


def test_a_flipped_byte_on_the_way_is_found(remote: Upload, cache: DatasetCache) -> None:
    location = remote("flights", [[3], [3]])
    shard = location / "train" / "part-00001.tfrecord"
    content = bytearray(shard.read_bytes())
    content[30] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(
        DatasetError, match=r"copy of .*flights differs from its manifest .*part-00001.*convert it again"
    ):
        cache.stage(location)
    assert cache.entries() == []


def test_a_shard_that_the_store_lacks_is_named(remote: Upload, cache: DatasetCache) -> None:
    location = remote("flights", [[3], [3]])
    (location / "train" / "part-00001.tfrecord").delete()
    with pytest.raises(DatasetError, match=r"shard memory://.*part-00001\.tfrecord is missing"):
        cache.stage(location)


def test_a_dataset_that_is_written_again_gets_another_copy(remote: Upload, cache: DatasetCache, tmp_path: Path) -> None:
    location = remote("flights", [[3]])
    first = cache.stage(location)
    (tmp_path / "written" / "flights").rename(tmp_path / "former")
    second = cache.stage(remote("flights", [[5]]))
    assert first.path != second.path
    assert [Manifest.load(lease.path).rows("train") for lease in (first, second)] == [3, 5]


def test_no_manifest_no_copy(cache: DatasetCache) -> None:
    with pytest.raises(DatasetError, match=r"holds no manifest\.json"):
        cache.stage(StoragePath.of("memory://store/nothing"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, remote: Upload) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=r"cannot hold copies of datasets: .*give DatasetCache a folder"):
        DatasetCache(tmp_path / "file" / "cache").stage(remote("flights", [[3]]))


def test_copying_and_evicting_are_logged(remote: Upload, cache: DatasetCache, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mirrorspark"):
        cache.stage(remote("flights", [[3]])).release()
        cache.clean_up()
    assert [record.message.split()[0] for record in caplog.records if record.name.startswith("mirrorspark")] == [
        "copying",
        "evicting",
    ]


def test_a_file_whose_name_leads_out_of_the_dataset_is_refused(
    remote: Upload, cache: DatasetCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys of an object store are any text."""
    location = remote("flights", [[3]])
    planted = StoredFile(location / "features/../../../../planted", 3, 0)
    listed = StoragePath.files
    monkeypatch.setattr(StoragePath, "files", lambda path: [*listed(path), planted])
    with pytest.raises(DatasetError, match=r"has a file 'features/../../../../planted', which leads out of it"):
        cache.stage(location)
    assert cache.entries() == []


def test_the_sources_of_copies_that_are_gone_are_forgotten_and_a_damaged_one_blocks_nothing(
    remote: Upload, cache: DatasetCache
) -> None:
    for name in "ab":
        cache.stage(remote(name, [[3]])).release()
    assert len(cache.clean_up()) == 2
    cache.stage(remote("c", [[3]]))
    (source,) = (cache.folder / "sources").iterdir()
    source.write_bytes(b"\xff\0")
    assert [entry.source for entry in cache.entries()] == [""]
