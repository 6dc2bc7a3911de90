"""The version of a model in production: registries, promotion by evidence, and rollback.

Only a version that passed its gates becomes champion, and every change is in the audit trail.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.lifecycle.promotion.promotions import (
        CHAMPION,
        Evidence,
        Promotion,
        PromotionConflictError,
        PromotionRefusedError,
        audit_trail,
        promote,
        rollback,
    )
    from mirrorspark.lifecycle.promotion.registry import FolderRegistry, MLflowRegistry, Registry, RegistryError
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "CHAMPION",
    "Evidence",
    "FolderRegistry",
    "MLflowRegistry",
    "Promotion",
    "PromotionConflictError",
    "PromotionRefusedError",
    "Registry",
    "RegistryError",
    "audit_trail",
    "promote",
    "rollback",
]
