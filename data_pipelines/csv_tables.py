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
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import reduce

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import StringType, StructField, StructType

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.cell_types import CellFacts, typed_cell
from mirrorspark.data_pipelines.features import quoted
from mirrorspark.storage import StoragePath, encoding_of, listing, literal_hadoop_uri

_LOGGER = logging.getLogger(__name__)

_HEAD_BYTES = 1 << 20
_HEADS_AT_A_TIME = 16
# A smaller file is read by one task, which takes line breaks in cells for granted; a larger one is searched for them.
_ONE_TASK_BYTES = 32 * 2**20
_SEPARATORS = (",", ";", "\t", "|")
# The most bytes without a character that an encoding of single bytes has.
_UNUSED_BYTES = 64
_BAD_ROW = "_row_that_does_not_fit"
_FACTS = StructType([StructField("facts", StringType())])
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"\xfd7zXZ": "xz"}
_SUFFIXES = {"gzip": ".gz", "bz2": ".bz2"}  # those that Hadoop unpacks everywhere
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
        is_split: Whether several tasks may read a part of the file each, because no cell has a line break.
    """

    header: tuple[str, ...]
    encoding: str
    separator: str
    is_split: bool = False


@dataclass(frozen=True)
class CsvTable:
    """The CSV files of one table, by their form.

    Attributes:
        files: The files of each form.
        base: Folder whose subfolders like ``day=3`` are columns; None without such folders.
        given: Locations as the user wrote them.
    """

    files: Mapping[CsvForm, tuple[StoragePath, ...]]
    base: StoragePath | None = None
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
            given: See :attr:`given`.

        Raises:
            CsvError: A file is empty, is packed in a way that Spark does not unpack, has another encoding, or has other
                columns than the first.
        """
        found: dict[CsvForm, list[StoragePath]] = defaultdict(list)
        with ThreadPoolExecutor(_HEADS_AT_A_TIME) as pool:
            forms = list(pool.map(lambda file: _form(file.path, encoding, separator), files))
        for file, form in zip(files, forms, strict=True):
            if not set(form.header) & set(forms[0].header):
                raise CsvError(
                    f"{file.path} has no column of {files[0].path}: its first line is {list(form.header)[:8]}, there "
                    f"{list(forms[0].header)[:8]}; give the files of one table, each with a header"
                )
            is_packed = file.path.name.lower().endswith(tuple(_SUFFIXES.values()))
            is_plain = form.encoding.startswith("utf-8") and not is_packed
            split = is_plain and file.bytes > _ONE_TASK_BYTES and not _has_breaks(spark, file.path, given)
            found[replace(form, is_split=split)].append(file.path)
        return cls({form: tuple(paths) for form, paths in found.items()}, base, tuple(given))

    @property
    def header(self) -> tuple[str, ...]:
        """The names of all columns, those of the first file first."""
        return tuple(dict.fromkeys(name for form in self.files for name in form.header))

    def cells(self, spark: SparkSession, *, bad_rows: bool = False) -> DataFrame:
        """Return all cells as text; an empty cell, and one of a column that a file lacks, is null.

        Args:
            spark: The session.
            bad_rows: Add the text of rows that have more or fewer cells than the header.
        """
        frames = [self._cells(spark, form, bad_rows=bad_rows) for form in self.files]
        return reduce(lambda all_, one: all_.unionByName(one, allowMissingColumns=True), frames)

    def _cells(self, spark: SparkSession, form: CsvForm, *, bad_rows: bool) -> DataFrame:
        names = (*form.header, *((_BAD_ROW,) if bad_rows else ()))
        reader = spark.read.schema(StructType([StructField(name, StringType()) for name in names]))
        single_bytes = _table_of_bytes(form.encoding)
        reader = reader.options(
            header=True,
            sep=form.separator,
            quote='"',
            escape='"',
            multiLine=not form.is_split,
            encoding="ISO-8859-1" if single_bytes else _SPARK_ENCODINGS[form.encoding],
            columnNameOfCorruptRecord=_BAD_ROW,
            maxColumns=max(20480, len(names) + 1),
        )
        if self.base is not None:
            reader = reader.option("basePath", self.base.uri if not self.base.is_local else f"file://{self.base.uri}")
        frame = reader.csv([literal_hadoop_uri(path, *self.given) for path in self.files[form]])
        if not single_bytes:
            return frame
        before, after = single_bytes
        decoded = {name: F.translate(quoted(name), before, after) for name in form.header}
        return frame.select(*[decoded.get(name, quoted(name)).alias(name) for name in frame.columns])

    def typed(self, spark: SparkSession) -> DataFrame:
        """Return the rows with the types that all their cells have.

        Raises:
            CsvError: A file has bytes that are not text in its encoding, or rows with more cells than its header.
        """
        task = _Looking(self.header, tuple((len(form.header), form.separator) for form in self.files))
        wanted = [quoted(name) for name in (*self.header, _BAD_ROW)]
        parts = self.cells(spark, bad_rows=True).select(*wanted).mapInArrow(task, _FACTS).collect()
        found: dict[str, list[CellFacts]] = defaultdict(list)
        for part in parts:
            document = json.loads(part.facts)
            if document["long"]:
                raise CsvError(
                    f"{self._shown()} has rows with more cells than its header has columns ({len(self.header)}), such "
                    f"as {document['long']!r}; quote cells that hold a separator"
                )
            for name, facts in document["columns"].items():
                found[name].append(CellFacts(**facts))
        all_facts = {name: CellFacts.of_all(found[name]) for name in self.header}
        if odd := [name for name, facts in all_facts.items() if facts.replaced]:
            self._require_text(odd)
        columns = {}
        for name in self.header:
            kind, has_commas = all_facts[name].kind()
            columns[name] = typed_cell(quoted(name), kind, self._shown(), name, has_commas=has_commas)
            self._tell(name, all_facts[name], kind, has_commas=has_commas)
        cells = self.cells(spark)
        return cells.select(*[columns.get(name, quoted(name)).alias(name) for name in cells.columns])

    def declared(self, spark: SparkSession, schema: StructType, *, null: str = "") -> DataFrame:
        """Return the columns of ``schema``, found by name. A cell that does not fit fails the job that reads it.

        Args:
            spark: The session.
            schema: The columns.
            null: A further text that stands for null.

        Raises:
            CsvError: A file has bytes that are not text in its encoding.
        """
        columns = [
            typed_cell(quoted(field.name), field.dataType, self._shown(), field.name, null=null).alias(field.name)
            for field in schema
        ]
        self._require_text([])
        return self.cells(spark).select(*columns)

    def _paths(self) -> list[StoragePath]:
        return [path for paths in self.files.values() for path in paths]

    def _shown(self) -> str:
        paths = self._paths()
        return str(paths[0]) if len(paths) == 1 else str(paths[0].parent)

    def _require_text(self, columns: Sequence[str]) -> None:
        """Read the files' bytes and refuse one that is not in its encoding; a file may well hold the mark U+FFFD."""
        for form, paths in self.files.items():
            for path in paths:
                _require_encoding(path, form.encoding, columns)

    def _tell(self, name: str, facts: "CellFacts", kind: str, *, has_commas: bool) -> None:
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
    """The task that looks at cells. It gives the facts on each column, and a row that is too long.

    Attributes:
        columns: The names of the columns.
        forms: The number of columns and the separator of each form of the files.
    """

    columns: tuple[str, ...]
    forms: tuple[tuple[int, str], ...]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        found: dict[str, list[CellFacts]] = defaultdict(list)
        long = ""
        for batch in batches:
            for place, name in enumerate(self.columns):
                found[name].append(CellFacts.of(batch.column(place)))
            for row in batch.column(len(self.columns)).drop_null().to_pylist():
                if all(_is_long(row, cells, separator) for cells, separator in self.forms):
                    long = long or row[:200]
        columns = {name: vars(CellFacts.of_all(parts)) for name, parts in found.items()}
        yield pa.RecordBatch.from_pydict({"facts": [json.dumps({"columns": columns, "long": long})]})


def _is_long(row: str, columns: int, separator: str) -> bool:
    return any(next(csv.reader(io.StringIO(row, newline=""), delimiter=separator), [])[columns:])


def _form(path: StoragePath, encoding: str | None, separator: str | None) -> CsvForm:
    with path.open_stream() as file:
        head = file.read(_HEAD_BYTES)
    packed = next((name for magic, name in _PACKED.items() if head.startswith(magic)), None)
    if packed is not None:
        suffix = _SUFFIXES.get(packed)
        if suffix is None:
            raise CsvError(f"{path} is packed as {packed}, which Spark does not read; unpack it, or pack it with gzip")
        if not path.name.endswith(suffix):
            raise CsvError(f"{path} is packed with {packed}, and its name does not say so; let it end in {suffix}")
        with path.open_stream() as file:
            head = pa.CompressedInputStream(file, packed).read(_HEAD_BYTES)
    elif suffix := next((end for end in _SUFFIXES.values() if path.name.lower().endswith(end)), None):
        raise CsvError(f"{path} is not packed as {suffix} says; rename it")
    found = _encoding(encoding, path) if encoding else encoding_of(head)
    text = codecs.getincrementaldecoder(found)(errors="replace").decode(head).removeprefix("\ufeff").lstrip("\r\n")
    if "\x00" in text[:1000]:
        raise CsvError(f"{path} is not text; give a CSV file")
    if text[:4].lower() == "sep=":
        raise CsvError(f"{path} begins with Excel's line '{text.splitlines()[0]}'; delete that line")
    between = separator or ("\t" if path.name.lower().partition(".")[2].startswith("tsv") else _separator(text))
    header = next((row for row in csv.reader(io.StringIO(text, newline=""), delimiter=between) if any(row)), None)
    if header is None:
        raise CsvError(f"{path} has no header; the first line of a CSV file names its columns")
    return CsvForm(tuple(name or f"_c{place}" for place, name in enumerate(header)), found, between)


def _separator(text: str) -> str:
    """Return the separator of a text: a comma, unless the header has none and another one divides the first rows."""
    for separator in _SEPARATORS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        rows = [row for row, _ in zip(reader, range(2), strict=False)]
        if rows and len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
            return separator
    return ","


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
    suffix = next((name for name, end in _SUFFIXES.items() if path.name.lower().endswith(end)), None)
    with path.open_stream() as file:
        stream = file if suffix is None else pa.CompressedInputStream(file, suffix)
        try:
            while part := stream.read(_HEAD_BYTES):
                decoder.decode(part)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            where = f" in column {', '.join(map(repr, columns))}" if columns else ""
            raise CsvError(
                f"{path} has another encoding than {encoding.upper()} (byte 0x{error.object[error.start]:02x}{where}): "
                f"save it as UTF-8, or give its encoding: ms.read_table(spark, path, encoding='windows-1252')"
            ) from None


def _has_breaks(spark: SparkSession, path: StoragePath, given: Sequence[str]) -> bool:
    """Return whether a line has an odd number of quotes, as the first line of a cell with a line break has."""
    lines = spark.read.text(literal_hadoop_uri(path, *given))
    quotes = F.length("value") - F.length(F.replace("value", F.lit('"'), F.lit("")))
    return bool(lines.where(quotes % 2 == 1).take(1))
