"""Searches for the best settings on the cluster, with Optuna: ``mirrorspark sweep``."""

from mirrorspark.training.sweep.command import main

__all__ = ["main"]
