"""Precomputed rows in one file, with look-up by key.

A store is replaced in one step. Checksums reveal damage when the store is opened or read; a damaged row is an error.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.serving.precomputed.precomputation import precompute
    from mirrorspark.serving.precomputed.store import (
        INTEGERS,
        PrecomputedScores,
        Row,
        StoreIdentity,
        is_in_utf8,
        store_identity,
    )
    from mirrorspark.serving.precomputed.store_file import INTEGER, DamagedStoreError, StoreError
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "INTEGER",
    "INTEGERS",
    "DamagedStoreError",
    "PrecomputedScores",
    "Row",
    "StoreError",
    "StoreIdentity",
    "is_in_utf8",
    "precompute",
    "store_identity",
]
