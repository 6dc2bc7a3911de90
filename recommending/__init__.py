"""Recommend items: top-k lists, routers over several models, re-ranking, and indexes of items.

The lists of a table, of a single row and of the server are the same.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.recommending.ratings import rating_model
    from mirrorspark.recommending.recommendations import recommend
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "rating_model",
    "recommend",
]
