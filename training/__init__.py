"""The main job: supervise workers on Spark, export, register, score and report."""
