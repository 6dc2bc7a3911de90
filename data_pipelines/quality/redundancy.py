"""Measurement of redundant columns: values that determine each other, numbers that rise and fall together."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from mirrorspark.data_pipelines.quality.profile import Redundancy
from mirrorspark.data_pipelines.quality.raw_value_columns import RawValues

# Fewer rows show nothing.
_ENOUGH_ROWS = 50
# As many as hold a thousand columns in 40 MB.
_CORRELATED_ROWS = 5_000
_CORRELATION = 0.999
_LEAST_VARIANCE = 1e-12
# Beyond these quantiles numbers are cut: one wild row would correlate any two columns.
_RANGE = (0.01, 0.99)


def redundant_columns(columns: Mapping[str, RawValues]) -> tuple[Redundancy, ...]:
    """Return the columns that say the same as an earlier one, by their values in the same rows.

    Args:
        columns: Features by name; those with several values per row are not compared.
    """
    single = {name: values for name, values in columns.items() if values.codes is not None}
    found = {each.column: each for each in _same_values(single)}
    numbers = {name: values for name, values in single.items() if values.numbers is not None and name not in found}
    found |= {each.column: each for each in _correlated(numbers)}
    return tuple(found[name] for name in columns if name in found)


def _same_values(columns: Mapping[str, RawValues]) -> Iterator[Redundancy]:
    """Yield columns with a value for each value of an earlier column, and the other way round."""
    groups: dict[tuple[int, int], list[str]] = {}
    for name, values in columns.items():
        assert values.codes is not None  # noqa: S101 - the caller has left the others out
        distinct = int(values.codes.max(initial=-1)) + 1
        groups.setdefault((distinct, int((values.codes < 0).sum())), []).append(name)
    for (distinct, _), names in groups.items():
        first: dict[bytes, str] = {}
        for name in names if len(names) > 1 else ():
            codes = columns[name].codes
            # Where hardly any value repeats, each value of any column has one of any other.
            if codes is None or len(codes) < _ENOUGH_ROWS or not 2 <= distinct <= len(codes) / 2:
                continue
            # Numbered by first appearance, columns that determine each other are equal.
            same = first.setdefault(pd.factorize(codes)[0].tobytes(), name)
            if same != name:
                yield Redundancy(name, same)


def _correlated(columns: Mapping[str, RawValues]) -> Iterator[Redundancy]:
    """Yield columns of numbers whose correlation with an earlier one is close to 1 or -1."""
    names = list(columns)
    if len(names) < 2:
        return
    table = np.stack([_standardised(columns[name]) for name in names], axis=1)
    present = np.isfinite(table).astype(np.float64)
    values = np.where(np.isfinite(table), table, 0.0)
    # Of each pair by the rows that have both.
    rows = present.T @ present
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = values.T @ present / rows
        variance = (values**2).T @ present / rows - mean**2
        correlation = (values.T @ values / rows - mean * mean.T) / np.sqrt(variance * variance.T)
    # Of columns that are constant in their common rows the variance is a rounding error.
    varies = (variance > _LEAST_VARIANCE) & (variance.T > _LEAST_VARIANCE)
    is_same = (np.abs(correlation) > _CORRELATION) & (rows >= _ENOUGH_ROWS) & varies
    for place, name in enumerate(names):
        earlier = np.flatnonzero(is_same[place, :place])
        if len(earlier):
            yield Redundancy(name, names[earlier[0]], float(np.clip(correlation[place, earlier[0]], -1.0, 1.0)))


def _standardised(values: RawValues) -> np.ndarray:
    """Return the numbers of the first rows in units of their spread, NaN where there is none."""
    assert values.codes is not None and values.numbers is not None  # noqa: S101, PT018 - the caller chose them
    column = np.full(values.rows, np.nan)
    column[values.codes >= 0] = values.numbers
    column = column[:_CORRELATED_ROWS]
    known = column[np.isfinite(column)]
    if not len(known):
        return column
    low, high = np.quantile(known, _RANGE, method="inverted_cdf")
    with np.errstate(over="ignore", invalid="ignore"):
        half = (high / 2 - low / 2) or 1.0
        return np.asarray((np.clip(column, low, high) - low) / half)
