"""Recommendation of items: top-k lists, routers over several models, re-ranking, and indexes of items.

A row gets the same list in a table, by itself and from the server.
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
