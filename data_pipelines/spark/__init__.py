"""The data pipelines' side of Spark: the data source ``tfrecord``, schemas, tasks and their errors."""
