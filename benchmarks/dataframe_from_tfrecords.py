"""How fast do TFRecord files become a DataFrame, next to a Python data source whose Arrow batches are ready made?

Spark computes all columns of all rows and drops them (its ``noop`` format). The ready batches come from Arrow files
that the tasks map into memory, so what remains is the way from Python into the JVM.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave, speed_ratio
from benchmarks.report import Report, timing_table
from benchmarks.spark_work import drain
from benchmarks.tables import DATA_PATH_KINDS, FILE_ROWS, Kind, make_table, parquet_files

READY = "ready Arrow batches"
OURS = {layout: f"read_tfrecords, {layout} layout" for layout in ("row", "block")}
SPEED_MARK = 0.7
# As many as Spark puts into a batch itself by default.
_BATCH_ROWS = 10_000


class ReadyBatches(DataSource):
    """Arrow files of the folder ``path``, one partition per file."""

    @classmethod
    def name(cls) -> str:
        """Return the format's name."""
        return "ready_batches"

    def schema(self) -> str:
        """Return the columns in Spark's DDL, as they were given."""
        return str(self.options["columns"])

    def reader(self, schema: object) -> "ReadyBatchesReader":
        """Return what reads the files."""
        return ReadyBatchesReader(str(self.options["path"]))


class ReadyBatchesReader(DataSourceReader):
    """Yields the batches of Arrow files as they are."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def partitions(self) -> Sequence[InputPartition]:
        """Return one partition per file."""
        return [InputPartition(str(path)) for path in sorted(Path(self._folder).glob("*.arrow"))]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """Yield the batches of one file."""
        with pa.memory_map(partition.value) as file:
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)


def run(options: Options) -> Report:
    """Read each table three ways."""
    spark = spark_work.session()
    spark.dataSource.register(ReadyBatches)
    tables, marks = [], []
    for kind in DATA_PATH_KINDS:
        rows = options.rows if kind is Kind.NUMBERS else max(1, options.rows // 4)
        timings = _measure(options, spark, kind, rows)
        tables.append(timing_table(f"{kind}: {rows:,} rows, {spark_work.SLOTS} cores", rows, timings, READY))
        if kind is Kind.NUMBERS:
            marks += [
                Mark(f"{ours} / {READY}", speed_ratio(timings, ours, READY), SPEED_MARK) for ours in OURS.values()
            ]
    spark.stop()
    return Report(BENCHMARK.name, BENCHMARK.question, tuple(tables), tuple(marks))


def _measure(options: Options, spark: SparkSession, kind: Kind, rows: int) -> dict[str, Timing]:
    from mirrorspark.data_pipelines.tfrecords import read_tfrecords, write_tfrecords

    files = parquet_files(options.scratch, kind, rows)
    source = spark_work.table(spark, files)
    frames: dict[str, DataFrame] = {READY: _ready_batches(spark, options.scratch, kind, rows, source)}
    for layout, name in OURS.items():
        folder = options.scratch / f"{kind}-{layout}"
        write_tfrecords(source, str(folder), mode="overwrite", layout=layout)
        frames[name] = read_tfrecords(spark, str(folder), schema=source.schema)
    return interleave([Contender(name, partial(drain, df)) for name, df in frames.items()], options.rounds)


def _ready_batches(spark: SparkSession, scratch: Path, kind: Kind, rows: int, source: DataFrame) -> DataFrame:
    folder = scratch / f"{kind}-arrow"
    folder.mkdir(exist_ok=True)
    file_rows = min(FILE_ROWS, -(-rows // 4))
    for start in range(0, rows, file_rows):
        content = make_table(kind, min(file_rows, rows - start), first_key=start)
        with pa.ipc.new_file(folder / f"part-{start:09d}.arrow", content.schema) as writer:
            writer.write_table(content, max_chunksize=_BATCH_ROWS)
    columns = ", ".join(f"{field.name} {field.dataType.simpleString()}" for field in source.schema)
    return spark.read.format("ready_batches").options(columns=columns).load(str(folder))


BENCHMARK = Benchmark("dataframe_from_tfrecords", question_of(__doc__), 1_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
