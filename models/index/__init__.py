"""Indexes: exact and approximate search for the best candidates, as layers of an exported model.

Of candidates with equal scores, the exact index ranks the one with the lower id first.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.models.index import blended, ivf, row_sums, scann
    from mirrorspark.models.index.exact import ExactTopK
    from mirrorspark.models.index.ranked_lists import CANDIDATES, SCORES, UNFILLED, is_filled, is_ranked_list
    from mirrorspark.models.index.search import (
        CANDIDATE_EMBEDDINGS,
        GROUP,
        TILE_SCORES,
        Best,
        Index,
        Queries,
        best_columns,
        in_tiles,
        recall,
        without,
    )
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "CANDIDATES",
    "CANDIDATE_EMBEDDINGS",
    "GROUP",
    "SCORES",
    "TILE_SCORES",
    "UNFILLED",
    "Best",
    "ExactTopK",
    "Index",
    "Queries",
    "best_columns",
    "blended",
    "in_tiles",
    "is_filled",
    "is_ranked_list",
    "ivf",
    "recall",
    "row_sums",
    "scann",
    "without",
]
