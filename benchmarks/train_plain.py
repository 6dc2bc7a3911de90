"""The plain pattern of ``train_end_to_end``: the usual code with only Spark, TensorFlow and the runner.

Spark counts vocabularies and takes means, writes one ``tf.train.Example`` per row, and every worker parses them one by
one; ``fit`` runs under the runner's strategy. Nothing of ours is called, except to know the columns of the recipe.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines.features.kinds import Categorical, MultiValued, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec

if TYPE_CHECKING:  # the driver pickles the rank without loading TensorFlow
    import tensorflow as tf
    import tf_keras

LABEL = "label"
SHARDS = 8
SHUFFLED_ROWS = 10_000
SPLITS = ("train", "validation")

_MISSING, _UNKNOWN, _FIRST_ID = 0, 1, 2


@dataclass(frozen=True)
class Encoding:
    """Encoding of rows as numbers.

    Attributes:
        ids: Per categorical column the id of each token.
        lengths: Per list column the number of its last tokens that count.
        scales: Per numeric column mean and standard deviation.
        label: Column of zeros and ones.
    """

    ids: Mapping[str, Mapping[Any, int]]
    lengths: Mapping[str, int]
    scales: Mapping[str, tuple[float, float]]
    label: str

    def size(self, column: str) -> int:
        """Return the rows of a column's embedding."""
        return _FIRST_ID + len(self.ids[column])

    def encode(self, row: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Return the values of a row's features, each a list."""
        values: dict[str, list[Any]] = {LABEL: [int(row[self.label])]}
        for column, ids in self.ids.items():
            length = self.lengths.get(column)
            tokens = [row[column]] if length is None else list(row[column] or ())[-length:]
            found = [_MISSING if token is None else ids.get(token, _UNKNOWN) for token in tokens]
            values[column] = found + [_MISSING] * ((length or 1) - len(found))
        for column, (mean, deviation) in self.scales.items():
            value = row[column]
            values[column] = [0.0 if value is None else (float(value) - mean) / deviation]
        return values


def fit_encoding(train: DataFrame, spec: FeatureSpec) -> Encoding:
    """Return the encoding that the training rows give."""
    ids: dict[str, Mapping[Any, int]] = {}
    lengths = {feature.name: feature.max_length for feature in spec.features if isinstance(feature, MultiValued)}
    shared = {feature.name: feature.vocabulary_of for feature in spec.features if isinstance(feature, MultiValued)}
    for feature in spec.features:
        if isinstance(feature, Categorical | MultiValued) and not shared.get(feature.name):
            column = F.explode(feature.name) if feature.name in lengths else F.col(feature.name)
            counts = train.select(column.alias("token")).where("token IS NOT NULL").groupBy("token").count()
            tokens = counts.where(F.col("count") >= feature.min_count).orderBy(F.desc("count"), "token").collect()
            ids[feature.name] = {row.token: number for number, row in enumerate(tokens, _FIRST_ID)}
    ids |= {name: ids[owner] for name, owner in shared.items() if owner}
    numbers = [feature.name for feature in spec.features if isinstance(feature, Numeric)]
    moments = train.select(*(expression(name) for name in numbers for expression in (F.mean, F.stddev))).first()
    assert moments is not None
    scales = {name: (moments[2 * place], moments[2 * place + 1] or 1.0) for place, name in enumerate(numbers)}
    return Encoding(ids, lengths, scales, spec.label.name)


def write_examples(table: DataFrame, encoding: Encoding, folder: Path) -> None:
    """Write ``table`` as TFRecord files of one example per record."""
    folder.mkdir(parents=True)
    table.repartition(SHARDS).foreachPartition(_WriteExamples(encoding, str(folder)))


@dataclass(frozen=True)
class _WriteExamples:
    """The body of a task that writes its rows into a file."""

    encoding: Encoding
    folder: str

    def __call__(self, rows: Iterable[Row]) -> None:
        import tensorflow as tf
        from pyspark import TaskContext

        context = TaskContext.get()
        assert context is not None
        with tf.io.TFRecordWriter(f"{self.folder}/part-{context.partitionId():05d}.tfrecord") as writer:
            for row in rows:
                features = {}
                for name, values in self.encoding.encode(row.asDict()).items():
                    if name in self.encoding.scales:
                        features[name] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
                    else:
                        features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())


@dataclass(frozen=True)
class PlainRank:
    """The function that the runner calls on every worker, in the scope of its strategy.

    Attributes:
        encoding: Encoding of the rows.
        folder: Holds a folder of TFRecord files per split.
        steps: Per split the number of global batches in an epoch.
        epochs: Number of epochs.
        global_batch_size: Rows of a step on all workers together.
        learning_rate: Learning rate of Adam.
        embedding_dim: Size of the embedding of every field.
        hidden_units: Units of each hidden layer.
        dropout: Share of hidden units dropped while training.
    """

    encoding: Encoding
    folder: Path
    steps: Mapping[str, int]
    epochs: int
    global_batch_size: int
    learning_rate: float
    embedding_dim: int
    hidden_units: Sequence[int]
    dropout: float

    def __call__(self) -> tuple[float, float]:
        """Train, and return when the last epoch ended and its validation AUC."""
        import tf_keras

        model = self._model()
        model.compile(
            tf_keras.optimizers.Adam(self.learning_rate),
            loss=tf_keras.losses.BinaryCrossentropy(from_logits=True),
            metrics=[tf_keras.metrics.AUC(name="auc", from_logits=True)],
        )
        ends: list[float] = []
        history = model.fit(
            self._batches("train"),
            validation_data=self._batches("validation"),
            epochs=self.epochs,
            steps_per_epoch=self.steps["train"],
            validation_steps=self.steps["validation"],
            # At its end fit destroys its iterators, which may take long: that is not training.
            callbacks=[tf_keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(time.time()))],
            verbose=0,
        )
        return ends[-1], float(history.history["val_auc"][-1])

    def _batches(self, split: str) -> "tf.data.Dataset":
        import tensorflow as tf

        files = tf.data.Dataset.list_files(f"{self.folder / split}/*.tfrecord", shuffle=False)
        records = files.interleave(tf.data.TFRecordDataset, num_parallel_calls=tf.data.AUTOTUNE)
        if split == "train":
            records = records.shuffle(SHUFFLED_ROWS)
        examples = records.repeat().map(_parser(self.encoding), num_parallel_calls=tf.data.AUTOTUNE)
        return examples.batch(self.global_batch_size).prefetch(tf.data.AUTOTUNE)

    def _model(self) -> "tf_keras.Model":
        """Return the recipe's model: an embedding per field, lists averaged, next to the numbers, and a net."""
        import tensorflow as tf
        import tf_keras

        layers, encoding = tf_keras.layers, self.encoding
        inputs, parts = {}, []
        for column in encoding.ids:
            length = encoding.lengths.get(column)
            inputs[column] = tf_keras.Input((length or 1,), dtype=tf.int64, name=column)
            embedded = layers.Embedding(encoding.size(column), self.embedding_dim)(inputs[column])
            # Not GlobalAveragePooling1D: the mean of an empty list would be 0 / 0.
            parts.append(layers.Lambda(_mean_of_present)([embedded, inputs[column]]))
        for column in encoding.scales:
            inputs[column] = tf_keras.Input((1,), name=column)
            parts.append(inputs[column])
        hidden = layers.Concatenate()(parts)
        for units in self.hidden_units:
            hidden = layers.Dropout(self.dropout)(layers.Dense(units, activation="relu")(hidden))
        return tf_keras.Model(inputs, layers.Dense(1)(hidden))


def _mean_of_present(embedded_and_ids: "Sequence[tf.Tensor]") -> "tf.Tensor":
    import tensorflow as tf

    embedded, ids = embedded_and_ids
    present = tf.cast(ids != _MISSING, embedded.dtype)[:, :, tf.newaxis]
    return tf.math.divide_no_nan(tf.reduce_sum(embedded * present, 1), tf.reduce_sum(present, 1))


def _parser(encoding: Encoding) -> "Callable[[tf.Tensor], tuple[dict[str, tf.Tensor], tf.Tensor]]":
    import tensorflow as tf

    description = {LABEL: tf.io.FixedLenFeature((1,), tf.int64)}
    description |= {
        column: tf.io.FixedLenFeature((encoding.lengths.get(column, 1),), tf.int64) for column in encoding.ids
    }
    description |= {column: tf.io.FixedLenFeature((1,), tf.float32) for column in encoding.scales}

    def parse(record: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        features = tf.io.parse_single_example(record, description)
        label = features.pop(LABEL)
        return features, label

    return parse
