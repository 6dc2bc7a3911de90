"""What a model takes of a scoring process's memory: its weights, and the vocabularies that feed it.

Large vocabularies are what fills it. Where a table stands out, hash its feature (``hash_buckets``), keep fewer tokens
(``min_count``, ``max_size``), or embed it in fewer dimensions.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.fitted import FittedFeatures


@dataclass(frozen=True)
class MemoryPart:
    """One thing that stays in memory while a model is loaded.

    Attributes:
        name: Name of the weight, or of the vocabulary.
        shape: Its shape; of a vocabulary, the number of tokens.
        bytes: Its size.
    """

    name: str
    shape: tuple[int, ...]
    bytes: int


def scorer_memory(model: Any, fitted: FittedFeatures) -> tuple[MemoryPart, ...]:
    """Return the weights of the Keras ``model`` and the vocabularies of ``fitted``, the largest first.

    An optimizer, which an exported model leaves behind, does not count; nor do the tables that the raw signature looks
    tokens up in, which TensorFlow builds beside the vocabularies where a model is served without this package.
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
    """Return ``parts`` as a table to read, with their sum."""
    parts = tuple(parts)
    rows = [(part.name, " x ".join(f"{size:,}" for size in part.shape), f"{part.bytes / 2**20:,.1f}") for part in parts]
    rows = [("part", "shape", "MiB"), *rows, ("total", "", f"{total_bytes(parts) / 2**20:,.1f}")]
    name_width, shape_width, size_width = (max(len(row[column]) for row in rows) for column in range(3))
    return "\n".join(
        f"{name:<{name_width}}  {shape:>{shape_width}}  {size:>{size_width}}" for name, shape, size in rows
    )
