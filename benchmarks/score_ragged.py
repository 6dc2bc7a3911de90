"""How many rows of ragged strings are scored per second, next to a pandas UDF whose graph looks the strings up?

Every row has 10 fields of up to 20 strings each, as logs of what people have installed and done have them. Both sides
call the same exported model: ours encodes the columns in Arrow, the UDF pads them and leaves the lookup to the graph.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.functions import pandas_udf

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, interleave, speed_ratio
from benchmarks.report import Report, timing_table
from benchmarks.score_files import FILES, FILES_MARK, TABLE, TABLE_MARK
from benchmarks.score_model import export_ragged_model
from benchmarks.train_work import in_new_process

UDF, READ = "pandas UDF, the graph looks the strings up", "read the columns in the tasks, and nothing else"
FIELDS, LONGEST, TOKENS = 10, 20, 50_000
_FILES = 8


def run(options: Options) -> Report:
    """Write the table, export the model, and let every side score the table."""
    files = _files(options.scratch / "table", options.rows)
    model = in_new_process(export_ragged_model, options.scratch / "model", FIELDS, LONGEST, TOKENS)
    session = spark_work.session()
    timings = interleave(_sides(session, files, model, options.scratch / "scores"), options.rounds)
    session.stop()
    marks = (
        Mark(f"{FILES} / {UDF}", speed_ratio(timings, FILES, UDF), FILES_MARK),
        Mark(f"{TABLE} / {UDF}", speed_ratio(timings, TABLE, UDF), TABLE_MARK),
    )
    title = f"{options.rows:,} rows of {FIELDS} fields, {spark_work.SLOTS} cores"
    return Report(BENCHMARK.name, BENCHMARK.question, (timing_table(title, options.rows, timings, UDF),), marks)


def _files(folder: Path, rows: int) -> list[Path]:
    """Write the rows: of ``TOKENS`` strings small numbers are more frequent, as in any log."""
    folder.mkdir(parents=True)
    share = -(-rows // _FILES)
    for number in range(_FILES):
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


def _sides(session: SparkSession, files: list[Path], model: Path, target: Path) -> list[Contender]:
    from mirrorspark.scoring.batch import score
    from mirrorspark.scoring.files import score_files

    table = spark_work.table(session, files)
    fields = [f"field_{field}" for field in range(FIELDS)]

    def write(scored: DataFrame) -> None:
        scored.write.parquet(str(target))

    ways: Mapping[str, Callable[[], object]] = {
        FILES: lambda: score_files(session, files, model, target, keys="key"),
        TABLE: lambda: write(score(table, model, keys="key")),
        UDF: lambda: write(table.select("key", _graph_udf(str(model / "saved_model"), fields)(*fields).alias("score"))),
        READ: lambda: spark_work.read_parquet_in_tasks(session, files),
    }
    return [Contender(name, work, spark_work.emptied(target)) for name, work in ways.items()]


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


BENCHMARK = Benchmark("score_ragged", question_of(__doc__), 400_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
