"""Kernels that score a fleet. They have their own file because compiling them imports Numba.

A block holds the columns of some rows: float32 ``[inputs, rows]``, NaN for a missing value, codes for categories.
Linear models are computed in strips of 64 rows: each column's features are written once per strip, which then stays
in the cache while each model adds the few columns that it reads, 64 rows at a time in the vector units. A dense product
over the union of the columns would do 20 times the work for models that each read a twentieth of them.
"""

import numba
import numpy as np

from mirrorspark.data_pipelines import compile_inner_kernel, compile_kernel
from mirrorspark.fleet.columns import LINKS

# Rows of a strip: 2,000 columns of 64 rows take 512 kB, the size of a core's second cache.
STRIP = 64

# Kinds of terms, by which they are sorted: a column's value, a bin, a category, and what stands for a missing value.
KINDS = 4
PRODUCT, STEP, EQUAL, ABSENCE = range(KINDS)

IDENTITY, LOGIT = LINKS.index("identity"), LINKS.index("logit")

NULL_RANK, NULL_BINARY = 0, -1

_ZERO, _ONE = np.float32(0), np.float32(1)


# Sums of zeros in any order show whether all values are finite, eight at a time: 1 ns per value instead of 18.
@numba.njit(nogil=True, fastmath={"reassoc", "nsz"})
def _clip(column, low, high, out):  # type: ignore[no-untyped-def]
    """Write the values of a column, clipped; return whether one is missing or infinite."""
    zeros = _ZERO
    for row in range(len(column)):
        value = column[row]
        value = low if value < low else value
        value = high if value > high else value
        out[row] = value
        zeros += value * _ZERO
    return zeros != _ZERO


@compile_inner_kernel
def _take_logs(values):  # type: ignore[no-untyped-def]
    """Replace values by ``sign(x) * log(1 + |x|)``."""
    for row in range(len(values)):
        magnitude = np.log1p(np.abs(values[row]))
        values[row] = magnitude if values[row] >= _ZERO else -magnitude


@compile_inner_kernel
def _fill_strip(block, first, count, inputs, lows, highs, logs, strip, absent, is_flagged):  # type: ignore[no-untyped-def]
    """Write the features of some rows, 0 where one is missing; return how many features miss a value."""
    flagged = 0
    for feature in range(len(inputs)):
        values = strip[feature, :count]
        column = block[inputs[feature], first : first + count]
        is_flagged[feature] = _clip(column, lows[feature], highs[feature], values)
        if is_flagged[feature]:
            flagged += 1
            for row in range(count):
                is_absent = values[row] - values[row] != _ZERO
                absent[feature, row] = is_absent
                values[row] = _ZERO if is_absent else values[row]
        if logs[feature]:
            _take_logs(values)
        strip[feature, count:] = _ZERO
        absent[feature, count:] = False
    return flagged


# A product and a sum may become one operation, which rounds once. Sums keep their order. Eight terms at a time take
# two thirds of the time of four.
@numba.njit(nogil=True, fastmath={"contract"})
def _add_products(first, stop, features, coefficients, strip, sums):  # type: ignore[no-untyped-def]
    """Add the terms that are a coefficient times a feature."""
    term = first
    while term + 8 <= stop:
        f0, f1, f2, f3 = features[term], features[term + 1], features[term + 2], features[term + 3]
        f4, f5, f6, f7 = features[term + 4], features[term + 5], features[term + 6], features[term + 7]
        c0, c1, c2, c3 = coefficients[term], coefficients[term + 1], coefficients[term + 2], coefficients[term + 3]
        c4, c5, c6, c7 = coefficients[term + 4], coefficients[term + 5], coefficients[term + 6], coefficients[term + 7]
        for row in range(STRIP):
            sums[row] += (
                c0 * strip[f0, row]
                + c1 * strip[f1, row]
                + c2 * strip[f2, row]
                + c3 * strip[f3, row]
                + c4 * strip[f4, row]
                + c5 * strip[f5, row]
                + c6 * strip[f6, row]
                + c7 * strip[f7, row]
            )
        term += 8
    while term < stop:
        f0, c0 = features[term], coefficients[term]
        for row in range(STRIP):
            sums[row] += c0 * strip[f0, row]
        term += 1


@compile_inner_kernel
def _add_others(model, starts, features, coefficients, keys, strip, absent, is_flagged, flagged, sums):  # type: ignore[no-untyped-def]
    """Add a model's bins and categories, and its replacements of missing values."""
    for term in range(starts[STEP, model], starts[STEP, model + 1]):
        feature, coefficient, edge = features[term], coefficients[term], keys[term]
        for row in range(STRIP):
            sums[row] += coefficient if strip[feature, row] >= edge else _ZERO
    for term in range(starts[EQUAL, model], starts[EQUAL, model + 1]):
        feature, coefficient, code = features[term], coefficients[term], keys[term]
        for row in range(STRIP):
            sums[row] += coefficient if strip[feature, row] == code else _ZERO
    if flagged:
        for term in range(starts[ABSENCE, model], starts[ABSENCE, model + 1]):
            feature, coefficient = features[term], coefficients[term]
            if is_flagged[feature]:
                for row in range(STRIP):
                    sums[row] += coefficient if absent[feature, row] else _ZERO


@compile_inner_kernel
def _decide(sums, first, count, link, threshold, cuts, places, by_model, counts, scores, binaries, ranks):  # type: ignore[no-untyped-def]
    """Write a model's outputs for some rows, and return for how many of them there are none.

    Threshold and cut-points are those of the linear predictor: the score rises with it, but may round to the same
    number for different ones.
    """
    nulls = 0
    for row in range(count):
        nulls += sums[row] != sums[row]
    if places[0] >= 0:
        for row in range(count):
            value = sums[row]
            if link == LOGIT:
                value = _ONE / (_ONE + np.exp(-value))
            elif link != IDENTITY:
                value = np.exp(value)
            if by_model:
                scores[places[0], first + row] = value
            else:
                scores[first + row, places[0]] = value
    if places[1] >= 0:
        if by_model:
            for row in range(count):
                binaries[places[1], first + row] = NULL_BINARY if sums[row] != sums[row] else sums[row] >= threshold
        else:
            for row in range(count):
                binaries[first + row, places[1]] = NULL_BINARY if sums[row] != sums[row] else sums[row] >= threshold
    if places[2] >= 0:
        for row in range(count):
            counts[row] = 1
        for cut in cuts:
            for row in range(count):
                counts[row] += 1 if sums[row] < cut else 0
        if by_model:
            for row in range(count):
                ranks[places[2], first + row] = NULL_RANK if sums[row] != sums[row] else counts[row]
        else:
            for row in range(count):
                ranks[first + row, places[2]] = NULL_RANK if sums[row] != sums[row] else counts[row]
    return nulls


@compile_kernel(
    "int64(Array(float32, 2, 'C', readonly=True), int64,"
    " Array(uint32, 1, 'C', readonly=True), Array(float32, 1, 'C', readonly=True),"
    " Array(float32, 1, 'C', readonly=True), Array(boolean, 1, 'C', readonly=True),"
    " Array(int64, 2, 'C', readonly=True), Array(uint32, 1, 'C', readonly=True),"
    " Array(float32, 1, 'C', readonly=True), Array(float32, 1, 'C', readonly=True),"
    " Array(float32, 1, 'C', readonly=True), Array(int64, 1, 'C', readonly=True),"
    " Array(float32, 1, 'C', readonly=True), Array(int64, 1, 'C', readonly=True),"
    " Array(float32, 1, 'C', readonly=True), Array(int64, 2, 'C', readonly=True),"
    " boolean, float32[:, ::1], int8[:, ::1], int16[:, ::1])"
)
def score_linear(
    block: np.ndarray,
    rows: int,
    inputs: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
    logs: np.ndarray,
    starts: np.ndarray,
    features: np.ndarray,
    coefficients: np.ndarray,
    keys: np.ndarray,
    intercepts: np.ndarray,
    links: np.ndarray,
    thresholds: np.ndarray,
    cut_starts: np.ndarray,
    cuts: np.ndarray,
    places: np.ndarray,
    by_model: bool,
    scores: np.ndarray,
    binaries: np.ndarray,
    ranks: np.ndarray,
) -> int:
    """Write the outputs of linear models for the rows of a block; return the number of rows of models without any.

    Args:
        block: float32 ``[inputs, rows or more]``.
        rows: Number of rows.
        inputs: uint32 ``[features]``: the row of the block that each feature is made of.
        lows: float32 ``[features]``: bounds of the clip, -inf for none; as are ``highs``.
        highs: float32 ``[features]``.
        logs: bool ``[features]``.
        starts: int64 ``[4, models + 1]``: the first term of each kind and model.
        features: uint32 ``[terms]``.
        coefficients: float32 ``[terms]``.
        keys: float32 ``[terms]``: the edge of a step, the code of a category.
        intercepts: float32 ``[models]``.
        links: int64 ``[models]``: positions in :data:`fleet.columns.LINKS`.
        thresholds: float32 ``[models]``, of the linear predictor.
        cut_starts: int64 ``[models + 1]``.
        cuts: float32, of the linear predictor.
        places: int64 ``[models, 3]``: where in ``scores``, ``binaries`` and ``ranks`` to write; -1 for none.
        by_model: Whether these are ``[places, rows]``, else ``[rows, places]``.
        scores: float32, NaN for null.
        binaries: int8, -1 for null.
        ranks: int16, 0 for null.
    """
    strip = np.zeros((len(inputs), STRIP), np.float32)
    absent = np.zeros((len(inputs), STRIP), np.bool_)
    is_flagged = np.zeros(len(inputs), np.bool_)
    sums = np.zeros(STRIP, np.float32)
    counts = np.zeros(STRIP, np.int32)
    nulls = 0
    for first in range(0, rows, STRIP):
        count = min(STRIP, rows - first)
        flagged = _fill_strip(block, first, count, inputs, lows, highs, logs, strip, absent, is_flagged)
        for model in range(len(intercepts)):
            sums[:] = intercepts[model]
            _add_products(starts[PRODUCT, model], starts[PRODUCT, model + 1], features, coefficients, strip, sums)
            _add_others(model, starts, features, coefficients, keys, strip, absent, is_flagged, flagged, sums)
            nulls += _decide(
                sums,
                first,
                count,
                links[model],
                thresholds[model],
                cuts[cut_starts[model] : cut_starts[model + 1]],
                places[model],
                by_model,
                counts,
                scores,
                binaries,
                ranks,
            )
    return nulls


@compile_kernel(
    "void(Array(float32, 2, 'C', readonly=True), int64, Array(uint32, 1, 'C', readonly=True),"
    " Array(float32, 1, 'C', readonly=True), Array(float32, 1, 'C', readonly=True),"
    " Array(boolean, 1, 'C', readonly=True), Array(int64, 1, 'C', readonly=True),"
    " Array(float32, 1, 'C', readonly=True), Array(float32, 1, 'C', readonly=True),"
    " Array(float32, 1, 'C', readonly=True), float32[:, ::1])"
)
def write_features(
    block: np.ndarray,
    first: int,
    inputs: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
    logs: np.ndarray,
    kinds: np.ndarray,
    keys: np.ndarray,
    belows: np.ndarray,
    missing: np.ndarray,
    features: np.ndarray,
) -> None:
    """Write the inputs of networks for the rows of a block from ``first`` on, as many as ``features`` has.

    Args:
        block: float32 ``[inputs, rows]``.
        first: First row.
        inputs: uint32 ``[features]``.
        lows: float32 ``[features]``; as are ``highs``.
        highs: float32 ``[features]``.
        logs: bool ``[features]``.
        kinds: int64 ``[features]``: ``PRODUCT``, ``STEP`` (a bin) or ``EQUAL`` (a category).
        keys: float32 ``[features]``: where the bin begins, or the code of the category.
        belows: float32 ``[features]``: where the bin ends.
        missing: float32 ``[features]``: the value of a missing one.
        features: float32 ``[features, rows]``, written.
    """
    rows = features.shape[1]
    for feature in range(len(inputs)):
        values = features[feature]
        column = block[inputs[feature], first : first + rows]
        has_missing = _clip(column, lows[feature], highs[feature], values)
        kind, key, below, default = kinds[feature], keys[feature], belows[feature], missing[feature]
        if logs[feature]:
            _take_logs(values)
        if kind == STEP:
            for row in range(rows):
                values[row] = _ONE if (values[row] >= key) & (values[row] < below) else _ZERO
        elif kind == EQUAL:
            for row in range(rows):
                values[row] = _ONE if values[row] == key else _ZERO
        if has_missing:
            low, high = lows[feature], highs[feature]
            for row in range(rows):
                value = min(max(column[row], low), high) if column[row] == column[row] else column[row]
                if value - value != _ZERO:
                    values[row] = default


@compile_kernel(
    "int64(Array(float32, 2, 'A', readonly=True), int64, Array(int64, 1, 'C', readonly=True),"
    " Array(float32, 1, 'C', readonly=True), Array(int64, 1, 'C', readonly=True),"
    " Array(float32, 1, 'C', readonly=True), Array(int64, 2, 'C', readonly=True),"
    " boolean, float32[:, ::1], int8[:, ::1], int16[:, ::1])"
)
def decide(
    sums: np.ndarray,
    first: int,
    links: np.ndarray,
    thresholds: np.ndarray,
    cut_starts: np.ndarray,
    cuts: np.ndarray,
    places: np.ndarray,
    by_model: bool,
    scores: np.ndarray,
    binaries: np.ndarray,
    ranks: np.ndarray,
) -> int:
    """Write the outputs of models for the rows from ``first`` on, given their linear predictors.

    Args:
        sums: float32 ``[models, rows]``.
        first: First row of the outputs.
        links: int64 ``[models]``; this and the rest are as in :func:`score_linear`.
        thresholds: float32 ``[models]``.
        cut_starts: int64 ``[models + 1]``.
        cuts: float32.
        places: int64 ``[models, 3]``.
        by_model: See :func:`score_linear`, also for the next three.
        scores: float32.
        binaries: int8.
        ranks: int16.
    """
    strip, counts = np.zeros(STRIP, np.float32), np.zeros(STRIP, np.int32)
    nulls = 0
    for model in range(sums.shape[0]):
        for start in range(0, sums.shape[1], STRIP):
            count = min(STRIP, sums.shape[1] - start)
            strip[:count] = sums[model, start : start + count]
            nulls += _decide(
                strip,
                first + start,
                count,
                links[model],
                thresholds[model],
                cuts[cut_starts[model] : cut_starts[model + 1]],
                places[model],
                by_model,
                counts,
                scores,
                binaries,
                ranks,
            )
    return nulls
