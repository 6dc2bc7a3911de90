"""JSON files of one table as a Spark DataFrame: objects in lines, a list of objects, or an object in each file."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import ArrayType, StringType

from mirrorspark.data_pipelines.features import quoted
from mirrorspark.data_pipelines.spark import map_batches
from mirrorspark.storage import StoragePath, encoding_of, listing, literal_hadoop_uri

_HEADS_AT_A_TIME = 16
_HEAD_BYTES = 1 << 16
_CORRUPT = "_corrupt_record"
# Documents that pandas writes where it is not asked for rows: columns, or an index, of values; and lists of lines.
_NO_ROWS = re.compile(
    r'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\{\s*"0"\s*:|\{\s*"0"\s*:\s*\{|\{\s*"columns"\s*:\s*\[.*"data"\s*:\s*\['
    r'|\{\s*"schema"\s*:\s*\{\s*"fields"',
    re.DOTALL,
)
_TEXT_OR_NAN = re.compile(r'"(?:[^"\\]|\\.)*"|\bNaN\b')


class JsonError(ValueError):
    """A JSON file that cannot be read as rows; the message names it and the remedy."""


def read_json(
    spark: SparkSession, files: Sequence[listing.DataFile], base: StoragePath | None, given: Sequence[str]
) -> DataFrame:
    """Return the rows of JSON files; null, NaN and an absent key are missing values.

    Args:
        spark: The session.
        files: The files.
        base: Folder whose subfolders like ``day=3`` are columns; None without such folders.
        given: Locations as the user wrote them.

    Raises:
        JsonError: A file has another encoding than UTF-8, or does not hold rows.
    """
    with ThreadPoolExecutor(_HEADS_AT_A_TIME) as pool:
        heads = list(pool.map(_head, [file.path for file in files]))
    for file, (encoding, _, text) in zip(files, heads, strict=True):
        if encoding not in ("utf-8", "utf-8-sig"):
            raise JsonError(f"{file.path} has the encoding {encoding.upper()}; save it as UTF-8")
        if _NO_ROWS.match(text):
            raise JsonError(
                f"{file.path} is a document of columns; write rows: df.to_json(path, orient='records', lines=True)"
            )
    is_whole = any(not is_lines for _, is_lines, _ in heads)
    reader = spark.read
    if base is not None:
        reader = reader.option("basePath", f"file://{base.uri}" if base.is_local else base.uri)
    paths = [literal_hadoop_uri(file.path, *given) for file in files]
    df = reader.json(paths, multiLine=is_whole)
    if _CORRUPT in df.columns:
        shown = files[0].path if len(files) == 1 else files[0].path.parent
        raise JsonError(f"{shown} has lines or documents that are not JSON objects; correct them, or write JSON lines")
    if any(isinstance(field.dataType, StringType) for field in df.schema):
        texts = reader.text(paths, wholetext=is_whole)
        if texts.where(F.col("value").rlike(r"[:,\[]\s*NaN\b")).take(1):
            return _without_nan(texts)
    return df


def _without_nan(texts: DataFrame) -> DataFrame:
    """Return the rows of JSON texts in which NaN is null: to Spark it is a text in a column without numbers."""
    plain = map_batches(texts, nan_as_null, texts.schema)
    schema = texts.sparkSession.read.json(plain.select("value")).schema
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


def _head(path: StoragePath) -> tuple[str, bool, str]:
    """Return a file's encoding, whether it has an object in each line, and its first characters."""
    with path.open_stream() as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith((b"\x1f\x8b", b"BZh")):
        codec = "gzip" if head.startswith(b"\x1f") else "bz2"
        with path.open_stream() as file:
            head = pa.CompressedInputStream(file, codec).read(_HEAD_BYTES)
    encoding = encoding_of(head)
    text = head.decode(encoding, errors="replace").lstrip("\ufeff \t\r\n")
    first, line_break, _ = text.partition("\n")
    try:
        return encoding, isinstance(json.loads(first), dict), text
    except ValueError:
        # A list, or an object over several lines; or a line that is longer than the head.
        return encoding, not line_break and text.startswith("{"), text
