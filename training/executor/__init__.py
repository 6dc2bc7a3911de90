"""The executor's part of a training: Spark's barrier task, the fork server, and the worker's process."""
