"""Blocks read by TensorFlow's own reader, without this library (T1)."""

import ast
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from mirrorspark.data_pipelines.reading import block_reader
from mirrorspark.data_pipelines.reading.block_reader import parse_block, shuffle_rows
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.data_pipelines.tfrecord.examples import encode_example

WriteDataset = Callable[..., Dataset]

VALUES = {
    "row": tf.float32,
    "carrier": tf.int64,
    "label/late": tf.float32,
    "key/flight_id": tf.string,
    "key/day": tf.int64,
}


def test_the_file_stands_alone() -> None:
    tree = ast.parse(Path(block_reader.__file__).read_text(encoding="utf-8"))
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    assert sorted(modules) == ["collections.abc", "tensorflow"]


def test_tensorflow_reads_what_our_reader_reads(tmp_path: Path, write_dataset: WriteDataset) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[10, 5], [4]])
    files = sorted(map(str, (dataset.path / "train").iterdir()))
    parsed = tf.data.TFRecordDataset(files).map(
        lambda record: parse_block(record, values=VALUES, lists={"earlier": tf.int64})
    )
    for columns, block in zip(parsed, dataset.blocks("train", keys=True), strict=True):
        assert block.label is not None
        np.testing.assert_array_equal(columns["row"], block.features["row"])
        np.testing.assert_array_equal(columns["carrier"], block.features["carrier"])
        np.testing.assert_array_equal(columns["earlier"].to_tensor(shape=(None, 3)), block.features["earlier"])
        np.testing.assert_array_equal(columns["label/late"], block.label)
        np.testing.assert_array_equal(columns["key/day"], block.keys["day"])
        assert [key.decode() for key in columns["key/flight_id"].numpy()] == block.keys["flight_id"].tolist()


def test_the_documented_loop_gives_every_row_once_in_mixed_batches(tmp_path: Path, write_dataset: WriteDataset) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[10, 5], [4]])
    files = sorted(map(str, (dataset.path / "train").iterdir()))
    batches = list(
        tf.data.TFRecordDataset(files)
        .shuffle(256, seed=1)
        .map(lambda record: parse_block(record, values=VALUES, lists={"earlier": tf.int64}))
        .rebatch(65_536)
        .map(lambda columns: shuffle_rows(columns, seed=1))
        .rebatch(4)
    )
    assert [len(columns["row"]) for columns in batches] == [4, 4, 4, 4, 3]
    rows = [int(row) for columns in batches for row in columns["row"].numpy()]
    assert sorted(rows) == list(range(19)) != rows
    days = [int(day) for columns in batches for day in columns["key/day"].numpy()]
    earlier = [len(ids) for columns in batches for ids in columns["earlier"]]
    assert (days, earlier) == (rows, [min(row % 5, 3) for row in rows])  # columns stay together


def test_sparse_columns_become_sparse_tensors() -> None:
    columns = {
        "row": np.arange(3, dtype=np.float32),
        "v/indices": np.array([7, 2, 5]),
        "v/values": np.array([1, 2, 3], np.float32),
        "v/row_lengths": np.array([1, 0, 2]),
    }
    parsed = parse_block(tf.constant(encode_example(columns)), values={"row": tf.float32}, sparse={"v": 9})
    expected = [[0, 0, 0, 0, 0, 0, 0, 1, 0], [0] * 9, [0, 0, 2, 0, 0, 3, 0, 0, 0]]
    assert tf.sparse.to_dense(parsed["v"]).numpy().tolist() == expected


def test_a_missing_column_is_said_to_be_missing() -> None:
    record = tf.constant(encode_example({"row": np.zeros(3, np.float32)}))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"\['row', 'late'\] differ in length: one is missing"):
        parse_block(record, values={"row": tf.float32, "late": tf.float32})
