"""Dates and times of day written as text, as numbers of days: their forms, and the arithmetic of the calendar.

The patterns are read by RE2 (Arrow, TensorFlow) and by Java (Spark), and the arithmetic works on arrays of either
library, so conversion, scoring and the exported graph agree in every bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DateOrder = Literal["ymd", "dmy", "mdy", "time"]
"""The order of year, month and day in a text: ``2024-01-31``, ``31.1.2024``, ``1/31/2024``; or a time of day alone."""

DATE_ORDERS: tuple[DateOrder, ...] = get_args(DateOrder)

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MICROSECONDS_OF_A_DAY = 86_400_000_000

# The groups of a pattern; `half` is the first letter of AM or PM.
GROUPS = ("year", "month", "day", "hour", "minute", "second", "fraction", "half", "zone")

_YEAR = r"(\d{4})"
_NAMES = (
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    "|nov(?:ember)?|dec(?:ember)?"
)
_MONTH = rf"(1[0-2]|0?[1-9]|(?i:{_NAMES}))"
_DAY = r"(3[01]|[12]\d|0?[1-9])"
_WEEKDAY = r"(?:(?i:mon|tue|wed|thu|fri|sat|sun)[a-z]*,? +)?"
_CLOCK = (
    r"(2[0-3]|[01]?\d):([0-5]\d)(?::([0-5]\d)(?:[.,](\d{1,9}))?)?(?: ?([AaPp])\.?[Mm]\.?)?"
    r"(?: ?(Z|z|UTC|GMT|[+-]\d{2}(?::?\d{2})?))?"
)
_DATES: Mapping[DateOrder, tuple[str, tuple[str, ...]]] = {
    "ymd": (rf"{_YEAR}[-/.]{_MONTH}[-/.]{_DAY}", ("year", "month", "day")),
    "dmy": (rf"{_WEEKDAY}{_DAY}[-/. ]+{_MONTH}[-/., ]+{_YEAR}", ("day", "month", "year")),
    # Nobody writes the month first with dots, so dots rule this order out.
    "mdy": (rf"{_WEEKDAY}{_MONTH}[-/ ]+{_DAY}[-/, ]+{_YEAR}", ("month", "day", "year")),
}


@dataclass(frozen=True)
class DatePattern:
    """The form of the texts of an order.

    Attributes:
        expression: A regular expression of the whole text, with groups without names.
        groups: Names of the groups in their order.
        example: A text that has this form.
    """

    expression: str
    groups: tuple[str, ...]
    example: str

    @property
    def named(self) -> str:
        """The expression with Arrow's names of groups."""
        parts = self.expression.split("(")
        names = iter(self.groups)
        return parts[0] + "".join(
            f"({part}" if part.startswith("?") else f"(?P<{next(names)}>{part}" for part in parts[1:]
        )


def _pattern(order: DateOrder) -> DatePattern:
    clock = GROUPS[3:]
    if order == "time":
        return DatePattern(rf"^\s*{_CLOCK}\s*$", clock, "00:00")
    date, groups = _DATES[order]
    examples = {"year": "1970", "month": "01", "day": "01"}
    example = "-".join(examples[group] for group in groups)
    return DatePattern(rf"^\s*{date}(?:(?:T|,? +){_CLOCK})?\s*$", (*groups, *clock), example)


DATE_PATTERNS: Mapping[DateOrder, DatePattern] = {order: _pattern(order) for order in DATE_ORDERS}


def microseconds(parts: Mapping[str, Any], where: Callable[[Any, Any, Any], Any]) -> tuple[Any, Any]:
    """Return the int64 microseconds since 1970 of dates, and whether there is such a day.

    Args:
        parts: int64 arrays of a library by name: those of :data:`GROUPS`, where ``half`` is 1 for AM, 2 for PM and
            ``zone`` the minutes that the time is ahead of UTC.
        where: The library's choice between two arrays of int64.

    Source: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", ``days_from_civil``.
    """
    year, month, day = parts["year"], parts["month"], parts["day"]
    is_leap = ((year % 4 == 0) & (year % 100 != 0)) | (year % 400 == 0)
    # From March on, 31 and 30 days alternate, with an extra step from July to August.
    length = where(month == 2, where(is_leap, 29 + 0 * day, 28 + 0 * day), 30 + (month + month // 8) % 2)
    shifted = where(month <= 2, year - 1, year)
    era = shifted // 400
    of_era = shifted - era * 400
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    days = era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468
    hour = where(parts["half"] > 0, parts["hour"] % 12 + 12 * (parts["half"] - 1), parts["hour"])
    minutes = (days * 24 + hour) * 60 + parts["minute"] - parts["zone"]
    return (minutes * 60 + parts["second"]) * 1_000_000 + parts["fraction"], day <= length


def orders_read(order: DateOrder) -> tuple[DateOrder, ...]:
    """Return the orders in which texts of a feature are read: its own, and ISO 8601, in which dates of types come."""
    return (order,) if order in ("ymd", "time") else (order, "ymd")


def days_of_texts(texts: pa.StringArray, order: DateOrder) -> np.ndarray:
    """Return float64 ``[texts]``: days since the start of 1970 in UTC, NaN for null and for a text without a date."""
    days = _days_in_order(texts, order)
    for other in orders_read(order)[1:]:
        days = np.where(np.isnan(days), _days_in_order(texts, other), days)
    return days


def _days_in_order(texts: pa.StringArray, order: DateOrder) -> np.ndarray:
    # Most dates of a column come many times.
    coded = texts.dictionary_encode()
    found = pc.extract_regex(coded.dictionary, DATE_PATTERNS[order].named)
    is_date = found.is_valid().to_numpy(zero_copy_only=False)
    fields = {name: pc.struct_field(found, name).fill_null("") for name in DATE_PATTERNS[order].groups}
    parts = {name: _numbers(name, fields[name]) for name in fields}
    parts |= {name: np.ones(len(found), np.int64) for name in GROUPS[:3] if name not in parts}
    if order == "time":
        parts["year"] = np.full(len(found), 1970, np.int64)
    instants, is_day = microseconds(parts, np.where)
    days = np.where(is_date & is_day, instants.astype(np.float64) / MICROSECONDS_OF_A_DAY, np.nan)
    places = coded.indices.fill_null(len(days)).to_numpy(zero_copy_only=False)
    return np.append(days, np.nan)[places]


def _numbers(name: str, field: pa.StringArray) -> np.ndarray:
    """Return the int64 numbers of one group; 0 for a text without it."""
    if name == "half":
        return _whole(pc.index_in(pc.ascii_lower(field), pa.array(["a", "p"])).fill_null(-1)) + 1
    if name == "zone":
        digits = pc.replace_substring(field, ":", "")
        is_offset = pc.match_substring_regex(digits, r"^[+-]")
        hours, minutes = (
            _whole(_digits(pc.if_else(is_offset, pc.utf8_slice_codeunits(digits, start, start + 2), "")))
            for start in (1, 3)
        )
        return np.where(pc.starts_with(digits, "-"), -1, 1) * (hours * 60 + minutes)
    if name == "fraction":
        padded = pc.utf8_slice_codeunits(pc.binary_join_element_wise(field, "000000", ""), 0, 6)
        return _whole(padded)
    if name == "month":
        of_name = pc.index_in(pc.utf8_slice_codeunits(pc.ascii_lower(field), 0, 3), pa.array(MONTHS))
        is_name = of_name.is_valid()
        return np.where(is_name, _whole(of_name.fill_null(0)) + 1, _whole(_digits(pc.if_else(is_name, "", field))))
    return _whole(_digits(field))


def _digits(field: pa.StringArray) -> pa.StringArray:
    return pc.if_else(pc.equal(field, ""), "0", field)


def _whole(values: pa.Array) -> np.ndarray:
    return np.asarray(values.cast(pa.int64()).to_numpy(zero_copy_only=False))
