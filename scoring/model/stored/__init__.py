"""Stored models: look-up of URIs, download, pinned versions and consent to code.

A call pins its URI to one version and digest. A model with Python code is loaded only with the caller's consent.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.scoring.model.stored.consent import (
        UntrustedModelError,
        check_consent,
        check_described,
        remember_consent,
    )
    from mirrorspark.scoring.model.stored.digest import (
        archive_digest,
        cached_digest,
        folder_digest,
        is_outside_digest,
        model_files,
    )
    from mirrorspark.scoring.model.stored.pinned import (
        ModelNotFoundError,
        PinnedModel,
        find_model_directory,
        is_in_store,
        opened_model,
        pinned_folder,
    )
    from mirrorspark.scoring.model.stored.uri import ModelStoreError, pinned_model, resolve
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "ModelNotFoundError",
    "ModelStoreError",
    "PinnedModel",
    "UntrustedModelError",
    "archive_digest",
    "cached_digest",
    "check_consent",
    "check_described",
    "find_model_directory",
    "folder_digest",
    "is_in_store",
    "is_outside_digest",
    "model_files",
    "opened_model",
    "pinned_folder",
    "pinned_model",
    "remember_consent",
    "resolve",
]
