"""Training of fleets: many targets over one table, learnt in one pass as stacked models.

Each target learns from its own rows only, as if it were trained alone.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.fleet.training.train import train_fleet
    from mirrorspark.fleet.training.trained import TrainedFleet
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "TrainedFleet",
    "train_fleet",
]
