"""How fast do DataFrames become TFRecords, and TFRecords DataFrames, next to the JVM connector on the same machine?

The connector stops at Spark 3.5. It runs there, in a process with a Python environment of its own, and both Sparks take
turns on the same files. Its packages come from PyPI and Maven Central; the folder of ``--cache`` keeps them, and a jar
that lies there already is used as it is.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave, speed_ratio
from benchmarks.other_environment import OtherProcess, UnavailableError, environment_with, last_error, started
from benchmarks.report import Report, timing_table
from benchmarks.spark_work import drain, emptied
from benchmarks.tables import Kind, parquet_files
from mirrorspark.spark_session.start import java_major_version

SPARK_REQUIREMENT = "pyspark==3.5.*"
ARTIFACT = "com.linkedin.sparktfrecord:spark-tfrecord_2.12:0.7.0"
JAR = "spark-tfrecord_2.12-0.7.0.jar"
# Spark 3.5 is tested with Java up to 17 and runs on 21; newer ones have taken away what it calls.
NEWEST_JAVA = 21

CONNECTOR_WRITES = "JVM connector: DataFrame to row files"
CONNECTOR_READS = "JVM connector: row files to DataFrame"
ROWS = "write_tfrecords, row layout"
BLOCKS = "write_tfrecords, block layout"
FROM_PARQUET = "write_tfrecords_from_parquet, block layout"
READ_ROWS = "read_tfrecords, row layout"
READ_BLOCKS = "read_tfrecords, block layout"
WRITE_MARK, FROM_PARQUET_MARK, READ_MARK = 2.0, 5.0, 5.0

_PEER_PROCESS = Path(__file__).with_name("peer_process.py")


def run(options: Options) -> Report:
    """Measure both directions, or say why the connector cannot be had."""
    try:
        home = connector_home(options)
        with _started(home, options.scratch / "connector.log") as connector:
            return _measured(options, connector)
    except UnavailableError as error:
        return Report(BENCHMARK.name, BENCHMARK.question, (), skipped=str(error))


def _measured(options: Options, connector: OtherProcess) -> Report:
    versions = connector.ask(work="versions")
    spark = spark_work.session()
    files = parquet_files(options.scratch, Kind.NUMBERS, options.rows)
    writes, reads = _writes(options, connector, files), _reads(options, connector, files)
    spark.stop()
    marks = (
        Mark(f"{ROWS} / {CONNECTOR_WRITES}", speed_ratio(writes, ROWS, CONNECTOR_WRITES), WRITE_MARK),
        Mark(
            f"{FROM_PARQUET} / {CONNECTOR_WRITES}",
            speed_ratio(writes, FROM_PARQUET, CONNECTOR_WRITES),
            FROM_PARQUET_MARK,
        ),
        Mark(f"{READ_ROWS} / {CONNECTOR_READS}", speed_ratio(reads, READ_ROWS, CONNECTOR_READS), READ_MARK),
        Mark(f"{READ_BLOCKS} / {CONNECTOR_READS}", speed_ratio(reads, READ_BLOCKS, CONNECTOR_READS), READ_MARK),
    )
    where = f"{options.rows:,} rows, 42 columns, {spark_work.SLOTS} cores"
    tables = (
        timing_table(f"Writing: {where}", options.rows, writes, CONNECTOR_WRITES),
        timing_table(f"Reading: {where}", options.rows, reads, CONNECTOR_READS),
    )
    origin = _origin(options.cache)
    beside = {"connector": f"{origin}, on Spark {versions['spark']}, Java {versions['java']}"}
    return Report(BENCHMARK.name, BENCHMARK.question, tables, marks, conditions=beside)


def _writes(options: Options, connector: OtherProcess, files: list[Path]) -> dict[str, Timing]:
    from mirrorspark.data_pipelines.tfrecords import write_tfrecords, write_tfrecords_from_parquet

    spark = spark_work.session()
    df = spark_work.table(spark, files)
    names, target = [str(file) for file in files], str(options.scratch / "written")

    def theirs() -> float:
        return float(connector.ask(work="write", source=names, target=target)["seconds"])

    ways: dict[str, Callable[[], object]] = {
        CONNECTOR_WRITES: theirs,
        ROWS: partial(write_tfrecords, df, target, layout="row"),
        BLOCKS: partial(write_tfrecords, df, target, layout="block"),
        FROM_PARQUET: partial(write_tfrecords_from_parquet, spark, names, target, layout="block"),
    }
    return interleave([Contender(name, work, emptied(Path(target))) for name, work in ways.items()], options.rounds)


def _reads(options: Options, connector: OtherProcess, files: list[Path]) -> dict[str, Timing]:
    from mirrorspark.data_pipelines.tfrecords import read_tfrecords, write_tfrecords

    spark = spark_work.session()
    df = spark_work.table(spark, files)
    folders = {layout: str(options.scratch / layout) for layout in ("row", "block")}
    for layout, folder in folders.items():
        write_tfrecords(df, folder, mode="overwrite", layout=layout)
    frames = {layout: read_tfrecords(spark, folder, schema=df.schema) for layout, folder in folders.items()}
    columns = ", ".join(f"{field.name} {field.dataType.simpleString()}" for field in df.schema)

    def theirs() -> float:
        return float(connector.ask(work="read", source=folders["row"], columns=columns)["seconds"])

    contenders = [
        Contender(CONNECTOR_READS, theirs),
        Contender(READ_ROWS, partial(drain, frames["row"])),
        Contender(READ_BLOCKS, partial(drain, frames["block"])),
    ]
    return interleave(contenders, options.rounds)


def connector_home(options: Options) -> Path:
    """Return a folder with an environment that holds Spark 3.5, made unless the cache has it.

    Raises:
        UnavailableError: It cannot be installed, or no Java here suits it.
    """
    java = java_major_version()
    if java is None or java > NEWEST_JAVA:
        raise UnavailableError(
            f"Spark 3.5 needs a Java from 8 to {NEWEST_JAVA}, and JAVA_HOME or PATH lead to "
            f"{'none' if java is None else java}; set JAVA_HOME to a Java 17."
        )
    home = (options.cache or options.scratch).absolute() / "spark-3.5"
    environment_with([SPARK_REQUIREMENT], home)
    return home


@contextmanager
def _started(home: Path, log: Path) -> Iterator[OtherProcess]:
    """Yield the process, and end it."""
    jar = home.parent / JAR
    source = (
        ["--jars", str(jar)] if jar.is_file() else ["--packages", ARTIFACT, "--conf", f"spark.jars.ivy={home / 'ivy'}"]
    )
    environment = {"PYSPARK_SUBMIT_ARGS": " ".join(["--driver-memory", "2g", *source, "pyspark-shell"])}
    command = [_python_of(home), str(_PEER_PROCESS), "jvm_connector", str(spark_work.SLOTS)]
    with started(command, environment, log, reason_in) as connector:
        yield connector


def _origin(cache: Path | None) -> str:
    """Return the origin of the connector; a jar from the cache is used unchecked, so it is named by its digest."""
    jar = cache / JAR if cache else None
    if jar is None or not jar.is_file():
        return f"{ARTIFACT} from Maven"
    with jar.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"the jar that lay in the cache, whatever it is (SHA-256 {digest[:12]}...)"


def reason_in(log: str) -> str:
    """Return one sentence on why the process ended, from what it wrote."""
    if "unresolved dependency" in log or "UNRESOLVED DEPENDENCIES" in log:
        return (
            f"Maven has no {ARTIFACT} that can be reached from here; put {JAR} into the folder of --cache to measure "
            f"with it."
        )
    return f"Spark 3.5 with the connector: {last_error(log)}"


def _python_of(home: Path) -> str:
    return str(home / "bin" / "python")


BENCHMARK = Benchmark("jvm_connector", question_of(__doc__), 500_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
