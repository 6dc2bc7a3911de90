"""A dataset directory is whole or refused, with its path and what to do (T1, T2)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirrorspark.data_pipelines.dataset.manifest import MANIFEST_FILE, DatasetError, Manifest, Shard, check_directory
from mirrorspark.data_pipelines.reading.dataset import Dataset

MANIFEST = Manifest(
    features_hash="0123456789abcdef",
    splits={
        "train": (
            Shard("train/part-00000.tfrecord", 5, 100, 1, (0, 60), (3, 2)),
            Shard("train/part-00001.tfrecord", 0, 0, 0, (), ()),
        ),
        "test": (Shard("test/part-00000.tfrecord", 7, 50, 2, (0,), (7,)),),
    },
    statistics={"distance": {"mean": 1.5, "count": 4}},
    source={"sql": "abc", "files": {"flights": {"bytes": 12}}},
    options={"shards": 2},
    columns=("distance", "split"),
    findings=({"severity": "note", "column": "distance", "check": "constant", "sentence": "..."},),
    versions={"python": "3.11"},
)


@pytest.fixture
def directory(tmp_path: Path, write_dataset: Callable[..., Dataset]) -> Path:
    """Return a whole dataset directory of two shards."""
    dataset: Dataset = write_dataset(tmp_path / "dataset", [[3, 2], [4]])
    return dataset.path


def rewrite(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = directory / MANIFEST_FILE
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def test_a_saved_manifest_comes_back_equal(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    assert Manifest.load(tmp_path) == MANIFEST
    assert [file.name for file in tmp_path.iterdir()] == [MANIFEST_FILE]
    rewrite(tmp_path, lambda document: document.update(compression="none"))  # as earlier versions wrote it
    assert Manifest.load(tmp_path) == MANIFEST


def test_rows_and_bytes_are_those_of_all_shards() -> None:
    assert (MANIFEST.rows("train"), MANIFEST.rows("test")) == (5, 7)
    assert MANIFEST.bytes == 150


def test_saving_again_replaces_the_manifest(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text("{")
    MANIFEST.save(tmp_path)
    assert Manifest.load(tmp_path) == MANIFEST


def test_a_whole_directory_passes_with_and_without_checksums(directory: Path) -> None:
    assert check_directory(directory) == check_directory(directory, checksums=True) == Manifest.load(directory)


def test_a_directory_without_a_manifest_does_not_exist(directory: Path) -> None:
    (directory / MANIFEST_FILE).unlink()
    with pytest.raises(DatasetError, match=rf"{directory} holds no manifest\.json.*convert the data again"):
        check_directory(directory)


@pytest.mark.parametrize(
    "content",
    [b"", b'{"format_version": 1, "spl', b"[]", b"\xff\xfe\x00", b'{"format_version": 2, "splits": []}', b"{}"],
    ids=["empty", "cut off", "a list", "no text", "splits as a list", "nothing in it"],
)
def test_a_damaged_manifest_is_refused(directory: Path, content: bytes) -> None:
    (directory / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(DatasetError, match=rf"{directory}/manifest\.json is damaged .*delete {directory} and convert"):
        check_directory(directory)


def test_a_part_that_no_version_knows_is_damage(directory: Path) -> None:
    rewrite(directory, lambda document: document.update(colour="red"))
    with pytest.raises(DatasetError, match=r"is damaged .*colour"):
        check_directory(directory)


def test_a_manifest_of_a_later_version_is_refused_before_anything_else(directory: Path) -> None:
    rewrite(directory, lambda document: document.update(format_version=3, splits="elsewhere"))
    with pytest.raises(DatasetError, match=r"manifest\.json has format version 3, known is 2; convert again"):
        check_directory(directory)


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        ({"block_offsets": [0, -(10**12)]}, "a number is not a whole number of 0 or more"),
        ({"block_rows": [3, 2.0]}, "a number is not a whole number of 0 or more"),
        ({"block_rows": [3, True], "rows": 4}, "a number is not a whole number of 0 or more"),
        ({"bytes": None}, "a number is not a whole number of 0 or more"),
        ({"block_offsets": [0]}, "1 blocks begin in it, 2 have rows, in all 5"),
        ({"rows": 6}, "2 blocks begin in it, 2 have rows, in all 6"),
        ({"block_rows": [10**12, 2], "rows": 10**12 + 2}, "which leaves no room for 1000000000000 rows"),
        ({"block_offsets": [0, 10**9]}, "the block at byte 1000000000 ends at byte"),
        ({"block_offsets": [70, 70]}, "the block at byte 70 ends at byte 70, which leaves no room for 3 rows"),
    ],
)
def test_numbers_that_no_shard_can_have_are_refused(directory: Path, numbers: dict[str, Any], problem: str) -> None:
    """L16: kernels read where the manifest points, and memory is reserved by its rows."""
    rewrite(directory, lambda document: document["splits"]["train"][0].update(numbers))
    with pytest.raises(DatasetError, match=rf"is damaged \(shard 'train/.*': .*{problem}"):
        Manifest.load(directory)


@pytest.mark.parametrize("shard", ["/etc/hosts", "../other/part-00000.tfrecord", "train/../../x.tfrecord"])
def test_a_shard_outside_the_directory_is_refused(directory: Path, shard: str) -> None:
    rewrite(directory, lambda document: document["splits"]["train"][0].update(path=shard))
    with pytest.raises(DatasetError, match=rf"manifest\.json is damaged \(shard '{shard}' is not inside {directory}\)"):
        Manifest.load(directory)


def test_a_missing_shard_is_named(directory: Path) -> None:
    shard = directory / "train" / "part-00001.tfrecord"
    shard.unlink()
    with pytest.raises(DatasetError, match=f"shard {shard} is missing; delete {directory} and convert again"):
        check_directory(directory)


def test_a_truncated_shard_is_named_with_both_sizes(directory: Path) -> None:
    shard = directory / "train" / "part-00001.tfrecord"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=f"shard {shard} has {size - 1} bytes, its manifest says {size}.*convert"):
        check_directory(directory)


def test_a_changed_byte_is_found_where_checksums_are_compared(directory: Path) -> None:
    shard = directory / "train" / "part-00000.tfrecord"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    check_directory(directory)
    with pytest.raises(DatasetError, match=f"shard {shard} does not have the checksum of its manifest.*convert again"):
        check_directory(directory, checksums=True)
    with pytest.raises(DatasetError, match="checksum"):
        Dataset.open(directory, checksums=True)
