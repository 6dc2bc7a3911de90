"""Reading of a dataset directory by workers: each example once per epoch, in step, in an order that can be resumed.

T2 (shards and workers), T6 (exact data position), T1 (TensorFlow gets what was written), F9 (sparse rows), pains 21, 22
and 25 (unequal batches, sharding, resuming).
"""

import dataclasses
import itertools
import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import assume, given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.dataset.block_format import encode_blocks
from mirrorspark.data_pipelines.dataset.manifest import FEATURES_FOLDER, DatasetError, Manifest, Shard
from mirrorspark.data_pipelines.features.fitted import FeatureMismatchError, FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, MultiValued, Numeric, Sparse, Vector
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import Encoder, SparseRows
from mirrorspark.data_pipelines.reading import batching as batches_module
from mirrorspark.data_pipelines.reading.batching import CHUNK_BYTES, LABEL, WEIGHT
from mirrorspark.data_pipelines.reading.dataset import Dataset, ReadPlan, batches, load_batches
from mirrorspark.data_pipelines.reading.decode_blocks import DamagedBlockError
from mirrorspark.data_pipelines.reading.order import EpochOrder
from mirrorspark.data_pipelines.tfrecord.examples import encode_example
from mirrorspark.data_pipelines.tfrecord.records import DamagedRecordError, RecordWriter
from tests.conftest import PATIENCE
from tests.unit.data_pipelines.conftest import vocabulary

REPOSITORY = Path(__file__).resolve().parents[3]

WriteDataset = Callable[..., Dataset]
Step = dict[str, np.ndarray]

# Shards (rows of each block), global batch size, workers.
LAYOUTS: dict[str, tuple[list[list[int]], int, int]] = {
    "3 shards on 2 workers": ([[5, 3], [4], [2, 2, 1]], 4, 2),
    "1 shard on 2 workers": ([[7, 6]], 6, 2),
    "1 block on 2 workers": ([[5]], 2, 2),
    "an empty shard": ([[4, 4], [], [3]], 4, 2),
    "a shard of empty blocks": ([[0, 3], [0]], 2, 2),
    "more ranks than shards": ([[9], [2]], 8, 4),
    "more ranks than rows": ([[3]], 8, 8),
    "batches that fit": ([[8], [8]], 8, 2),
    "a batch of more than everything": ([[5], [3]], 64, 2),
    "lanes that a worker's slice cuts": ([[50, 50], [43]], 67 * 3, 3),
    "lanes of several widths": ([[150, 150], [143, 1]], 131 * 3, 3),
    "blocks smaller than a lane": ([[1, 2, 3] * 10, [2] * 20], 12, 3),
    "an odd batch": ([[30], [31]], 15, 5),
}


def steps(dataset: Dataset, plan: ReadPlan) -> Iterator[Step]:
    """Yield the batches of a worker, one step after the other."""
    for chunk in batches(dataset, plan):
        for number in range(len(chunk[WEIGHT])):
            yield {name: values[number] for name, values in chunk.items()}


def global_steps(dataset: Dataset, plan: ReadPlan) -> list[Step]:
    """Return the batches of all workers, joined in the order of their ranks."""
    ranks = [list(steps(dataset, dataclasses.replace(plan, rank=rank))) for rank in range(plan.workers)]
    return [
        {name: np.concatenate([rank[name] for rank in parts]) for name in parts[0]}
        for parts in zip(*ranks, strict=True)
    ]


def assert_equal_steps(found: Sequence[Step], expected: Sequence[Step]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def rows_that_count(step: Step) -> list[int]:
    return step["row"][step[WEIGHT] > 0].astype(int).tolist()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, write_dataset: WriteDataset) -> Dataset:
    """Return 53 examples in 3 shards and 9 blocks."""
    return write_dataset(tmp_path_factory.mktemp("small") / "dataset", [[10, 5, 9], [4, 4], [1, 8, 7, 5]])


@pytest.mark.parametrize(("shards", "batch", "workers"), LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("seed", [None, 3])
def test_every_example_is_read_once_and_all_workers_take_the_same_number_of_steps(
    tmp_path: Path, write_dataset: WriteDataset, shards: list[list[int]], batch: int, workers: int, seed: int | None
) -> None:
    dataset = write_dataset(tmp_path / "dataset", shards)
    rows = sum(map(sum, shards))
    ranks = [
        list(steps(dataset, ReadPlan("train", batch, rank=rank, workers=workers, seed=seed, epochs=2)))
        for rank in range(workers)
    ]
    per_epoch = dataset.steps("train", batch)
    assert per_epoch == -(-rows // batch)
    assert [len(rank) for rank in ranks] == [2 * per_epoch] * workers
    for epoch in range(2):
        read = [step for rank in ranks for step in rank[epoch * per_epoch : (epoch + 1) * per_epoch]]
        assert sorted(itertools.chain.from_iterable(map(rows_that_count, read))) == list(range(rows))
        assert sum(int((step[WEIGHT] == 0).sum()) for step in read) == per_epoch * batch - rows


def test_examples_keep_their_columns_together(small: Dataset) -> None:
    # Row n was written with label n % 2, weight 1 + n % 3 and n % 5 earlier carriers, of which 3 at most are kept.
    for step in global_steps(small, ReadPlan("train", 12, workers=3, seed=1)):
        counts = step[WEIGHT] > 0
        rows = step["row"][counts].astype(int)
        assert step[LABEL][counts].tolist() == (rows % 2).tolist()
        assert step[WEIGHT][counts].tolist() == (1 + rows % 3).tolist()
        assert (step["earlier"][counts] > 0).sum(axis=1).tolist() == np.minimum(rows % 5, 3).tolist()
        assert step["carrier"][counts].tolist() == [[2, 3, 4, 5, 1, 0, 0][row % 7] for row in rows]


def test_padding_is_all_zeros_and_spread_over_the_workers(tmp_path: Path, write_dataset: WriteDataset) -> None:
    # Ten examples in batches of eight: of the last two, each worker has one.
    dataset = write_dataset(tmp_path / "dataset", [[10]])
    for rank in range(2):
        first, last = steps(dataset, ReadPlan("train", 8, rank=rank, workers=2, seed=1))
        assert [len(rows_that_count(step)) for step in (first, last)] == [4, 1]
        padding = last[WEIGHT] == 0
        assert all(not column[padding].any() for column in last.values())


@pytest.mark.parametrize(("shards", "batch", "workers"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_scale_of_a_batch_says_how_many_of_its_rows_are_padding(
    tmp_path: Path, write_dataset: WriteDataset, shards: list[list[int]], batch: int, workers: int
) -> None:
    dataset = write_dataset(tmp_path / "dataset", shards)
    rows, share = sum(map(sum, shards)), batch // workers
    last = rows - (dataset.steps("train", batch) - 1) * batch
    for rank in range(workers):
        plan = ReadPlan("train", batch, rank=rank, workers=workers, seed=2, epochs=2)
        together = [step.scale.numpy().item() for step in load_batches(dataset, plan, scaled_to="batch")]
        assert together == [*[1.0] * (len(together) // 2 - 1), np.float32(batch / last).item()] * 2
        for step in load_batches(dataset, plan, scaled_to="share"):
            real = max(1, np.count_nonzero(step.weight))  # the rows of these datasets have weights above 0
            assert step.scale.numpy() == np.float32(share / real)


@given(
    blocks=st.lists(st.integers(0, 300), min_size=1, max_size=6).filter(any),
    share=st.integers(1, 120),
    workers=st.integers(1, 6),
)
def test_rows_that_are_not_padding_are_counted_by_arithmetic(blocks: list[int], share: int, workers: int) -> None:
    order = EpochOrder(np.array(blocks), share * workers, seed=1, epoch=0)
    left = sum(blocks)
    for step in range(order.steps):
        counts = [order.real_rows(step, rank * share, (rank + 1) * share) for rank in range(workers)]
        assert sum(counts) == order.real_rows(step, 0, share * workers) == min(left, share * workers)
        left -= sum(counts)
    assert left == 0


def test_the_sequence_of_global_batches_is_the_same_for_any_number_of_workers(small: Dataset) -> None:
    alone = global_steps(small, ReadPlan("train", 12, workers=1, seed=5, epochs=2))
    for workers in (2, 3, 4, 6, 12):
        assert_equal_steps(global_steps(small, ReadPlan("train", 12, workers=workers, seed=5, epochs=2)), alone)


def test_class_weights_multiply_the_weight_of_a_row_on_any_number_of_workers(small: Dataset) -> None:
    plain = global_steps(small, ReadPlan("train", 12, seed=5))
    for workers in (1, 3):
        plan = ReadPlan("train", 12, workers=workers, seed=5, class_weights=(0.5, 3.0))
        expected = [{**step, WEIGHT: step[WEIGHT] * np.where(step[LABEL] > 0, 3.0, 0.5)} for step in plain]
        assert_equal_steps(global_steps(small, plan), expected)


def test_the_rows_of_a_class_are_counted_by_weight(small: Dataset) -> None:
    rows = np.arange(53)
    weights = 1 + rows % 3
    np.testing.assert_array_equal(
        small.class_counts("train"), [weights[rows % 2 == 0].sum(), weights[rows % 2 == 1].sum()]
    )


@pytest.mark.parametrize("batch", [1, 4, 7, 48, 60])
@pytest.mark.parametrize("seed", [None, 5])
def test_a_reader_that_begins_in_the_middle_goes_on_as_the_unbroken_one(
    small: Dataset, batch: int, seed: int | None
) -> None:
    per_epoch = small.steps("train", batch)
    unbroken = list(steps(small, ReadPlan("train", batch, seed=seed, epochs=3)))
    assert len(unbroken) == 3 * per_epoch
    for epoch, step in {(0, 1), (1, 0), (1, per_epoch // 2), (1, per_epoch - 1), (2, per_epoch - 1)}:
        plan = ReadPlan("train", batch, seed=seed, epoch=epoch, step=step, epochs=3 - epoch)
        assert_equal_steps(list(steps(small, plan)), unbroken[epoch * per_epoch + step :])


def test_every_worker_resumes_where_it_was(small: Dataset) -> None:
    plan = ReadPlan("train", 8, workers=2, seed=2, epochs=2)
    unbroken = global_steps(small, plan)
    resumed = global_steps(small, dataclasses.replace(plan, epoch=1, step=3, epochs=1))
    assert_equal_steps(resumed, unbroken[small.steps("train", 8) + 3 :])


def test_resuming_at_the_end_of_an_epoch_begins_the_next(small: Dataset) -> None:
    end_of_first = ReadPlan("train", 8, seed=2, epoch=0, step=small.steps("train", 8), epochs=2)
    assert_equal_steps(
        list(steps(small, end_of_first)), list(steps(small, ReadPlan("train", 8, seed=2, epoch=1, epochs=1)))
    )


def test_seeds_and_epochs_give_different_orders(small: Dataset) -> None:
    def sequence(seed: int | None, epoch: int) -> tuple[int, ...]:
        plan = ReadPlan("train", 4, seed=seed, epoch=epoch)
        return tuple(row for step in steps(small, plan) for row in rows_that_count(step))

    orders = [sequence(1, 0), sequence(1, 1), sequence(2, 0), sequence(None, 0)]
    assert len(set(orders)) == 4
    assert sequence(1, 0) == orders[0]
    assert sequence(None, 1) == orders[3]


def test_a_seed_mixes_the_rows_of_several_blocks_in_a_batch(tmp_path: Path, write_dataset: WriteDataset) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[50] * 10])
    first = next(steps(dataset, ReadPlan("train", 20, seed=1)))
    assert len({row // 50 for row in rows_that_count(first)}) >= 8


def test_in_a_notebook_a_dataset_is_a_line(small: Dataset) -> None:
    shown = repr(small)
    assert shown.startswith(f"Dataset({str(small.path)!r}, rows: ")
    assert f"train {small.manifest.rows('train'):,}" in shown
    assert len(shown) < 300


def test_without_a_number_of_epochs_reading_goes_on(small: Dataset) -> None:
    per_epoch = small.steps("train", 20)
    endless = steps(small, ReadPlan("train", 20, seed=1, epochs=None))
    taken = list(itertools.islice(endless, 5 * per_epoch))
    fifth = list(steps(small, ReadPlan("train", 20, seed=1, epoch=4)))
    assert_equal_steps(taken[4 * per_epoch :], fifth)


def test_tensorflow_gets_batches_of_fixed_shape_and_type(small: Dataset) -> None:
    plan = ReadPlan("train", 8, rank=1, workers=2, seed=4)
    dataset = load_batches(small, plan)
    features = {
        "row": tf.TensorSpec((4,), tf.float32),
        "distance": tf.TensorSpec((4,), tf.float32),
        "carrier": tf.TensorSpec((4,), tf.int64),
        "earlier": tf.TensorSpec((4, 3), tf.int64),
    }
    assert dataset.element_spec == (features, tf.TensorSpec((4,), tf.float32), tf.TensorSpec((4,), tf.float32))
    read = [{**values, LABEL: label, WEIGHT: weight} for values, label, weight in dataset.as_numpy_iterator()]
    assert_equal_steps(read, list(steps(small, plan)))
    together = [
        {**values, LABEL: label, WEIGHT: weight}
        for values, label, weight in load_batches(small, plan, values_as="numbers").as_numpy_iterator()
    ]
    for one in together:
        one["row"], one["distance"] = one.pop("numbers").T
    assert_equal_steps(together, list(steps(small, plan)))


def test_the_label_of_a_retrieval_is_a_row_of_zeros(tmp_path: Path, write_dataset: WriteDataset) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[3]], retrieval=True)
    ((features, label, weight),) = load_batches(dataset, ReadPlan("train", 4)).as_numpy_iterator()
    assert sorted(features["movie"][weight > 0].tolist()) == [2, 3, 4]
    assert (label.tolist(), sorted(weight.tolist())) == ([0.0] * 4, [0.0, 1.0, 1.0, 1.0])


# Shards (rows of each block) and global batch size.
PLACES: dict[str, tuple[list[list[int]], int]] = {
    "lanes of several blocks": ([[10, 5, 9], [4, 4], [1, 8, 7, 5]], 4),
    "as many lanes as blocks": ([[3, 1, 4], [1, 5]], 6),
    "empty shards and empty blocks": ([[], [0, 3], [0], [2, 0, 4], [], [5]], 2),
    "a batch of more than everything": ([[2], [3, 1]], 8),
}


@pytest.mark.parametrize(("shards", "batch"), PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("seed", [None, 3])
def test_the_records_of_a_step_are_those_whose_rows_it_reads(
    tmp_path: Path, write_dataset: WriteDataset, shards: list[list[int]], batch: int, seed: int | None
) -> None:
    """T6: for a step that went wrong, the message names the records to look at, and no others."""
    dataset = write_dataset(tmp_path / "dataset", shards)
    # Rows are numbered in stored order.
    places = [
        (f"train/part-{shard:05d}.tfrecord", record)
        for shard, blocks in enumerate(shards)
        for record, rows in enumerate(blocks)
        for _ in range(rows)
    ]
    per_epoch = dataset.steps("train", batch)
    for rank, workers in ((0, 1), (0, 2), (1, 2)):
        plan = ReadPlan("train", batch, rank=rank, workers=workers, seed=seed, epochs=2)
        for number, (features, _, weight) in enumerate(load_batches(dataset, plan).as_numpy_iterator()):
            held = {places[int(row)] for row in features["row"][weight > 0]}
            told = dataset.records_of(plan, *divmod(number, per_epoch))
            assert [(path, record) for path, records in told.items() for record in records] == sorted(held)
        assert number == 2 * per_epoch - 1


def test_rows_are_read_as_stored_with_their_keys(small: Dataset) -> None:
    blocks = list(small.blocks("train", keys=True))
    assert [block.rows for block in blocks] == [10, 5, 9, 4, 4, 1, 8, 7, 5]
    assert np.concatenate([block.keys["day"] for block in blocks]).tolist() == list(range(53))
    assert np.concatenate([block.keys["flight_id"] for block in blocks])[-1] == "flight-52"


def test_exclusions_are_read_with_the_keys(tmp_path: Path, write_dataset: WriteDataset) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[4]], retrieval=True)
    (block,) = dataset.blocks("train", keys=True)
    assert block.excluded is not None
    assert block.excluded.tolist() == [[0, 0, 0], [3, 0, 0], [3, 2, 0], [3, 2, 1]]


def test_opening_tells_sizes_without_reading(small: Dataset) -> None:
    assert small.manifest.rows("train") == 53
    assert small.steps("train", 8) == 7
    assert small.spec.keys == ("flight_id", "day")


@given(
    shards=st.lists(st.lists(st.integers(0, 12), max_size=4), min_size=1, max_size=4),
    workers=st.integers(1, 5),
    batch_size_per_worker=st.integers(1, 9),
    seed=st.none() | st.integers(0, 2**32),
    epoch=st.integers(0, 3),
    remainder=st.sampled_from(["pad", "drop"]),
    resumed_at=st.floats(0, 1),
)
def test_any_split_on_any_workers_is_read_once_in_step_and_can_be_resumed(
    write_dataset: WriteDataset,
    shards: list[list[int]],
    workers: int,
    batch_size_per_worker: int,
    seed: int | None,
    epoch: int,
    remainder: str,
    resumed_at: float,
) -> None:
    batch, rows = workers * batch_size_per_worker, sum(map(sum, shards))
    assume(rows >= (batch if remainder == "drop" else 1))
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_dataset(Path(folder) / "dataset", shards)
        plan = ReadPlan("train", batch, workers=workers, seed=seed, epoch=epoch, epochs=2, remainder=remainder)  # type: ignore[arg-type]
        read = global_steps(dataset, plan)  # strict: all workers have the same number of steps
        per_epoch = dataset.steps("train", batch, plan.remainder)
        assert len(read) == 2 * per_epoch
        for first in (0, per_epoch):
            found = [row for step in read[first : first + per_epoch] for row in rows_that_count(step)]
            assert len(found) == len(set(found)) == (rows if remainder == "pad" else per_epoch * batch)
            assert set(found) <= set(range(rows))
        # Another number of workers, begun at any step of the second epoch, goes on with the same global batches.
        step = int(resumed_at * (per_epoch - 1))
        resumed = dataclasses.replace(plan, workers=1, epoch=epoch + 1, step=step, epochs=1)
        assert_equal_steps(global_steps(dataset, resumed), read[per_epoch + step :])


def test_the_rest_can_be_dropped(small: Dataset) -> None:
    # 53 examples in batches of eight: six whole batches, and other rows left out in every epoch.
    plan = ReadPlan("train", 8, workers=2, seed=3, epochs=3, remainder="drop")
    assert (small.steps("train", 8, "drop"), small.steps("train", 8)) == (6, 7)
    read = global_steps(small, plan)
    assert [len(rows_that_count(step)) for step in read] == [8] * 18
    padded = global_steps(small, dataclasses.replace(plan, epochs=1, remainder="pad"))
    assert_equal_steps(read[:6], padded[:6])
    left_out = [
        set(range(53)) - {row for step in read[first : first + 6] for row in rows_that_count(step)}
        for first in (0, 6, 12)
    ]
    assert [len(rows) for rows in left_out] == [5, 5, 5]
    assert len(set(map(frozenset, left_out))) > 1


def test_a_split_of_less_than_a_batch_cannot_be_read_when_the_rest_is_dropped(small: Dataset) -> None:
    for read in ways_to_read(small, ReadPlan("train", 64, remainder="drop", epochs=None)):
        with pytest.raises(DatasetError, match=r"53 rows, fewer than one batch of 64; use a smaller batch, or .*pad"):
            read()


def write_rows(path: Path, fitted: FittedFeatures, shards: Sequence[Sequence[pa.Table]]) -> Dataset:
    """Write a dataset with one block per table."""
    (path / "train").mkdir(parents=True)
    fitted.save(path / FEATURES_FOLDER)
    written = []
    for number, tables in enumerate(shards):
        name = f"train/part-{number:05d}.tfrecord"
        with (path / name).open("wb") as file:
            records = RecordWriter(file)
            blocks = [encode_blocks(table, Encoder(fitted), fitted.spec)[0][0] for table in tables]
            offsets = tuple(records.write(block) for block in blocks)
        rows = tuple(table.num_rows for table in tables)
        written.append(Shard(name, sum(rows), records.bytes_written, records.file_crc32c, offsets, rows))
    manifest_of(written, fitted.hash).save(path)
    return Dataset.open(path)


def manifest_of(shards: Sequence[Shard], features_hash: str = "") -> Manifest:
    return Manifest(
        features_hash=features_hash,
        splits={"train": tuple(shards)},
        statistics={},
        source={},
        options={},
        columns=(),
        findings=(),
        versions={},
    )


def sparse_and_classes(label: Label) -> FittedFeatures:
    features = (
        Numeric("row", impute=0, standardise=False),
        Sparse("basket", size=500_000, indices="items", values="amounts"),
        Categorical("hour", hash_buckets=24),
    )
    return FittedFeatures(
        FeatureSpec(features, label, keys=("id",)), {}, {"row": NumericStatistics(0.0, 1.0, 0.0, 0.0, 1)}
    )


def baskets(first: int, rows: int, label: pa.Array) -> pa.Table:
    """Row n has n % 4 items: n, 1000 + n, 2000 + n with the amounts 1, 2, 3."""
    numbers = range(first, first + rows)
    return pa.table(
        {
            "id": pa.array(numbers, pa.int64()),
            "row": pa.array(numbers, pa.int64()),
            "items": pa.array([[n + 1000 * k for k in range(n % 4)] for n in numbers], pa.list_(pa.int64())),
            "amounts": pa.array([[1.0 + k for k in range(n % 4)] for n in numbers], pa.list_(pa.float64())),
            "hour": pa.array([str(n % 24) for n in numbers]),
            "y": label,
        }
    )


def test_sparse_rows_become_sparse_tensors_and_are_never_dense(tmp_path: Path) -> None:
    fitted = sparse_and_classes(Label("y", kind="multi_class", classes=7))
    tables = [baskets(first, 20, pa.array([n % 7 for n in range(first, first + 20)])) for first in (0, 20, 40)]
    dataset = write_rows(tmp_path / "dataset", fitted, [tables[:2], tables[2:]])
    plan = ReadPlan("train", 16, workers=2, rank=1, seed=3, epochs=2)
    read = load_batches(dataset, plan)
    assert read.element_spec[0]["basket"] == tf.SparseTensorSpec((8, 500_000), tf.float32)
    assert read.element_spec[1] == tf.TensorSpec((8,), tf.int64)
    seen = 0
    in_numpy = [rows for chunk in batches(dataset, plan) for rows in chunk["basket"]]
    for (features, label, weight), rows in zip(read, in_numpy, strict=True):
        counts = weight.numpy() > 0
        numbers = features["row"].numpy().astype(int)
        assert label.numpy()[counts].tolist() == (numbers[counts] % 7).tolist()
        # Row n of a batch has what was written for it, padding has nothing, and all lies in order.
        expected = [
            ([place, n + 1000 * k], 1.0 + k)
            for place, (n, counts_) in enumerate(zip(numbers.tolist(), counts, strict=True))
            for k in range(n % 4 if counts_ else 0)
        ]
        assert list(zip(*expected, strict=True)) == [
            tuple(features["basket"].indices.numpy().tolist()),
            tuple(features["basket"].values.numpy().tolist()),
        ]
        assert isinstance(rows, SparseRows)
        np.testing.assert_array_equal(rows.indices, features["basket"].indices.numpy()[:, 1])
        np.testing.assert_array_equal(rows.values, features["basket"].values.numpy())
        assert rows.row_lengths.tolist() == [n % 4 if c else 0 for n, c in zip(numbers, counts, strict=True)]
        seen += int(counts.sum())
    assert seen == 60


def test_vectors_come_with_their_rows_and_padding_is_zeros(tmp_path: Path) -> None:
    statistics = {"row": NumericStatistics(0.0, 1.0, 0.0, 0.0, 1)}
    spec = FeatureSpec((Numeric("row", impute=0, standardise=False), Vector("v", size=3)), Label("y"), ("id",))
    rows = pa.array(range(50))
    vectors = pa.array([[n, n + 0.5, -n] if n % 7 else None for n in range(50)], pa.list_(pa.float64()))
    table = pa.table({"id": rows, "row": rows, "v": vectors, "y": pa.array([0] * 50)})
    dataset = write_rows(tmp_path / "dataset", FittedFeatures(spec, {}, statistics), [[table]])
    plan = ReadPlan("train", 16, workers=2, rank=1, seed=3, epochs=2)
    read = load_batches(dataset, plan)
    assert read.element_spec[0]["v"] == tf.TensorSpec((8, 3), tf.float32)
    in_numpy = [rows for chunk in batches(dataset, plan) for rows in chunk["v"]]
    for (features, _, weight), same in zip(read, in_numpy, strict=True):
        found = zip(features["row"].numpy().tolist(), weight.numpy().tolist(), strict=True)
        expected = [[n, n + 0.5, -n] if weighs and n % 7 else [0.0] * 3 for n, weighs in found]
        assert features["v"].numpy().tolist() == same.tolist() == expected


def test_sparse_rows_multiply_as_scipy_s_do(tmp_path: Path) -> None:
    from scipy.sparse import csr_array

    fitted = sparse_and_classes(Label("y", kind="multi_class", classes=7))
    dataset = write_rows(tmp_path / "dataset", fitted, [[baskets(0, 30, pa.array([0] * 30))]])
    weights = np.random.default_rng(0).normal(size=(500_000, 1)).astype(np.float32)
    (chunk,) = batches(dataset, ReadPlan("train", 30, seed=1))
    ((features, _, _),) = load_batches(dataset, ReadPlan("train", 30, seed=1))
    (rows,) = chunk["basket"]
    expected = csr_array((rows.values, rows.indices, rows.row_starts), (30, 500_000)) @ weights
    found = tf.sparse.sparse_dense_matmul(features["basket"], weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_labels_of_several_classes_become_zeros_and_ones(tmp_path: Path) -> None:
    # Row n carries the classes below n % 4.
    fitted = sparse_and_classes(Label("y", kind="multi_label", classes=3))
    labels = pa.array([list(range(n % 4)) for n in range(22)], pa.list_(pa.int64()))
    dataset = write_rows(tmp_path / "dataset", fitted, [[baskets(0, 22, labels)]])
    read = load_batches(dataset, ReadPlan("train", 8, seed=3))
    assert read.element_spec[1] == tf.TensorSpec((8, 3), tf.float32)
    for features, label, weight in read.as_numpy_iterator():
        expected = [[float(k < n % 4) for k in range(3)] for n in features["row"].astype(int)]
        assert label[weight > 0].tolist() == [row for row, w in zip(expected, weight, strict=True) if w]
        assert not label[weight == 0].any()


def wide(path: Path, blocks: int, columns: int) -> Dataset:
    """Write blocks of 1024 rows with random floats and lists of one to eight ids."""
    spec = FeatureSpec(
        (*(Numeric(f"f{n}", impute=0) for n in range(columns)), MultiValued("ids", max_length=8)),
        Label("y"),
        keys=("id",),
    )
    fitted = FittedFeatures(spec, {"ids": vocabulary(*map(str, range(50)))}, {})
    rng = np.random.default_rng(0)
    (path / "train").mkdir(parents=True)
    with (path / "train" / "part").open("wb") as file:
        records = RecordWriter(file)
        offsets = []
        for _ in range(blocks):
            lengths = rng.integers(1, 9, 1024)
            rows: dict[str, np.ndarray] = {f"f{n}": rng.normal(size=1024).astype(np.float32) for n in range(columns)}
            rows |= {"ids": rng.integers(0, 50, lengths.sum()), "ids/row_lengths": lengths}
            offsets.append(records.write(encode_example(rows | {"label/y": np.zeros(1024, np.float32)})))
    shard = Shard("train/part", 1024 * blocks, records.bytes_written, 0, tuple(offsets), (1024,) * blocks)
    fitted.save(path / FEATURES_FOLDER)
    manifest_of([shard], fitted.hash).save(path)
    return Dataset.open(path)


def test_memory_does_not_grow_with_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "CHUNK_ROWS", 4096)
    peaks = []
    for blocks in (100, 400):
        dataset = wide(tmp_path / str(blocks), blocks, columns=10)
        tracemalloc.start()
        for _ in batches(dataset, ReadPlan("train", 1024, seed=1)):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 64 slots of 1024 rows: 12 floats and 2 int64s of a list each, and up to 9216 ids (8 on average, an eighth more);
    # chunks of 4096 rows: 12 floats and 8 ids each. One is being made while the caller still has the one before.
    slots, chunk = 64 * (1024 * (12 * 4 + 2 * 8) + 9216 * 8), 4096 * (12 * 4 + 8 * 8)
    assert peaks[0] < 1.1 * (slots + 2 * chunk)
    assert peaks[1] < 1.05 * peaks[0]


def test_wide_rows_are_assembled_fewer_at_once(tmp_path: Path) -> None:
    # 5,000 classes are 20,000 bytes a row: 8,192 rows at once would be 164 MB, 64 MiB are 13 steps of 256 rows.
    fitted = sparse_and_classes(Label("y", kind="multi_label", classes=5000))
    labels = pa.array([[n % 5000] for n in range(1024)], pa.list_(pa.int64()))
    dataset = write_rows(tmp_path / "dataset", fitted, [[baskets(0, 1024, labels)] * 8])
    plan = ReadPlan("train", 256, seed=1)
    tracemalloc.start()
    chunks = [len(chunk[WEIGHT]) for chunk in batches(dataset, plan)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (sum(chunks), max(chunks)) == (32, 13)
    # 64 slots of 1024 rows take 4 MB. One chunk is being made while the caller still has the one before.
    assert peak < 2 * CHUNK_BYTES + 8 * 2**20
    (first, *_) = load_batches(dataset, plan).take(1)
    assert tf.reduce_sum(first[1], axis=1).numpy().tolist() == [1.0] * 256


def test_wide_sparse_rows_are_assembled_fewer_at_once(tmp_path: Path) -> None:
    # 2,000 entries of 32 bytes, as they are gathered and in order: 64 MiB are 1,048 rows at once.
    fitted = sparse_and_classes(Label("y", kind="multi_class", classes=2))
    starts = np.arange(0, 513 * 2000, 2000, np.int32)
    items = pa.ListArray.from_arrays(starts, np.tile(np.arange(2000), 512))
    amounts = pa.ListArray.from_arrays(starts, np.ones(512 * 2000))
    table = baskets(0, 512, pa.array([0] * 512)).set_column(2, "items", items).set_column(3, "amounts", amounts)
    dataset = write_rows(tmp_path / "dataset", fitted, [[table] * 3])
    for chunk in batches(dataset, ReadPlan("train", 128)):
        assert sum(len(rows.indices) for rows in chunk["basket"]) * 32 <= CHUNK_BYTES


@pytest.mark.full
@pytest.mark.process
def test_memory_with_tensorflow_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    # 300 blocks of 102 floats and 8 ids are 145 MB. The docstring allows 64 slots (33 MB) and the chunks of six steps,
    # of one that is made and of its copy: at 16 steps a chunk these are four (31 MB).
    datasets = [wide(tmp_path / str(blocks), blocks, columns=100).path for blocks in (70, 300)]
    # An allocator that gives back at once what is freed: how much it keeps for later depends on the threads' timing.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17), "MALLOC_TRIM_THRESHOLD_": str(2**17)}
    command = [sys.executable, "-m", "tests.unit.data_pipelines.read_memory", *map(str, datasets)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=PATIENCE * 110, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout) < 70 * 2**20


def test_a_block_whose_column_has_too_few_values_is_refused(tmp_path: Path, write_dataset: WriteDataset) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[4, 4]])
    (shard,) = dataset.manifest.splits["train"]
    wrong = dataclasses.replace(shard, block_rows=(5, 3))
    dataclasses.replace(dataset.manifest, splits={"train": (wrong,)}).save(dataset.path)
    with pytest.raises(DamagedBlockError, match=r"part-00000.tfrecord: the block at byte \d+ is damaged: column"):
        list(batches(Dataset.open(dataset.path), ReadPlan("train", 8)))


def test_damage_reaches_tensorflow_s_caller_in_words(tmp_path: Path, write_dataset: WriteDataset) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[4, 4]])
    shard = dataset.path / "train" / "part-00000.tfrecord"
    content = bytearray(shard.read_bytes())
    content[-20] ^= 1
    shard.write_bytes(content)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"DamagedRecordError: .*part-00000\.tfrecord: payload checksum"
    ):
        list(load_batches(dataset, ReadPlan("train", 8)))


def test_a_path_is_opened(small: Dataset) -> None:
    plan = ReadPlan("train", 8, seed=4)
    from_path = load_batches(str(small.path), plan).as_numpy_iterator()
    for one, other in zip(from_path, load_batches(small, plan).as_numpy_iterator(), strict=True):
        np.testing.assert_array_equal(one[0]["row"], other[0]["row"])


def ways_to_read(dataset: Dataset, plan: ReadPlan) -> list[Callable[[], object]]:
    return [
        lambda: dataset.steps(plan.split, plan.global_batch_size, plan.remainder),
        lambda: load_batches(dataset, plan),  # not only when it is iterated
        lambda: next(batches(dataset, plan)),
    ]


def test_a_split_that_is_not_there_is_named(small: Dataset) -> None:
    for read in (*ways_to_read(small, ReadPlan("tset", 8)), lambda: next(small.blocks("tset"))):
        with pytest.raises(DatasetError, match=r"has no split 'tset'; it has \['train'\]"):
            read()


def test_a_split_without_rows_is_no_endless_epoch(tmp_path: Path, write_dataset: WriteDataset) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[], []])
    for read in ways_to_read(dataset, ReadPlan("train", 8, epochs=None)):
        with pytest.raises(DatasetError, match=r"split 'train' of .* has no rows"):
            read()


@pytest.mark.parametrize(
    ("rank", "workers", "message"),
    [
        (0, 3, "global_batch_size 8 does not divide among 3 workers; use a multiple of 3"),
        (2, 2, "rank 2 is not one of 2 workers"),
        (-1, 2, "rank -1 is not one of 2 workers"),
        (0, 0, "rank 0 is not one of 0 workers"),
    ],
)
def test_workers_that_do_not_fit_the_batch_are_refused(rank: int, workers: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReadPlan("train", 8, rank=rank, workers=workers)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"remainder": "repeat"}, "remainder 'repeat' is unknown; use pad or drop"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"epoch": -1}, "epoch -1, step 0 is before the beginning"),
        ({"global_batch_size": 0}, "global_batch_size 0 does not divide among 1 workers"),
    ],
)
def test_a_plan_that_cannot_be_read_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReadPlan(**{"split": "train", "global_batch_size": 8, **fields})  # type: ignore[arg-type]


def test_a_damaged_block_is_named_with_its_file(tmp_path: Path, write_dataset: WriteDataset) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[4, 4]])
    shard = dataset.path / "train" / "part-00000.tfrecord"
    content = bytearray(shard.read_bytes())
    content[-20] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedRecordError, match=r"part-00000\.tfrecord: payload checksum mismatch"):
        list(dataset.blocks("train"))


def test_a_block_with_other_rows_than_the_manifest_says_is_refused(tmp_path: Path, write_dataset: WriteDataset) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[4, 4]])
    (shard,) = dataset.manifest.splits["train"]
    wrong = dataclasses.replace(shard, block_rows=(5, 3))
    dataclasses.replace(dataset.manifest, splits={"train": (wrong,)}).save(dataset.path)
    with pytest.raises(DatasetError, match="block at byte 0 has 4 rows, its manifest says 5"):
        list(Dataset.open(dataset.path).blocks("train"))


def test_rows_encoded_with_other_features_are_refused(
    tmp_path: Path, write_dataset: WriteDataset, rating_features: FittedFeatures
) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[4]])
    rating_features.save(dataset.path / FEATURES_FOLDER)
    with pytest.raises(FeatureMismatchError, match=f"rows were encoded with {dataset.features.hash}"):
        Dataset.open(dataset.path)


@pytest.mark.parametrize("file", ["features.json", "vocabularies/carrier.arrow"])
def test_missing_features_are_said_to_be_missing(tmp_path: Path, write_dataset: WriteDataset, file: str) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[4]])
    (dataset.path / FEATURES_FOLDER / file).unlink()
    with pytest.raises(DatasetError, match=f"lacks a file .*{Path(file).name}.*delete .* and convert again"):
        Dataset.open(dataset.path)


def test_a_directory_without_a_manifest_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"holds no manifest\.json.*convert the data again"):
        Dataset.open(tmp_path)
