"""Kernel that re-ranks lists. It has its own file because compiling it imports Numba."""

from typing import NamedTuple

import numba
import numpy as np

from mirrorspark.data_pipelines import compile_inner_kernel, compile_kernel

# Share of the wanted distribution in the one of a list, so that a category that is missing has a finite divergence.
# Source: Steck, "Calibrated Recommendations" (RecSys 2018), equation 5.
SMOOTHING = 0.01

_NEVER = -np.inf


class _Items(NamedTuple):
    """Attributes of items, as in :class:`recommending.reranking.ItemAttributes`."""

    categories: np.ndarray
    at_most: np.ndarray
    at_least: np.ndarray
    vectors: np.ndarray


class _Work(NamedTuple):
    """State of the candidates of a list, by place, and of categories, which are 0 between lists.

    Attributes:
        bounds: Value next to the candidates that a candidate was last compared with.
        uppers: Value before anything is chosen.
        similarity: Largest cosine to a chosen candidate, at least 0.
        compared: Number of chosen candidates that it was compared with.
        firsts: Where its categories start.
        ends: Where they end.
        chosen_of: Chosen candidates by category.
        missing: Candidates that a list still has to get, by category.
        found: Sum of the chosen candidates' shares, by category.
        wanted: Share of the history, by category.
        gains: ``gains[category, n]`` is what a candidate of ``n + 1`` categories gains by one of them: how much the
            divergence falls, times its weight.
        widths: Whether there are items of 1, 2, ... categories.
    """

    bounds: np.ndarray
    uppers: np.ndarray
    similarity: np.ndarray
    compared: np.ndarray
    firsts: np.ndarray
    ends: np.ndarray
    chosen_of: np.ndarray
    missing: np.ndarray
    found: np.ndarray
    wanted: np.ndarray
    gains: np.ndarray
    widths: np.ndarray


# A sum in any order uses the vector units: 5 ns instead of 24 for 64 numbers. Equal vectors give equal sums all the
# same, but sums may differ in their last bit between kinds of processors.
@numba.njit(nogil=True, fastmath={"reassoc", "contract"})
def _cosine(vectors, first, second):  # type: ignore[no-untyped-def]
    """Return the product of two vectors."""
    total = np.float32(0)
    for at in range(vectors.shape[1]):
        total += vectors[first, at] * vectors[second, at]
    return total


@compile_inner_kernel
def _relevance(scores, items, boosts, is_available, weight, values):  # type: ignore[no-untyped-def]
    """Write each candidate's weighted relevance to ``values``: its score scaled to 0..1 in its list, and its boost."""
    lowest, highest = np.inf, -np.inf
    for score in scores:
        if np.isfinite(score):
            lowest, highest = min(lowest, score), max(highest, score)
    scale = 1 / (highest - lowest) if highest > lowest else 0.0
    for place in range(len(scores)):
        item = items[place]
        if is_available[item] and np.isfinite(scores[place]):
            values[place] = weight * ((scores[place] - lowest) * scale + boosts[item])
        else:
            values[place] = _NEVER


@compile_inner_kernel
def _ordered(values, order):  # type: ignore[no-untyped-def]
    """Return the places by falling value, equal ones in their order; lists that are in order need no sort."""
    for place in range(1, len(values)):
        if values[place] > values[place - 1]:
            return np.argsort(-values, kind="mergesort")
    return order[: len(values)]


@compile_inner_kernel
def _interests(history, category_starts, categories, wanted, interests):  # type: ignore[no-untyped-def]
    """Write the shares of categories in a history to ``wanted``, their numbers to ``interests``; return how many."""
    known, count = 0, 0
    for item in history:
        known += category_starts[item + 1] > category_starts[item]
    for item in history:
        first, end = category_starts[item], category_starts[item + 1]
        for category in categories[first:end]:
            if wanted[category] == 0:
                interests[count] = category
                count += 1
            wanted[category] += 1 / (known * (end - first))
    return count


@compile_inner_kernel
def _update_gains(interests, size, weight, work):  # type: ignore[no-untyped-def]
    """Write a candidate's gain by each of its categories as the next of ``size``; return the largest possible gain."""
    most = 0.0
    for category in interests:
        share, found = SMOOTHING * work.wanted[category], work.found[category]
        before = (1 - SMOOTHING) * found + share * size
        for slot in range(len(work.widths)):
            if work.widths[slot]:
                growth = 1 + (1 - SMOOTHING) / ((slot + 1) * before)
                work.gains[category, slot] = weight * work.wanted[category] * np.log(growth)
                most = max(most, (slot + 1) * work.gains[category, slot])
    return most


@compile_inner_kernel
def _has_room(own, chosen_of, at_most):  # type: ignore[no-untyped-def]
    """Return whether a list has room for a further candidate of these categories."""
    full = 0
    for category in own:
        full += chosen_of[category] >= at_most[category]
    return full == 0


@compile_inner_kernel
def _is_missing(own, missing):  # type: ignore[no-untyped-def]
    """Return whether a list still has to get candidates of one of these categories."""
    found = 0
    for category in own:
        found += missing[category] > 0
    return found > 0


@compile_inner_kernel
def _leader(own, order, chosen, most_gain, is_forced, diversity, items, work):  # type: ignore[no-untyped-def]
    """Return the place of the highest value, the first among equals, or -1; if forced, only of missing categories.

    Similarities only grow. So ``uppers``, the values before anything was chosen, end the search, and ``bounds``, those
    next to fewer chosen candidates, spare most candidates the comparison with those that were chosen since.
    """
    best, highest = -1, _NEVER
    for place in order:
        if work.uppers[place] + most_gain < highest:
            break
        if work.bounds[place] == _NEVER:
            continue
        first, end = work.firsts[place], work.ends[place]
        gain = 0.0
        if most_gain > 0:
            for at in range(first, end):
                gain += work.gains[items.categories[at], end - first - 1]
        value = work.bounds[place] + gain
        if value < highest or (value == highest and place > best):
            continue
        kinds = items.categories[first:end]
        if is_forced and not _is_missing(kinds, work.missing):
            continue
        if not _has_room(kinds, work.chosen_of, items.at_most):
            work.bounds[place] = _NEVER
            continue
        if diversity > 0:
            while work.compared[place] < len(chosen) and value >= highest:
                near = _cosine(items.vectors, own[place], own[chosen[work.compared[place]]])
                work.compared[place] += 1
                if near > work.similarity[place]:
                    work.bounds[place] -= diversity * (near - work.similarity[place])
                    work.similarity[place] = near
                    value = work.bounds[place] + gain
            if value < highest or (value == highest and place > best):
                continue
        best, highest = place, value
    return best


@compile_inner_kernel
def _fill(own, order, interests, all_missing, diversity, calibration, items, work, places):  # type: ignore[no-untyped-def]
    """Fill ``places`` with the candidates of one list and return how many there are."""
    most_gain, count = 0.0, 0
    while count < len(places):
        if len(interests):
            most_gain = _update_gains(interests, count + 1, calibration, work)
        is_forced = all_missing > 0 and all_missing >= len(places) - count
        best = _leader(own, order, places[:count], most_gain, is_forced, diversity, items, work)
        if best < 0 and is_forced:
            # Of items of several categories, those that are missing may be out of reach.
            best = _leader(own, order, places[:count], most_gain, False, diversity, items, work)
        if best < 0:
            break
        for category in items.categories[work.firsts[best] : work.ends[best]]:
            work.chosen_of[category] += 1
            work.found[category] += 1 / (work.ends[best] - work.firsts[best])
            if work.missing[category] > 0:
                work.missing[category] -= 1
                all_missing -= 1
        work.bounds[best] = _NEVER
        places[count] = best
        count += 1
    return count


@compile_inner_kernel
def _count_missing(size, items, work):  # type: ignore[no-untyped-def]
    """Write how many candidates of each category a list has to get, of those there are; return their sum."""
    all_missing = 0
    for place in range(size):
        if work.bounds[place] > _NEVER:
            for category in items.categories[work.firsts[place] : work.ends[place]]:
                if work.missing[category] < items.at_least[category]:
                    work.missing[category] += 1
                    all_missing += 1
    return all_missing


@compile_inner_kernel
def _forget(interests, chosen, items, work):  # type: ignore[no-untyped-def]
    """Reset the values of a list's categories to 0."""
    for category in interests:
        work.wanted[category] = 0
        work.gains[category] = 0
    for place in chosen:
        for category in items.categories[work.firsts[place] : work.ends[place]]:
            work.chosen_of[category] = 0
            work.found[category] = 0


@compile_inner_kernel
def _used_widths(category_starts):  # type: ignore[no-untyped-def]
    """Return whether there are items of 1, 2, ... categories: bool ``[most categories of an item]``."""
    widths = category_starts[1:] - category_starts[:-1]
    used = np.zeros(widths.max(), np.bool_)
    for width in widths:
        if width > 0:
            used[width - 1] = True
    return used


@compile_kernel(
    "void(Array(float64, 1, 'C', readonly=True), Array(int64, 1, 'C', readonly=True),"
    " Array(int64, 1, 'C', readonly=True), Array(int64, 1, 'C', readonly=True), Array(int32, 1, 'C', readonly=True),"
    " Array(int64, 1, 'C', readonly=True), Array(int64, 1, 'C', readonly=True), Array(float32, 2, 'C', readonly=True),"
    " Array(float64, 1, 'C', readonly=True), Array(boolean, 1, 'C', readonly=True),"
    " Array(int64, 1, 'C', readonly=True), Array(int64, 1, 'C', readonly=True), float64, float64,"
    " int64[:, ::1], int64[::1])"
)
def choose(
    scores: np.ndarray,
    starts: np.ndarray,
    numbers: np.ndarray,
    category_starts: np.ndarray,
    categories: np.ndarray,
    at_most: np.ndarray,
    at_least: np.ndarray,
    vectors: np.ndarray,
    boosts: np.ndarray,
    is_available: np.ndarray,
    history_starts: np.ndarray,
    histories: np.ndarray,
    diversity: float,
    calibration: float,
    places: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Write the chosen places of each list, best first, to ``places`` and their number to ``counts``.

    A list is filled place by place with the candidate of the highest value, the first among equals. The value is
    ``(1 - diversity - calibration) * relevance - diversity * similarity - calibration * divergence``: of MMR (Carbonell
    and Goldstein 1998), the largest cosine to a chosen candidate, at least 0; of calibration (Steck 2018), the
    Kullback-Leibler divergence of the list's categories from those of the history.

    Args:
        scores: float64 ``[candidates]`` of all lists.
        starts: int64 ``[lists + 1]``.
        numbers: int64 ``[candidates]``, numbers of items.
        category_starts: As in :class:`recommending.reranking.ItemAttributes`, like the next six.
        categories: Numbers of categories.
        at_most: Largest number of candidates by category.
        at_least: Smallest number of candidates by category.
        vectors: Vectors of items.
        boosts: Boosts of items.
        is_available: Whether an item may be chosen.
        history_starts: int64 ``[lists + 1]``.
        histories: int64, numbers of items of all histories.
        diversity: Weight.
        calibration: Weight.
        places: int64 ``[lists, k]``.
        counts: int64 ``[lists]``.
    """
    longest = (starts[1:] - starts[:-1]).max() if len(counts) else 0
    widths = _used_widths(category_starts)
    items = _Items(categories, at_most, at_least, vectors)
    work = _Work(
        np.empty(longest),
        np.empty(longest),
        np.empty(longest),
        np.empty(longest, np.int64),
        np.empty(longest, np.int64),
        np.empty(longest, np.int64),
        np.zeros(len(at_most), np.int64),
        np.zeros(len(at_most), np.int64),
        np.zeros(len(at_most)),
        np.zeros(len(at_most)),
        np.zeros((len(at_most), len(widths))),
        widths,
    )
    all_interests, in_order, has_least = np.empty(len(at_most), np.int64), np.arange(longest), at_least.any()
    weight = 1 - diversity - calibration
    for number in range(len(counts)):
        own, size = numbers[starts[number] : starts[number + 1]], starts[number + 1] - starts[number]
        bounds = work.bounds[:size]
        _relevance(scores[starts[number] : starts[number + 1]], own, boosts, is_available, weight, bounds)
        for place in range(size):
            work.firsts[place], work.ends[place] = category_starts[own[place]], category_starts[own[place] + 1]
            work.uppers[place], work.similarity[place], work.compared[place] = bounds[place], 0, 0
        order = _ordered(bounds, in_order)
        all_missing = _count_missing(size, items, work) if has_least else 0
        interests = all_interests[:0]
        if calibration > 0:
            history = histories[history_starts[number] : history_starts[number + 1]]
            interests = all_interests[: _interests(history, category_starts, categories, work.wanted, all_interests)]
        counts[number] = _fill(own, order, interests, all_missing, diversity, calibration, items, work, places[number])
        _forget(interests, places[number, : counts[number]], items, work)
        if has_least:
            work.missing[:] = 0
