"""Classical recommenders: interactions of users, fitted weights and factors, and the best candidates of every row.

They are fitted on the driver or by Spark, and exported, scored and evaluated like any other model.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.programs.recommenders import fitting
    from mirrorspark.training.programs.recommenders.blending import blended, blended_rows, scaled
    from mirrorspark.training.programs.recommenders.fitting import load, scores_of
    from mirrorspark.training.programs.recommenders.interactions import Interactions
    from mirrorspark.training.programs.recommenders.lists import (
        RowScores,
        best,
        best_of_rows,
        best_of_scores,
        recommended,
        tiles,
    )
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "Interactions",
    "RowScores",
    "best",
    "best_of_rows",
    "best_of_scores",
    "blended",
    "blended_rows",
    "fitting",
    "load",
    "recommended",
    "scaled",
    "scores_of",
    "tiles",
]
