"""Training of fleets: models of many targets over one table, stacked into one Keras model and trained together.

Each model learns only from rows with a label of its target, and stops by its own validation loss.
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
