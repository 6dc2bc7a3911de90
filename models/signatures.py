"""The names in an exported model: of its signatures, its indexes and what they take.

Known without TensorFlow: a process that scores looks them up without Keras and the layers that models are built of.
"""

from collections.abc import Iterable
from pathlib import Path

from data_pipelines.feature_kinds import Feature, Sparse

RAW_SIGNATURE = "serving_default"
ENCODED_SIGNATURE = "encoded"
# The indexes, and the names of their signatures.
EXACT, CELLS, SCANN = "exact", "cells", "scann"


def encoded_names(features: Iterable[Feature]) -> list[str]:
    """Return the names of the tensors that ``Encoder.padded_parts`` gives for ``features``, and ``encoded`` takes."""
    return [
        name for feature in features for name in (feature.parts if isinstance(feature, Sparse) else (feature.name,))
    ]


def scann_folder(folder: Path) -> Path:
    """Return where the SavedModel with ScaNN's index is, beside the one in ``folder``."""
    return folder.with_name(f"{folder.name}_{SCANN}")
