"""The memory of a scoring process that a model takes: its weights and its vocabularies.

Large vocabularies take most of it. If one table is too large, hash its feature (``hash_buckets``), keep fewer tokens
(``min_count``, ``max_size``), or embed it in fewer dimensions.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mirrorspark.data_pipelines.features.fitted import FittedFeatures


@dataclass(frozen=True)
class MemoryPart:
    """One weight or vocabulary that stays in memory while a model is loaded.

    Attributes:
        shape: Shape of the weight, or number of tokens of the vocabulary.
    """

    name: str
    shape: tuple[int, ...]
    bytes: int


def scorer_memory(model: Any, fitted: FittedFeatures) -> tuple[MemoryPart, ...]:
    """Return the weights of the Keras ``model`` and the vocabularies of ``fitted``, largest first.

    The optimizer is excluded, because an exported model does not contain it. The lookup tables of the raw signature are
    excluded too: TensorFlow builds them only where a model is served without this package.
    """
    weights = (
        MemoryPart(weight.name, tuple(weight.shape), int(np.prod(weight.shape)) * weight.dtype.size)
        for weight in model.weights
    )
    vocabularies = (
        MemoryPart(f"vocabulary {name}", (len(vocabulary),), vocabulary.tokens.nbytes + vocabulary.counts.nbytes)
        for name, vocabulary in fitted.vocabularies.items()
    )
    return tuple(sorted((*weights, *vocabularies), key=lambda part: (-part.bytes, part.name)))


def total_bytes(parts: Iterable[MemoryPart]) -> int:
    """Return the size of all ``parts`` together."""
    return sum(part.bytes for part in parts)


def memory_table(parts: Iterable[MemoryPart]) -> str:
    """Return ``parts`` as a readable table, with their sum."""
    parts = tuple(parts)
    rows = [(part.name, " x ".join(f"{size:,}" for size in part.shape), f"{part.bytes / 2**20:,.1f}") for part in parts]
    rows = [("part", "shape", "MiB"), *rows, ("total", "", f"{total_bytes(parts) / 2**20:,.1f}")]
    name_width, shape_width, size_width = (max(len(row[column]) for row in rows) for column in range(3))
    return "\n".join(
        f"{name:<{name_width}}  {shape:>{shape_width}}  {size:>{size_width}}" for name, shape, size in rows
    )
