"""New catalogues for trained models: another table of items and new indexes, without another training."""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.recommending.item_index.build import RefreshError
    from mirrorspark.recommending.item_index.refresh import RefreshedIndex, refresh_index
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "RefreshError",
    "RefreshedIndex",
    "refresh_index",
]
