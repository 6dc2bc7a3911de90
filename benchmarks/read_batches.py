"""How fast does one core read shuffled batches for training, next to row layout with a batched parse_example?

Both give batches of 4,096 rows with 40 features and a label to TensorFlow, which counts them in its own loop.
"""

import time
from functools import partial
from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, on_one_core, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave, speed_ratio
from benchmarks.report import Report, timing_table
from benchmarks.tables import Kind, parquet_files
from mirrorspark.data_pipelines.conversion import convert
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec

PARSE = "row layout, parse_example"
OURS = "load_batches, block layout"
BATCH_ROWS = 4_096
SHUFFLED_ROWS = 65_536
EPOCHS = 4
SPEED_MARK = 12.0
# One row in a hundred is for validation, another one for testing: a dataset has all three splits.
_SPLIT = "CASE key % 100 WHEN 0 THEN 'validation' WHEN 1 THEN 'test' ELSE 'train' END"


def run(options: Options) -> Report:
    """Write the same rows in both layouts with Spark, then read the training split on one core."""
    spark = spark_work.session()
    dataset, files = options.scratch / "dataset", options.scratch / "row-layout"
    rows = _write(spark, options, dataset, files)
    spark.stop()
    timings = on_one_core(_measure, dataset, files, options.rounds)
    note = (
        f"Row layout: TFRecordDataset, a shuffle buffer of {SHUFFLED_ROWS:,} records, batch, parse_example. "
        f"Block layout: a shuffle over the whole epoch; the mean of {EPOCHS} epochs."
    )
    table = timing_table(f"{rows:,} rows, 40 features, one core", rows, timings, PARSE, note=note)
    mark = Mark(f"{OURS} / {PARSE}", speed_ratio(timings, OURS, PARSE), SPEED_MARK)
    return Report(BENCHMARK.name, BENCHMARK.question, (table,), (mark,))


def _write(spark: SparkSession, options: Options, dataset: Path, files: Path) -> int:
    from mirrorspark.data_pipelines.tfrecords import write_tfrecords

    df = spark_work.table(spark, parquet_files(options.scratch, Kind.NUMBERS, options.rows))
    df = df.withColumn("split", F.expr(_SPLIT))
    convert(df, _spec(df.columns), dataset)
    train = df.where("split = 'train'").drop("split")
    write_tfrecords(train, str(files), layout="row")
    return train.count()


def _spec(columns: list[str]) -> FeatureSpec:
    numbers = [Numeric(name) for name in columns if name.startswith("float_")]
    tokens = [Categorical(name, max_size=10_000) for name in columns if name.startswith("int_")]
    return FeatureSpec((*numbers, *tokens), Label("label"), ("key",))


def _measure(dataset: Path, files: Path, rounds: int) -> dict[str, Timing]:
    contenders = [
        Contender(PARSE, partial(_parse_rows, files)),
        Contender(OURS, partial(_read_blocks, dataset)),
    ]
    return interleave(contenders, rounds)


def _parse_rows(folder: Path) -> float:
    """Read one epoch of row layout as TensorFlow's own guide has it, and return the seconds it took."""
    import tensorflow as tf

    names = sorted(str(path) for path in folder.glob("*.tfrecord*"))
    features = {"label": tf.io.FixedLenFeature((), tf.int64)}
    features |= {f"float_{number:02d}": tf.io.FixedLenFeature((), tf.float32) for number in range(20)}
    features |= {f"int_{number:02d}": tf.io.FixedLenFeature((), tf.int64) for number in range(20)}
    records = tf.data.TFRecordDataset(names).shuffle(SHUFFLED_ROWS, seed=1).batch(BATCH_ROWS)
    return _seconds_to_consume(records.map(lambda batch: tf.io.parse_example(batch, features)).prefetch(2))


def _read_blocks(folder: Path) -> float:
    """Read some epochs of the dataset directory, and return the seconds that one took."""
    from mirrorspark.data_pipelines.reading.dataset import Dataset, ReadPlan, load_batches

    plan = ReadPlan("train", BATCH_ROWS, seed=1, epochs=EPOCHS)
    return _seconds_to_consume(load_batches(Dataset.open(folder), plan)) / EPOCHS


def _seconds_to_consume(batches: object) -> float:
    import tensorflow as tf

    start = time.perf_counter()
    # In TensorFlow's own loop, as training steps read: Python would touch each of the 40 tensors of each batch.
    count = batches.reduce(tf.constant(0, tf.int64), lambda number, *_: number + 1)  # type: ignore[attr-defined]
    assert int(count) > 0
    return time.perf_counter() - start


BENCHMARK = Benchmark("read_batches", question_of(__doc__), 1_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
