"""Counts of a fleet's outputs in bins that are the same in every task, so that counts of tasks and runs can be added.

Of each model the finest output that is written is counted: scores, else ranks, else binary outputs. The bins of scores
are eight to each power of two, from 2^-16 to 2^20 and their negatives: a bin is at most an eighth as its values
are large. Scores in between are in one bin, larger ones in the outermost. A rank, or a binary output, is a bin.
"""

import base64
import zlib
from collections.abc import Iterator

import numpy as np

from mirrorspark.data_pipelines import compile_inner_kernel, compile_kernel
from mirrorspark.fleet.bins import BINS, BITS_DROPPED, FIRST, SIDE
from mirrorspark.fleet.kernels import NULL_BINARY, NULL_RANK
from mirrorspark.fleet.layout import OUTPUTS, Layout, OutputArrays

_INFINITE = 0x7F800000
_COUNTED = (("score", 0), ("Rank", NULL_RANK), ("binary", NULL_BINARY))


@compile_inner_kernel
def _bin(bits):  # type: ignore[no-untyped-def]
    """Return the bin of a float32 by its bits, -1 for NaN."""
    magnitude = bits & 0x7FFFFFFF
    if magnitude > _INFINITE:
        return -1
    # The exponent and three bits of the fraction rise with the number.
    place = min(max((magnitude >> BITS_DROPPED) - FIRST, 0), SIDE)
    return SIDE - place if bits < 0 else SIDE + place


@compile_kernel(
    "void(Array(int32, 2, 'C', readonly=True), boolean, Array(int64, 1, 'C', readonly=True),"
    " Array(int64, 1, 'C', readonly=True), int32[:, ::1])"
)
def _count_scores(bits: np.ndarray, by_model: bool, models: np.ndarray, places: np.ndarray, counts: np.ndarray) -> None:
    """Add scores, given by their bits, to the counts of their models."""
    if by_model:
        for number in range(len(models)):
            for row in range(bits.shape[1]):
                found = _bin(bits[places[number], row])
                if found >= 0:
                    counts[models[number], found] += 1
    else:
        for row in range(bits.shape[0]):
            for number in range(len(models)):
                found = _bin(bits[row, places[number]])
                if found >= 0:
                    counts[models[number], found] += 1


@compile_kernel(
    [
        f"void(Array(int{width}, 2, 'C', readonly=True), boolean, Array(int64, 1, 'C', readonly=True),"
        " Array(int64, 1, 'C', readonly=True), int64, int32[:, ::1])"
        for width in (8, 16)
    ]
)
def _count_codes(
    values: np.ndarray, by_model: bool, models: np.ndarray, places: np.ndarray, null: int, counts: np.ndarray
) -> None:
    """Add ranks or binary outputs to the counts of their models."""
    if by_model:
        for number in range(len(models)):
            for row in range(values.shape[1]):
                value = values[places[number], row]
                if value != null:
                    counts[models[number], min(value, BINS - 1)] += 1
    else:
        for row in range(values.shape[0]):
            for number in range(len(models)):
                value = values[row, places[number]]
                if value != null:
                    counts[models[number], min(value, BINS - 1)] += 1


def counted_outputs(layout: Layout) -> list[str]:
    """Return the output of each model that is counted; "" for a model without any."""
    found = [""] * len(layout.models)
    for output, models, _ in _finest(layout):
        for model in models.tolist():
            found[model] = output
    return found


def add_counts(layout: Layout, found: OutputArrays, counts: np.ndarray) -> None:
    """Add the outputs of some rows to int32 ``[models, BINS]`` counts."""
    by_model, nulls = layout.name == "wide", dict(_COUNTED)
    for output, models, places in _finest(layout):
        values = found.by_output[output]
        if output == "score":
            _count_scores(values.view(np.int32), by_model, models, places, counts)
        else:
            _count_codes(values, by_model, models, places, nulls[output], counts)


def packed_counts(counts: np.ndarray | None) -> str:
    """Return counts as text for a report of a task."""
    if counts is None:
        return ""
    # All first bytes of the numbers, then all second ones, and so on: a third shorter, as most upper ones are 0.
    planes = counts.reshape(-1, 1).view(np.uint8).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 1)).decode()


def unpacked_counts(text: str, models: int) -> np.ndarray:
    """Return the counts in a text, int64 ``[models, BINS]``; zeros if a task had none."""
    if not text:
        return np.zeros((models, BINS), np.int64)
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(4, -1)
    return np.ascontiguousarray(planes.T).view(np.int32).reshape(models, BINS).astype(np.int64)


def _finest(layout: Layout) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield an output, the models whose finest one it is, and their places in its array."""
    left = np.ones(len(layout.models), bool)
    for output, _ in _COUNTED:
        places = layout.places[:, OUTPUTS.index(output)]
        own = np.flatnonzero(left & (places >= 0))
        left[own] = False
        if len(own):
            yield output, own, np.ascontiguousarray(places[own])
