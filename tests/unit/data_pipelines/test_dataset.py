"""What workers read of a dataset directory: each example once per epoch, in step, in an order that can be resumed.

T2 (shards and workers), T6 (exact data position), T1 (TensorFlow gets what was written).
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from data_pipelines.dataset import Dataset, ReadPlan, batches, load_dataset
from data_pipelines.fitted import FeatureMismatchError, FittedFeatures
from data_pipelines.manifest import FEATURES_FOLDER, DatasetError
from data_pipelines.records import DamagedRecordError

WriteDataset = Callable[..., Dataset]
Step = dict[str, np.ndarray]

LABEL, WEIGHT = "\0label", "\0weight"

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


def test_the_sequence_of_global_batches_is_the_same_for_any_number_of_workers(small: Dataset) -> None:
    alone = global_steps(small, ReadPlan("train", 12, workers=1, seed=5, epochs=2))
    for workers in (2, 3, 4, 6, 12):
        assert_equal_steps(global_steps(small, ReadPlan("train", 12, workers=workers, seed=5, epochs=2)), alone)


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


def test_without_a_number_of_epochs_reading_goes_on(small: Dataset) -> None:
    per_epoch = small.steps("train", 20)
    endless = steps(small, ReadPlan("train", 20, seed=1, epochs=None))
    taken = list(itertools.islice(endless, 5 * per_epoch))
    fifth = list(steps(small, ReadPlan("train", 20, seed=1, epoch=4)))
    assert_equal_steps(taken[4 * per_epoch :], fifth)


def test_tensorflow_gets_batches_of_fixed_shape_and_type(small: Dataset) -> None:
    plan = ReadPlan("train", 8, rank=1, workers=2, seed=4)
    dataset = load_dataset(small, plan)
    features = {
        "row": tf.TensorSpec((4,), tf.float32),
        "distance": tf.TensorSpec((4,), tf.float32),
        "carrier": tf.TensorSpec((4,), tf.int64),
        "earlier": tf.TensorSpec((4, 3), tf.int64),
    }
    assert dataset.element_spec == (features, tf.TensorSpec((4,), tf.float32), tf.TensorSpec((4,), tf.float32))
    read = [{**values, LABEL: label, WEIGHT: weight} for values, label, weight in dataset.as_numpy_iterator()]
    assert_equal_steps(read, list(steps(small, plan)))


def test_the_label_of_a_retrieval_is_a_row_of_zeros(tmp_path: Path, write_dataset: WriteDataset) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[3]], retrieval=True)
    ((features, label, weight),) = load_dataset(dataset, ReadPlan("train", 4)).as_numpy_iterator()
    assert sorted(features["movie"][weight > 0].tolist()) == [2, 3, 4]
    assert (label.tolist(), sorted(weight.tolist())) == ([0.0] * 4, [0.0, 1.0, 1.0, 1.0])


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


def test_a_split_that_is_not_there_is_named(small: Dataset) -> None:
    with pytest.raises(DatasetError, match=r"has no split 'tset'; it has \['train'\]"):
        next(batches(small, ReadPlan("tset", 8)))


def test_a_split_without_rows_is_no_endless_epoch(tmp_path: Path, write_dataset: WriteDataset) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[], []])
    with pytest.raises(DatasetError, match=r"split 'train' of .* has no rows"):
        next(batches(dataset, ReadPlan("train", 8, epochs=None)))


@pytest.mark.parametrize(
    ("rank", "workers", "message"),
    [
        (0, 3, "global_batch_size 8 does not divide among 3 workers; use a multiple of 3"),
        (2, 2, "rank 2 is not one of 2 workers"),
        (-1, 2, "rank -1 is not one of 2 workers"),
        (0, 0, "rank 0 is not one of 0 workers"),
    ],
)
def test_a_plan_that_cannot_be_read_is_refused(rank: int, workers: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReadPlan("train", 8, rank=rank, workers=workers)


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


@pytest.mark.parametrize("file", ["features.json", "vocabularies/carrier.parquet"])
def test_missing_features_are_said_to_be_missing(tmp_path: Path, write_dataset: WriteDataset, file: str) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[4]])
    (dataset.path / FEATURES_FOLDER / file).unlink()
    with pytest.raises(DatasetError, match=f"lacks a file .*{Path(file).name}.*delete .* and convert again"):
        Dataset.open(dataset.path)


def test_a_directory_without_a_manifest_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"holds no manifest\.json.*convert the data again"):
        Dataset.open(tmp_path)
