"""JSON files as programs write them: objects in lines, a list of objects, or a document that is one object.

A plan is made from the head of each file, and documents are parsed here once: Spark reads the first document of a file
and leaves out what follows it, without a word.
"""

import codecs
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import Enum
from typing import Any, Protocol
from urllib.parse import unquote

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import ArrayType, StringType, StructType

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.features import quoted
from mirrorspark.data_pipelines.joined_files import warn_of_folders
from mirrorspark.data_pipelines.packed_files import head_of, unpacked
from mirrorspark.data_pipelines.spark import map_batches
from mirrorspark.spark_session import session_of, versions
from mirrorspark.storage import StoragePath, encoding_of, listing

_HEAD_BYTES = 1 << 16
_PART_BYTES = 1 << 20
_FILES_AT_A_TIME = 16
_MOST_DOCUMENT_BYTES = 64 << 20
_DOCUMENTS_AT_A_TIME = 4
_SHOWN_CHARACTERS = 100
_CORRUPT = "_corrupt_record"
# Where Spark infers the columns of documents, it gives their paths to Hadoop as one text: a comma divides two paths
# there, and brackets are a pattern.
_GIVEN_TO_HADOOP = re.compile(r"[\\*?\[\]{},]")
# Documents that pandas writes where it is not asked for rows: columns, or an index, of values; and lists of lines.
_NO_ROWS = re.compile(
    r'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\{\s*"0"\s*:|\{\s*"0"\s*:\s*\{|\{\s*"columns"\s*:\s*\[.*"data"\s*:\s*\['
    r'|\{\s*"schema"\s*:\s*\{\s*"fields"',
    re.DOTALL,
)
# Files of lines by their names: those of the two suffixes, and Spark's.
_NAMED_LINES = re.compile(r"\.(jsonl|ndjson)(\.\w+)?$|^part-\d{5}", re.IGNORECASE)
_TEXT_OR_NAN = re.compile(r'"(?:[^"\\]|\\.)*"|\bNaN\b')


class JsonError(ClearError, ValueError):
    """A JSON file that cannot be read right; the message names the file and the remedy."""


class _Form(Enum):
    """The form of a JSON file, as far as its head shows it."""

    LINES = "an object in each line"
    LINES_OF_LISTS = "an object in each line, the first with nothing but lists"
    DOCUMENT = "one document"
    LISTS = "one line with an object of lists of one length: a document of columns, or a row"
    CUT = "one line with an object that is longer than the head"


class Load(Protocol):
    """Reads files with Spark."""

    def __call__(
        self,
        kind: str,
        paths: Sequence[StoragePath],
        *,
        schema: StructType | None = None,
        session: SparkSession | None = None,
        **options: bool | str,
    ) -> DataFrame:
        """Return the rows of ``paths``, by another session if one is given."""


def json_frames(
    spark: SparkSession, files: Sequence[listing.DataFile], folders: StructType, load: Load
) -> dict[StoragePath, DataFrame]:
    """Return the rows of the files with lines, and of those with a document, each by its first file.

    Null, NaN and an absent key are missing values.

    Args:
        spark: The session.
        files: The files.
        folders: Names and types of the columns of folders.
        load: Reads some of the files.

    Raises:
        JsonError: A file is not JSON in UTF-8, has several documents or something else than rows.
        PackedFileError: A file is damaged, or packed in a way that Spark does not unpack.
    """
    by_form: dict[bool, list[listing.DataFile]] = defaultdict(list)
    for file, has_lines in zip(files, _have_lines([file.path for file in files]), strict=True):
        by_form[has_lines].append(file)
    found: dict[StoragePath, DataFrame] = {}
    for has_lines, own in by_form.items():
        paths = [file.path for file in own]
        where = str(paths[0] if len(paths) == 1 else paths[0].parent)
        # Where case does not count, Spark takes keys of several rows for one, and leaves values out. A recursive look
        # finds the keys of the files alone, without the columns of their folders.
        with session_of(spark).names_by_case() as by_case:
            schema = None if has_lines else _schema_of_documents(by_case, own)
            schema = load(
                "json", paths, schema=schema, session=by_case, multiLine=not has_lines, recursiveFileLookup=True
            ).schema
        warn_of_folders(own[0].root, schema.names, folders)
        frame = load("json", paths, schema=schema, multiLine=not has_lines)
        if _CORRUPT in frame.columns:
            raise JsonError(
                f"{where} has lines or documents that are not JSON objects; correct them, or write JSON lines"
            )
        if not frame.columns:
            raise JsonError(_without_columns(paths[0], has_rows=bool(frame.take(1))))
        if has_lines:
            _require_one_in_a_line(load("text", paths, recursiveFileLookup=True))
        if any(isinstance(field.dataType, StringType) for field in frame.schema):
            texts = load("text", paths, wholetext=not has_lines)
            # Most texts are passed over by the first, cheap condition.
            if texts.where(F.contains("value", F.lit("NaN")) & F.col("value").rlike(r"[:,\[]\s*NaN\b")).take(1):
                frame = _without_nan(texts)
        found[paths[0]] = frame
    return found


def _require_one_in_a_line(texts: DataFrame) -> None:
    """Refuse a line with something after its first document, which Spark leaves out."""
    # The condition passes over most lines, and over none with more than one document.
    count = F.json_array_length(F.concat(F.lit("["), F.col("value"), F.lit("]")))
    others = texts.select("value", F.col("_metadata.file_path").alias("file")).where(
        F.coalesce(count != 1, F.lit(True)) & F.col("value").rlike(r"\S")
    )
    for line in map_batches(others, lines_with_more, others.schema).take(1):
        path = re.sub(r"^file:/+", "/", unquote(line.file))
        raise JsonError(
            f"{path} has lines with something after their first document, such as {line.value!r}; write each document "
            f"in a line of its own, without commas"
        )


def lines_with_more(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the beginnings of those JSON lines that go on after their first document, with their files."""
    for batch in batches:
        is_wanted, begins = [], []
        for text in batch.column(0).to_pylist():
            line = text.removeprefix("\ufeff").strip()
            end = len(line)
            with suppress(ValueError):  # not JSON to Python, though it may be to Spark
                end = json.JSONDecoder().raw_decode(line)[1]
            is_wanted.append(end < len(line))
            begins.append(line[:_SHOWN_CHARACTERS])
        yield batch.set_column(0, batch.schema.field(0), pa.array(begins, batch.schema.field(0).type)).filter(
            pa.array(is_wanted, pa.bool_())
        )


def _without_nan(texts: DataFrame) -> DataFrame:
    """Return the rows of JSON texts in which NaN is null: to Spark it is a text in a column without numbers."""
    plain = map_batches(texts, nan_as_null, texts.schema)
    schema = versions.json_columns(plain.select("value"))
    rows = plain.select(
        F.explode(F.from_json("value", ArrayType(schema))).alias("row"),
        *(quoted(name) for name in texts.columns if name != "value"),
    )
    of_folders = [quoted(name) for name in rows.columns if name != "row"]
    return rows.select(*[F.col("row")[name].alias(name) for name in schema.names], *of_folders)


def nan_as_null(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield batches of JSON texts, the first column, with null for NaN."""
    for batch in batches:
        texts = [
            _TEXT_OR_NAN.sub(
                lambda found: found[0] if found[0].startswith('"') else "null", text.removeprefix("\ufeff")
            )
            for text in batch.column(0).to_pylist()
        ]
        yield batch.set_column(0, batch.schema.field(0), pa.array(texts, batch.schema.field(0).type))


def _have_lines(paths: Sequence[StoragePath]) -> list[bool]:
    """Return for each file whether it has an object in each line, rather than a document.

    An object of lists of one length is a row if the file's name shows lines, or if another file of the table has lines
    of lists.
    """
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        forms = list(pool.map(_form, paths))
    cut = [place for place, form in enumerate(forms) if form is _Form.CUT]
    with ThreadPoolExecutor(_DOCUMENTS_AT_A_TIME) as pool:
        for place, form in zip(cut, pool.map(lambda place: _form_of_line(paths[place]), cut), strict=True):
            forms[place] = form
    if _Form.LINES_OF_LISTS not in forms and _Form.LISTS in forms:
        raise JsonError(_of_lists(paths[forms.index(_Form.LISTS)]))
    return [form is not _Form.DOCUMENT for form in forms]


def _form(path: StoragePath) -> _Form:
    """Return the form of a file, by its head."""
    head = head_of(path, _HEAD_BYTES)
    encoding = encoding_of(head)
    if not encoding.startswith("utf-8"):
        raise JsonError(f"{path} has the encoding {encoding.upper()}; save it as UTF-8")
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head).lstrip(" \t\r\n")
    except UnicodeDecodeError as error:
        raise JsonError(
            f"{path} has another encoding than UTF-8 (byte 0x{error.object[error.start]:02x}); save it as UTF-8"
        ) from None
    if _NO_ROWS.match(text):
        raise JsonError(_of_columns(path))
    first, line_break, rest = text.partition("\n")
    try:
        row = json.loads(first)
    except json.JSONDecodeError:
        # A list, or an object over several lines; or a line that is longer than the head.
        if line_break or not text.startswith("{"):
            return _Form.DOCUMENT
        return _Form.LINES if _NAMED_LINES.search(path.name) else _Form.CUT
    if not isinstance(row, dict):
        return _Form.DOCUMENT
    return _Form.LISTS if not rest.strip() and _is_of_columns(row, path) else _form_of_row(row)


def _form_of_row(row: dict[str, Any]) -> _Form:
    return _Form.LINES_OF_LISTS if row and all(isinstance(value, list) for value in row.values()) else _Form.LINES


def _form_of_line(path: StoragePath) -> _Form:
    """Return the form of a file whose first line is longer than the head."""
    with unpacked(path) as file:
        text = _first_line(file)
    first, _, rest = text.decode("utf-8-sig", errors="replace").lstrip().partition("\n")
    if not rest.strip() and len(text) > _MOST_DOCUMENT_BYTES:
        raise JsonError(_too_large(path))
    try:
        row = json.loads(first)
        return _Form.LISTS if not rest.strip() and _is_of_columns(row, path) else _form_of_row(row)
    except json.JSONDecodeError:
        return _Form.LINES  # not JSON, which Spark finds out


def _first_line(file: pa.NativeFile) -> bytes:
    """Return the first line with something of what follows it, up to the most bytes of a document."""
    found = bytearray()
    while (part := file.read(_PART_BYTES)) and len(found) <= _MOST_DOCUMENT_BYTES:
        found += part
        if b"\n" in part:
            found += file.read(_PART_BYTES)
            break
    return bytes(found)


def _is_of_columns(document: dict[str, Any], path: StoragePath) -> bool:
    """Return whether an object has a list of equally many values, two or more, for each column of a table.

    A row may have such lists, too: the name of its file can show lines.
    """
    if _NAMED_LINES.search(path.name):
        return False
    lengths = {len(one) if isinstance(one, list) else 0 for one in document.values()}
    return len(lengths) == 1 and max(lengths) > 1


def _of_columns(path: StoragePath) -> str:
    return f"{path} is a document of columns; write rows: df.to_json(path, orient='records', lines=True)"


def _of_lists(path: StoragePath) -> str:
    return f"{_of_columns(path)}; if it is one row of lists, give it the suffix .jsonl"


def _without_columns(path: StoragePath, *, has_rows: bool) -> str:
    if not has_rows:
        return f"{path} has no rows; give the file or folder of a table"
    return (
        f"{path} has rows without columns: its objects are empty, as {{}} is; write the values of each row with their "
        f"names, or leave the file out"
    )


def _too_large(path: StoragePath) -> str:
    return f"{path} has more than {_MOST_DOCUMENT_BYTES >> 20} MB in one document; write lines"


def _schema_of_documents(spark: SparkSession, files: Sequence[listing.DataFile]) -> StructType | None:
    """Check that each file has one document; return the columns of all if Spark cannot infer them, else None."""
    is_ours = any(_GIVEN_TO_HADOOP.search(file.path.uri) for file in files)

    def rows_of(file: listing.DataFile) -> list[str]:
        document = _document(file.path, may_be_large=not is_ours)
        rows = document if isinstance(document, list) else [document]
        return [json.dumps(row) for row in rows] if is_ours else []

    with ThreadPoolExecutor(_DOCUMENTS_AT_A_TIME) as pool:
        rows = [row for found in pool.map(rows_of, files) for row in found]
    if not is_ours:
        return None
    if not rows:
        raise JsonError(_without_columns(files[0].path, has_rows=False))
    return versions.json_columns(versions.table_of(spark, pa.table({"value": rows})))


def _document(path: StoragePath, *, may_be_large: bool) -> Any:
    """Return the only document of a file; of a large list, which Spark reads row by row, nothing."""
    with unpacked(path) as file:
        content = bytes(file.read(_MOST_DOCUMENT_BYTES + 1))
    text = content.decode("utf-8-sig", errors="replace").strip()
    if len(content) > _MOST_DOCUMENT_BYTES:
        if may_be_large and text.startswith("["):
            return []
        raise JsonError(_too_large(path))
    try:
        document, end = json.JSONDecoder().raw_decode(text)
    except ValueError as error:
        raise JsonError(f"{path} is not JSON ({error}); correct it, or write JSON lines") from error
    if end < len(text):
        raise JsonError(
            f"{path} has several documents, the second after {end} characters; write each in a line of its own, "
            f"without commas, or all as one list"
        )
    if isinstance(document, dict) and _is_of_columns(document, path):
        raise JsonError(_of_lists(path))
    if not all(isinstance(one, dict) for one in (document if isinstance(document, list) else [document])):
        raise JsonError(f"{path} has values that are not JSON objects; write an object for each row")
    return document
