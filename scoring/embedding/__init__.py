"""Embeddings of texts and images by the user's own encoder, with a cache of their vectors.

All runs share the cache, and a vector in the cache is not computed again for the same version of the encoder.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.scoring.embedding.embed import embed_images, embed_text
    from mirrorspark.scoring.embedding.embedder import Embedder
    from mirrorspark.scoring.embedding.model_encoders import (
        ENCODERS_FOLDER,
        ModelEncoders,
        encoder_versions,
        graph_encoders,
        save_features,
        taken_as_vectors,
    )
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "ENCODERS_FOLDER",
    "Embedder",
    "ModelEncoders",
    "embed_images",
    "embed_text",
    "encoder_versions",
    "graph_encoders",
    "save_features",
    "taken_as_vectors",
]
