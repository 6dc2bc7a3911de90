"""From a Spark table to TFRecord shards and back into training batches."""
