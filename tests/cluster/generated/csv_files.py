"""CSV files as people have them: small tables in the dialects of pandas, Excel, databases and hands, by a seed."""

import bz2
import gzip
import lzma
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

Cell = tuple[Any, str]
"""A value, and its text in the file."""

MISSING = ("", "", "", "NA", "N/A", "NULL", "null", "NaN", "nan", "None", "n/a", "<NA>", "#N/A")
MISSING_NUMBERS = ("?", "-", "--", "n.a.", "unknown", ".", "#REF!", " ", "NIL")
TEXTS = (
    "Bern", "Zürich", "São Paulo", "Ærø", 'say "hi", ok', "two\nlines", "two\r\nlines", "C:\\dir\\", "a\\", '6" pipe',
    "x;y", "a,b", "1|2", "tab\there", "don't", " blank before", "blank behind ", "-", "?", '"', '""', "=1+2", "#",
    "# a", "'", "\\N", "a\\nb", "\\", "5%", "$3.50", "12 kg", "1.2.3", "0x1F", "1_000", "true story", "NAN", "Na", "no",
    "I", "10:30", "2024", "e5", "1e5x", "1d", "2F", "--x", "\u00a0", "a\u00a0b",
)  # fmt: skip
WIDE_TEXTS = ("東京", "Łódź", "€ 5", "😀", "Ёлка", "שלום")
NAMES = ("a", "b", "row_id", "late", "x1", "Price EUR", "a.b", "is late?", "größe", "it's", 'say "x"', "a,b", "x;y",
         "$cost", "k=v", "`tick`", "tab\tname", "two\nlines", " before", "2024", "split", "a|b", "%", "x(1)", "c[0]",
         "{d}", "#id", "\\n", "_row", "value", "col/umn", "é")  # fmt: skip
WIDE_NAMES = ("年齢", "収入 (円)", "имя")
_DAY = date(2024, 2, 29)


def _text(rng: random.Random) -> Cell:
    value = rng.choice(TEXTS)
    return value, value


def _wide_text(rng: random.Random) -> Cell:
    value = rng.choice(TEXTS + WIDE_TEXTS)
    return value, value


def _integer(rng: random.Random) -> Cell:
    value = rng.randint(-50, 1000)
    return value, rng.choice((f"{value}", f"{value}", f"{value}", f" {value}", f"{value} ", f"{value:05d}"))


def _signed(rng: random.Random) -> Cell:
    value = rng.randint(-50, 50)
    return value, f"{value:+d}"


def _big(rng: random.Random) -> Cell:
    value = 2**53 + rng.randint(1, 99)
    return value, str(value)


def _unsigned(rng: random.Random) -> Cell:
    value = 2**63 + rng.randint(1, 99)
    return value, str(value)


def _identifier(rng: random.Random) -> Cell:
    value = str(10**22 + rng.randint(0, 99))
    return value, value


def _fraction(rng: random.Random) -> Cell:
    value = rng.choice((rng.uniform(-1, 1), rng.uniform(-1, 1) * 10 ** rng.randint(-20, 20), float(rng.randint(0, 9))))
    return value, rng.choice((repr(value), repr(value), f"{value!r} ", f"{value:E}" if value == 0 else repr(value)))


def _short_fraction(rng: random.Random) -> Cell:
    text = rng.choice((".5", "5.", "-.25", "+1.5", "1e3", "1E-3", "inf", "-inf", "Infinity", "-INF", "1e400"))
    return float(text), text


def _decimal_comma(rng: random.Random) -> Cell:
    value = round(rng.uniform(-9999, 9999), 2)
    text = f"{value:.2f}" if rng.random() < 0.6 else f"{value:,.2f}"
    return float(f"{value:.2f}"), text.translate(str.maketrans(",.", ".,"))


def _thousands(rng: random.Random) -> Cell:
    text = f"{rng.randint(1000, 10**7):,}"
    return text, text


def _boolean(rng: random.Random) -> Cell:
    value = rng.random() < 0.5
    return value, rng.choice((str(value), str(value), str(value).lower(), str(value).upper()))


def _yes(rng: random.Random) -> Cell:
    value = rng.choice(("yes", "no", "Y", "N"))
    return value, value


def _date(rng: random.Random) -> Cell:
    value = _DAY + timedelta(rng.randint(-9999, 9999))
    return value, value.isoformat()


def _moment(rng: random.Random) -> Cell:
    value = datetime(2024, 2, 29, 3, 4, 5) + timedelta(seconds=rng.randint(-(10**8), 10**8))
    value = value.replace(second=0) if rng.random() < 0.2 else value
    return value, value.isoformat(sep=rng.choice((" ", "T")), timespec="auto" if value.second else "minutes")


def _fine_moment(rng: random.Random) -> Cell:
    value = datetime(2024, 2, 29) + timedelta(microseconds=rng.randint(-(10**14), 10**14))
    return value, value.isoformat(sep=" ", timespec="microseconds") + rng.choice(("", "", "000"))


def _zoned_moment(rng: random.Random) -> Cell:
    value = datetime(2024, 2, 29, 3, 4, 5, tzinfo=UTC) + timedelta(seconds=rng.randint(-(10**8), 10**8))
    shown = value.astimezone(timezone(timedelta(hours=rng.choice((0, 2, -5)))))
    return value, shown.isoformat(sep=rng.choice((" ", "T"))).replace(
        "+00:00", rng.choice(("Z", "+00:00", "+0000", "+00"))
    )


def _other_date(rng: random.Random) -> Cell:
    day = _DAY + timedelta(rng.randint(-9999, 9999))
    text = day.strftime(rng.choice(("%d.%m.%Y", "%m/%d/%Y", "%d-%b-%Y", "%Y%m", "%Y/%m/%d", "%d.%m.%y")))
    return text, text


def _mixed(rng: random.Random) -> Cell:
    text = rng.choice(("1", "2.5", "x", "True", "2024-01-01", "old", "-3", "1e3", "007"))
    return text, text


# Each kind of column with the words for a missing value in it.
COLUMNS: Sequence[tuple[Callable[[random.Random], Cell], Sequence[str]]] = (
    *((kind, MISSING) for kind in (_text, _wide_text, _text, _wide_text, _boolean, _yes, _other_date, _thousands)),
    *((kind, (*MISSING, *MISSING_NUMBERS)) for kind in (
        _integer, _integer, _signed, _big, _unsigned, _fraction, _fraction, _short_fraction, _decimal_comma, _date,
        _moment, _fine_moment, _zoned_moment
    )),
    (_mixed, MISSING),
    (_identifier, MISSING),
)  # fmt: skip


@dataclass(frozen=True)
class Dialect:
    """The way in which a program writes a table as text.

    Attributes:
        quotes: The cells that are quoted though they need not be.
        tail: The end of the file, after the last row.
        trailing: Whether each line ends with a separator.
        blank_lines: Whether there are empty lines between rows.
    """

    separator: str = ","
    quotes: str = "needed"
    line_break: str = "\n"
    encoding: str = "utf-8"
    packed: str = ""
    tail: str = "\n"
    trailing: bool = False
    blank_lines: bool = False

    @classmethod
    def drawn(cls, rng: random.Random) -> "Dialect":
        """Return a dialect; those that many programs write are frequent."""
        return cls(
            separator=rng.choice(",,,,;;;\t|"),
            quotes=rng.choice(("needed", "needed", "all", "some columns")),
            line_break=rng.choice(("\n", "\n", "\n", "\r\n", "\r\n")),
            encoding=rng.choice(("utf-8",) * 8 + ("utf-8-sig",) * 4 + ("utf-16", "latin-1", "cp1252", "cp1252")),
            packed=rng.choice(("",) * 12 + ("gz", "gz", "bz2", "xz")),
            tail=rng.choice(("end", "end", "end", "", "blank")),
            trailing=rng.random() < 0.04,
            blank_lines=rng.random() < 0.04,
        )


@dataclass(frozen=True)
class CsvFile:
    """A file that was written.

    Attributes:
        columns: The values of each column, by the name that ``pandas.read_csv`` gives it.
        options: The reader's arguments: the encoding.
        refusal: Expression of the error that a reader may give instead; None if it has to read the file.
    """

    path: Path
    columns: Mapping[str, Sequence[Any]]
    dialect: Dialect
    options: Mapping[str, str]
    refusal: str | None = None


def write_csv(folder: Path, seed: int) -> CsvFile:
    """Write the file of a seed to a folder."""
    rng = random.Random(seed)
    dialect = Dialect.drawn(rng)
    is_narrow = dialect.encoding in ("latin-1", "cp1252")
    rows = rng.randint(1, 30)
    # Nothing shows the separator of a single column.
    count = rng.randint(1 if dialect.separator == "," else 2, 8)
    names = rng.sample(NAMES if is_narrow else NAMES + WIDE_NAMES, count)
    if count > 1 and rng.random() < 0.06:
        names[0] = ""  # the index of pandas
    columns = [_column(rng, rows, is_narrow=is_narrow) for _ in names]
    text = _text_of(dialect, rng, names, columns)
    suffix = ".tsv" if dialect.separator == "\t" and rng.random() < 0.5 else ".csv"
    path = folder / f"t{seed}{suffix}{'.' * bool(dialect.packed)}{dialect.packed}"
    content = text.encode(dialect.encoding)
    path.write_bytes(
        {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(dialect.packed, bytes)(content)
    )
    named = {name or f"Unnamed: {place}": [value for value, _ in cells] for place, (name, cells) in
             enumerate(zip(names, columns, strict=True))}  # fmt: skip
    if dialect.trailing:
        named[f"Unnamed: {count}"] = [None] * rows
    options, refusal = {}, None
    if is_narrow and not text.isascii():
        options = {"encoding": dialect.encoding} if rng.random() < 0.7 else {}
        refusal = None if options else "has another encoding than UTF-8"
    if dialect.packed == "xz":
        refusal = "packed as xz"
    return CsvFile(path, named, dialect, options, refusal)


def _column(rng: random.Random, rows: int, *, is_narrow: bool) -> list[Cell]:
    draw, missing = rng.choice(COLUMNS)
    if is_narrow and draw is _wide_text:
        draw = _text
    share = rng.choice((0.0, 0.0, 0.15, 0.5, 1.0 if rng.random() < 0.1 else 0.0))
    cells = [(None, rng.choice(missing)) if rng.random() < share else draw(rng) for _ in range(rows)]
    if all(value is None for value, _ in cells):  # no word makes this a column of numbers
        return [(None if text in MISSING else text, text) for _, text in cells]
    return cells


def _text_of(dialect: Dialect, rng: random.Random, names: Sequence[str], columns: Sequence[Sequence[Cell]]) -> str:
    all_quoted = [dialect.quotes == "all" or (dialect.quotes != "needed" and rng.random() < 0.5) for _ in names]

    special = {dialect.separator, '"', "\r", "\n"}

    def line(texts: Sequence[str]) -> str:
        cells = [
            '"' + text.replace('"', '""') + '"' if is_quoted or special & set(text) else text
            for text, is_quoted in zip(texts, all_quoted, strict=True)
        ]
        return dialect.separator.join(cells) + dialect.separator * dialect.trailing + dialect.line_break

    lines = [line(names)]
    for row in zip(*columns, strict=True):
        if dialect.blank_lines and rng.random() < 0.2:
            lines.append(dialect.line_break)
        # A line of one empty cell would be an empty line.
        lines.append(line([text or "NA" * (len(names) == 1) for _, text in row]))
    text = "".join(lines)
    if dialect.tail == "":
        return text.removesuffix(dialect.line_break)
    return text + dialect.line_break * (2 if dialect.tail == "blank" else 0)
