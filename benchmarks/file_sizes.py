"""How large are the files of the row layout, the block layout and Parquet?"""

from pathlib import Path

from pyspark.sql import DataFrame

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Mark
from benchmarks.report import Report, Table, megabytes
from benchmarks.tables import DATA_PATH_KINDS, Kind, parquet_files

CODECS = ("none", "gzip")
SIZE_MARK = 0.25


def run(options: Options) -> Report:
    """Write each table once per layout and codec; sizes do not vary, so once is enough."""
    spark = spark_work.session()
    tables, marks = [], []
    for kind in DATA_PATH_KINDS:
        source = spark_work.table(spark, parquet_files(options.scratch, kind, options.rows))
        sizes = _sizes(source, options.scratch / str(kind))
        tables.append(size_table(f"{kind}: {options.rows:,} rows, {len(source.columns)} columns", options.rows, sizes))
        if kind is Kind.NUMBERS:
            share = sizes["block layout"] / sizes["row layout"]
            marks.append(Mark("block layout / row layout", share, SIZE_MARK, "at most"))
    spark.stop()
    return Report(BENCHMARK.name, BENCHMARK.question, tuple(tables), tuple(marks))


def size_table(title: str, rows: int, sizes: dict[str, int]) -> Table:
    """Return bytes per way, per row, and as a share of the row layout."""
    base = sizes["row layout"]
    cells = tuple((name, megabytes(size), f"{size / rows:.1f}", f"{size / base:.3f}") for name, size in sizes.items())
    return Table(title, ("files", "size", "bytes per row", "share of the row layout"), cells)


def _sizes(source: DataFrame, folder: Path) -> dict[str, int]:
    from mirrorspark.data_pipelines.tfrecords import write_tfrecords

    sizes: dict[str, int] = {}
    for layout in ("row", "block"):
        for codec in CODECS:
            target = folder / f"{layout}-{codec}"
            write_tfrecords(source, str(target), layout=layout, codec=codec)
            sizes[f"{layout} layout{'' if codec == 'none' else f', {codec}'}"] = _bytes_of(target)
    source.write.parquet(str(folder / "parquet"))
    return sizes | {"Spark's Parquet, snappy": _bytes_of(folder / "parquet")}


def _bytes_of(folder: Path) -> int:
    hidden = ("_", ".")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.name.startswith(hidden))


BENCHMARK = Benchmark("file_sizes", question_of(__doc__), 200_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
