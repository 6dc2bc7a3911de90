"""Data pipelines: from Spark tables to TFRecord shards and on to training batches."""
