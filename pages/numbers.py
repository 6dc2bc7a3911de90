"""Numbers as readers see them: with a few significant digits."""

import math

DASH = "-"


def short_number(value: float) -> str:
    """Return a number for an axis: at most four digits, and a letter for thousands and above."""
    size = abs(value)
    if size >= 1e15 or (value and size < 1e-4):
        return f"{value:.2g}"
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            scale = 1e3 if letter == "k" else unit
            return f"{_plain(value / scale)}{letter}"
    return _plain(value)


def in_digits(value: float, digits: int = 4, *, sign: str = "") -> str:
    """Return a number with ``digits`` significant digits; large ones are whole numbers in groups of three.

    Numbers from 10**12 on are in scientific notation. With ``sign`` ``+``, positive numbers have a sign, too.
    """
    if not 10**digits <= abs(value) < 1e12:
        return f"{value:{sign}.{digits}g}"
    return f"{float(f'{value:.{digits}g}'):{sign},.0f}"


def fixed_number(value: float, *, sign: str = "") -> str:
    """Return a number of a column: with four decimals, or with four significant digits if it is very small or large."""
    has_decimals = value == 0 or 1e-3 <= abs(value) < 1e4
    return f"{value:{sign}.4f}" if has_decimals else in_digits(value, sign=sign)


def digits_or_dash(value: float | None) -> str:
    """Return a number with four significant digits, or a dash where there is none."""
    return DASH if value is None or math.isnan(value) else in_digits(value)


def _plain(value: float) -> str:
    digits = f"{value:.4g}"
    return f"{float(digits):g}" if "e" in digits else digits
