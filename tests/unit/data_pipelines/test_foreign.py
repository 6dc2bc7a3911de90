"""Row files of others: every row once over all workers in equal steps, by whole files or by records (T2, pain 22)."""

import gzip
import io
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mirrorspark.data_pipelines.reading import foreign
from mirrorspark.data_pipelines.reading.foreign import (
    CountedFile,
    ForeignDataError,
    RowPlan,
    count_rows,
    load_rows,
    share_of,
)
from mirrorspark.data_pipelines.tfrecord.examples import encode_example
from mirrorspark.data_pipelines.tfrecord.records import DamagedRecordError, RecordWriter
from mirrorspark.storage.paths import StoragePath

FEATURES = {"row": tf.io.FixedLenFeature([], tf.int64), "tags": tf.io.RaggedFeature(tf.string)}


def content_of(rows: range) -> bytes:
    file = io.BytesIO()
    records = RecordWriter(file)
    for row in rows:
        tags = [f"tag-{k}".encode() for k in range(row % 3)]
        records.write(encode_example({"row": np.array([row]), "tags": tags, "more": np.zeros(2, np.float32)}))
    return file.getvalue()


@pytest.fixture(scope="session")
def write_rows() -> Callable[[Path, list[int]], list[CountedFile]]:
    """Return a function that writes files of the given numbers of rows, which are numbered from 0 over all files."""

    def write(folder: Path, sizes: list[int]) -> list[CountedFile]:
        starts = np.cumsum([0, *sizes]).tolist()
        for number, (start, size) in enumerate(zip(starts, sizes, strict=False)):
            (folder / f"part-{number}").write_bytes(content_of(range(start, start + size)))
        return list(count_rows(folder))

    return write


def read(files: list[CountedFile], plan: RowPlan) -> list[tuple[list[int], list[float]]]:
    """Return rows and weights of every batch."""
    return [
        (features["row"].numpy().tolist(), weight.numpy().tolist())
        for features, weight in load_rows(files, FEATURES, plan)
    ]


def rows_that_count(batches: list[tuple[list[int], list[float]]]) -> list[int]:
    return [row for rows, weights in batches for row, weight in zip(rows, weights, strict=True) if weight]


@pytest.mark.parametrize("sharding", ["file", "data"])
@pytest.mark.parametrize("seed", [None, 1])
def test_every_row_is_read_once_and_all_workers_take_the_same_steps(
    tmp_path: Path, write_rows: Callable[[Path, list[int]], list[CountedFile]], sharding: str, seed: int | None
) -> None:
    files = write_rows(tmp_path, [7, 0, 2, 4])
    ranks = [
        read(files, RowPlan(3, sharding, rank, 2, seed=seed, shuffle_rows=4, epochs=2))  # type: ignore[arg-type]
        for rank in range(2)
    ]
    # 13 rows: whole files make shares of 7 and 6, records of 7 and 6 too; both need three batches of three.
    assert [len(batches) for batches in ranks] == [6, 6]
    for epoch in (0, 3):
        found = [rows_that_count(batches[epoch : epoch + 3]) for batches in ranks]
        assert [len(rows) for rows in found] == [7, 6]
        assert sorted(itertools.chain(*found)) == list(range(13))
    if sharding == "file" and seed is None:
        assert rows_that_count(ranks[0][:3]) == list(range(7))
    if sharding == "data" and seed is None:
        assert rows_that_count(ranks[1][:3]) == [1, 3, 5, 7, 9, 11]
    if seed is not None:
        assert ranks[0][:3] != ranks[0][3:]
        again = RowPlan(3, sharding, 0, 2, seed=seed, shuffle_rows=4, epoch=1)  # type: ignore[arg-type]
        assert read(files, again) == ranks[0][3:]


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=8),
    workers=st.integers(1, 6),
    batch=st.integers(1, 12),
    sharding=st.sampled_from(["file", "data"]),
    remainder=st.sampled_from(["pad", "drop"]),
)
def test_any_files_are_dealt_whole_and_in_equal_steps(
    sizes: list[int], workers: int, batch: int, sharding: str, remainder: str
) -> None:
    files = [CountedFile(StoragePath(f"/f{n}"), rows) for n, rows in enumerate(sizes)]
    plans = [RowPlan(batch, sharding, rank, workers, remainder=remainder) for rank in range(workers)]  # type: ignore[arg-type]
    assume(sharding == "data" or sum(map(bool, sizes)) >= workers)
    assume(sum(sizes) >= 1 if remainder == "pad" else sharding == "data" and sum(sizes) >= workers * batch)
    shares = [share_of(files, plan) for plan in plans]
    assert len({share.steps for share in shares}) == 1
    assert sum(share.rows for share in shares) == sum(sizes)
    if sharding == "file":
        assert sorted(file.path for share in shares for file in share.files) == sorted(f.path for f in files if f.rows)
    steps = shares[0].steps
    if remainder == "pad":
        assert (steps - 1) * batch < max(share.rows for share in shares) <= steps * batch
    else:
        assert steps * batch <= min(share.rows for share in shares) < (steps + 1) * batch


@pytest.mark.timeout(900)  # with --full it makes hundreds of pipelines
@settings(max_examples=settings().max_examples // 4)
@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    workers=st.integers(1, 6),
    batch=st.integers(1, 3),
    seed=st.sampled_from([None, 1]),
)
@example(sizes=[1], workers=3, batch=2, seed=None)
def test_any_rows_are_read_once_by_any_workers(
    write_rows: Callable[[Path, list[int]], list[CountedFile]],
    sizes: list[int],
    workers: int,
    batch: int,
    seed: int | None,
) -> None:
    assume(sum(sizes))
    with tempfile.TemporaryDirectory() as folder:
        files = write_rows(Path(folder), sizes)
        ranks = [read(files, RowPlan(batch, "data", rank, workers, seed=seed)) for rank in range(workers)]
    assert len({len(batches) for batches in ranks}) == 1
    assert sorted(row for batches in ranks for row in rows_that_count(batches)) == list(range(sum(sizes)))


def test_rows_that_are_dropped_do_not_gather_in_memory(
    tmp_path: Path, write_rows: Callable[[Path, list[int]], list[CountedFile]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One worker has a file of two rows, so of the other's 5,000 two are read.
    files = write_rows(tmp_path, [2, 5000])
    windows: list[int] = []
    shuffled = foreign._shuffled

    def counted(records: list[bytes], generator: np.random.Generator) -> list[bytes]:
        windows.append(len(records))
        return shuffled(records, generator)

    monkeypatch.setattr(foreign, "_shuffled", counted)
    plan = RowPlan(2, rank=0, workers=2, seed=1, shuffle_rows=10, remainder="drop")
    assert len(rows_that_count(read(files, plan))) == 2
    assert windows == [10, 10]


def test_padding_repeats_a_row_with_weight_zero(
    tmp_path: Path, write_rows: Callable[[Path, list[int]], list[CountedFile]]
) -> None:
    files = write_rows(tmp_path, [1, 5])
    (first, second) = read(files, RowPlan(3, rank=1, workers=2))
    assert (first, second) == (([0, 0, 0], [1.0, 0.0, 0.0]), ([0, 0, 0], [0.0, 0.0, 0.0]))
    assert read(files, RowPlan(3, rank=0, workers=2, remainder="pad"))[1][1] == [1.0, 1.0, 0.0]


def test_the_rest_can_be_dropped(tmp_path: Path, write_rows: Callable[[Path, list[int]], list[CountedFile]]) -> None:
    files = write_rows(tmp_path, [3, 5])
    assert read(files, RowPlan(2, workers=2, rank=0, remainder="drop")) == [([3, 4], [1.0, 1.0])]
    assert read(files, RowPlan(2, workers=2, rank=1, remainder="drop")) == [([0, 1], [1.0, 1.0])]
    with pytest.raises(ForeignDataError, match="a worker's share is 3 rows, fewer than one batch of 4; use a smaller"):
        share_of(files, RowPlan(4, workers=2, remainder="drop"))


def test_values_are_those_of_the_features_that_were_asked_for(
    tmp_path: Path, write_rows: Callable[[Path, list[int]], list[CountedFile]]
) -> None:
    ((features, _),) = load_rows(write_rows(tmp_path, [4]), FEATURES, RowPlan(4))
    assert set(features) == {"row", "tags"}
    assert features["tags"].to_list() == [[], [b"tag-0"], [b"tag-0", b"tag-1"], []]


def test_too_few_files_for_the_workers_say_what_to_do(
    tmp_path: Path, write_rows: Callable[[Path, list[int]], list[CountedFile]]
) -> None:
    files = write_rows(tmp_path, [4, 0])
    with pytest.raises(
        ForeignDataError, match="1 files with rows cannot be divided among 2 workers; use sharding='data'"
    ):
        load_rows(files, FEATURES, RowPlan(2, workers=2))
    assert sorted(
        row for rank in range(2) for row in rows_that_count(read(files, RowPlan(2, "data", rank, 2)))
    ) == list(range(4))


def test_no_rows_are_an_error(tmp_path: Path, write_rows: Callable[[Path, list[int]], list[CountedFile]]) -> None:
    (tmp_path / "part-0").write_bytes(gzip.compress(b""))
    with pytest.raises(ForeignDataError, match="no rows in 1 files"):
        share_of(count_rows(tmp_path), RowPlan(1))


def test_compressed_files_on_another_store_are_read_by_their_content(s3_bucket: str) -> None:
    folder = StoragePath.of(f"s3://{s3_bucket}") / "zeilen und mehr"
    (folder / "part-0").write_bytes(gzip.compress(content_of(range(3))))
    (folder / "part-1").write_bytes(content_of(range(3, 5)))
    assert rows_that_count(read(list(count_rows(folder)), RowPlan(2))) == [0, 1, 2, 3, 4]


def test_damage_is_an_error_or_passed_over_and_counted(tmp_path: Path) -> None:
    content = bytearray(content_of(range(4)))
    content[len(content) // 4 + 20] ^= 1  # in the payload of the second record
    (tmp_path / "part-0").write_bytes(bytes(content))
    with pytest.raises(DamagedRecordError, match=r"part-0: payload checksum mismatch in record 1"):
        count_rows(tmp_path)
    files = list(count_rows(tmp_path, on_damage="skip"))
    assert [(file.rows, file.damaged) for file in files] == [(3, 1)]
    assert rows_that_count(read(files, RowPlan(3))) == [0, 2, 3]


def test_a_file_that_changed_since_it_was_counted_is_noticed(
    tmp_path: Path, write_rows: Callable[[Path, list[int]], list[CountedFile]]
) -> None:
    files = write_rows(tmp_path, [4])
    (tmp_path / "part-0").write_bytes(content_of(range(6)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="part-0 has 6 records, it had 4 when it was counted"):
        read(files, RowPlan(4))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 2, "workers": 2}, "rank 2 is not one of 2 workers"),
        ({"batch_size_per_worker": 0}, "batch_size_per_worker 0, shuffle_rows 65536: use 1 or more"),
        ({"sharding": "auto"}, "sharding 'auto' is unknown; use file or data"),
        ({"remainder": "repeat"}, "remainder 'repeat' is unknown; use pad or drop"),
        ({"seed": -1}, "seed -1 is negative"),
    ],
)
def test_a_plan_that_cannot_be_read_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RowPlan(**{"batch_size_per_worker": 2, **fields})  # type: ignore[arg-type]


def test_files_that_others_wrote_are_read_as_tensorflow_reads_them(shared_data: Path) -> None:
    path = shared_data / "tfrecords" / "tfx_taxi-00000-of-00002.tfrecord.gz"
    features = {"trip_miles": tf.io.RaggedFeature(tf.float32), "payment_type": tf.io.RaggedFeature(tf.string)}
    serialized = list(tf.data.TFRecordDataset(str(path), compression_type="GZIP").as_numpy_iterator())
    expected = tf.io.parse_example(serialized, features)
    ranks = [list(load_rows(count_rows(path), features, RowPlan(64, "data", rank, 3))) for rank in range(3)]
    for name in features:
        rows = [
            [row for found, weight in batches for row in found[name][: int(tf.reduce_sum(weight))].to_list()]
            for batches in ranks
        ]
        dealt = [row for three in itertools.zip_longest(*rows) for row in three if row is not None]
        assert dealt == expected[name].to_list()
