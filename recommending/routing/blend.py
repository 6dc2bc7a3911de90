"""Blends: the outputs of several models for the same rows become one; and ranked lists in arrays and in Arrow.

This module does not import Spark or TensorFlow: it runs wherever a router does.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from mirrorspark.models.index import CANDIDATES, SCORES, UNFILLED, is_ranked_list

ListFusion = Literal["places", "scores"]
"""Gain of a candidate from a list: ``1 / (60 + place)``, or its score, scaled to 0..1 within the list."""

VectorFusion = Literal["cosine", "dot"]
"""Score of a candidate in one search among all: the weighted sum of the cosines or products of the models' vectors."""

Fusion = Literal[ListFusion, VectorFusion]

# Cormack, Clarke, Buettcher 2009: "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods".
_RANK_OFFSET = 60
# Content of an empty place, and its type.
_EMPTY: Mapping[str, tuple[Any, Any]] = {
    CANDIDATES: (UNFILLED.encode(), object),
    SCORES: (np.finfo(np.float32).min, np.float32),
}


def blended(
    parts: Mapping[str, dict[str, np.ndarray]], weights: Mapping[str, float], fusion: ListFusion = "places"
) -> dict[str, np.ndarray]:
    """Return the outputs of a blend: ranked lists are fused, numbers are summed with their weights.

    Args:
        parts: By model, arrays ``[rows]`` or ``[rows, elements]`` by output; each model has the same outputs.
        weights: Weight by model.
        fusion: How ranked lists are fused.
    """
    first = next(iter(parts.values()))
    if is_ranked_list(first):
        return _fused(parts, weights, fusion)
    sums = {output: sum(weights[part] * parts[part][output] for part in parts) for output in first}
    return {output: np.asarray(values).astype(first[output].dtype) for output, values in sums.items()}


def _fused(
    parts: Mapping[str, dict[str, np.ndarray]], weights: Mapping[str, float], fusion: ListFusion
) -> dict[str, np.ndarray]:
    """Fuse ranked lists by places or by scaled scores, because scores of different models have no common unit.

    A candidate gets the model's weight times its :data:`Fusion` from each model that lists it, with places from 1. Of
    equal sums the candidate comes first that the first model has further ahead. Lists are as the longest of the
    parts'.
    """
    listed = {name: outputs[CANDIDATES] for name, outputs in parts.items()}
    rows, width = len(next(iter(listed.values()))), sum(lists.shape[1] for lists in listed.values())
    tokens, codes = _numbered(list(listed.values()))
    gains = np.concatenate(
        [weights[name] * (_by_place(one) if fusion == "places" else _by_score(one)) for name, one in parts.items()],
        axis=1,
    ).ravel()

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
    fused = _empty(rows, most)
    fused[CANDIDATES][at] = tokens[pairs[order][kept] % max(len(tokens), 1)]
    fused[SCORES][at] = sums[order][kept]
    return fused


def _by_place(lists: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the same gain for a place in every row: float64 ``[rows, places]``."""
    rows, places = lists[CANDIDATES].shape
    return np.tile(1 / (_RANK_OFFSET + 1 + np.arange(places)), (rows, 1))


def _by_score(lists: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return scores scaled to 0..1 within each list, float64 ``[rows, places]``; 0 where all of them are equal.

    Source: Lee 1997, "Analyses of multiple evidence combination"; their sum is Fox and Shaw's CombSUM (1994).
    """
    is_candidate = lists[CANDIDATES] != UNFILLED.encode()
    scores = lists[SCORES].astype(np.float64)
    lowest = np.min(scores, axis=1, keepdims=True, where=is_candidate, initial=np.inf)
    ranges = np.max(scores, axis=1, keepdims=True, where=is_candidate, initial=-np.inf) - lowest
    is_scaled = is_candidate & (ranges > 0)
    return np.divide(scores - lowest, ranges, out=np.zeros_like(scores), where=is_scaled)


def of_length(lists: Mapping[str, np.ndarray], most: int) -> dict[str, np.ndarray]:
    """Return ranked lists with ``most`` places: cut, or with empty places at the end."""
    cut = {name: values[:, :most] for name, values in lists.items()}
    missing = most - cut[CANDIDATES].shape[1]
    ends = ((0, 0), (0, missing))
    return {
        name: np.pad(values, ends, constant_values=_EMPTY[name][0]) if missing else values
        for name, values in cut.items()
    }


def as_lists(arrays: Mapping[str, np.ndarray]) -> tuple[pa.ListArray, pa.ListArray]:
    """Return the candidates of ranked lists, as strings, and their scores, without the empty places."""
    is_candidate = arrays[CANDIDATES] != UNFILLED.encode()
    offsets = pa.array(np.append(0, np.cumsum(is_candidate.sum(axis=1))).astype(np.int32))
    tokens = pa.array(arrays[CANDIDATES][is_candidate], pa.binary()).cast(pa.string())
    return (
        pa.ListArray.from_arrays(offsets, tokens),
        pa.ListArray.from_arrays(offsets, pa.array(arrays[SCORES][is_candidate])),
    )


def as_arrays(candidates: pa.ListArray, scores: pa.ListArray, most: int) -> dict[str, np.ndarray]:
    """Return ranked lists with ``most`` places, ``[rows, most]`` by output; no list may be longer."""
    lengths = candidates.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    is_candidate = np.arange(most) < lengths[:, np.newaxis]
    arrays = _empty(len(candidates), most)
    arrays[CANDIDATES][is_candidate] = candidates.flatten().cast(pa.binary()).to_numpy(zero_copy_only=False)
    arrays[SCORES][is_candidate] = scores.flatten().to_numpy(zero_copy_only=False)
    return arrays


def _empty(rows: int, most: int) -> dict[str, np.ndarray]:
    return {name: np.full((rows, most), content, dtype) for name, (content, dtype) in _EMPTY.items()}


def _numbered(lists: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the different tokens, as bytes, and the place of each list's token among them, row after row."""
    flat = pa.concat_arrays([pa.array(one.ravel()).cast(pa.binary()) for one in lists]).dictionary_encode()
    codes = flat.indices.to_numpy()
    ends = np.cumsum([one.size for one in lists])[:-1]
    by_list = [own.reshape(one.shape) for own, one in zip(np.split(codes, ends), lists, strict=True)]
    return flat.dictionary.to_numpy(zero_copy_only=False), np.concatenate(by_list, axis=1).ravel()
