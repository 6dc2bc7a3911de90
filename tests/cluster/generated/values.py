"""Comparison of the values that a table has with those that were written."""

import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

Columns = Mapping[str, Sequence[Any]]


def plain(value: Any) -> Any:
    """Return a value of Arrow, NumPy or pandas as the value of Python that it stands for; NaN is None."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, pd.Timestamp | pd.Timedelta):
        value = value.floor("us").to_pytimedelta() if isinstance(value, pd.Timedelta) else _moment(value)
    if isinstance(value, np.generic):
        return plain(value.item() if not isinstance(value, np.datetime64) else pd.Timestamp(value))
    if isinstance(value, float | Decimal) and math.isnan(value):
        return None
    if isinstance(value, datetime):
        # Spark's moments have a zone or none; those at midnight may be days.
        value = value.replace(tzinfo=None) - (value.utcoffset() or timedelta())
        return value.date() if value.time() == time() else value
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    return bytes(value) if isinstance(value, bytearray | memoryview) else value


def _moment(value: pd.Timestamp) -> datetime:
    return value.floor("us").to_pydatetime()


def same(found: Any, written: Any) -> bool:
    """Return whether two values are the same to a user: 7 is 7.0, and not "7" or True."""
    found, written = plain(found), plain(written)
    if isinstance(found, bool) or isinstance(written, bool) or found is None or written is None:
        return found is written
    numbers = (int, float, Decimal)
    if isinstance(found, numbers) and isinstance(written, numbers):
        if isinstance(found, float) or isinstance(written, float):
            return math.isclose(float(found), float(written), rel_tol=1e-15, abs_tol=0) or found == written
        return found == written
    if isinstance(found, list) and isinstance(written, list):
        return len(found) == len(written) and all(map(same, found, written))
    if isinstance(found, dict) and isinstance(written, dict):
        return found.keys() == written.keys() and all(same(found[name], written[name]) for name in found)
    if isinstance(found, date) and isinstance(written, str):
        return found == _read(written)
    return type(found) is type(written) and found == written


def _read(text: str) -> Any:
    try:
        return plain(pd.Timestamp(text.strip()))
    except ValueError:
        return None


def difference(found: Sequence[Any], written: Sequence[Any]) -> str | None:
    """Return the first difference between two columns in words; None if they are the same."""
    if len(found) != len(written):
        return f"{len(found)} rows of {len(written)}"
    for row, (one, other) in enumerate(zip(found, written, strict=True)):
        if not same(one, other):
            return f"row {row} is {plain(one)!r}, written was {other!r}"
    return None
