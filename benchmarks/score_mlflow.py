"""How many rows are scored per second on a cluster, next to ``mlflow.pyfunc.spark_udf`` of the same model?

On a standalone cluster, because in a local session ``spark_udf`` loads its model once for every task, which would
flatter us. Both read the same Parquet files through Spark and write their scores to Parquet.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave, speed_ratio
from benchmarks.report import Report, timing_table
from benchmarks.score_files import FILES, FILES_MARK, TABLE, TABLE_MARK
from benchmarks.score_model import export_model, feature_columns
from benchmarks.standalone_cluster import standalone_cluster
from benchmarks.tables import Kind, parquet_files
from benchmarks.train_work import in_new_process, usual_session

SPARK_UDF = "mlflow.pyfunc.spark_udf"


def run(options: Options) -> Report:
    """Write the table, export the model, and let every side score the table."""
    files = parquet_files(options.scratch, Kind.CLICKS, options.rows)
    model = in_new_process(exported_for_mlflow, options.scratch, files[0])
    with standalone_cluster(options.scratch / "cluster", workers=spark_work.SLOTS) as master:
        timings = in_new_process(_measured, options, master, files, model)
    marks = (
        Mark(f"{FILES} / {SPARK_UDF}", speed_ratio(timings, FILES, SPARK_UDF), FILES_MARK),
        Mark(f"{TABLE} / {SPARK_UDF}", speed_ratio(timings, TABLE, SPARK_UDF), TABLE_MARK),
    )
    title = f"{options.rows:,} rows of 39 features, {spark_work.SLOTS} executors of one core"
    return Report(BENCHMARK.name, BENCHMARK.question, (timing_table(title, options.rows, timings, SPARK_UDF),), marks)


def exported_for_mlflow(scratch: Path, rows: Path) -> Path:
    """Return the folder of an exported model, with MLflow's beside it, as a training logs it."""
    import mlflow

    from mirrorspark.scoring.model import mirrorspark_pyfunc

    model = export_model(scratch / "exported", rows)
    mlflow.pyfunc.save_model(
        path=of_mlflow(model),
        loader_module="mirrorspark_pyfunc",
        data_path=str(model),
        code_paths=[str(mirrorspark_pyfunc.__file__)],
        pip_requirements=[],
    )
    return model


def of_mlflow(model: Path) -> str:
    """Return the folder of MLflow's beside an exported model."""
    return str(model.with_name("mlflow"))


def _measured(options: Options, master: str, files: Sequence[Path], model: Path) -> dict[str, Timing]:
    import mlflow

    from mirrorspark.scoring.batch import score
    from mirrorspark.scoring.files import score_files

    session, target = usual_session(master), options.scratch / "scores"
    table = spark_work.table(session, files)
    names = feature_columns(table.columns)
    udf = mlflow.pyfunc.spark_udf(session, of_mlflow(model), result_type="float", env_manager="local")

    def write(scored: DataFrame) -> None:
        scored.write.parquet(str(target))

    ways: Mapping[str, Callable[[], object]] = {
        TABLE: lambda: write(score(table, model, keys="key")),
        FILES: lambda: score_files(session, files, model, target, keys="key"),
        SPARK_UDF: lambda: write(table.select("key", udf(F.struct(*names)).alias("score"))),
    }
    contenders = [Contender(name, work, spark_work.emptied(target)) for name, work in ways.items()]
    timings = interleave(contenders, options.rounds)
    session.stop()
    return timings


BENCHMARK = Benchmark("score_mlflow", question_of(__doc__), 400_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
