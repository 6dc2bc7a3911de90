"""Makes the data source ``tfrecord`` known: Spark looks for ``DefaultSource`` in modules named ``pyspark_*``."""

from mirrorspark.data_pipelines.spark.tfrecord_source import TFRecordSource as DefaultSource

__all__ = ["DefaultSource"]
