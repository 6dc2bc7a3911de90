"""Calls of the API as values: each runs on a session and returns what must be the same on every kind of session.

``python -m tests.cluster.programs.connect_calls URL INPUTS OUTPUT [NAME ...]`` runs them over Spark Connect, in a
process without a JVM.
"""

import hashlib
import json
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

import mirrorspark as ms
from mirrorspark.spark_session import session_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

KEY = "id"
SPEC = {"label": "late"}


@dataclass(frozen=True)
class Inputs:
    """What all calls read.

    Attributes:
        folder: Has ``rows``, a folder of two Parquet files, ``rows.csv``, and the models ``one`` and ``two``.
        output: Folder of a call for its files.
    """

    folder: Path
    output: Path

    @property
    def rows(self) -> str:
        """The folder of rows."""
        return str(self.folder / "rows")

    def model(self, name: str = "one") -> Path:
        """Return the folder of a model."""
        return self.folder / name


Call = Callable[["SparkSession", Inputs], Any]


@dataclass(frozen=True)
class Contract:
    """A call with the public names that it uses.

    Attributes:
        run: The call.
        names: The names.
        is_small: It is among the usual tests.
    """

    run: Call
    names: tuple[str, ...]
    is_small: bool = False


CONTRACTS: dict[str, Contract] = {}


def contract(*names: str, small: bool = False) -> Callable[[Call], Call]:
    """Add a call to the table under its function's name."""

    def add(call: Call) -> Call:
        CONTRACTS[call.__name__] = Contract(call, names, small)
        return call

    return add


def in_order(frame: "DataFrame | pa.Table", *keys: str) -> pa.Table:
    """Return the rows of a table by their keys."""
    table = frame if isinstance(frame, pa.Table) else frame.toArrow()
    return table.sort_by([(key, "ascending") for key in keys or (KEY,)]).replace_schema_metadata().combine_chunks()


def contents(folder: Path) -> Mapping[str, str]:
    """Return a digest of each file; names of parts count without what is random in them."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in (".html", ".crc") and path.name != "_SUCCESS":
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def scored_rows(folder: Path) -> pa.Table:
    """Return the rows of scored files by their keys."""
    return in_order(pq.read_table(folder))


@contract("read_table", small=True)
def read_table(spark: "SparkSession", given: Inputs) -> Any:
    rows = ms.read_table(spark, given.rows)
    csv = ms.read_table(spark, given.folder / "rows.csv")
    back = ms.read_table(spark, rows.toPandas())
    return in_order(rows), in_order(csv), in_order(back)


@contract("default_spec", "default_split", "random_split", "time_split", "check_leakage", small=True)
def spec_and_splits(spark: "SparkSession", given: Inputs) -> Any:
    df = ms.read_table(spark, given.rows)
    spec = ms.default_spec(df.drop("when"), "late", keys=[KEY])
    splits = [ms.default_split(df, [KEY], label="late"), ms.random_split(df, [KEY], stratify="late")]
    splits.append(ms.time_split(df, "when", validation="2026-02-01", test="2026-03-01"))
    ms.check_leakage(df.selectExpr("*", "when + interval 1 day AS later"), feature_time="when", label_time="later")
    return spec, *(in_order(split.select(KEY, "split")) for split in splits)


@contract("convert", "read_profile", "load_dataset", small=True)
def convert(spark: "SparkSession", given: Inputs) -> Any:
    df = ms.default_split(ms.read_table(spark, given.rows).drop("when"), [KEY], label="late")
    spec = ms.default_spec(df.drop("split"), "late", keys=[KEY])
    dataset = ms.convert(df, spec, given.output / "dataset", options=ms.ConversionOptions(shards=2))
    found = dict(contents(Path(dataset.path)))
    manifest = json.loads((Path(dataset.path) / "manifest.json").read_text())
    return (
        {name: digest for name, digest in found.items() if name.endswith(".tfrecord")},
        sorted(found),
        sorted(manifest),
    )


@contract(
    "write_tfrecords", "write_tfrecords_from_parquet", "read_tfrecords", "check_tfrecords", "TFRecordSource", small=True
)
def tfrecords(spark: "SparkSession", given: Inputs) -> Any:
    df = ms.read_table(spark, given.rows).drop("when")
    block = ms.write_tfrecords(df, given.output / "block", layout="block")
    ms.write_tfrecords(df, given.output / "row", partition_by=["region"], codec="gzip")
    direct = ms.write_tfrecords_from_parquet(spark, given.rows, given.output / "direct", columns=[KEY, "x"])
    spark.dataSource.register(ms.TFRecordSource)
    own = spark.read.format("tfrecord").load(str(given.output / "row"))
    read = [ms.read_tfrecords(spark, given.output / name) for name in ("block", "row", "direct")]
    checked = [file.records for file in ms.check_tfrecords(spark, given.output / "block")]
    columns = sorted(own.columns)
    return block.rows, block.bytes, direct.rows, checked, *map(in_order, [own.select(columns), *read])


@contract("ingest_csv")
def ingest_csv(spark: "SparkSession", given: Inputs) -> Any:
    schema = "id bigint, region string, x double, y double, late bigint"
    found = ms.ingest_csv(spark, str(given.folder / "rows.csv"), str(given.output / "csv"), schema=schema, sort_by="x")
    return found.rows, found.bytes, found.types, pq.read_table(given.output / "csv")


@contract("score", "Counters", small=True)
def score(spark: "SparkSession", given: Inputs) -> Any:
    files, counters = spark.read.parquet(given.rows), ms.Counters(spark)
    by_tasks = ms.score(files, given.model(), keys=KEY, counters=counters, reader="tasks")
    by_spark = ms.score(files.where("id >= 0"), given.model(), keys=KEY, counters=counters)
    found = [in_order(by_tasks), in_order(by_spark)]
    total = counters.value
    return *found, total.rows, total.calls, total.nans, ms.score(files.toPandas(), given.model(), keys=KEY)


@contract("scorer_udf", "register_sql", small=True)
def sql(spark: "SparkSession", given: Inputs) -> Any:
    files, counters = spark.read.parquet(given.rows), ms.Counters(spark)
    udf = ms.scorer_udf(spark, given.model(), counters=counters)
    by_udf = files.selectExpr("*", "struct(*) AS row").withColumn("s", udf("row")).select(KEY, "s.score")
    ms.register_sql(spark, "score_row", given.model())
    files.createOrReplaceTempView("rows_to_score")
    by_name = spark.sql(
        "SELECT id, s.* FROM (SELECT id, score_row(struct(*)) AS s FROM rows_to_score) WHERE s.score > 0"
    )
    return in_order(by_udf), in_order(by_name), counters.value.rows


@contract("score_files", small=True)
def score_files(spark: "SparkSession", given: Inputs) -> Any:
    plain = ms.score_files(spark, given.rows, given.model(), given.output / "plain", keys=KEY, task_seconds=1e-6)
    csv = ms.score_files(spark, given.folder / "rows.csv", given.model(), given.output / "csv", keys=KEY)
    empty = spark.read.parquet(given.rows).where("id < 0")
    empty.write.parquet(str(given.output / "none"))
    ms.score_files(
        spark, given.output / "none", given.model(), given.output / "empty", keys=KEY, input_format="parquet"
    )
    written = [scored_rows(given.output / name) for name in ("plain", "csv", "empty")]
    return plain.rows, plain.counters.rows, csv.rows, *written


@contract("score_by_group")
def groups(spark: "SparkSession", given: Inputs) -> Any:
    models = {"north": given.model("one"), "south": given.model("two")}
    call = partial(ms.score_by_group, models=models, group="region", keys=KEY, unknown="null")
    return in_order(call(spark.read.parquet(given.rows))), call(pq.read_table(given.rows), spark=spark)


@contract("score")
def stream(spark: "SparkSession", given: Inputs) -> Any:
    rows = spark.readStream.schema(spark.read.parquet(given.rows).schema).parquet(given.rows)
    scored = ms.score(rows, given.model(), keys=KEY)
    query = scored.writeStream.option("checkpointLocation", str(given.output / "checkpoint")).trigger(availableNow=True)
    query.start(str(given.output / "scores"), format="parquet").awaitTermination()
    return in_order(spark.read.parquet(str(given.output / "scores")))


def outcome(call: Call, spark: "SparkSession", given: Inputs) -> tuple[bool, Any]:
    """Return the result of a call, or the text of its error."""
    begin = time.monotonic()
    try:
        found = True, call(spark, given)
    except Exception:
        found = False, traceback.format_exc()
    print(f"{call.__name__}: {time.monotonic() - begin:.1f} s", flush=True)
    return found


def main(url: str, inputs: str, output: str, *names: str) -> None:
    """Run calls over Spark Connect, and write their outcomes."""
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.remote(url).getOrCreate()
    assert session_of(spark).kind == "Spark Connect"
    outcomes = {}
    for name in names or CONTRACTS:
        folder = Path(output, name)
        folder.mkdir(parents=True)
        outcomes[name] = outcome(CONTRACTS[name].run, spark, Inputs(Path(inputs), folder))
    Path(output, "outcomes.pickle").write_bytes(pickle.dumps(outcomes))
    spark.stop()


if __name__ == "__main__":
    # The functions pickle by the name of this module.
    from tests.cluster.programs import connect_calls

    connect_calls.main(*sys.argv[1:])
