"""How many rows of Parquet files are scored per second, next to `predict_batch_udf`, pandas UDFs and MLflow's UDF?

Every way reads the same files and writes keys and scores to Parquet files; two more show what bounds it. The model has
an embedding of 8 numbers for each of 26 columns of ids, 13 columns of numbers, and layers of 128 and 64 units. The
product's own ways look each id up in a vocabulary; the others have a model that takes ids as they are, and are spared
that. The table is the one of its files, which tasks of ``score`` read past the JVM; rows that Spark computes, for
example by a join, come through it.

``mlflow.pyfunc.spark_udf`` of the same model is compared on a standalone cluster: in a local session it loads its model
once for every task, which would flatter us. Ragged rows have 10 fields of up to 20 strings each, as in logs of people's
installations and actions; both sides call the same exported model, and a pandas UDF leaves the lookup of the
strings to its graph.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.pandas.functions import pandas_udf

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave, speed_ratio
from benchmarks.report import Report, timing_table
from benchmarks.score_model import (
    export_direct_model,
    export_model,
    export_ragged_model,
    exported_for_mlflow,
    feature_columns,
    of_mlflow,
)
from benchmarks.score_udfs import batch_udf, iterator_udf, keras_udf, onnx_udf
from benchmarks.servers import standalone_cluster
from benchmarks.tables import Kind, parquet_files
from benchmarks.train_work import in_new_process, usual_session

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
SPARK_UDF = "mlflow.pyfunc.spark_udf"
GRAPH_UDF = "pandas UDF, the graph looks the strings up"
FIELDS, LONGEST, TOKENS = 10, 20, 50_000
_RAGGED_FILES = 8

Ways = Mapping[str, Callable[[], object]]


def run(options: Options) -> Report:
    """Let every side score the rows, a fifth of them on the cluster and as many ragged ones."""
    fifth = max(1, options.rows // 5)
    here, there, ragged = local_timings(options), _on_cluster(options, fifth), _ragged(options, fifth)
    slower = max(here[READ].median, here[CALL].median)
    beside = ((here, PREDICT_BATCH_UDF), (there, SPARK_UDF), (ragged, GRAPH_UDF))
    marks = [
        Mark(f"{way} / {peer}", speed_ratio(timings, way, peer), limit)
        for timings, peer in beside
        for way, limit in ((FILES, FILES_MARK), (TABLE, TABLE_MARK))
    ]
    marks.append(Mark(f"{FILES} / the slower one of reading and calling", slower / here[FILES].median, LIMIT_MARK))
    slots = spark_work.SLOTS
    tables = (
        timing_table(f"{options.rows:,} rows of 39 features, {slots} cores", options.rows, here, PREDICT_BATCH_UDF),
        timing_table(f"{fifth:,} rows of 39 features, {slots} executors of one core", fifth, there, SPARK_UDF),
        timing_table(f"{fifth:,} rows of {FIELDS} ragged fields, {slots} cores", fifth, ragged, GRAPH_UDF),
    )
    return Report(BENCHMARK.name, BENCHMARK.question, tables, tuple(marks))


def _timed(ways: Ways, target: Path, rounds: int) -> dict[str, Timing]:
    contenders = [Contender(name, work, spark_work.emptied(target)) for name, work in ways.items()]
    return interleave(contenders, rounds)


def _product_ways(session: SparkSession, files: Sequence[Path], model: Path, target: Path) -> Ways:
    """Return the product's two ways to score files."""
    from mirrorspark.scoring.batch import score
    from mirrorspark.scoring.files import score_files

    return {
        FILES: lambda: score_files(session, files, model, target, keys="key"),
        TABLE: lambda: _write(score(spark_work.table(session, files), model, keys="key"), target),
    }


def _write(scored: DataFrame, target: Path) -> None:
    scored.write.parquet(str(target))


def local_timings(options: Options, only: Sequence[str] = ()) -> dict[str, Timing]:
    """Return the times of all ways in a local session, or of some."""
    files = parquet_files(options.scratch, Kind.CLICKS, options.rows)
    models = in_new_process(_exported, options.scratch, files)
    session, target = spark_work.session(), options.scratch / "scores"
    ways = _local_ways(session, files, models, target)
    timings = _timed({name: work for name, work in ways.items() if not only or name in only}, target, options.rounds)
    session.stop()
    return timings


@dataclass(frozen=True)
class Models:
    """Folders of the model that looks ids up, and of the one that takes them as they are."""

    exported: Path
    direct: Path


def _exported(scratch: Path, files: Sequence[Path]) -> Models:
    return Models(export_model(scratch / "exported", files[0]), export_direct_model(scratch / "direct", files))


def _local_ways(session: SparkSession, files: Sequence[Path], models: Models, target: Path) -> Ways:
    from mirrorspark.scoring.batch import score

    table = spark_work.table(session, files)
    names = feature_columns(table.columns)
    ids, numbers = ([name for name in names if name.startswith(prefix)] for prefix in ("int_", "float_"))
    batch = batch_udf(models.direct, len(ids), len(numbers), BATCH_ROWS)

    def with_udf(udf: Any, *columns: Any) -> None:
        _write(table.select("key", udf(*columns).alias("score")), target)

    return {
        **_product_ways(session, files, models.exported, target),
        THROUGH_JVM: lambda: _write(score(table, models.exported, keys="key", reader="spark"), target),
        PREDICT_BATCH_UDF: lambda: with_udf(batch, F.array(*ids), F.array(*numbers)),
        ITERATOR_UDF: lambda: with_udf(iterator_udf(models.direct, len(ids)), *ids, *numbers),
        KERAS_UDF: lambda: with_udf(keras_udf(models.direct, len(ids)), *ids, *numbers),
        ONNX_UDF: lambda: with_udf(onnx_udf(models.direct, len(ids)), *ids, *numbers),
        READ: lambda: spark_work.read_parquet_in_tasks(session, files),
        CALL: lambda: _call_on_all_cores(models.exported, files),
    }


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
    from mirrorspark.scoring.model.folder import ModelDirectory

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


def _on_cluster(options: Options, rows: int) -> dict[str, Timing]:
    files = parquet_files(options.scratch, Kind.CLICKS, rows)
    model = in_new_process(exported_for_mlflow, options.scratch / "for-mlflow", files[0])
    with standalone_cluster(options.scratch / "cluster", workers=spark_work.SLOTS) as master:
        return in_new_process(_beside_mlflow, options, master, files, model)


def _beside_mlflow(options: Options, master: str, files: Sequence[Path], model: Path) -> dict[str, Timing]:
    import mlflow

    session, target = usual_session(master), options.scratch / "scores"
    table = spark_work.table(session, files)
    names = feature_columns(table.columns)
    udf = mlflow.pyfunc.spark_udf(session, of_mlflow(model), result_type="float", env_manager="local")
    ways: Ways = {
        **_product_ways(session, files, model, target),
        SPARK_UDF: lambda: _write(table.select("key", udf(F.struct(*names)).alias("score")), target),
    }
    timings = _timed(ways, target, options.rounds)
    session.stop()
    return timings


def _ragged(options: Options, rows: int) -> dict[str, Timing]:
    files = _ragged_files(options.scratch / "ragged", rows)
    model = in_new_process(export_ragged_model, options.scratch / "ragged-model", FIELDS, LONGEST, TOKENS)
    session, target = spark_work.session(), options.scratch / "scores"
    table, fields = spark_work.table(session, files), [f"field_{field}" for field in range(FIELDS)]
    udf = _graph_udf(str(model / "saved_model"), fields)
    ways: Ways = {
        **_product_ways(session, files, model, target),
        GRAPH_UDF: lambda: _write(table.select("key", udf(*fields).alias("score")), target),
        READ: lambda: spark_work.read_parquet_in_tasks(session, files),
    }
    timings = _timed(ways, target, options.rounds)
    session.stop()
    return timings


def _ragged_files(folder: Path, rows: int) -> list[Path]:
    """Write the rows: of ``TOKENS`` strings small numbers are more frequent, as in any log."""
    folder.mkdir(parents=True)
    share = -(-rows // _RAGGED_FILES)
    for number in range(_RAGGED_FILES):
        generator = np.random.default_rng(number)
        columns = {"key": pa.array(np.arange(number * share, (number + 1) * share))}
        columns |= {f"field_{field}": _lists(generator, share) for field in range(FIELDS)}
        pq.write_table(pa.table(columns), folder / f"part-{number}.parquet", row_group_size=share // 4 + 1)
    return sorted(folder.iterdir())


def _lists(generator: np.random.Generator, rows: int) -> pa.ListArray:
    lengths = generator.integers(0, LONGEST + 1, rows)
    numbers = (TOKENS * generator.random(lengths.sum()) ** 3).astype(np.int64)
    names = pa.array([f"app.of.vendor.{number}" for number in range(TOKENS)])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), names.take(pa.array(numbers)))


def _graph_udf(model: str, fields: list[str]) -> Any:
    """Return a pandas UDF of lists of strings, which loads the model once per task."""
    import pandas as pd

    @pandas_udf("float")  # type: ignore[call-overload]
    def scores(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:
        import tensorflow as tf

        module = tf.saved_model.load(model)
        signature = module.signatures["serving_default"]
        for columns in batches:
            padded = {name: tf.ragged.constant(lists.tolist()) for name, lists in zip(fields, columns, strict=True)}
            yield pd.Series(signature(**{name: lists.to_tensor("") for name, lists in padded.items()})["score"].numpy())

    return scores


BENCHMARK = Benchmark("score_files", question_of(__doc__), 2_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
