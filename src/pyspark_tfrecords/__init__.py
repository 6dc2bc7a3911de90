"""Makes the data source ``tfrecords`` known, as ``pyspark_tfrecord`` the other: Spark takes one of a module."""

from mirrorspark.data_pipelines.spark.tfrecord_source import TFRecordsSource as DefaultSource

__all__ = ["DefaultSource"]
