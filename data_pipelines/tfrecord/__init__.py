"""The TFRecord codec: bytes <-> records <-> Arrow columns, independent of Spark and of storage."""
