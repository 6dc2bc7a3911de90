"""Blends: the outputs of several models for the same rows become one.

This module does not import Spark or TensorFlow: it runs wherever a router does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mirrorspark.models.index.ranked_lists import CANDIDATES, SCORES, UNFILLED, is_ranked_list

# Cormack, Clarke, Buettcher 2009: "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods".
_RANK_OFFSET = 60
# Content of an empty place, and its type.
_EMPTY: Mapping[str, tuple[Any, Any]] = {
    CANDIDATES: (UNFILLED.encode(), object),
    SCORES: (np.finfo(np.float32).min, np.float32),
}


def blended(parts: Mapping[str, dict[str, np.ndarray]], weights: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Return the outputs of a blend: ranked lists are fused, numbers are summed with their weights.

    Args:
        parts: By model, arrays ``[rows]`` or ``[rows, elements]`` by output; each model has the same outputs.
        weights: Weight by model.
    """
    first = next(iter(parts.values()))
    if is_ranked_list(first):
        return _fused(parts, weights)
    sums = {output: sum(weights[part] * parts[part][output] for part in parts) for output in first}
    return {output: np.asarray(values).astype(first[output].dtype) for output, values in sums.items()}


def _fused(parts: Mapping[str, dict[str, np.ndarray]], weights: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Fuse ranked lists by their places: scores of different models have no common unit.

    A candidate gets ``weight / (60 + place)`` from each model that lists it, with places from 1. Of equal sums the
    candidate comes first that the first model has further ahead. Lists are as long as the longest of the parts'.
    """
    listed = {name: outputs[CANDIDATES] for name, outputs in parts.items()}
    rows, width = len(next(iter(listed.values()))), sum(lists.shape[1] for lists in listed.values())
    tokens, codes = _numbered(list(listed.values()))
    places = [weights[name] / (_RANK_OFFSET + 1 + np.arange(lists.shape[1])) for name, lists in listed.items()]
    gains = np.tile(np.concatenate(places), rows)

    is_candidate = (tokens != UNFILLED.encode())[codes]
    filled = np.flatnonzero(is_candidate)
    # A pair is a row and a candidate.
    pairs, firsts, of_pair = np.unique(
        filled // width * len(tokens) + codes[filled], return_index=True, return_inverse=True
    )
    sums, row_of = np.bincount(of_pair, gains[filled], len(pairs)), pairs // max(len(tokens), 1)
    order = np.lexsort((firsts, -sums, row_of))
    place = np.arange(len(pairs)) - np.searchsorted(row_of, row_of)

    most = max(lists.shape[1] for lists in listed.values())
    kept = place < most
    at = (row_of[kept], place[kept])
    fused = {name: np.full((rows, most), empty, dtype) for name, (empty, dtype) in _EMPTY.items()}
    fused[CANDIDATES][at] = tokens[pairs[order][kept] % max(len(tokens), 1)]
    fused[SCORES][at] = sums[order][kept]
    return fused


def of_length(lists: Mapping[str, np.ndarray], most: int) -> dict[str, np.ndarray]:
    """Return ranked lists with ``most`` places: cut, or with empty places at the end."""
    cut = {name: values[:, :most] for name, values in lists.items()}
    missing = most - cut[CANDIDATES].shape[1]
    ends = ((0, 0), (0, missing))
    return {
        name: np.pad(values, ends, constant_values=_EMPTY[name][0]) if missing else values
        for name, values in cut.items()
    }


def _numbered(lists: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the different tokens, as bytes, and the place of each list's token among them, row after row."""
    flat = pa.concat_arrays([pa.array(one.ravel()).cast(pa.binary()) for one in lists]).dictionary_encode()
    codes = flat.indices.to_numpy()
    ends = np.cumsum([one.size for one in lists])[:-1]
    by_list = [own.reshape(one.shape) for own, one in zip(np.split(codes, ends), lists, strict=True)]
    return flat.dictionary.to_numpy(zero_copy_only=False), np.concatenate(by_list, axis=1).ravel()
