"""How many rows of Parquet files are scored per second, next to predict_batch_udf and pandas UDFs of one's own?

Every way reads the same files and writes keys and scores to Parquet files; two more show what bounds it. The model has
an embedding of 8 numbers for each of 26 columns of ids, 13 columns of numbers, and layers of 128 and 64 units. The
product's own ways look each id up in a vocabulary; the others have a model that takes ids as they are, and are spared
that. The table is the one of its files, which tasks of ``score`` read past the JVM; of what Spark computes, a join say,
rows come through it.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, interleave, speed_ratio
from benchmarks.report import Report, timing_table
from benchmarks.score_model import export_direct_model, export_model, feature_columns
from benchmarks.score_udfs import batch_udf, iterator_udf, keras_udf, onnx_udf
from benchmarks.tables import Kind, parquet_files
from benchmarks.train_work import in_new_process

FILES = "score_files"
TABLE = "score, and Spark's Parquet write"
THROUGH_JVM = "the same, of rows that Spark reads"
PREDICT_BATCH_UDF = "predict_batch_udf"
ITERATOR_UDF = "pandas UDF with an iterator, model loaded per task"
KERAS_UDF = "pandas UDF, model.predict for each batch"
ONNX_UDF = "pandas UDF with an iterator, ONNX Runtime"
READ = "read the columns in the tasks, and nothing else"
CALL = "call the model on encoded rows, one process per core"
FILES_MARK, TABLE_MARK, LIMIT_MARK = 3.0, 1.3, 0.5
BATCH_ROWS = 4_096


def run(options: Options) -> Report:
    """Write the table, export the models, and let every side score the table."""
    files = parquet_files(options.scratch, Kind.CLICKS, options.rows)
    models = in_new_process(_exported, options.scratch, files)
    session = spark_work.session()
    timings = interleave(_sides(session, files, models, options.scratch / "scores"), options.rounds)
    session.stop()
    slower = max(timings[READ].median, timings[CALL].median)
    marks = (
        Mark(f"{FILES} / {PREDICT_BATCH_UDF}", speed_ratio(timings, FILES, PREDICT_BATCH_UDF), FILES_MARK),
        Mark(f"{TABLE} / {PREDICT_BATCH_UDF}", speed_ratio(timings, TABLE, PREDICT_BATCH_UDF), TABLE_MARK),
        Mark(f"{FILES} / the slower one of reading and calling", slower / timings[FILES].median, LIMIT_MARK),
    )
    title = f"{options.rows:,} rows of 39 features, {spark_work.SLOTS} cores"
    table = timing_table(title, options.rows, timings, PREDICT_BATCH_UDF)
    return Report(BENCHMARK.name, BENCHMARK.question, (table,), marks)


@dataclass(frozen=True)
class Models:
    """Folders of the model that looks ids up, and of the one that takes them as they are."""

    exported: Path
    direct: Path


def _exported(scratch: Path, files: Sequence[Path]) -> Models:
    return Models(export_model(scratch / "exported", files[0]), export_direct_model(scratch / "direct", files))


def _sides(session: SparkSession, files: Sequence[Path], models: Models, target: Path) -> list[Contender]:
    from mirrorspark.scoring.batch import score
    from mirrorspark.scoring.files import score_files

    table = spark_work.table(session, files)
    names = feature_columns(table.columns)
    ids, numbers = ([name for name in names if name.startswith(prefix)] for prefix in ("int_", "float_"))

    def write(scored: DataFrame) -> None:
        scored.write.parquet(str(target))

    batch = batch_udf(models.direct, len(ids), len(numbers), BATCH_ROWS)

    def with_udf(udf: Any) -> None:
        write(table.select("key", udf(*ids, *numbers).alias("score")))

    ways: Mapping[str, Callable[[], object]] = {
        FILES: lambda: score_files(session, files, models.exported, target, keys="key"),
        TABLE: lambda: write(score(table, models.exported, keys="key")),
        THROUGH_JVM: lambda: write(score(table, models.exported, keys="key", reader="spark")),
        PREDICT_BATCH_UDF: lambda: write(table.select("key", batch(F.array(*ids), F.array(*numbers)).alias("score"))),
        ITERATOR_UDF: lambda: with_udf(iterator_udf(models.direct, len(ids))),
        KERAS_UDF: lambda: with_udf(keras_udf(models.direct, len(ids))),
        ONNX_UDF: lambda: with_udf(onnx_udf(models.direct, len(ids))),
        READ: lambda: spark_work.read_parquet_in_tasks(session, files),
        CALL: lambda: _call_on_all_cores(models.exported, files),
    }
    return [Contender(name, work, spark_work.emptied(target)) for name, work in ways.items()]


def _call_on_all_cores(model: Path, files: Sequence[Path]) -> float:
    """Return the seconds that the model's calls take for all rows, in the mean of the processes."""
    with ProcessPoolExecutor(spark_work.SLOTS, mp_context=multiprocessing.get_context("spawn")) as pool:
        shares = [files[number :: spark_work.SLOTS] for number in range(spark_work.SLOTS)]
        return mean(pool.map(partial(_call, model), shares))


def _call(model: Path, files: Sequence[Path]) -> float:
    """Return the seconds that the model's calls take for the rows of ``files``; encoding does not count."""
    os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
    import tensorflow as tf

    from mirrorspark.data_pipelines.features.transform import Encoder
    from mirrorspark.scoring.model.directory import ModelDirectory

    directory = ModelDirectory.open(model)
    module = tf.saved_model.load(str(model / "saved_model"))
    rows = pq.read_table(files[0])
    encoded = Encoder(directory.features).encode_padded(rows.slice(0, BATCH_ROWS), directory.scored_features)
    tensors = {name: tf.constant(values) for name, values in encoded.items()}
    call = module.signatures["encoded"]
    call(**tensors)
    calls = -(-sum(pq.read_metadata(file).num_rows for file in files) // BATCH_ROWS)
    begin = time.perf_counter()
    for _ in range(calls):
        call(**tensors)["score"].numpy()
    return time.perf_counter() - begin


BENCHMARK = Benchmark("score_files", question_of(__doc__), 2_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
