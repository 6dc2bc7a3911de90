"""Tables of :data:`TYPES` as pandas has them where values are missing, for the tests of every scorer."""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa


def _floats(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas()
    return frame.assign(member=_with(table, "member", np.nan).astype(float))


def _with(table: pa.Table, name: str, missing: Any) -> pd.Series:
    values = table[name].to_pylist()
    return pd.Series([missing if value is None else value for value in values], dtype=object)


def _objects(missing: Any) -> Callable[[pa.Table], pd.DataFrame]:
    def made(table: pa.Table) -> pd.DataFrame:
        frame = pd.DataFrame({name: _with(table, name, missing) for name in table.column_names})
        return _with_codes(frame, table, missing)

    return made


def _with_codes(frame: pd.DataFrame, table: pa.Table, missing: Any) -> pd.DataFrame:
    """Return the table with missing elements in its lists, too."""
    if "codes" not in table.column_names:
        return frame
    codes = [
        one if one is None else [missing if of is None else of for of in one] for one in table["codes"].to_pylist()
    ]
    return frame.assign(codes=pd.Series(codes, dtype=object))


def _nullable(table: pa.Table) -> pd.DataFrame:
    types = {
        pa.int32(): pd.Int32Dtype(),
        pa.int64(): pd.Int64Dtype(),
        pa.float64(): pd.Float64Dtype(),
        pa.bool_(): pd.BooleanDtype(),
        pa.string(): pd.StringDtype(),
    }
    return table.to_pandas(types_mapper=types.get)


def _categories(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas()
    names = ("store", "shop", "size", "mood", "member")
    return frame.assign(**{name: frame[name].astype("category") for name in names})


def _decimals(table: pa.Table) -> pd.DataFrame:
    def decimals(name: str, missing: Any) -> pd.Series:
        return pd.Series([missing if one is None else Decimal(one) for one in table[name].to_pylist()], dtype=object)

    nan = Decimal("NaN")
    return table.to_pandas().assign(
        store=decimals("store", None), visits=decimals("visits", nan), price=decimals("price", nan)
    )


FORMS: Mapping[str, Callable[[pa.Table], pd.DataFrame]] = {
    "floats": _floats,
    "objects with None": _objects(None),
    "objects with NaN": _objects(np.nan),
    "objects with NA": _objects(pd.NA),
    "objects with NaT": _objects(pd.NaT),
    "nullable": _nullable,
    "categories": _categories,
    "decimals": _decimals,
}
"""Each makes of the table the same rows in other types."""

NOTHING: Mapping[str, Any] = {
    "None": [None],
    "NaN": [np.nan],
    "NA": [pd.NA],
    "NaT": pd.Series([pd.NaT], dtype="datetime64[us, UTC]"),
    "Int64": pd.Series([pd.NA], dtype="Int64"),
    "string": pd.Series([pd.NA], dtype="string"),
    "category": pd.Series([None], dtype="category"),
    "decimal": [Decimal("NaN")],
}
"""A column whose only value is missing, in each of pandas' types."""

WRONG: list[tuple[str, Any]] = [
    ("store", 2.5),
    ("store", np.inf),
    ("member", 2.0),
    ("shop", 7.5),
    ("mood", 7),
    ("amount", "far"),
    ("codes", "1"),
]
"""Values of another kind than in training, by their column."""
