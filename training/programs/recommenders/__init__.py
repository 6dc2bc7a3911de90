"""Classical recommenders: interactions of users, fitted weights and factors, and the best candidates of every row.

They are fitted on the driver or by Spark, and exported, scored and evaluated like any other model.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.programs.recommenders import fitting
    from mirrorspark.training.programs.recommenders.fitting import load, scores_of
    from mirrorspark.training.programs.recommenders.interactions import Interactions
    from mirrorspark.training.programs.recommenders.lists import best, recommended
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "Interactions",
    "best",
    "fitting",
    "load",
    "recommended",
    "scores_of",
]
