"""Hyperparameter search on the cluster, with Optuna: ``mirrorspark sweep``.

A stopped sweep continues from its study. Each trial is a run that can be inspected.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.sweep.command import main
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "main",
]
