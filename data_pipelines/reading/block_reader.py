"""A block reader in plain TensorFlow, for training loops that do not use the rest of this library.

This file imports nothing of ours; copy it if you like. It has no support for manifests, ranks or resuming;
:mod:`data_pipelines.reading.dataset` has, and is faster. A training loop needs these lines::

    columns = {"distance": tf.float32, "carrier": tf.int64, "label/late": tf.float32}
    batches = (
        tf.data.TFRecordDataset(files)  # of one split: tf.io.gfile.glob("flights/train/*.tfrecord")
        .shuffle(256)  # blocks
        .map(lambda record: parse_block(record, values=columns))
        .rebatch(65_536)
        .map(shuffle_rows)
        .rebatch(4096, drop_remainder=True)
        .prefetch(2)
    )
"""

from collections.abc import Mapping

import tensorflow as tf

Tensors = dict[str, tf.Tensor | tf.RaggedTensor | tf.SparseTensor]


def parse_block(
    record: tf.Tensor,
    *,
    values: Mapping[str, tf.DType],
    lists: Mapping[str, tf.DType] | None = None,
    sparse: Mapping[str, int] | None = None,
    vectors: Mapping[str, int] | None = None,
) -> Tensors:
    """Return the rows of one block; works in graphs, and so in ``tf.data.Dataset.map``.

    Other columns are skipped.

    Args:
        record: The serialized record, a scalar string from ``tf.data.TFRecordDataset``.
        values: Columns of one value per row, at least one, by stored name (``label/late``, ``key/id``), with their
            type: ``tf.float32``, ``tf.int64`` or ``tf.string``.
        lists: Columns of any number of values per row, by name, with the type of the values.
        sparse: Sparse columns of float32, by name, with the length of a row.
        vectors: Columns of vectors of float32, by name, with their size.

    Returns:
        Per name a tensor ``[rows]``, a ragged tensor ``[rows, None]``, a sparse tensor ``[rows, size]`` or, for a
        vector, a tensor ``[rows, size]``.

    Raises:
        tf.errors.InvalidArgumentError: The record is not a ``tf.train.Example``, a column is of another type, or the
            columns of ``values`` differ in length.
    """
    lists, sparse, vectors = lists or {}, sparse or {}, vectors or {}
    wanted: dict[str, tf.io.RaggedFeature] = {name: tf.io.RaggedFeature(kind) for name, kind in values.items()}
    for name, kind in lists.items():
        lengths = tf.io.RaggedFeature.RowLengths(f"{name}/row_lengths")
        wanted[name] = tf.io.RaggedFeature(kind, partitions=[lengths], row_splits_dtype=tf.int64)
    wanted |= dict.fromkeys(vectors, tf.io.RaggedFeature(tf.float32))
    for name in sparse:
        wanted[f"{name}/indices"] = tf.io.RaggedFeature(tf.int64)
        wanted[f"{name}/values"] = tf.io.RaggedFeature(tf.float32)
        wanted[f"{name}/row_lengths"] = tf.io.RaggedFeature(tf.int64)
    parsed = tf.io.parse_single_example(record, wanted)
    counts = tf.stack([tf.size(parsed[name], tf.int64) for name in values])
    complaint = f"columns {list(values)} differ in length: one is missing, or has no one value per row"
    with tf.control_dependencies([tf.debugging.assert_equal(counts, counts[0], complaint)]):
        tensors: Tensors = {name: tf.identity(parsed[name]) for name in values}
    tensors |= {name: parsed[name] for name in lists}
    tensors |= {name: tf.reshape(parsed[name], (-1, size)) for name, size in vectors.items()}
    for name, size in sparse.items():
        lengths = parsed[f"{name}/row_lengths"]
        row_of_entry = tf.repeat(tf.range(tf.size(lengths, tf.int64)), lengths)
        coordinates = tf.stack([row_of_entry, parsed[f"{name}/indices"]], axis=1)
        tensors[name] = tf.SparseTensor(coordinates, parsed[f"{name}/values"], (tf.size(lengths, tf.int64), size))
    return tensors


def shuffle_rows(columns: Tensors, seed: int | None = None) -> Tensors:
    """Return the rows of ``columns`` in one random order for all columns; sparse columns are not supported.

    Args:
        columns: The result of :func:`parse_block`, or several joined by ``tf.data.Dataset.rebatch``.
        seed: Fixes the order; None draws a new one each time.
    """
    first = next(iter(columns.values()))
    order = tf.random.shuffle(tf.range(tf.shape(first, tf.int64)[0]), seed)
    return {name: tf.gather(column, order) for name, column in columns.items()}
