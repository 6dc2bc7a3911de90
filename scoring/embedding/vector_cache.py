"""The cache of vectors: Parquet files that appear whole, in a folder per encoder and one per first digit of a key.

A file is never changed, and the key of a vector is the digest of its text or image. So any number of runs may write at
the same time, a killed one leaves its finished vectors, and readers need no lock. A vector that two runs have written
is read once.
"""

import io
from dataclasses import dataclass, field
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines.features import embedded_columns, text_rules
from mirrorspark.storage import Location, StoragePath, hadoop_uri, lakes

KEY = "key"

_SCHEMA = pa.schema([(KEY, pa.string()), (embedded_columns.VECTOR, pa.list_(pa.float32()))])
_SPARK_SCHEMA = f"{KEY} string, {embedded_columns.VECTOR} array<float>"
# The most work that a lost task costs: 40,000 vectors of 384 numbers.
_FLUSH_BYTES = 64 * 2**20
_DIGITS_OF_FOLDER = 16
# Number of hexadecimal digits at the beginning of a key by which texts and images are assigned to tasks.
_DEALT_DIGITS = 7


def normalised_text(text: Column) -> Column:
    """Return texts normalised on Spark as :func:`data_pipelines.features.text_rules.single_spaced` does on Arrow."""
    trimmed = F.trim(F.regexp_replace(text, text_rules.WHITE_SPACE, " "))
    return F.when(trimmed != "", trimmed)


def present_image(image: Column) -> Column:
    """Return images, with null for those of no bytes."""
    return F.when(F.octet_length(image) > 0, image)


def content_key(content: Column) -> Column:
    """Return the keys of normalised texts, or of images: their SHA-256 in hexadecimal digits, null for null."""
    return F.sha2(content, 256)


def task_of(key: Column, tasks: int) -> Column:
    """Return the number of the task for a key: contiguous ranges of keys, so that a task writes to few folders."""
    number = F.conv(F.substring(key, 1, _DEALT_DIGITS), 16, 10).cast("long")
    return F.floor(number * tasks / 16**_DEALT_DIGITS).cast("int")


@dataclass(frozen=True)
class VectorCache:
    """The vectors of an encoder.

    Attributes:
        folder: Their folder.
        given: The folder of all encoders, as the user wrote it.
    """

    folder: StoragePath
    given: str

    @classmethod
    def of(cls, location: Location, encoder: str, given: Location | None = None) -> "VectorCache":
        """Return the cache for an encoder with this digest, whose files Spark reads by the scheme of ``given``.

        Raises:
            LakeTableError: The location is, or lies in, a table that would not have the files.
        """
        lakes.refuse_lake_write(location)
        return cls(StoragePath.of(location) / encoder[:_DIGITS_OF_FOLDER], str(given or location))

    def table(self, spark: SparkSession) -> DataFrame:
        """Return the keys and vectors of the files that there are now; a key may be there twice."""
        if not self.folder.exists():
            return spark.createDataFrame([], _SPARK_SCHEMA)
        files = spark.read.schema(_SPARK_SCHEMA).parquet(hadoop_uri(self.folder, self.given))
        return files.select(KEY, embedded_columns.VECTOR)  # without the folders' names

    def size(self, spark: SparkSession) -> int | None:
        """Return the length of the vectors; None if there are none."""
        row = self.table(spark).select(F.size(embedded_columns.VECTOR)).first()
        return None if row is None else int(row[0])

    def missing(self, files: list[str]) -> list[str]:
        """Return the files among ``files``, relative to the folder, that are not there."""
        if not files:
            return []
        found = {file.path.relative_to(self.folder) for file in self.folder.files()}
        return [file for file in files if file not in found]


@dataclass
class VectorWriter:
    """Writes vectors in a task."""

    cache: VectorCache
    flush_bytes: int = _FLUSH_BYTES
    files: list[str] = field(default_factory=list)
    _waiting: list[pa.Table] = field(default_factory=list)

    def add(self, keys: pa.Array, vectors: np.ndarray) -> None:
        """Add vectors ``[keys, d]``, and write all pending ones if they are many."""
        size = vectors.shape[1]
        offsets = pa.array(np.arange(0, len(vectors) * size + 1, size, dtype=np.int32))
        lists = pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel()))
        self._waiting.append(pa.table([keys, lists], schema=_SCHEMA))
        if sum(table.nbytes for table in self._waiting) >= self.flush_bytes:
            self.flush()

    def flush(self) -> None:
        """Write the pending vectors, a file for each first digit of their keys."""
        if not self._waiting:
            return
        together = pa.concat_tables(self._waiting)
        digits = pc.utf8_slice_codeunits(together[KEY], 0, 1)
        for digit in sorted(pc.unique(digits).to_pylist()):
            name = f"shard={digit}/part-{uuid4().hex}.parquet"
            content = io.BytesIO()
            # Without the Arrow schema readers get plain lists.
            pq.write_table(together.filter(pc.equal(digits, digit)), content, use_dictionary=False, store_schema=False)
            (self.cache.folder / name).write_bytes(content.getvalue())
            self.files.append(name)
        self._waiting.clear()
