"""Routers: several models in one folder, with rules on columns that choose the model, blend or cascade for each row.

A router is loaded, pinned and scored like a single model.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.recommending.routing.folder import ROUTER, is_router, read_router
    from mirrorspark.recommending.routing.package import package_router
    from mirrorspark.recommending.routing.router import Cascade, Route, Router
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "ROUTER",
    "Cascade",
    "Route",
    "Router",
    "is_router",
    "package_router",
    "read_router",
]
