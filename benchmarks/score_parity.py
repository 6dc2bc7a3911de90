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
from mirrorspark.scoring.model.stored import PinnedModel
from mirrorspark.scoring.parity import THRESHOLD, ParityReport, parity_check

EPOCHS = 3
PREDICTOR_ROWS = 2_000
KEY = "flight_id"
PREDICTOR = "Predictor"
MARK = 1e-6

Way = Callable[[Path], pa.Table]
"""Takes a folder of Parquet files with raw rows; returns their keys and scores."""


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
    """Return the report on each way; runs in a process of its own, which may load TensorFlow."""
    from mirrorspark.data_pipelines.conversion import convert

    spark, config = usual_session(), flights_config(folder / "output", epochs=EPOCHS)
    table = flights_table(spark, config, rows)
    dataset = convert(table, config.spec, folder / "dataset", options=config.conversion)
    made = trained(dataset.path, config, spark)
    all_rows, some_rows = folder / "test", folder / "some"
    table.where("split = 'test'").write.parquet(str(all_rows))
    some_rows.mkdir()
    pq.write_table(pq.read_table(all_rows).slice(0, PREDICTOR_ROWS), some_rows / "rows.parquet")
    reference = predicted(made.predictions["test"])
    found = {
        name: parity_check(reference, way, some_rows if name == PREDICTOR else all_rows, keys=KEY, threshold=THRESHOLD)
        for name, way in ways_in(spark, made.model, folder).items()
    }
    spark.stop()
    return found


def predicted(predictions: pa.Table, key: str = KEY) -> Way:
    """Return the way that looks rows up among what the training framework has predicted."""

    def way(files: Path) -> pa.Table:
        return predictions.select([key, "score"]).join(
            pq.read_table(files, columns=[key]), keys=key, join_type="left semi"
        )

    return way


def ways_in(spark: SparkSession, model: PinnedModel, scratch: Path, key: str = KEY) -> dict[str, Way]:
    """Return every way in to a model with one score per row.

    Args:
        spark: Runs what needs it.
        model: The model.
        scratch: Folder for the files of the ways; each writes once.
        key: Column that identifies a row.
    """
    from mirrorspark.data_pipelines.tfrecords import write_tfrecords
    from mirrorspark.scoring.batch import score
    from mirrorspark.scoring.files import score_files
    from mirrorspark.scoring.input.tfrecords import score_tfrecords
    from mirrorspark.scoring.model.loading import LoadedModel
    from mirrorspark.scoring.model.mirrorspark_pyfunc import RawColumnsModel
    from mirrorspark.scoring.predictor import Predictor
    from mirrorspark.scoring.sql import register_sql
    from mirrorspark.scoring.udf import scorer_udf

    def table_of(files: Path) -> DataFrame:
        return spark.read.parquet(str(files))

    def of_frame(frame: DataFrame) -> pa.Table:
        return frame.select(key, "score").toArrow()

    def of_raw_columns(files: Path) -> pa.Table:
        rows = pq.read_table(files)
        scores = RawColumnsModel(model.path).predict(rows.to_pandas())["score"]
        return pa.table({key: rows[key], "score": scores})

    def of_encoded_columns(files: Path) -> pa.Table:
        rows = pq.read_table(files)
        return pa.table({key: rows[key], "score": LoadedModel(model.path).score(rows)["score"]})

    def of_files(files: Path) -> pa.Table:
        score_files(spark, files, model, scratch / "scores", keys=key)
        return pq.read_table(scratch / "scores")

    def of_sql(files: Path) -> pa.Table:
        register_sql(spark, "score_row", model)
        table_of(files).createOrReplaceTempView("to_score")
        return of_frame(spark.sql(f"SELECT {key}, score_row(struct(*)).score AS score FROM to_score"))  # noqa: S608

    def of_udf(files: Path) -> pa.Table:
        udf = scorer_udf(spark, model)
        rows = table_of(files).selectExpr("*", "struct(*) AS row")
        return of_frame(rows.select(key, udf("row").score.alias("score")))

    def of_records(layout: str, files: Path) -> pa.Table:
        write_tfrecords(table_of(files), scratch / layout, layout=layout)
        return of_frame(score_tfrecords(spark, scratch / layout, model, keys=key))

    def of_stream(files: Path) -> pa.Table:
        stream = score(spark.readStream.schema(table_of(files).schema).parquet(str(files)), model, keys=key)
        writer = stream.writeStream.option("checkpointLocation", str(scratch / "checkpoint")).trigger(availableNow=True)
        writer.start(str(scratch / "streamed")).awaitTermination()
        return of_frame(table_of(scratch / "streamed"))

    def of_predictor(files: Path) -> pa.Table:
        predictor, rows = Predictor(model), pq.read_table(files)
        scores = [predictor.predict(row)["score"] for row in rows.to_pylist()]
        return pa.table({key: rows[key], "score": pa.array(scores, pa.float32())})

    return {
        "exported model, raw columns (pyfunc)": of_raw_columns,
        "exported model, encoded columns": of_encoded_columns,
        "score": lambda files: of_frame(score(table_of(files), model, keys=key)),
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
