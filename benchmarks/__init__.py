"""One question of speed, size or memory per file: both sides in one run, a table under ``docs/benchmarks/``."""
