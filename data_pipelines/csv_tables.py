"""CSV files as pandas and Excel write them: Spark reads all cells as text, and a column gets its type from all of them.

A plan is made from the head of each file: its encoding, its separator and its header. Spark's own inference takes a
column of numbers for text if one cell is ``NA``, goes by position if the files' columns differ, and reads a cell with a
line break as two rows.
"""

import codecs
import csv
import io
import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import StringType, StructField, StructType

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.cell_types import CellFacts, typed_cell
from mirrorspark.data_pipelines.features import quoted
from mirrorspark.data_pipelines.packed_files import PackedFileError, head_of, unpacked
from mirrorspark.data_pipelines.spark import map_batches
from mirrorspark.spark_session import versions
from mirrorspark.storage import StoragePath, encoding_of, listing, literal_hadoop_uri

_LOGGER = logging.getLogger(__name__)

_HEAD_BYTES = 1 << 20
_HEADS_AT_A_TIME = 16
# A smaller file is read by one task, which takes line breaks in cells for granted; a larger one is searched for them.
_ONE_TASK_BYTES = 32 * 2**20
_SEPARATORS = (",", ";", "\t", "|")
# Rows that show which character is the separator.
_SEEN_ROWS = 50
# The most bytes without a character that an encoding of single bytes has.
_UNUSED_BYTES = 64
# The rest of a cell in quotes, whose own quotes are doubled.
_END_OF_QUOTES = re.compile(r'(?:[^"]|"")*"(?!")')
_BAD_ROW = "_row_that_does_not_fit"
_SHOWN_CHARACTERS = 200
_FACTS = StructType([StructField("facts", StringType())])
# Python's names of the encodings that Spark takes.
_SPARK_ENCODINGS = {
    "utf-8": "UTF-8", "utf-8-sig": "UTF-8", "utf-16": "UTF-16", "utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE",
    "utf-32": "UTF-32", "iso8859-1": "ISO-8859-1", "ascii": "US-ASCII",
}  # fmt: skip


class CsvError(ClearError, ValueError):
    """A CSV file that cannot be read right; the message names the file and the remedy."""


@dataclass(frozen=True)
class CsvForm:
    """The form of a file: files of one form are read together.

    Attributes:
        header: The names of the columns, in the order of the file.
        encoding: Python's name of the encoding.
        line_break: The end of a line. Lines of Windows end with a line feed, too; the carriage return is cut off.
        is_split: Whether several tasks may read a part of the file each, because no cell has a line break.
    """

    header: tuple[str, ...]
    encoding: str
    separator: str
    line_break: str = "\n"
    is_split: bool = False


@dataclass(frozen=True)
class CsvTable:
    """The CSV files of one table, by their form.

    Attributes:
        files: The files of each form.
        base: Folder whose subfolders like ``day=3`` are columns; None without such folders.
        folders: Names and types of these columns.
        given: Locations as the user wrote them.
    """

    files: Mapping[CsvForm, tuple[StoragePath, ...]]
    base: StoragePath | None = None
    folders: StructType = field(default_factory=StructType)
    given: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        spark: SparkSession,
        files: Sequence[listing.DataFile],
        *,
        encoding: str | None = None,
        separator: str | None = None,
        base: StoragePath | None = None,
        folders: StructType | None = None,
        given: Sequence[str] = (),
    ) -> "CsvTable":
        """Return the plan to read some files, made from the head of each.

        Args:
            spark: The session, which searches large files for line breaks in cells.
            files: The files.
            encoding: Python's name of their encoding; by default by their byte order mark, else UTF-8.
            separator: The character between cells; by default a tab in ``.tsv``, else the one of ``,;|`` or tab that
                divides the header.
            base: See :attr:`base`.
            folders: See :attr:`folders`.
            given: See :attr:`given`.

        Raises:
            CsvError: A file is empty, is packed in a way that Spark does not unpack, has another encoding, or has other
                columns than the first.
        """
        found: dict[CsvForm, list[StoragePath]] = defaultdict(list)
        with ThreadPoolExecutor(_HEADS_AT_A_TIME) as pool:
            forms = list(pool.map(lambda file: csv_form(file.path, encoding, separator), files))
        for file, form in zip(files, forms, strict=True):
            if not set(form.header) & set(forms[0].header):
                raise CsvError(
                    f"{file.path} has no column of {files[0].path}: its first line is {list(form.header)[:8]}, there "
                    f"{list(forms[0].header)[:8]}; give the files of one table, each with a header"
                )
            is_plain = form.encoding.startswith("utf-8") and not file.path.name.lower().endswith(".gz")
            is_split = is_plain and file.bytes > _ONE_TASK_BYTES
            if is_split and _has_breaks(spark, literal_hadoop_uri(file.path, *given), form.separator):
                is_split = False
            found[replace(form, is_split=is_split)].append(file.path)
        folders = folders or StructType()
        for form, paths in found.items():
            if both := [name for name in form.header if name in folders.names]:
                raise CsvError(f"{paths[0]} has the columns {both}, as its folders have; drop them from one of the two")
        return cls({form: tuple(paths) for form, paths in found.items()}, base, folders, tuple(given))

    @property
    def header(self) -> tuple[str, ...]:
        """The names of all columns, those of the first file first."""
        return tuple(dict.fromkeys(name for form in self.files for name in form.header))

    def cells(self, spark: SparkSession, *, bad_rows: bool = False) -> DataFrame:
        """Return all cells as text; an empty cell, and one of a column that a file lacks, is null.

        Args:
            spark: The session.
            bad_rows: Add the text of rows that have more cells than the header.
        """
        frames = [self._cells(spark, form, bad_rows=bad_rows) for form in self.files]
        return reduce(lambda all_, one: all_.unionByName(one, allowMissingColumns=True), frames)

    def _cells(self, spark: SparkSession, form: CsvForm, *, bad_rows: bool) -> DataFrame:
        names = (*form.header, *((_BAD_ROW,) if bad_rows else ()))
        reader = spark.read.schema(StructType([*(StructField(name, StringType()) for name in names), *self.folders]))
        single_bytes = _table_of_bytes(form.encoding)
        reader = reader.options(
            header=True,
            sep=form.separator,
            quote='"',
            escape='"',
            multiLine=not form.is_split,
            # Spark would take the first line break for that of all lines, though it may be in a name's quotes.
            **({} if form.is_split else {"lineSep": form.line_break}),
            encoding="ISO-8859-1" if single_bytes else _SPARK_ENCODINGS[form.encoding],
            columnNameOfCorruptRecord=_BAD_ROW,
            maxColumns=max(20480, len(names) + 1),
        )
        if self.base is not None:
            reader = reader.option("basePath", self.base.uri if not self.base.is_local else f"file://{self.base.uri}")
        frame = reader.csv([literal_hadoop_uri(path, *self.given) for path in self.files[form]])
        cells = {name: quoted(name) for name in frame.columns}
        if bad_rows:
            cells[_BAD_ROW] = _long_row(cells[_BAD_ROW], form)
        if not form.is_split:
            first, *others = (cells[name] for name in form.header)
            # One expression of all columns: Java's stack does not hold a conjunction of thousands.
            has_others = F.coalesce(*others, F.lit(None).cast("string")).isNotNull()
            frame = frame.where(has_others | ~F.equal_null(first, F.lit("\r")))
            cells |= {name: _without_carriage_return(cells[name]) for name in form.header}
        if single_bytes:
            before, after = single_bytes
            cells |= {name: F.translate(cells[name], before, after) for name in names}
        return frame.select(*[cell.alias(name) for name, cell in cells.items()])

    def typed(self, spark: SparkSession) -> DataFrame:
        """Return the rows with the types that all their cells have.

        Raises:
            CsvError: A file has bytes that are not text in its encoding, rows with more cells than its header, or a
                cell whose quotes do not end.
        """
        task = _Looking(self.header)
        wanted = [quoted(name) for name in (*self.header, _BAD_ROW)]
        parts = map_batches(self.cells(spark, bad_rows=True).select(*wanted), task, _FACTS).collect()
        found: dict[str, list[CellFacts]] = defaultdict(list)
        documents = [json.loads(part.facts) for part in parts]
        if any(document["open"] for document in documents) or any("\n" in name for name in self.header):
            self._require_closed()
        for document in documents:
            if document["long"]:
                raise CsvError(self._of_long_row(repr(document["long"])))
            for name, facts in document["columns"].items():
                found[name].append(CellFacts(**facts))
        all_facts = {name: CellFacts.of_all(found[name]) for name in self.header}
        if odd := [name for name, facts in all_facts.items() if facts.replaced]:
            self._require_text(spark, odd)
        columns = {}
        for name in self.header:
            kind, has_commas = all_facts[name].kind()
            columns[name] = typed_cell(quoted(name), kind, self._shown(), name, has_commas=has_commas)
            self._tell(name, all_facts[name], kind, has_commas=has_commas)
        cells = self.cells(spark)
        return cells.select(*[columns.get(name, quoted(name)).alias(name) for name in cells.columns])

    def declared(self, spark: SparkSession, schema: StructType, *, null: str = "") -> DataFrame:
        """Return the columns of ``schema``, found by name.

        A cell that does not fit, and a row with more cells than the header, fail the job that reads them.

        Args:
            spark: The session.
            schema: The columns.
            null: A further text that stands for null.

        Raises:
            CsvError: A column is missing, or a file has bytes that are not text in its encoding, or a cell whose quotes
                do not end, which is sought in small tables.
        """
        own = {one.name: one for one in schema}
        if missing := [name for name in own if name not in (*self.header, *self.folders.names)]:
            raise CsvError(f"{self._shown()} lacks the columns {missing}; its header has {list(self.header)}")
        self._require_text(spark, [])
        if sum(path.size() for path in self._paths()) <= _ONE_TASK_BYTES:
            self._require_closed()
        rows = replace(self, folders=StructType([own.get(one.name, one) for one in self.folders]))
        cells = rows.cells(spark, bad_rows=True)
        # Spark refuses to read nothing but this column.
        shown = F.left(F.coalesce(quoted(_BAD_ROW), quoted(self.header[0])), F.lit(_SHOWN_CHARACTERS))
        error = F.raise_error(F.concat(F.lit(self._of_long_row("")), shown))
        return cells.where(F.when(quoted(_BAD_ROW).isNotNull(), error.cast("boolean")).otherwise(True)).select(
            *[
                typed_cell(quoted(name), one.dataType, self._shown(), name, null=null).alias(name)
                if name in self.header
                else quoted(name)
                for name, one in own.items()
            ]
        )

    def _paths(self) -> list[StoragePath]:
        return [path for paths in self.files.values() for path in paths]

    def _shown(self) -> str:
        paths = self._paths()
        return str(paths[0]) if len(paths) == 1 else str(paths[0].parent)

    def _of_long_row(self, row: str) -> str:
        return (
            f"{self._shown()} has rows with more cells than its header has columns ({len(self.header)}): quote cells "
            f"that hold a separator, double the quotes in them, give every column a name, and delete lines above the "
            f"header; such a row is {row}"
        )

    def _require_closed(self) -> None:
        """Refuse a cell whose quotes do not end: it would hold all rows that follow it."""
        for form, paths in self.files.items():
            for path in paths if not form.is_split else ():
                require_closed(path, form)

    def _require_text(self, spark: SparkSession, columns: Sequence[str]) -> None:
        """Read the files' bytes and refuse one that is not in its encoding; a file may well hold the mark U+FFFD."""
        for form, paths in self.files.items():
            if form.encoding.startswith("utf-8") and sum(path.size() for path in paths) > _ONE_TASK_BYTES:
                lines = spark.read.text([literal_hadoop_uri(path, *self.given) for path in paths])
                if not lines.where(~versions.is_valid_utf8(F.col("value"))).take(1):
                    continue
            for path in paths:
                _require_encoding(path, form.encoding, columns)

    def _tell(self, name: str, facts: "CellFacts", kind: str, *, has_commas: bool) -> None:
        if facts.escaped:
            _LOGGER.warning(
                "column '%s' of %s has quotes after backslashes within quotes, and such cells are read as they are "
                "written; write doubled quotes, as Spark does with option('escape', '\"')",
                name,
                self._shown(),
            )
        if kind != "string":
            if facts.words:
                _LOGGER.info("column '%s' of %s: %s are missing values", name, self._shown(), facts.missing)
            if has_commas:
                _LOGGER.info("column '%s' of %s: commas are the marks of decimals", name, self._shown())
        elif facts.commas and facts.commas == facts.ambiguous and facts.numbers + facts.commas + facts.words == facts.n:
            _LOGGER.warning(
                "column '%s' of %s is read as text: its commas may divide thousands or decimals; write its numbers "
                "without commas",
                name,
                self._shown(),
            )
        elif facts.grouped and facts.numbers + facts.commas + facts.grouped + facts.words >= facts.n:
            _LOGGER.warning(
                "column '%s' of %s is read as text: marks divide the thousands of its numbers, such as %s; write them "
                "without these marks",
                name,
                self._shown(),
                facts.others,
            )
        elif facts.integers and facts.integers + facts.words == facts.n:
            _LOGGER.warning(
                "column '%s' of %s is read as text, because its whole numbers have more digits than a number keeps",
                name,
                self._shown(),
            )
        elif facts.numbers * 2 >= facts.n > 0:
            _LOGGER.warning(
                "column '%s' of %s is read as text, because it has numbers and words such as %s; write missing values "
                "as empty cells",
                name,
                self._shown(),
                facts.others,
            )


@dataclass(frozen=True)
class _Looking:
    """The task that looks at cells.

    It gives the facts on each column, a row that is too long, and whether a cell may hold the end of a file.

    Attributes:
        columns: The names of the columns.
    """

    columns: tuple[str, ...]

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        found: dict[str, list[CellFacts]] = defaultdict(list)
        long, is_open = "", False
        for batch in batches:
            is_open = is_open or _may_be_open(batch, len(self.columns))
            for place, name in enumerate(self.columns):
                found[name].append(CellFacts.of(batch.column(place)))
            for row in batch.column(len(self.columns)).drop_null()[:1].to_pylist():
                long = long or row[:_SHOWN_CHARACTERS]
        columns = {name: vars(CellFacts.of_all(parts)) for name, parts in found.items()}
        yield pa.RecordBatch.from_pydict({"facts": [json.dumps({"columns": columns, "long": long, "open": is_open})]})


def _may_be_open(batch: pa.RecordBatch, columns: int) -> bool:
    """Return whether a row may end in a cell that holds the end of a file, because its quotes do not end."""
    has_later = pa.scalar(False)
    for cells in reversed(batch.columns[:columns]):
        if pc.any(pc.and_not(pc.fill_null(pc.ends_with(cells, "\n"), False), has_later)).as_py():
            return True
        has_later = pc.or_(has_later, cells.is_valid())
    # A file need not end with a line break.
    last = batch.slice(max(0, batch.num_rows - 1)).select(range(columns)).to_pylist()
    return any("\n" in ([value for value in row.values() if value] or [""])[-1] for row in last)


def require_closed(path: StoragePath, form: CsvForm) -> None:
    """Refuse a file with a cell whose quotes do not end.

    Raises:
        CsvError: There is one; the message names its line.
    """
    with path.open_stream() as file:
        lines = io.TextIOWrapper(unpacked(file, path), form.encoding, errors="replace", newline="")
        if line := open_quote(lines, form.separator):
            raise CsvError(
                f"{path}: the quote that begins a cell in line {line} does not end, so the cell would hold all lines "
                f"after it; end it, or double the quotes of a cell and put it in quotes"
            )


def open_quote(lines: Iterable[str], separator: str) -> int:
    """Return the line, from 1, in which a cell begins whose quotes do not end; 0 if there is none."""
    begins = re.compile(rf'(?:^|{re.escape(separator)})"')
    found = 0
    for number, line in enumerate(lines, 1):
        place = 0
        while place >= 0:
            edge = _END_OF_QUOTES.match(line, place) if found else begins.search(line, place)
            place = edge.end() if edge else -1
            found = (0 if found else number) if edge else found
    return found


def _without_carriage_return(cell: Column) -> Column:
    return F.when(F.endswith(cell, F.lit("\r")), F.left(cell, F.length(cell) - 1)).otherwise(cell)


def _long_row(row: Column, form: CsvForm) -> Column:
    """Return a row that does not fit if it has cells beyond the header, and null if it is short or they are empty."""
    between = re.escape(form.separator)
    plain = F.regexp_replace(F.regexp_replace(row, _quoted_cells(between), "q"), rf"[{between}\r\n]++\z", "")
    cells = F.length(plain) - F.length(F.replace(plain, F.lit(form.separator), F.lit(""))) + 1
    return F.when(cells > len(form.header), row)


def _quoted_cells(between: str) -> str:
    """Return the expression of cells in quotes, given that of the characters that may separate them."""
    return rf'(?:^|(?<=[{between}\r\n]))"(?:[^"]++|"")*+"(?=[{between}\r\n]|$)'


def csv_form(path: StoragePath, encoding: str | None = None, separator: str | None = None) -> CsvForm:
    """Return the form of a file, from its first megabyte; the arguments are those of :meth:`CsvTable.of`.

    Raises:
        CsvError: The file is empty, is damaged or packed in a way that Spark does not unpack, or is not text.
    """
    try:
        head = head_of(path, _HEAD_BYTES)
    except PackedFileError as error:
        raise CsvError(str(error)) from error
    found = _encoding(encoding, path) if encoding else encoding_of(head)
    text = codecs.getincrementaldecoder(found)(errors="replace").decode(head).removeprefix("\ufeff").lstrip("\r\n")
    if "\x00" in text[:1000]:
        raise CsvError(f"{path} is not text; give a CSV file")
    if text[:4].lower() == "sep=":
        raise CsvError(f"{path} begins with Excel's line '{text.splitlines()[0]}'; delete that line")
    between = separator or ("\t" if path.name.lower().partition(".")[2].startswith("tsv") else _separator(text))
    header = next((row for row in _rows(text, between) if any(row)), None)
    if header is None:
        raise CsvError(f"{path} has no header; the first line of a CSV file names its columns")
    if any("\ufffd" in name for name in header):
        _require_encoding(path, found, [])
    # The names of pandas, which writes its index without one.
    names = tuple(name or f"Unnamed: {place}" for place, name in enumerate(header))
    return CsvForm(names, found, between, "\r" if "\r" in text and "\n" not in text else "\n")


def _separator(text: str) -> str:
    """Return the separator of a text: the one that divides the first rows into equally many cells, the more the better.

    Where none does, because rows are shorter than the header, the one that divides the header; else a comma. Cells in
    quotes do not count, and neither does a character of the name of the only column.
    """
    text = re.sub(_quoted_cells("".join(_SEPARATORS)), '""', text)
    found: dict[str, tuple[bool, int]] = {}
    for separator in _SEPARATORS:
        rows = filter(None, _rows(text, separator))
        lengths = [len(row) for row, _ in zip(rows, range(_SEEN_ROWS), strict=False)]
        if lengths and lengths[0] > 1 and max(lengths[1:], default=2) > 1:
            found[separator] = (len(set(lengths)) == 1, lengths[0])
    return max(found, key=lambda separator: found[separator], default=",")


def _rows(text: str, separator: str) -> Iterator[list[str]]:
    """Yield the rows of a text, up to one with a cell of more characters than the reader takes."""
    with suppress(csv.Error):
        yield from csv.reader(io.StringIO(text, newline=""), delimiter=separator)


def _encoding(name: str, path: StoragePath) -> str:
    try:
        found = codecs.lookup(name).name
    except LookupError:
        raise CsvError(f"there is no encoding '{name}'; give one of Python's, such as 'windows-1252'") from None
    if found not in _SPARK_ENCODINGS and _table_of_bytes(found) is None:
        raise CsvError(f"{path} cannot be read with the encoding '{name}'; save it as UTF-8")
    return found


def _table_of_bytes(encoding: str) -> tuple[str, str] | None:
    """Return characters of Latin-1, and those that their bytes are in another encoding of single bytes.

    Spark knows few encodings. Latin-1 gives every byte as a character, which is then replaced.
    """
    if encoding in _SPARK_ENCODINGS:
        return None
    pairs = []
    for byte in range(256):
        try:
            decoded = bytes([byte]).decode(encoding)
        except UnicodeDecodeError:
            decoded = "\ufffd"
        if len(decoded) != 1 or (byte < 128 and decoded != chr(byte)):
            return None
        if decoded != chr(byte):
            pairs.append((chr(byte), decoded))
    if sum(after == "\ufffd" for _, after in pairs) > _UNUSED_BYTES:
        return None  # of several bytes
    return "".join(before for before, _ in pairs), "".join(after for _, after in pairs)


def _require_encoding(path: StoragePath, encoding: str, columns: Sequence[str]) -> None:
    decoder = codecs.getincrementaldecoder(encoding)()
    with path.open_stream() as file:
        stream = unpacked(file, path)
        try:
            while part := stream.read(_HEAD_BYTES):
                decoder.decode(part)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            where = f" in column {', '.join(map(repr, columns))}" if columns else ""
            raise CsvError(
                f"{path} has another encoding than {encoding.upper()} (byte 0x{error.object[error.start]:02x}{where}): "
                f"save it as UTF-8, or give its encoding to ms.read_table or ms.ingest_csv: encoding='windows-1252'"
            ) from None


def _has_breaks(spark: SparkSession, uri: str, separator: str) -> bool:
    """Return whether a line has a cell whose quotes do not end in it, as the first line of a line break has."""
    between = re.escape(separator)
    rest = F.regexp_replace("value", _quoted_cells(between), "")
    return bool(spark.read.text(uri).where(F.contains("value", F.lit('"')) & rest.rlike(rf'(^|{between})"')).take(1))
