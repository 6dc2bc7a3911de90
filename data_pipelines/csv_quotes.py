"""Quotes of CSV files: cells in quotes, and a cell whose first quote has no end: it would hold the rest of its file."""

import re
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

# The rest of a cell in quotes, whose own quotes are doubled.
_END_OF_QUOTES = re.compile(r'(?:[^"]++|"")*+"(?!")')
_LINE_BREAK = r"[\r\n]"


def quoted_cells(between: str) -> str:
    """Return the expression of cells in quotes, given that of the characters that may separate them."""
    return rf'(?:^|(?<=[{between}\r\n]))"(?:[^"]++|"")*+"(?=[{between}\r\n]|$)'


def open_quote(lines: Iterable[str], separator: str) -> int:
    """Return the line, from 1, in which a cell begins whose quotes do not end; 0 if there is none."""
    begins = re.compile(rf'(?:^|{re.escape(separator)})"')
    found = 0
    for number, line in enumerate(lines, 1):
        place = 0 if found or '"' in line else -1
        while place >= 0:
            edge = _END_OF_QUOTES.match(line, place) if found else begins.search(line, place)
            place = edge.end() if edge else -1
            found = (0 if found else number) if edge else found
    return found


def may_be_open(cells: Sequence[pa.Array]) -> bool:
    """Return whether an open quote may have swallowed the rest of a file, given the columns of some rows.

    The last cell of a row then holds a line break. A healthy one may hold one, too.
    """
    has_later = pa.scalar(False)
    for column in reversed(cells):
        if pc.any(pc.and_not(pc.fill_null(pc.match_substring_regex(column, _LINE_BREAK), False), has_later)).as_py():
            return True
        has_later = pc.or_(has_later, column.is_valid())
    return False


def has_breaks(spark: SparkSession, uri: str, separator: str) -> bool:
    """Return whether a line has a cell whose quotes do not end in it, as the first line of a line break has."""
    between = re.escape(separator)
    rest = F.regexp_replace("value", quoted_cells(between), "")
    return bool(spark.read.text(uri).where(F.contains("value", F.lit('"')) & rest.rlike(rf'(^|{between})"')).take(1))
