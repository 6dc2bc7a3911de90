"""Round values along an axis, and their texts."""

import math
from collections.abc import Sequence
from itertools import pairwise

_MOST_TICKS = 5
# Least size, unit and its letter.
_UNITS = ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))


def round_ticks(low: float, high: float) -> list[float]:
    """Return up to five round values between two ends: multiples of 1, 2 or 5 times a power of ten."""
    span = high / 2 - low / 2
    if not (span > 0 and math.isfinite(span)):
        return [low]
    rough = span / _MOST_TICKS * 2
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 1e-300 else span
    for step in (power, 2 * power, 5 * power, 10 * power):
        first, last = math.ceil(low / step), math.floor(high / step)
        if last - first < _MOST_TICKS:
            return [multiple * step for multiple in range(first, last + 1)] or [low]
    return [low, high]


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Return the texts of equally spaced ticks, with as many decimals and the same unit in all of them."""
    size = max(map(abs, ticks), default=0.0)
    step = min((abs(after - before) for before, after in pairwise(ticks)), default=size)
    if size and not 1e-3 <= size < 1e15:
        digits = max(0, math.floor(math.log10(size)) - math.floor(math.log10(step))) if step else 0
        return [f"{tick:.{digits}e}" if tick else "0" for tick in ticks]
    scale, letter = next(((unit, of) for least, unit, of in _UNITS if size >= least), (1.0, ""))
    # Multiples of a decimal step are off by rounding.
    decimals = max(0, -math.floor(math.log10(step / scale) + 1e-9)) if step else 2
    return [f"{tick / scale:.{decimals}f}{letter if tick else ''}" for tick in ticks]
