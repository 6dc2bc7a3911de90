"""The names of an exported model's signatures, indexes and inputs.

This module does not import TensorFlow, so a scoring process needs neither Keras nor the layers of the models.
"""

from collections.abc import Iterable
from pathlib import Path

from mirrorspark.data_pipelines.features import FeatureSpec, kinds

RAW_SIGNATURE = "serving_default"
ENCODED_SIGNATURE = "encoded"
# The indexes, and the names of their signatures.
EXACT, IVF, SCANN = "exact", "ivf", "scann"
# The signatures of a model that predicts ratings, from raw columns and from encoded features, and its output.
RATING, RATING_ENCODED = "rating", "rating_encoded"
# The signatures of a retrieval model whose scores are products of vectors: those of queries, with the ids that each row
# excludes, and those of all candidates by id.
QUERY_VECTORS, CANDIDATE_VECTORS, EXCLUDED = "query_vectors", "candidate_vectors", "excluded"
# The signature of a saved tower, and its output.
TOWER_SIGNATURE, VECTORS = "serving_default", "vectors"


def encoded_names(features: Iterable[kinds.Feature]) -> list[str]:
    """Return the names of the tensors of ``Encoder.padded_parts``, which are the inputs of ``encoded``."""
    return [
        name
        for feature in features
        for name in (feature.parts if isinstance(feature, kinds.Sparse) else (feature.name,))
    ]


def rated_features(spec: FeatureSpec) -> tuple[kinds.Feature, ...]:
    """Return the features of a rating, in the order of its inputs: those of the query, and the candidate."""
    return (*spec.query_features, spec.candidate)


def scann_folder(folder: Path) -> Path:
    """Return the folder of the SavedModel with ScaNN's index, next to ``folder``."""
    return folder.with_name(f"{folder.name}_{SCANN}")
