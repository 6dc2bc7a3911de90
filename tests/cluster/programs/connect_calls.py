"""Calls of the API as values: each runs on a session and returns what must be the same on every kind of session.

``python -m tests.cluster.programs.connect_calls URL INPUTS OUTPUT [NAME ...]`` runs them over Spark Connect, in a
process without a JVM.
"""

import datetime
import hashlib
import io
import json
import operator
import pickle
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import mirrorspark as ms
from mirrorspark.spark_session import SPARK_ERRORS, connect, session_of
from mirrorspark.storage.lakes import LakeTableError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

KEY = "id"


@dataclass(frozen=True)
class Inputs:
    """The files that all calls read.

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
        needs_retries: The first task ends its process, and only a cluster runs it again.
    """

    run: Call
    names: tuple[str, ...]
    is_small: bool = False
    needs_retries: bool = False


CONTRACTS: dict[str, Contract] = {}


def contract(*names: str, small: bool = False, needs_retries: bool = False) -> Callable[[Call], Call]:
    """Add a call to the table under its function's name."""

    def add(call: Call) -> Call:
        CONTRACTS[call.__name__] = Contract(call, names, small, needs_retries)
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


def in_twelve_digits(value: Any) -> str:
    """Return the ``repr`` of a value, in which a NaN equals a NaN, with floats cut to twelve digits.

    The last digits of a sum depend on the number of tasks.
    """
    return re.sub(r"\d+\.\d+(e-?\d+)?", lambda number: f"{float(number[0]):.12g}", repr(value))


def scored_rows(folder: Path) -> pa.Table:
    """Return the rows of scored files by their keys."""
    return in_order(pq.read_table(folder))


@contract("read_table")
def read_table(spark: "SparkSession", given: Inputs) -> Any:
    rows = ms.read_table(spark, given.rows)
    csv = ms.read_table(spark, given.folder / "rows.csv")
    back = ms.read_table(spark, rows.toPandas())
    return in_order(rows), in_order(csv), in_order(back)


@contract("read_table", "TableError")
def lake_table(spark: "SparkSession", given: Inputs) -> Any:
    folder, said = given.folder / "lake", []
    for path in (folder, folder / "part=1", folder / "part=*", folder / "part=1" / "0.parquet"):
        try:
            ms.read_table(spark, path)
        except LakeTableError as error:
            said.append(str(error))
    return said


@contract("default_spec", "default_split", "random_split", "time_split", "check_leakage")
def spec_and_splits(spark: "SparkSession", given: Inputs) -> Any:
    df = ms.read_table(spark, given.rows)
    spec = ms.default_spec(df.drop("when"), "late", keys=[KEY])
    splits = [ms.default_split(df, [KEY], label="late"), ms.random_split(df, [KEY], stratify="late")]
    splits.append(ms.time_split(df, "when", validation="2026-02-01", test="2026-03-01"))
    ms.check_leakage(df.selectExpr("*", "when + interval 1 day AS later"), feature_time="when", label_time="later")
    return spec, *(in_order(split.select(KEY, "split")) for split in splits)


@contract("convert", small=True)
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


def damaged_copy(folder: Path) -> Path:
    """Copy a folder of TFRecord files, and change a byte in the middle of one."""
    copy = Path(shutil.copytree(folder, folder.with_name("damaged")))
    file = min(copy.glob("*.tfrecord*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return copy


@contract("write_tfrecords", "write_tfrecords_from_parquet", "read_tfrecords", "check_tfrecords", "TFRecordSource")
def tfrecords(spark: "SparkSession", given: Inputs) -> Any:
    df = ms.read_table(spark, given.rows).drop("when")
    block = ms.write_tfrecords(df, given.output / "block", layout="block")
    ms.write_tfrecords(df, given.output / "row", partition_by=["region"], codec="gzip")
    direct = ms.write_tfrecords_from_parquet(spark, given.rows, given.output / "direct", columns=[KEY, "x"])
    own = spark.read.format("tfrecord").load(str(given.output / "row"))
    read = [ms.read_tfrecords(spark, given.output / name) for name in ("block", "row", "direct")]
    checked = [file.records for file in ms.check_tfrecords(spark, given.output / "block")]
    counted = session_of(spark).task_total(0, operator.add)
    intact = ms.read_tfrecords(spark, damaged_copy(given.output / "block"), on_damage="skip", damaged=counted)
    left = intact.count()
    columns = sorted(own.columns)
    return (
        block.rows,
        block.bytes,
        direct.rows,
        checked,
        left,
        counted.value,
        *map(in_order, [own.select(columns), *read]),
    )


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


@contract("score")
def plans_of_files(spark: "SparkSession", given: Inputs) -> Any:
    rows = pq.read_table(given.rows, columns=[KEY, "x", "y"])
    for number in range(40):
        rows = rows.append_column(f"of {number}", rows["x"])
    for part in ("a=1", "a=2"):
        (given.output / "wide" / part).mkdir(parents=True)
        pq.write_table(rows, given.output / "wide" / part / "0.parquet")
    wide = str(given.output / "wide")
    clear = [spark.read.parquet(wide), spark.read.parquet(f"{wide}/a=1/0.parquet", f"{wide}/a=2/0.parquet")]
    by_tasks = [ms.score(table.drop("of 0"), given.model(), keys=KEY, reader="tasks").count() for table in clear]
    refused = []
    for table in (clear[0].limit(9), clear[0].withColumn("x", clear[0]["x"] + 1), clear[0].where("a = 1")):
        try:
            ms.score(table, given.model(), keys=KEY, reader="tasks")
        except ms.ScoringError as error:
            refused.append(type(error).__name__)
    keyed = ms.score(clear[0], given.model(), keys=[KEY, "a"], reader="tasks")
    return by_tasks, refused, in_order(keyed, "a", KEY)


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


@contract("score_files", "Counters", needs_retries=True)
def killed_task(spark: "SparkSession", given: Inputs) -> Any:
    model, output, counters = given.model("killing"), given.output / "scores", ms.Counters(spark)
    written = ms.score_files(spark, given.rows, model, output, keys=KEY, trust=True)
    scored = ms.score(spark.read.parquet(given.rows), model, keys=KEY, trust=True, counters=counters)
    return written.rows, written.counters.rows, scored_rows(output), in_order(scored), counters.value.rows


@contract("score_by_group")
def groups(spark: "SparkSession", given: Inputs) -> Any:
    models = {"north": given.model("one"), "south": given.model("two")}
    call = partial(ms.score_by_group, models=models, group="region", keys=KEY, unknown="null")
    return in_order(call(spark.read.parquet(given.rows))), call(pq.read_table(given.rows), spark=spark)


@contract("score", small=True)
def stream(spark: "SparkSession", given: Inputs) -> Any:
    rows = spark.readStream.schema(spark.read.parquet(given.rows).schema).parquet(given.rows)
    scored = ms.score(rows, given.model(), keys=KEY)
    query = scored.writeStream.option("checkpointLocation", str(given.output / "checkpoint")).trigger(availableNow=True)
    query.start(str(given.output / "scores"), format="parquet").awaitTermination()
    return in_order(spark.read.parquet(str(given.output / "scores")))


@contract("score", "score_tfrecords", "scorer_udf")
def trained_model(spark: "SparkSession", given: Inputs) -> Any:
    model, keys = given.model("flights"), "flight_id"
    rows = ms.read_table(spark, given.folder / "flights.parquet")
    # The list of this row has a null, which no record holds.
    storable = rows.where("flight_id != 'f3'")
    ms.write_tfrecords(storable, given.output / "records")
    found = [ms.score(rows, model, keys=keys), ms.score(rows.where("unused >= 0"), model, keys=keys)]
    found.append(ms.score_tfrecords(spark, given.output / "records", model, keys=keys))
    udf = ms.scorer_udf(spark, model)
    found.append(rows.selectExpr("*", "struct(*) AS row").select(keys, udf("row").alias("s")).select(keys, "s.*"))
    return tuple(in_order(frame, keys) for frame in found)


@contract("recommend", "rerank", "rank_candidates", "package_router", "Counters")
def recommend(spark: "SparkSession", given: Inputs) -> Any:
    users = spark.createDataFrame(
        [(0, "u0", ["m1"], ["m2"]), (1, "nobody", [], None), (2, "u1", ["m3", "m4"], ["m5"])],
        "id bigint, user string, history array<string>, seen array<string>",
    )
    counters = ms.Counters(spark)
    lists = ms.recommend(users, given.model("movies"), keys=KEY, k=6, counters=counters)
    movies = [f"m{number}" for number in range(40)]
    items = pa.table({"movie": movies, "genre": [f"g{n % 5}" for n in range(40)], "x": [n % 3.0 for n in range(40)]})
    catalogue = spark.createDataFrame(items).selectExpr("*", "0.5D AS y")
    again = ms.rerank(lists, items, key="movie", k=3, category="genre", at_most=1)
    ranked = ms.rank_candidates(lists, items=catalogue, k=4, model=given.model(), keys=KEY, key="movie")
    funnel = ms.Cascade("towers", "movie", rank="prices", rerank={"category": "genre", "at_most": 1}, depth=12, k=4)
    models = {"towers": given.model("movies"), "prices": given.model()}
    router = ms.Router((ms.Route("funnel"),), cascades={"funnel": funnel})
    folder = ms.package_router(router, given.output / "router", models=models, items=catalogue)
    routed = ms.recommend(users, folder, keys=KEY, k=4)
    return *map(in_order, (lists, again, ranked, routed)), counters.value.rows


@contract("embed_text", "Embedder")
def embed_text(spark: "SparkSession", given: Inputs) -> Any:
    texts = [(0, "toy"), (1, "toy story  2"), (2, "toy story 2"), (3, ""), (4, None)]
    rows = spark.createDataFrame(texts, "id bigint, title string")
    cached = [ms.embed_text(rows, "title", given.model("encoder"), cache=given.output / "cache") for _ in range(2)]
    return tuple(map(in_order, cached))


@contract("embed_images")
def embed_images(spark: "SparkSession", given: Inputs) -> Any:
    photos = []
    for red in (0, 90, 90):
        buffer = io.BytesIO()
        Image.new("RGB", (4, 3), (red, 100, 0)).save(buffer, "PNG")
        photos.append(buffer.getvalue())
    rows = spark.createDataFrame(list(enumerate([*photos, None])), "id bigint, photo binary")
    return in_order(ms.embed_images(rows, "photo", given.model("images"), cache=given.output / "cache"))


@contract("recipe_table", "open_session")
def recipe_table(spark: "SparkSession", given: Inputs) -> Any:
    recipe = given.output / "recipe"
    recipe.mkdir()
    (recipe / "table.sql").write_text(
        "SELECT *, if(pmod(hash(id), 5) = 0, 'test', 'train') AS split FROM rows WHERE x > 0"
    )
    (recipe / "recipe.yaml").write_text(
        f"registered_model: rows\ntables: {{rows: '{given.folder / 'rows.csv'}'}}\n"
        "features: {x: {kind: numeric}, y: {kind: numeric}}\nlabel: late\nkeys: id\n"
    )
    config = ms.RunConfig.from_recipe(str(recipe), output=str(given.output))
    return in_order(ms.recipe_table(ms.open_session(None, 1), config))


def terms(models: int) -> "ms.Fleet":
    """Return a fleet of linear models."""
    names = [f"m{number}" for number in range(models)]
    coefficients = [(name, column, place + 0.5) for place, name in enumerate(names) for column in ("x", "y")]
    described = pa.table({"model": names, "threshold": [0.0] * models, "cut_points": [[-1.0, 0.0, 1.0]] * models})
    columns = zip(*coefficients, strict=True)
    return ms.fleet_from_coefficients(
        pa.table(dict(zip(("model", "column", "coefficient"), map(list, columns), strict=True))), described
    )


@contract("score_fleet", "select_scores", "rank_scores")
def score_fleet(spark: "SparkSession", given: Inputs) -> Any:
    fleet, output = terms(3), given.output
    ms.score_fleet(given.rows, fleet, output / "wide", keys=KEY, spark=spark)
    rows = spark.read.parquet(given.rows).where("id < 500")
    ms.score_fleet(rows, fleet, output / "packed", keys=KEY, layout="packed", outputs=("score", "binary", "Rank"))
    chosen = ms.select_scores(output / "packed", "m1_Rank <= 2 and m2_binary = 1", spark=spark)
    ranks = ms.rank_scores(output / "packed", spark=spark)
    return scored_rows(output / "wide"), scored_rows(output / "packed"), in_order(chosen), in_order(ranks)


@contract("run_fleet", "resume_fleet", "plan_fleet")
def run_fleet(spark: "SparkSession", given: Inputs) -> Any:
    fleet, output = terms(6), given.output / "scores"
    with tempfile.TemporaryDirectory() as disk:  # SQLite is not on every output
        own = {"keys": KEY, "models_per_microbatch": 2, "ledger": Path(disk, "ledger.db")}
        begun = ms.run_fleet(spark, fleet, given.rows, output, begin_only=True, **own)
        done = ms.resume_fleet(spark, output, microbatches=[0], at_once=1, ledger=own["ledger"])
        whole = ms.resume_fleet(spark, output, at_once=2, ledger=own["ledger"])
    planned = ms.plan_fleet(
        spark, fleet, given.rows, keys=KEY, cores=2, seconds=0.5, models_per_microbatch=2, scratch=given.output
    )
    digests = {name: digest for name, digest in contents(output).items() if name.endswith(".parquet")}
    return begun.microbatches, done.scored, whole.scored, whole.rows, planned.microbatches, digests


@contract("validate", "Gates", "Threshold")
def validate(spark: "SparkSession", given: Inputs) -> Any:
    gates = ms.Gates((ms.Threshold("auc", at_least=0.5, slices=("all",)),))
    rows = spark.read.parquet(given.rows)
    models = given.model("one"), given.model("two")
    found = ms.validate(*models, rows, ["region"], gates, label="late", keys=KEY, task="binary", single_rows=0)
    return found.verdict, in_twelve_digits(found.facts.slices)


@contract("watch", "live_metrics", "watch_stream")
def watch(spark: "SparkSession", given: Inputs) -> Any:
    rows = spark.read.parquet(given.rows)
    spec = ms.FeatureSpec.from_dict(
        {"features": {"x": {"kind": "numeric"}, "region": {"kind": "categorical"}}, "label": "late", "keys": KEY}
    )
    split = ms.random_split(rows.drop("when"), [KEY])
    snapshot = ms.Snapshot.of_dataset(ms.convert(split, spec, given.output / "dataset", progress=False))
    windows = ms.watch(rows, snapshot, time="when", window="30 days")
    outcomes = rows.select(KEY, "late")
    scores = rows.selectExpr(KEY, "when", "1 / (1 + exp(-x)) AS score")
    live = ms.live_metrics(scores, outcomes, keys=KEY, label="late", time="when", window="30 days")

    # Over Spark Connect the function runs where the server is.
    told, source = given.output / "told", given.output / "days"
    told.mkdir()

    def on_window(window: Any) -> None:
        (told / f"{window.start:%Y%m%d}").write_bytes(pickle.dumps(window))

    late = rows.limit(1).selectExpr("*").drop("when").selectExpr("*", "timestamp'2026-09-01' AS when")
    for number, part in enumerate((rows, late)):
        part.coalesce(1).write.parquet(str(source / f"part={number}"))
    stream = spark.readStream.schema(rows.schema).option("maxFilesPerTrigger", 1).parquet(str(source / "part=*"))
    checkpoint = str(given.output / "state")
    query = ms.watch_stream(
        stream, snapshot, on_window, time="when", window="30 days", checkpoint=checkpoint, late="1 day"
    )
    query.processAllAvailable()
    query.stop()
    streamed = [pickle.loads(file.read_bytes()) for file in sorted(told.iterdir())]  # noqa: S301 - our own
    return tuple(map(in_twelve_digits, (windows, live, streamed)))


@contract("precompute", "PrecomputedScores")
def precompute(spark: "SparkSession", given: Inputs) -> Any:
    scored = ms.score(spark.read.parquet(given.rows).where("id < 100"), given.model(), keys=KEY)
    told = ms.precompute(scored, given.output / "scores.db", key=KEY)
    with ms.PrecomputedScores.open(given.output / "scores.db") as scores:
        return told.rows, [scores.get(number) for number in range(100)]


@contract(
    *("Experiment", "assign_units", "log_exposures", "first_exposures", "switched_units", "exposure_faults"),
    *("attribute_actions", "variant_results", "exposed_scores", "arms_of_results"),
)
def experiments(spark: "SparkSession", given: Inputs) -> Any:
    ranker = ms.Experiment("ranker", {"control": 1, "deep": 1})
    rows = spark.read.parquet(given.rows).selectExpr("* EXCEPT (when)", "cast(when AS timestamp) AS when")
    assigned = ms.assign_units(rows, ranker, unit=KEY)
    log = ms.log_exposures(rows, ranker, unit=KEY, time="when")
    first = ms.first_exposures(log)
    acted = rows.where("late = 1").selectExpr(
        "concat('a', id) AS event_id", "cast(id AS string) AS unit", "x AS value", "when AS time"
    )
    of_units = ms.attribute_actions(first, acted, window=datetime.timedelta(days=1))
    results = ms.variant_results(of_units)
    scores = rows.selectExpr(KEY, "region", "float(x) AS one", "float(y) AS two")
    served = ms.exposed_scores(scores, ranker, unit=KEY, keys=["region"], scores={"control": "one", "deep": "two"})
    tables = [in_order(assigned), in_order(log, "event_id"), in_order(results, "variant"), in_order(served.exposed)]
    arms = ms.arms_of_results(results, ranker)
    return *tables, arms, ms.exposure_faults(log).collect()[0].asDict(), ms.switched_units(log).count()


@contract()
def progress_and_cancelling(spark: "SparkSession", given: Inputs) -> Any:
    def slowly(batches: Any) -> Any:
        for batch in batches:
            time.sleep(0.5 if batch.column(0)[0].as_py() < 4 else 60)
            yield batch

    def run(begin: int, end: int, ended: list[str]) -> None:
        try:
            with session.job_group("slow", "a slow query"):
                spark.range(begin, end, 1, 4).mapInArrow(slowly, "id long").collect()
        except SPARK_ERRORS:
            ended.append("cancelled")
        else:
            ended.append("done")

    session, ended, totals = session_of(spark), list[str](), set[int]()
    for begin in (0, 4):
        thread = threading.Thread(target=run, args=(begin, begin + 4, ended))
        thread.start()
        while thread.is_alive():
            totals |= {stage.total for stage in session.active_stages().values()}
            if begin and totals:
                session.cancel_jobs("slow")
            thread.join(0.2)
    return ended, totals


@contract("fit", "FitResult", small=True)
def fit(spark: "SparkSession", given: Inputs) -> Any:
    rows = ms.read_table(spark, given.rows).drop("when")
    result = ms.fit(rows, "late", workers=2, epochs=1, baseline="none", output=given.output, spark=spark)
    return result.metrics, in_order(result.score(rows)), result.score(rows.toPandas(), keys=KEY)


@contract("fit")
def fit_in_local_mode(spark: "SparkSession", given: Inputs) -> Any:
    rows = ms.read_table(spark, given.rows).drop("when")
    result = ms.fit(rows, "late", local_mode=True, epochs=1, baseline="none", output=given.output, spark=spark)
    return result.metrics, in_order(result.score(rows).drop("model_version"))  # which may be that of the call before


@contract("train", "load_dataset", "TrainingConfig", "Trained")
def train(spark: "SparkSession", given: Inputs) -> Any:
    df = ms.default_split(ms.read_table(spark, given.rows).drop("when"), [KEY], label="late")
    spec = ms.default_spec(df.drop("split"), "late", keys=[KEY])
    dataset = ms.convert(df, spec, given.output / "dataset", options=ms.ConversionOptions(shards=2))
    settings = ms.TrainingConfig(name="late", epochs=2, workers="1:2", baseline="none", output=str(given.output))
    trained = ms.train(ms.load_dataset(dataset.path), settings, spark)
    return {split: dict(values) for split, values in trained.verdict.metrics.items()}


@contract("TrainingEstimator", "TrainedModel")
def estimator(spark: "SparkSession", given: Inputs) -> Any:
    rows = ms.read_table(spark, given.rows).drop("when")
    settings = {"workers": 1, "local_mode": True, "epochs": 1, "shards": 1, "baseline": "none"}
    fitted = ms.TrainingEstimator(label="late", output=str(given.output), **settings).fit(rows)
    fitted.save(str(given.output / "stage"))
    loaded = ms.TrainedModel.load(str(given.output / "stage"))
    return tuple(in_order(model.transform(rows).select(KEY, "score")) for model in (fitted, loaded))


@contract("refresh_index")
def refresh_index(spark: "SparkSession", given: Inputs) -> Any:
    items = spark.read.parquet(str(given.folder / "items.parquet")).where("sku != 'm1'")
    found = ms.refresh_index(given.model("shelves"), items, given.output / "new", least_recall=0.1)
    users = spark.createDataFrame(
        [("u0", ["m2"], ["m2", "m3"]), ("nobody", [], None)], "user string, history array<string>, seen array<string>"
    )
    lists = ms.recommend(users, found.folder, keys="user", k=4).drop("model_version")  # no two builds have one digest
    return sorted(found.recalls), in_order(lists, "user")


@contract("run_train_fn")
def run_train_fn(spark: "SparkSession", given: Inputs) -> Any:
    def add_ranks(factor: int) -> list[str]:
        from pyspark import BarrierTaskContext

        context = BarrierTaskContext.get()
        return context.allGather(str(factor * context.partitionId()))

    call = partial(ms.run_train_fn, add_ranks, kwargs={"factor": 3}, output=given.output, spark=spark)
    spread = call(2, name="spread", use_custom_strategy=True)
    return spread.result, len(spread.attempts)


@contract("train_fleet", "TrainedFleet")
def train_fleet(spark: "SparkSession", given: Inputs) -> Any:
    rows = ms.read_table(spark, given.rows).selectExpr("id", "x", "y", "late", "1 - late AS early")
    trained = ms.train_fleet(
        rows, ["late", "early"], keys=KEY, epochs=2, workers=2, output=given.output / "fleet", spark=spark
    )
    return trained.report


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
    connect.MOST_BYTES = 20_000  # a table is sent in several pieces
    if not session_of(spark).is_local:
        spark.conf.set(connect.SHARED_FOLDER, f"{output}/shared")
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
