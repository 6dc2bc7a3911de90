"""The TFRecord codec: bytes <-> records <-> Arrow columns; knows nothing of Spark or of where files lie."""
