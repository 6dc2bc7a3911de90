"""Makes the data source ``tfrecord`` known: Spark looks for ``DefaultSource`` in modules named ``pyspark_*``."""

from data_pipelines.tfrecord_source import TFRecordSource as DefaultSource

__all__ = ["DefaultSource"]
