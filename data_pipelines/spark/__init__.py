"""Spark code of the data pipelines: the data source ``tfrecord``, its options, tasks and bars of progress.

Task bodies are values that pickle, and an error names the file or row that caused it.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.data_pipelines.spark import task_bar, tfrecord_options, tfrecord_tasks
    from mirrorspark.data_pipelines.spark.collection import collected
    from mirrorspark.data_pipelines.spark.job_tasks import CountedWork, SparkTasks, Tasks
    from mirrorspark.data_pipelines.spark.lake_tables import read_lake_table, refuse_lake_tables
    from mirrorspark.data_pipelines.spark.schema import (
        arrow_schema_of,
        sent_schema_of,
        spark_schema_of,
        with_notes,
        with_plain_names,
    )
    from mirrorspark.data_pipelines.spark.tasks import (
        BatchFunction,
        NamedTask,
        Shares,
        WriteError,
        WriteResult,
        counted,
        map_batches,
        numbered_partitions,
        numbers_of,
        outcome,
        portable,
        progress_bar,
        write_files,
    )
    from mirrorspark.data_pipelines.spark.tfrecord_source import TFRecordSource, TFRecordsSource
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "BatchFunction",
    "CountedWork",
    "NamedTask",
    "Shares",
    "SparkTasks",
    "TFRecordSource",
    "TFRecordsSource",
    "Tasks",
    "WriteError",
    "WriteResult",
    "arrow_schema_of",
    "collected",
    "counted",
    "map_batches",
    "numbered_partitions",
    "numbers_of",
    "outcome",
    "portable",
    "progress_bar",
    "read_lake_table",
    "refuse_lake_tables",
    "sent_schema_of",
    "spark_schema_of",
    "task_bar",
    "tfrecord_options",
    "tfrecord_tasks",
    "with_notes",
    "with_plain_names",
    "write_files",
]
