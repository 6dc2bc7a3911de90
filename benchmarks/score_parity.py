"""How far do the scores of each way in lie from what the training framework itself predicts?

A model is trained on the flights, and the held-back split is scored by every way there is. The reference is what the
trained model predicts from the dataset's own records, before it is exported.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Mark
from benchmarks.report import Report, Table
from benchmarks.train_work import FLIGHTS, flights_config, flights_table, in_new_process, trained, usual_session
from scoring.parity import ParityReport, join_on_keys, parity

EPOCHS = 3
PREDICTOR_ROWS = 2_000
KEY = "flight_id"
PREDICTOR = "Predictor"
MARK = 1e-6

Scores = Callable[[], pa.Table]
"""Returns keys and scores."""


def run(options: Options) -> Report:
    """Train, score by all ways, and compare."""
    reports = in_new_process(_reports, options.rows, options.scratch)
    worst = max(report.max for report in reports.values())
    flips = sum(report.threshold_flips for report in reports.values())
    marks = (
        Mark("largest difference, in millionths, of all ways", worst * 1e6, MARK * 1e6, "at most"),
        Mark("decisions at 0.5 that change", float(flips), 0.0, "at most"),
    )
    return Report(BENCHMARK.name, BENCHMARK.question, (_table(reports),), marks)


def _table(reports: Mapping[str, ParityReport]) -> Table:
    columns = ("way", "count", "mean", "std", "P25", "P50", "P75", "P99", "max", "max relative", "flips at 0.5")
    rows = tuple(
        (
            way,
            f"{found.rows:,}",
            *(
                f"{value:.1e}"
                for value in (found.mean, found.std, found.p25, found.p50, found.p75, found.p99, found.max)
            ),
            f"{found.max_relative:.1e}",
            f"{found.threshold_flips}",
        )
        for way, found in reports.items()
    )
    note = f"The predictor takes the first {PREDICTOR_ROWS:,} rows, one by one. All others take all rows of the split."
    return Table("Absolute differences from the training framework's scores", columns, rows, note=note)


def _reports(rows: int, folder: Path) -> dict[str, ParityReport]:
    """Return what the comparison of each way found; in a process of its own, which may load TensorFlow."""
    from data_pipelines.convert import convert

    spark, config = usual_session(), flights_config(folder / "output", epochs=EPOCHS)
    table = flights_table(spark, config, rows)
    dataset = convert(table, config.spec, folder / "dataset", options=config.conversion)
    made = trained(dataset.path, config, spark)
    reference = made.predictions["test"].select([KEY, "score"])
    test = folder / "test"
    table.where("split = 'test'").write.parquet(str(test))
    found = {
        way: scores() for way, scores in _ways(spark, spark.read.parquet(str(test)), test, made.model, folder).items()
    }
    spark.stop()
    return {way: _report(way, reference, scores) for way, scores in found.items()}


def _report(way: str, reference: pa.Table, scores: pa.Table) -> ParityReport:
    if way == PREDICTOR:
        reference = reference.join(scores.select([KEY]), keys=KEY, join_type="left semi")
    expected, actual = join_on_keys(reference, scores, [KEY])
    return parity(expected["score"].to_numpy(), actual["score"].to_numpy())


def _ways(spark: SparkSession, table: DataFrame, files: Path, model: object, folder: Path) -> dict[str, Scores]:
    from data_pipelines.tfrecords import write_tfrecords
    from scoring.batch import score
    from scoring.files import score_files
    from scoring.loaded_model import LoadedModel
    from scoring.mirrorspark_pyfunc import RawColumnsModel
    from scoring.model_uri import PinnedModel
    from scoring.predictor import Predictor
    from scoring.sql import register_sql
    from scoring.tfrecord_input import score_tfrecords
    from scoring.udf import scorer_udf

    assert isinstance(model, PinnedModel)
    rows = pq.read_table(files)
    pinned = model

    def with_keys(scores: object) -> pa.Table:
        return pa.table({KEY: rows[KEY], "score": scores})

    def of_frame(frame: DataFrame) -> pa.Table:
        return frame.select(KEY, "score").toArrow()

    def of_files() -> pa.Table:
        score_files(spark, files, pinned, folder / "scores", keys=KEY)
        return pq.read_table(folder / "scores")

    def of_sql() -> pa.Table:
        register_sql(spark, "score_flight", pinned)
        table.createOrReplaceTempView("to_score")
        return of_frame(spark.sql(f"SELECT {KEY}, score_flight(struct(*)).score AS score FROM to_score"))  # noqa: S608

    def of_udf() -> pa.Table:
        udf = scorer_udf(spark, pinned)
        return of_frame(table.selectExpr("*", "struct(*) AS row").select(KEY, udf("row").score.alias("score")))

    def of_records(layout: str) -> pa.Table:
        write_tfrecords(table, folder / layout, layout=layout)
        return of_frame(score_tfrecords(spark, folder / layout, pinned, keys=KEY))

    def of_stream() -> pa.Table:
        stream = score(spark.readStream.schema(table.schema).parquet(str(files)), pinned, keys=KEY)
        writer = stream.writeStream.option("checkpointLocation", str(folder / "checkpoint")).trigger(availableNow=True)
        writer.start(str(folder / "streamed")).awaitTermination()
        return of_frame(spark.read.parquet(str(folder / "streamed")))

    def of_predictor() -> pa.Table:
        predictor, some = Predictor(pinned), rows.slice(0, PREDICTOR_ROWS)
        scores = [predictor.predict(row)["score"] for row in some.to_pylist()]
        return pa.table({KEY: some[KEY], "score": pa.array(scores, pa.float32())})

    return {
        "exported model, raw columns (pyfunc)": lambda: with_keys(
            RawColumnsModel(pinned.path).predict(rows.to_pandas())["score"]
        ),
        "exported model, encoded columns": lambda: with_keys(LoadedModel(pinned.path).score(rows)["score"]),
        "score": lambda: of_frame(score(table, pinned, keys=KEY)),
        "score_files": of_files,
        "scorer_udf": of_udf,
        "register_sql": of_sql,
        "score_tfrecords, rows": partial(of_records, "row"),
        "score_tfrecords, blocks": partial(of_records, "block"),
        "a stream": of_stream,
        PREDICTOR: of_predictor,
    }


BENCHMARK = Benchmark("score_parity", question_of(__doc__), FLIGHTS, run)

if __name__ == "__main__":
    main(BENCHMARK)
