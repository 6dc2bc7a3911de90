"""Hyperparameter search on the cluster, with Optuna: ``mirrorspark sweep``."""

from mirrorspark.training.sweep.command import main

__all__ = ["main"]
