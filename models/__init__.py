"""Architectures by name, and the layers they share; knows nothing of Spark."""
