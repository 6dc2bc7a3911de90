"""A Spark table in, scores out."""
