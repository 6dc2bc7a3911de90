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
from urllib.parse import unquote

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import StringType, StructField, StructType

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.cell_types import CellFacts, typed_cell
from mirrorspark.data_pipelines.csv_quotes import has_breaks, may_be_open, open_quote, quoted_cells
from mirrorspark.data_pipelines.features import quoted
from mirrorspark.data_pipelines.packed_files import head_of, unpacked
from mirrorspark.data_pipelines.spark import map_batches
from mirrorspark.spark_session import versions
from mirrorspark.storage import StoragePath, encoding_of, listing, literal_hadoop_uri

_LOGGER = logging.getLogger(__name__)

_HEAD_BYTES = 1 << 20
_FILES_AT_A_TIME = 16
# A smaller file is read by one task, which takes line breaks in cells for granted; a larger one is searched for them.
_ONE_TASK_BYTES = 32 * 2**20
_SEPARATORS = (",", ";", "\t", "|")
# Rows that show which character is the separator.
_SEEN_ROWS = 50
# The most bytes without a character that an encoding of single bytes has.
_UNUSED_BYTES = 64
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

    files: Mapping[CsvForm, tuple[listing.DataFile, ...]]
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
            CsvError: A file is empty, has another encoding, or has other columns than the first.
            PackedFileError: A file is damaged, or packed in a way that Spark does not unpack.
        """
        found: dict[CsvForm, list[listing.DataFile]] = defaultdict(list)
        with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
            forms = list(pool.map(lambda file: csv_form(file.path, encoding, separator), files))
        for file, form in zip(files, forms, strict=True):
            if not set(form.header) & set(forms[0].header):
                raise CsvError(
                    f"{file.path} has no column of {files[0].path}: its first line is {list(form.header)[:8]}, there "
                    f"{list(forms[0].header)[:8]}; give the files of one table, each with a header"
                )
            is_plain = form.encoding.startswith("utf-8") and not file.path.name.lower().endswith(".gz")
            is_split = is_plain and file.bytes > _ONE_TASK_BYTES
            if is_split and has_breaks(spark, literal_hadoop_uri(file.path, *given), form.separator):
                is_split = False
            found[replace(form, is_split=is_split)].append(file)
        folders = folders or StructType()
        for form, own in found.items():
            if both := [name for name in form.header if name in folders.names]:
                raise CsvError(
                    f"{own[0].path} has the columns {both}, as its folders have; drop them from one of the two"
                )
        return cls({form: tuple(own) for form, own in found.items()}, base, folders, tuple(given))

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
        frame = reader.csv(self._uris(self.files[form]))
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
        if any(document["open"] for document in documents) or any(re.search(r"[\r\n]", name) for name in self.header):
            self._require_sound(spark)
        for document in documents:
            if document["long"]:
                raise CsvError(self._of_long_row(repr(document["long"])))
            for name, facts in document["columns"].items():
                found[name].append(CellFacts(**facts))
        all_facts = {name: CellFacts.of_all(found[name]) for name in self.header}
        if odd := [name for name, facts in all_facts.items() if facts.replaced]:
            self._require_sound(spark, odd)
        columns = {}
        for name in self.header:
            kind, has_commas = all_facts[name].kind()
            columns[name] = typed_cell(quoted(name), kind, self._shown(), name, has_commas=has_commas)
            for level, remark in all_facts[name].remarks(kind, has_commas=has_commas):
                _LOGGER.log(level, "column '%s' of %s %s", name, self._shown(), remark)
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
                do not end.
            PackedFileError: A file is damaged.
        """
        own = {one.name: one for one in schema}
        if missing := [name for name in own if name not in (*self.header, *self.folders.names)]:
            raise CsvError(f"{self._shown()} lacks the columns {missing}; its header has {list(self.header)}")
        self._require_sound(spark)
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
        return [file.path for files in self.files.values() for file in files]

    def _uris(self, files: Sequence[listing.DataFile]) -> list[str]:
        return [literal_hadoop_uri(file.path, *self.given) for file in files]

    def _shown(self) -> str:
        paths = self._paths()
        return str(paths[0]) if len(paths) == 1 else str(paths[0].parent)

    def _of_long_row(self, row: str) -> str:
        return (
            f"{self._shown()} has rows with more cells than its header has columns ({len(self.header)}): quote cells "
            f"that hold a separator, double the quotes in them, give every column a name, or delete lines above the "
            f"header; such a row is {row}"
        )

    def _require_sound(self, spark: SparkSession, columns: Sequence[str] = ()) -> None:
        """Refuse a file that is not in its encoding, or has a cell whose quotes do not end; see :func:`require_sound`.

        Of many bytes in UTF-8 Spark finds the files to look at.
        """
        for form, files in self.files.items():
            is_many = sum(file.bytes for file in files) > _ONE_TASK_BYTES
            doubtful = self._doubtful(spark, form) if is_many and form.encoding.startswith("utf-8") else files
            with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
                for _ in pool.map(lambda file, form=form: require_sound(file.path, form, columns), doubtful):
                    pass

    def _doubtful(self, spark: SparkSession, form: CsvForm) -> list[listing.DataFile]:
        """Return the files of a form with bytes that are not UTF-8, or with an odd number of quotes over all lines."""
        texts = spark.read.option("recursiveFileLookup", True).text(self._uris(self.files[form]))
        is_wrong = F.bool_or(~versions.is_valid_utf8(F.col("value")))
        quotes = F.sum(F.length("value") - F.length(F.replace("value", F.lit('"'), F.lit(""))))
        is_odd = F.lit(False) if form.is_split else quotes % 2 == 1
        by_file = texts.groupBy(F.col("_metadata.file_name").alias("file")).agg(
            (is_wrong | is_odd).alias("is_doubtful")
        )
        names = {name for row in by_file.where("is_doubtful").collect() for name in (row.file, unquote(row.file))}
        return [file for file in self.files[form] if file.path.name in names]


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
            is_open = is_open or may_be_open(batch.columns[: len(self.columns)])
            for place, name in enumerate(self.columns):
                found[name].append(CellFacts.of(batch.column(place)))
            for row in batch.column(len(self.columns)).drop_null()[:1].to_pylist():
                long = long or row[:_SHOWN_CHARACTERS]
        columns = {name: vars(CellFacts.of_all(parts)) for name, parts in found.items()}
        yield pa.RecordBatch.from_pydict({"facts": [json.dumps({"columns": columns, "long": long, "open": is_open})]})


def require_sound(path: StoragePath, form: CsvForm, columns: Sequence[str] = ()) -> None:
    """Read a file's bytes, and refuse one that is not in its encoding or has a cell whose quotes do not end.

    A file may well hold the mark U+FFFD.

    Args:
        path: The file.
        form: Its form, of which the header does not count.
        columns: Columns with that mark, for the message.

    Raises:
        CsvError: It is such a file; the message names the byte or the line.
        PackedFileError: It is damaged.
    """
    try:
        with unpacked(path) as file:
            line = open_quote(io.TextIOWrapper(file, form.encoding, newline=""), form.separator)
    except UnicodeDecodeError as error:
        where = f" in column {', '.join(map(repr, columns))}" if columns else ""
        raise CsvError(
            f"{path} has another encoding than {form.encoding.upper()} (byte "
            f"0x{error.object[error.start]:02x}{where}): save it as UTF-8, or give its encoding to ms.read_table "
            f"or ms.ingest_csv: encoding='windows-1252'"
        ) from None
    if line:
        raise CsvError(
            f"{path}: the quote that begins a cell in line {line} does not end, so the cell would hold all lines "
            f"after it; end it, or double the quotes of a cell and put it in quotes"
        )


def _without_carriage_return(cell: Column) -> Column:
    return F.when(F.endswith(cell, F.lit("\r")), F.left(cell, F.length(cell) - 1)).otherwise(cell)


def _long_row(row: Column, form: CsvForm) -> Column:
    """Return a row that does not fit if it has cells beyond the header, and null if it is short or they are empty."""
    between = re.escape(form.separator)
    plain = F.regexp_replace(F.regexp_replace(row, quoted_cells(between), "q"), rf"[{between}\r\n]++\z", "")
    cells = F.length(plain) - F.length(F.replace(plain, F.lit(form.separator), F.lit(""))) + 1
    return F.when(cells > len(form.header), row)


def csv_form(path: StoragePath, encoding: str | None = None, separator: str | None = None) -> CsvForm:
    """Return the form of a file, from its first megabyte; the arguments are those of :meth:`CsvTable.of`.

    Raises:
        CsvError: The file is empty, or is not text.
        PackedFileError: It is damaged, or packed in a way that Spark does not unpack.
    """
    head = head_of(path, _HEAD_BYTES)
    found = _encoding(encoding, path) if encoding else encoding_of(head)
    text = codecs.getincrementaldecoder(found)(errors="replace").decode(head).removeprefix("\ufeff").lstrip("\r\n")
    if "\x00" in text[:1000]:
        raise CsvError(f"{path} is not text; give a CSV file")
    if text[:4].lower() == "sep=":
        raise CsvError(f"{path} begins with Excel's line '{text.splitlines()[0]}'; delete that line")
    between = separator or ("\t" if path.name.lower().partition(".")[2].startswith("tsv") else _separator(text))
    header = next((row for row in _rows(text, between) if any(row)), None)
    # The names of pandas, which writes its index without one.
    names = tuple(name or f"Unnamed: {place}" for place, name in enumerate(header or ()))
    form = CsvForm(names, found, between, "\r" if "\r" in text and "\n" not in text else "\n")
    if header is None or any("\ufffd" in name for name in header):
        require_sound(path, form)
    if header is None:
        raise CsvError(f"{path} has no header; the first line of a CSV file names its columns")
    return form


def _separator(text: str) -> str:
    """Return the separator of a text: the one that divides the first rows into equally many cells, the more the better.

    Where none does, because rows are shorter than the header, the one that divides the header; else a comma. Cells in
    quotes do not count, and neither does a character of the name of the only column.
    """
    text = re.sub(quoted_cells("".join(_SEPARATORS)), '""', text)
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
