"""Benchmarks: one question of speed, size, memory or quality per file, with its table under ``docs/benchmarks/``."""
