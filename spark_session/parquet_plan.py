"""The Parquet files behind a DataFrame of a classic session, by the optimized plan in the JVM."""

from typing import Any

from pyspark.sql import DataFrame

from mirrorspark.spark_session.session import NotPlainParquetError, ParquetPlan

_PARQUET = "org.apache.spark.sql.execution.datasources.parquet.ParquetFileFormat"


def parquet_plan(table: DataFrame) -> ParquetPlan:
    """Return the Parquet files that ``table`` reads.

    Spark has no public API for this question: ``inputFiles`` also names files below a filter.

    Raises:
        NotPlainParquetError: It does not only select columns of plain Parquet files.
    """
    location = _relation(table).location()
    roots = location.rootPaths()
    return ParquetPlan(
        tuple(location.inputFiles()), tuple(roots.apply(place).toString() for place in range(roots.size()))
    )


def _relation(table: DataFrame) -> Any:
    """Return Spark's relation of files if the plan of ``table`` only selects columns of it."""
    if table.isStreaming:
        raise NotPlainParquetError("it is a stream")
    plan = table._jdf.queryExecution().optimizedPlan()
    while _kind(plan) == "Project":
        if not plan.outputSet().subsetOf(plan.child().outputSet()):
            raise NotPlainParquetError("it has columns that Spark computes")
        plan = plan.child()
    if _kind(plan) != "LogicalRelation" or _kind(plan.relation()) != "HadoopFsRelation":
        raise NotPlainParquetError(f"its rows come from a step of Spark, {plan.nodeName()}")
    relation = plan.relation()
    # Formats built on Parquet and tables with a log have other classes.
    if relation.fileFormat().getClass().getName() != _PARQUET or _kind(relation.location()) != "InMemoryFileIndex":
        raise NotPlainParquetError("its files are not plain Parquet files")
    return relation


def _kind(plan: Any) -> str:
    return str(plan.getClass().getSimpleName())
