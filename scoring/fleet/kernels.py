"""Kernels that score a fleet. They have their own file because compiling them imports Numba.

A block holds the columns of some rows: float32 ``[inputs, rows]``, NaN for a missing value, codes for categories.
Linear models are computed in strips of 64 rows: what becomes of each column is written once per strip, which then stays
in the cache while each model adds the few columns that it reads, 64 rows at a time in the vector units. A dense product
over the union of the columns would do 20 times the work for models that each read a twentieth of them.
"""

import numba
import numpy as np

from mirrorspark.data_pipelines.kernels import compile_inner_kernel, compile_kernel
from mirrorspark.scoring.fleet.columns import LINKS

# Rows of a strip: 2,000 columns of 64 rows take 512 kB, the size of a core's second cache.
STRIP = 64

# Kinds of terms, by which they are sorted: a column's value, a bin, a category, and what stands for a missing value.
KINDS = 4
PRODUCT, STEP, EQUAL, ABSENCE = range(KINDS)

IDENTITY, LOGIT = LINKS.index("identity"), LINKS.index("logit")

NULL_RANK, NULL_BINARY = 0, -1

_ZERO = np.float32(0)


@compile_inner_kernel
def _transformed(value, low, high, takes_log):  # type: ignore[no-untyped-def]
    """Return a value clipped, and then its logarithm; NaN stays NaN."""
    if value < low:
        value = low
    if value > high:
        value = high
    if takes_log:
        magnitude = np.log1p(np.abs(value))
        return np.float32(magnitude if value >= _ZERO else -magnitude)
    return value


@compile_inner_kernel
def _fill_strip(block, first, count, inputs, lows, highs, logs, strip, absent, is_flagged):  # type: ignore[no-untyped-def]
    """Write the features of some rows, 0 where one is missing; return how many features miss a value."""
    flagged = 0
    for feature in range(len(inputs)):
        source, low, high = inputs[feature], lows[feature], highs[feature]
        found = 0
        if logs[feature]:
            for row in range(count):
                value = _transformed(block[source, first + row], low, high, True)
                is_here = value - value == _ZERO
                strip[feature, row] = value if is_here else _ZERO
                found += is_here
        else:
            for row in range(count):
                value = _transformed(block[source, first + row], low, high, False)
                is_here = value - value == _ZERO
                strip[feature, row] = value if is_here else _ZERO
                found += is_here
        is_flagged[feature] = found < count
        if found < count:
            flagged += 1
            for row in range(count):
                value = _transformed(block[source, first + row], low, high, False)
                absent[feature, row] = value - value != _ZERO
        for row in range(count, STRIP):
            strip[feature, row] = _ZERO
            absent[feature, row] = False
    return flagged


# A product and a sum may become one operation, which rounds once. Sums keep their order.
@numba.njit(nogil=True, fastmath={"contract"})
def _add_products(first, stop, features, coefficients, strip, sums):  # type: ignore[no-untyped-def]
    """Add the terms that are a coefficient times a feature, four at a time."""
    term = first
    while term + 4 <= stop:
        f0, f1, f2, f3 = features[term], features[term + 1], features[term + 2], features[term + 3]
        c0, c1 = coefficients[term], coefficients[term + 1]
        c2, c3 = coefficients[term + 2], coefficients[term + 3]
        for row in range(STRIP):
            sums[row] += c0 * strip[f0, row] + c1 * strip[f1, row] + c2 * strip[f2, row] + c3 * strip[f3, row]
        term += 4
    while term < stop:
        f0, c0 = features[term], coefficients[term]
        for row in range(STRIP):
            sums[row] += c0 * strip[f0, row]
        term += 1


@compile_inner_kernel
def _add_others(model, starts, features, coefficients, keys, strip, absent, is_flagged, flagged, sums):  # type: ignore[no-untyped-def]
    """Add a model's bins and categories, and what stands for missing values."""
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
def _decide(sums, first, count, link, threshold, cuts, places, ranks_of_rows, scores, binaries, ranks):  # type: ignore[no-untyped-def]
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
                value = np.float32(1) / (np.float32(1) + np.exp(-value))
            elif link != IDENTITY:
                value = np.exp(value)
            scores[places[0], first + row] = value
    if places[1] >= 0:
        for row in range(count):
            binaries[places[1], first + row] = NULL_BINARY if sums[row] != sums[row] else sums[row] >= threshold
    if places[2] >= 0:
        for row in range(count):
            ranks_of_rows[row] = 1
        for cut in cuts:
            for row in range(count):
                ranks_of_rows[row] += 1 if sums[row] < cut else 0
        for row in range(count):
            ranks[places[2], first + row] = NULL_RANK if sums[row] != sums[row] else ranks_of_rows[row]
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
    " float32[:, :], int8[:, :], int16[:, :])"
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
        links: int64 ``[models]``: positions in :data:`scoring.fleet.columns.LINKS`.
        thresholds: float32 ``[models]``, of the linear predictor.
        cut_starts: int64 ``[models + 1]``.
        cuts: float32, of the linear predictor.
        places: int64 ``[models, 3]``: the rows of ``scores``, ``binaries`` and ``ranks`` to write; -1 for none.
        scores: float32 ``[places, rows]``, NaN for null; of any strides, as are the others.
        binaries: int8 ``[places, rows]``, -1 for null.
        ranks: int16 ``[places, rows]``, 0 for null.
    """
    strip = np.zeros((len(inputs), STRIP), np.float32)
    absent = np.zeros((len(inputs), STRIP), np.bool_)
    is_flagged = np.zeros(len(inputs), np.bool_)
    sums = np.zeros(STRIP, np.float32)
    ranks_of_rows = np.zeros(STRIP, np.int32)
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
                ranks_of_rows,
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
    """Write what networks take from the rows of a block from ``first`` on, as many as ``features`` has.

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
    for feature in range(len(inputs)):
        source, low, high, takes_log = inputs[feature], lows[feature], highs[feature], logs[feature]
        kind, key, below, default = kinds[feature], keys[feature], belows[feature], missing[feature]
        for row in range(features.shape[1]):
            value = _transformed(block[source, first + row], low, high, takes_log)
            if value - value != _ZERO:
                features[feature, row] = default
            elif kind == PRODUCT:
                features[feature, row] = value
            elif kind == STEP:
                features[feature, row] = np.float32(1) if value >= key and value < below else _ZERO
            else:
                features[feature, row] = np.float32(1) if value == key else _ZERO


@compile_kernel(
    "int64(Array(float32, 2, 'A', readonly=True), int64, Array(int64, 1, 'C', readonly=True),"
    " Array(float32, 1, 'C', readonly=True), Array(int64, 1, 'C', readonly=True),"
    " Array(float32, 1, 'C', readonly=True), Array(int64, 2, 'C', readonly=True),"
    " float32[:, :], int8[:, :], int16[:, :])"
)
def decide(
    sums: np.ndarray,
    first: int,
    links: np.ndarray,
    thresholds: np.ndarray,
    cut_starts: np.ndarray,
    cuts: np.ndarray,
    places: np.ndarray,
    scores: np.ndarray,
    binaries: np.ndarray,
    ranks: np.ndarray,
) -> int:
    """Write the outputs of models for the rows from ``first`` on, given their linear predictors.

    Args:
        sums: float32 ``[models, rows]``.
        first: First row of the outputs.
        links: int64 ``[models]``; this and the rest are as for :func:`score_linear`.
        thresholds: float32 ``[models]``.
        cut_starts: int64 ``[models + 1]``.
        cuts: float32.
        places: int64 ``[models, 3]``.
        scores: float32 ``[places, rows]``.
        binaries: int8 ``[places, rows]``.
        ranks: int16 ``[places, rows]``.
    """
    ranks_of_rows = np.zeros(sums.shape[1], np.int32)
    nulls = 0
    for model in range(sums.shape[0]):
        nulls += _decide(
            sums[model],
            first,
            sums.shape[1],
            links[model],
            thresholds[model],
            cuts[cut_starts[model] : cut_starts[model + 1]],
            places[model],
            ranks_of_rows,
            scores,
            binaries,
            ranks,
        )
    return nulls
