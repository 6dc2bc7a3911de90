"""How fast do tables become TFRecord files and back in Spark, and how large are the files, next to Parquet?

Writing is compared with Spark's own Parquet write and with the bare hop from its JVM into Python, of a DataFrame and of
Parquet files that the tasks read themselves. Reading is compared with a Python data source whose Arrow batches are
ready made: Spark computes all columns of all rows and drops them (its ``noop`` format), and the ready batches come from
Arrow files that the tasks map into memory, so that only the way from Python into the JVM remains.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave, speed_ratio
from benchmarks.report import Report, Table, megabytes, timing_table
from benchmarks.spark_work import SLOTS, drain, emptied
from benchmarks.tables import DATA_PATH_KINDS, FILE_ROWS, Kind, make_table, parquet_files

SPARK_PARQUET = "Spark's own Parquet write"
ARROW_HOP = "bare JVM to Arrow hop"
READ_PARQUET = "pyarrow reading Parquet in the task"
ROWS, BLOCKS = ("write_tfrecords, row layout", "write_tfrecords, block layout")
ROWS_OF_FILES, BLOCKS_OF_FILES = (
    "write_tfrecords_from_parquet, row layout",
    "write_tfrecords_from_parquet, block layout",
)
WRITE_MARKS: Mapping[str, float] = {ROWS: 0.9, BLOCKS: 1.1, BLOCKS_OF_FILES: 3.0}
READY = "ready Arrow batches"
READERS = {layout: f"read_tfrecords, {layout} layout" for layout in ("row", "block")}
READ_MARK = 0.7
CODECS = ("none", "gzip")
SIZE_MARK = 0.25
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
        """Return the reader of the files."""
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
    """Write and read each kind of table; a quarter of the rows where they hold strings or lists."""
    spark = spark_work.session()
    spark.dataSource.register(ReadyBatches)
    tables: list[Table] = []
    marks: list[Mark] = []
    for kind in DATA_PATH_KINDS:
        rows = options.rows if kind is Kind.NUMBERS else max(1, options.rows // 4)
        files = parquet_files(options.scratch, kind, rows)
        writes, reads = _writes(options, spark, files), _reads(options, spark, kind, rows, files)
        sizes = _sizes(spark, kind, max(1, options.rows // 10), options.scratch)
        where = f"{kind}: {rows:,} rows, {SLOTS} cores"
        tables.append(timing_table(f"Writing {where}", rows, writes, SPARK_PARQUET))
        tables.append(timing_table(f"Reading {where}", rows, reads, READY))
        tables.append(size_table(f"Size of {kind}", max(1, options.rows // 10), sizes))
        if kind is Kind.NUMBERS:
            marks += [
                Mark(f"{way} / {SPARK_PARQUET}", speed_ratio(writes, way, SPARK_PARQUET), limit)
                for way, limit in WRITE_MARKS.items()
            ]
            marks += [Mark(f"{way} / {READY}", speed_ratio(reads, way, READY), READ_MARK) for way in READERS.values()]
            share = sizes["block layout"] / sizes["row layout"]
            marks.append(Mark("size, block layout / row layout", share, SIZE_MARK, "at most"))
    spark.stop()
    return Report(BENCHMARK.name, BENCHMARK.question, tuple(tables), tuple(marks))


def _writes(options: Options, spark: SparkSession, files: list[Path]) -> dict[str, Timing]:
    """Time all ways to write one table into the same folder.

    What one leaves in the page cache, to be written to disk later, would slow down the next: it is emptied before each.
    """
    from mirrorspark.data_pipelines.tfrecords import write_tfrecords, write_tfrecords_from_parquet

    df, target = spark_work.table(spark, files), options.scratch / "written"
    of_table = partial(write_tfrecords, df, str(target))
    of_files = partial(write_tfrecords_from_parquet, spark, [str(file) for file in files], str(target))
    ways: Mapping[str, Callable[[], object]] = {
        SPARK_PARQUET: partial(df.write.parquet, str(target)),
        ARROW_HOP: lambda: df.mapInArrow(_count_rows, "rows long").collect(),
        READ_PARQUET: partial(spark_work.read_parquet_in_tasks, spark, files),
        ROWS: partial(of_table, layout="row"),
        BLOCKS: partial(of_table, layout="block"),
        ROWS_OF_FILES: partial(of_files, layout="row"),
        BLOCKS_OF_FILES: partial(of_files, layout="block"),
    }
    timings = interleave([Contender(name, work, emptied(target)) for name, work in ways.items()], options.rounds)
    emptied(target)()
    return timings


def _count_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Count the rows that come in: the minimum of any writer in Python."""
    yield pa.RecordBatch.from_pydict({"rows": [sum(batch.num_rows for batch in batches)]})


def _reads(options: Options, spark: SparkSession, kind: Kind, rows: int, files: list[Path]) -> dict[str, Timing]:
    from mirrorspark.data_pipelines.tfrecords import read_tfrecords, write_tfrecords

    source = spark_work.table(spark, files)
    frames: dict[str, DataFrame] = {READY: _ready_batches(spark, options.scratch, kind, rows, source)}
    for layout, name in READERS.items():
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


def size_table(title: str, rows: int, sizes: Mapping[str, int]) -> Table:
    """Return bytes per way, per row, and as a share of the row layout."""
    base = sizes["row layout"]
    cells = tuple((name, megabytes(size), f"{size / rows:.1f}", f"{size / base:.3f}") for name, size in sizes.items())
    columns = ("files", "size", "bytes per row", "share of the row layout")
    return Table(f"{title}: {rows:,} rows", columns, cells)


def _sizes(spark: SparkSession, kind: Kind, rows: int, scratch: Path) -> dict[str, int]:
    """Write a table once per layout and codec; sizes do not vary."""
    from mirrorspark.data_pipelines.tfrecords import write_tfrecords

    source, folder = spark_work.table(spark, parquet_files(scratch, kind, rows)), scratch / f"{kind}-sizes"
    sizes: dict[str, int] = {}
    for layout in ("row", "block"):
        for codec in CODECS:
            target = folder / f"{layout}-{codec}"
            write_tfrecords(source, str(target), layout=layout, codec=codec)
            sizes[f"{layout} layout{'' if codec == 'none' else f', {codec}'}"] = _bytes_of(target)
    source.write.parquet(str(folder / "parquet"))
    sizes["Spark's Parquet, snappy"] = _bytes_of(folder / "parquet")
    shutil.rmtree(folder)
    return sizes


def _bytes_of(folder: Path) -> int:
    hidden = ("_", ".")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.name.startswith(hidden))


BENCHMARK = Benchmark("spark_tfrecords", question_of(__doc__), 2_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
