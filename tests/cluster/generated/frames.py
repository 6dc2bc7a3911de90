"""Tables of pandas in memory, with columns of all its types, by a seed."""

import random
import uuid
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from tests.cluster.generated.csv_files import NAMES, TEXTS, WIDE_NAMES, WIDE_TEXTS

_WORDS = TEXTS + WIDE_TEXTS
_START = pd.Timestamp("2024-02-29 03:04:05.123456")


def _moments(rng: random.Random, rows: int) -> list[pd.Timestamp | None]:
    return [_START + pd.Timedelta(seconds=rng.randint(-(10**8), 10**8)) for _ in range(rows)]


def _with_gaps(rng: random.Random, values: Sequence[Any], gap: Any) -> list[Any]:
    share = rng.choice((0.0, 0.3))
    return [gap if rng.random() < share else value for value in values]


def _drawn(draw: Callable[[random.Random], Any], dtype: Any = object, gap: Any = None) -> Callable[..., pd.Series]:
    def column(rng: random.Random, rows: int) -> pd.Series:
        return pd.Series(_with_gaps(rng, [draw(rng) for _ in range(rows)], gap), dtype=dtype)

    return column


def _whole(rng: random.Random) -> int:
    return rng.randint(0, 9)


def _day(rng: random.Random) -> date:
    return date(2024, 2, 29) + timedelta(rng.randint(-999, 999))


def _word(rng: random.Random) -> str:
    return rng.choice(_WORDS)


# The columns that Spark can hold, then those that it cannot, which are left out.
HELD: Sequence[Callable[[random.Random, int], pd.Series]] = (
    *(_drawn(_whole, dtype, pd.NA) for dtype in ("Int8", "Int64", "UInt8", "UInt64", "Float32", "Float64")),
    *(_drawn(_whole, dtype, 0) for dtype in ("int8", "int64", "uint16", "uint64", "float32", "float64", "float16")),
    *(_drawn(_whole, dtype, pd.NA) for dtype in ("int64[pyarrow]", "double[pyarrow]", "uint8[pyarrow]")),
    *(_drawn(_word, dtype, pd.NA) for dtype in ("string", "string[pyarrow]", "large_string[pyarrow]", "category")),
    *(_drawn(_word, object, gap) for gap in (None, np.nan, pd.NA)),
    *(_drawn(lambda rng: rng.random() < 0.5, dtype, gap) for dtype, gap in
      (("bool", False), ("boolean", pd.NA), (object, None), (object, np.nan), ("bool[pyarrow]", pd.NA))),
    _drawn(_whole, object), _drawn(_whole, object, np.nan), _drawn(_whole, "category"),
    _drawn(lambda rng: rng.random() < 0.5, "category"), _drawn(lambda rng: 2.5 * rng.randint(0, 3), "category"),
    _drawn(lambda rng: rng.uniform(-1, 1), "float64", np.nan),
    _drawn(lambda rng: rng.choice((np.inf, -np.inf, 0.5)), "float64", np.nan),
    _drawn(lambda rng: Decimal(rng.randint(-99, 99)) / 4), _drawn(_day), _drawn(_day, object, pd.NaT),
    _drawn(lambda rng: datetime(2024, 2, 29, 3, rng.randint(0, 59))), _drawn(lambda rng: rng.randbytes(3)),
    _drawn(lambda rng: [rng.random() for _ in range(3)]), _drawn(lambda rng: np.array([1.5, rng.random()])),
    _drawn(lambda rng: [_word(rng)]), _drawn(lambda rng: {"a": 1, "b": _word(rng)}),
    _drawn(lambda rng: np.str_(_word(rng))), _drawn(lambda rng: np.int64(3), object, None),
    _drawn(_day, "date32[pyarrow]"),
    *((lambda rng, rows, unit=unit: pd.Series(_with_gaps(rng, _moments(rng, rows), pd.NaT)).dt.as_unit(unit))
      for unit in ("s", "ms", "us", "ns")),
    *((lambda rng, rows, zone=zone: pd.Series(_with_gaps(rng, _moments(rng, rows), pd.NaT)).dt.tz_localize(zone))
      for zone in ("UTC", "+05:30")),
    lambda rng, rows: pd.Series(_moments(rng, rows), dtype="timestamp[ns][pyarrow]"),
    lambda rng, rows: pd.Series(_with_gaps(rng, [pd.Timedelta(seconds=_whole(rng)) for _ in range(rows)], pd.NaT)),
    lambda rng, rows: pd.Series([pd.NaT] * rows), lambda rng, rows: pd.Series([None] * rows),
    lambda rng, rows: pd.Series([np.nan] * rows), lambda rng, rows: pd.Series([pd.NA] * rows),
    lambda rng, rows: pd.Series(pd.arrays.SparseArray([_whole(rng) % 2 for _ in range(rows)])),
    lambda rng, rows: pd.Series(pd.arrays.SparseArray([rng.choice((np.nan, 1.5)) for _ in range(rows)])),
    lambda rng, rows: pd.Series(pd.arrays.SparseArray([rng.random() < 0.5 for _ in range(rows)])),
)  # fmt: skip
NOT_HELD: Sequence[Callable[[random.Random, int], pd.Series]] = (
    lambda rng, rows: pd.Series(pd.period_range("2024-01", periods=rows, freq="M")),
    lambda rng, rows: pd.Series(pd.arrays.IntervalArray.from_breaks(range(rows + 1))),
    _drawn(lambda rng: uuid.UUID(int=rng.getrandbits(128))), _drawn(lambda rng: time(rng.randint(0, 23))),
    _drawn(lambda rng: 2**70 + rng.randint(0, 9)), _drawn(lambda rng: complex(1, rng.random()), "complex128", 1j),
    lambda rng, rows: pd.Series([1, "a", 2.5][i % 3] for i in range(rows + 1)).iloc[:rows].set_axis(range(rows)),
    _drawn(lambda rng: object()), _drawn(lambda rng: "\ud800"),
)  # fmt: skip


def frame_of(seed: int) -> pd.DataFrame:
    """Return the table of a seed."""
    rng = random.Random(seed)
    rows = rng.randint(1, 30)
    names = rng.sample(NAMES + WIDE_NAMES, rng.randint(1, 8))
    draws = [rng.choice(HELD) if rng.random() < 0.85 else rng.choice(NOT_HELD) for _ in names]
    frame = pd.DataFrame({name: draw(rng, rows) for name, draw in zip(names, draws, strict=True)})
    index = rng.choice((None, None, pd.RangeIndex(5, 5 + rows), pd.Index([f"r{row}" for row in range(rows)], name="k")))
    return frame if index is None else frame.set_axis(index)
