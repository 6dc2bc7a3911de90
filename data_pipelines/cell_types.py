"""Types of a CSV file's columns: facts on their cells, which decide the type, and the value of a cell in that type."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import DataType, IntegralType, NumericType, StringType

from mirrorspark.spark_session import versions

MISSING = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
"""The cells that are missing values in every column, as in ``pandas.read_csv``."""

MISSING_NUMBERS = (
    "?", "-", "--", "\u2013", "\u2014", ".", "..", "*", "na", "n/a", "n.a.", "nan", "null", "none", "nil", "missing",
    "unknown", "#n/a", "#na", "#null!", "#ref!", "#div/0!", "#value!", "#num!", "#name?", "<na>",
    "\\n", "0000-00-00", "0000-00-00 00:00:00",  # as databases write them
)  # fmt: skip
"""The cells, in lower case, that are missing values as well in a column whose other cells are all numbers or days."""

# The most digits of 64 bits.
_LONG_DIGITS = 19
_BLANKS = " \t\r\n\u00a0"
_INTEGER = r"^[+-]?[0-9]+$"
_WHOLE_FRACTION = r"^[+-]?[0-9]+\.0*$"
_NUMBER = r"^[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|(?i:inf|infinity))$"
_COMMA = r"^[+-]?([0-9]*|[0-9]{1,3}(\.[0-9]{3})+),[0-9]+$"
_THOUSANDS = r"^[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+$"
# With marks of thousands that cannot be those of decimals.
_GROUPED = (
    r"^[+-]?[0-9]{1,3}(([ '\x{2019}\x{a0}\x{202f}][0-9]{3})+([.,][0-9]+)?|(,[0-9]{3})+\.[0-9]+|"
    r"(,[0-9]{3}){2,}|(\.[0-9]{3}){2,})$"
)
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
_MOMENT = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?"
_ZONE = "(Z|[+-][0-9]{2}(:?[0-9]{2})?)"  # databases write whole hours alone
_ZONED_TIME = rf"{_MOMENT}{_ZONE}$"
_TIME = rf"{_MOMENT}{_ZONE}?$"


@dataclass(frozen=True)
class CellFacts:
    """Facts on the cells of a column, which decide its type; counts are of different cells within a batch.

    Attributes:
        n: Cells that are not missing in every column.
        words: Cells out of :data:`MISSING_NUMBERS`.
        numbers: Cells that are numbers with a point or none, integers among them.
        commas: Cells that are numbers if a comma marks the decimals.
        ambiguous: The ones of ``commas`` that are numbers as well if a comma divides thousands.
        grouped: Cells that are numbers but for the marks that divide their thousands.
        zoned: The ones of ``times`` that have a time zone.
        least, most: The range of the integers; 0 beyond 64 bits.
        digits: Digits of the longest integer; 20 beyond 64 bits.
        replaced: Cells with the character that stands for undecodable bytes.
        escaped: Cells that begin with a quote and hold one after a backslash.
        others: Examples of cells that are not numbers.
        missing: Examples of ``words``.
    """

    n: int = 0
    words: int = 0
    integers: int = 0
    numbers: int = 0
    commas: int = 0
    ambiguous: int = 0
    grouped: int = 0
    booleans: int = 0
    dates: int = 0
    times: int = 0
    zoned: int = 0
    least: int = 0
    most: int = 0
    digits: int = 0
    replaced: int = 0
    escaped: int = 0
    others: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @classmethod
    def of(cls, cells: pa.Array) -> "CellFacts":
        """Return the facts on some cells."""
        cells = pc.unique(cells.drop_null())
        replaced = _count(pc.match_substring(cells, "\ufffd"))
        escaped = _count(pc.match_substring(cells.filter(pc.starts_with(cells, '"')), '\\"'))
        cells = cells.filter(pc.invert(pc.is_in(cells, pa.array(MISSING, cells.type))))
        trimmed = pc.unique(pc.utf8_trim_whitespace(cells))
        is_word = pc.is_in(pc.utf8_lower(trimmed), pa.array(("", *MISSING_NUMBERS), cells.type))
        values = trimmed.filter(pc.invert(is_word))
        is_integer = pc.match_substring_regex(values, _INTEGER)
        is_number = pc.match_substring_regex(values, _NUMBER)
        integers, rest = values.filter(is_integer), values.filter(pc.invert(is_number))
        digits = pc.max(pc.utf8_length(pc.utf8_ltrim(integers, "+-"))).as_py() or 0
        bounds = {"min": 0, "max": 0}
        if 0 < digits <= _LONG_DIGITS:
            try:
                bounds = pc.min_max(pc.cast(pc.utf8_ltrim(integers, "+"), pa.int64())).as_py()
            except pa.ArrowInvalid:
                digits = _LONG_DIGITS + 1
        return cls(
            n=len(trimmed),
            words=_count(is_word),
            integers=len(integers),
            numbers=_count(is_number),
            commas=_matches(rest, _COMMA),
            ambiguous=_matches(rest, _THOUSANDS),
            grouped=_matches(rest, _GROUPED),
            booleans=_count(pc.is_in(pc.utf8_lower(rest), pa.array(["true", "false"], cells.type))),
            dates=_matches(rest, _DATE) if _are(rest.filter(pc.match_substring_regex(rest, _DATE)), pa.date32()) else 0,
            times=_matches(rest, _TIME) if _are_times(rest) else 0,
            zoned=_matches(rest, _ZONED_TIME),
            least=bounds["min"],
            most=bounds["max"],
            digits=digits,
            replaced=replaced,
            escaped=escaped,
            others=tuple(rest[:3].to_pylist()),
            missing=tuple(trimmed.filter(is_word)[:3].to_pylist()),
        )

    @classmethod
    def of_all(cls, parts: Iterable["CellFacts"]) -> "CellFacts":
        """Return the facts on the cells of all ``parts``."""
        all_ = list(parts)
        if not all_:
            return cls()
        counts = (
            "n", "words", "integers", "numbers", "commas", "ambiguous", "grouped", "booleans", "dates", "times",
            "zoned", "replaced", "escaped",
        )  # fmt: skip
        return cls(
            **{name: sum(getattr(part, name) for part in all_) for name in counts},
            least=min(part.least for part in all_),
            most=max(part.most for part in all_),
            digits=max(part.digits for part in all_),
            others=tuple(dict.fromkeys(word for part in all_ for word in part.others))[:3],
            missing=tuple(dict.fromkeys(word for part in all_ for word in part.missing))[:3],
        )

    def remarks(self, kind: str, *, has_commas: bool) -> list[tuple[int, str]]:
        """Return the remarks on a column that is read as ``kind``, each with its level of logging."""
        found = []
        if self.escaped:
            found.append(
                (
                    logging.WARNING,
                    "has quotes after backslashes within quotes, and such cells are read as they are written; write "
                    "doubled quotes, as Spark does with option('escape', '\"')",
                )
            )
        if kind != "string":
            if self.words:
                found.append((logging.INFO, f"has missing values that are written {self.missing}"))
            if has_commas:
                found.append((logging.INFO, "has commas as marks of decimals"))
        elif reason := self._reason_for_text():
            found.append((logging.WARNING, f"is read as text{reason}"))
        return found

    def _reason_for_text(self) -> str:
        """Return why a column that may be meant as numbers is text, with the remedy; empty if it is meant as text."""
        if self.commas and self.commas == self.ambiguous and self.numbers + self.commas + self.words == self.n:
            return ": its commas may divide thousands or decimals; write its numbers without commas"
        if self.grouped and self.numbers + self.commas + self.grouped + self.words >= self.n:
            return f": marks may divide the thousands of numbers such as {self.others}; write numbers without them"
        if self.integers and self.integers + self.words == self.n:
            return (
                ", because its whole numbers have more digits than a number keeps; leave it out if they only name a row"
            )
        if self.numbers * 2 >= self.n > 0:
            return f", because it has numbers and words such as {self.others}; write missing values as empty cells"
        return ""

    def kind(self) -> tuple[str, bool]:
        """Return the type in Spark's words, and whether a comma marks the decimals."""
        values = self.n - self.words
        if not values:
            return "string", False
        if self.integers == values:
            return self._integer_kind(), False
        if self.numbers == values:
            return "double", False
        if self.commas > self.ambiguous and self.commas + self.integers == values and self.numbers == self.integers:
            return "double", True
        if self.booleans == self.n:
            return "boolean", False
        if self.dates == values:
            return "date", False
        if self.dates + self.times == values:
            return "timestamp" if self.zoned else "timestamp_ntz", False  # as a table in memory has them
        return "string", False

    def _integer_kind(self) -> str:
        if self.digits > _LONG_DIGITS + 1:
            return "string"  # an identifier, of which no digit may be lost
        if self.digits > _LONG_DIGITS:
            return "decimal(20,0)"
        return "int" if self.least >= -(2**31) and self.most < 2**31 else "bigint"


def typed_cell(
    cell: Column, kind: str | DataType, file: str, name: str, *, null: str = "", has_commas: bool = False
) -> Column:
    """Return a cell's value in its column's type; a cell that does not fit raises an error when it is read.

    Args:
        cell: The text of the cell.
        kind: The column's type.
        file: The file or folder, for the error.
        name: The column, for the error.
        null: A further text that stands for null.
        has_commas: Whether a comma marks the decimals.
    """
    words = [*MISSING, null]
    if kind == "string" or isinstance(kind, StringType):
        return F.when(~cell.isin(words), cell)
    text = F.btrim(cell, F.lit(_BLANKS))
    shown = F.when(~(cell.isin(words) | text.isin(words) | F.lower(text).isin(list(MISSING_NUMBERS))), text)
    value = F.translate(shown, ",.", ".") if has_commas else shown
    if isinstance(kind, NumericType):  # Java's numbers may end in d or f
        value = F.when(value.rlike(r"[dDfF]$") & ~value.rlike("(?i)inf$"), None).otherwise(value)
    if isinstance(kind, IntegralType):  # pandas writes 3.0 in a column of whole numbers with a missing value
        value = F.when(value.rlike(_WHOLE_FRACTION), F.regexp_replace(value, r"\.0*$", "")).otherwise(value)
    message = F.concat(
        F.lit(f"{file}: column '{name}' is "),
        F.lit(kind if isinstance(kind, str) else kind.simpleString()),
        F.lit(", but has the cell '"),
        shown,
        F.lit("'; correct the cell, empty it, or give the column another type"),
    )
    refused = F.when(shown.isNotNull(), F.raise_error(message))
    return F.coalesce(versions.try_cast(value, kind), refused.cast(kind))


def _count(mask: pa.Array) -> int:
    return pc.sum(mask).as_py() or 0


def _matches(values: pa.Array, pattern: str) -> int:
    return _count(pc.match_substring_regex(values, pattern))


def _are(values: pa.Array, kind: pa.DataType) -> bool:
    try:
        pc.cast(values, kind)
    except pa.ArrowInvalid:
        return False
    return True


def _are_times(values: pa.Array) -> bool:
    """Return whether the values in the form of a time are times: none on the 31st of February.

    Of nanoseconds, as pandas writes them, Spark reads the microseconds.
    """
    times = values.filter(pc.match_substring_regex(values, _TIME))
    times = pc.replace_substring_regex(times, r"(\.[0-9]{6})[0-9]+", r"\1")
    has_zone = pc.match_substring_regex(times, _ZONED_TIME)
    zoned, plain = times.filter(has_zone), times.filter(pc.invert(has_zone))
    return _are(zoned, pa.timestamp("us", "UTC")) and _are(plain, pa.timestamp("us"))
