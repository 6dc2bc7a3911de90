"""Embedding of the texts or images of a DataFrame on Spark, with a cache: an encoder computes each once."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import BinaryType, CharType, DataType, StringType, VarcharType

from mirrorspark.data_pipelines.features import embedded_columns, kinds, quoted, raw_columns
from mirrorspark.data_pipelines.spark import map_batches, progress_bar
from mirrorspark.scoring.backends import limit_tensorflow, protocol
from mirrorspark.scoring.embedding.encoder import encoder_digest, encoder_folder, load_encoder, pinned_encoder
from mirrorspark.scoring.embedding.settings import EncoderSettings, ImageSettings, Settings
from mirrorspark.scoring.embedding.vector_cache import (
    KEY,
    VectorCache,
    VectorWriter,
    content_key,
    normalised_text,
    present_image,
    task_of,
)
from mirrorspark.scoring.embedding.vectors import Encoder, readable_vectors
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.model.loading import ModelChangedError, freeze_gc, limit_numeric_libraries
from mirrorspark.scoring.model.stored import PinnedModel, folder_digest
from mirrorspark.scoring.output import good_rows
from mirrorspark.scoring.task import ShippedModel, regrouped, ship
from mirrorspark.spark_session import SPARK_ERRORS, on_running_session, session_of, task_cores, task_message
from mirrorspark.storage import Location

_LOGGER = logging.getLogger(__name__)

_CONTENT, _REPORT = "content", "report"
_COUNTS = ("embedded", "cached", "unreadable")
# Names of temporary columns in the user's table.
_OWN_KEY, _OWN_VECTOR = "__mirrorspark_key", "__mirrorspark_vector"
_NAMED_IN_MESSAGE = 3
# Tasks per slot: fast and slow ones even out, and a lost one costs less.
_TASKS_PER_SLOT = 4


@on_running_session
def embed_text(
    df: DataFrame,
    column: str,
    encoder: str | Path,
    *,
    cache: Location,
    output: str = "embedding",
    signature: str | None = None,
    model_output: str | None = None,
    max_length: int = 128,
    batch_size: int = 64,
) -> DataFrame:
    """Return ``df`` with a column of type ``array<float>``: the vector that an encoder gives each text.

    This call encodes the texts that ``cache`` lacks, equal ones once, and logs how many. The result reads the vectors
    from the cache when it is used; its rows are in no order. White space between words counts as one space, at the ends
    of a text it does not count. The vector of a null or of an empty text is null.

    Args:
        df: The table. It is read twice and has to give the same texts.
        column: The texts.
        encoder: A folder with a SavedModel (also in TF-Hub's layout), or a folder with or the path of an ONNX file
            (``.onnx``) or a file of tf-keras (``.keras``); or a packaged model of these, as a folder or a URI such as
            ``models:/titles@champion``, in the store that :func:`scoring.model.stored.resolve` takes by default. It
            takes one array of texts ``[batch]``, or token ids
            ``[batch, length]`` as ``input_ids``, ``attention_mask`` and ``token_type_ids`` (the last two if it has
            them) with a vocabulary of WordPiece next to it, ``vocab.txt``. It returns vectors ``[batch, d]``, or
            vectors of tokens ``[batch, length, d]``, whose mean is taken.
        cache: Folder of the vectors, which all machines reach. One will do for all encoders: each has its vectors in a
            folder of its own, by the digest of its files and of the settings below. Any number of jobs may use it at a
            time.
        output: Name of the new column.
        signature: Signature of a SavedModel; by default ``serving_default`` or its only one, or of a module without
            signatures its own call.
        model_output: The encoder's output that is the vector, if it has several.
        max_length: Most tokens of a text, those that begin and end it included, for an encoder that takes token ids.
        batch_size: Texts in a call of the encoder. For one that takes token ids, texts of ``max_length`` tokens; of
            shorter ones a call has as many more.

    Raises:
        ScoringError: There is no encoder, it takes or gives something else, or the result would have a column twice.
        ColumnError: The column is missing or holds no strings.
        OSError: A task failed, for the reason in the message, or tasks write to a folder that is not there for this
            process.
    """
    settings = EncoderSettings(signature, model_output, max_length, batch_size)
    return CachedEncoder.of(encoder, settings, cache).with_vectors(df, column, output)


@on_running_session
def embed_images(
    df: DataFrame,
    column: str,
    encoder: str | Path,
    *,
    cache: Location,
    output: str = "embedding",
    signature: str | None = None,
    model_output: str | None = None,
    max_bytes: int = kinds.ImageEmbedding.max_bytes,
    max_pixels: int = kinds.ImageEmbedding.max_pixels,
    batch_size: int = 64,
) -> DataFrame:
    """Return ``df`` with a column of type ``array<float>``: the vector that an encoder gives each image.

    It works as :func:`embed_text`, and the vectors are those of the feature kind ``image_embedding``, with the same
    cache. The vector of a null or of no bytes is null.

    Args:
        df: The table. It is read twice and has to give the same images.
        column: The bytes of JPEG or PNG files, as Spark's format ``binaryFile`` reads them into ``content``.
        encoder: A folder, file or URI as in :func:`embed_text`, of an encoder that takes one array of images,
            ``[batch, height, width, channels]`` or ``[batch, channels, height, width]``, and returns vectors
            ``[batch, d]``. Images are resized to its input, with pixels from 0 to 255.
        cache: See :func:`embed_text`, also for the next three.
        output: Name of the new column.
        signature: Signature of a SavedModel.
        model_output: The encoder's output that is the vector.
        max_bytes: Most bytes of an image.
        max_pixels: Most pixels of an image, its height times its width, which are checked before it is decoded.
        batch_size: Images in a call of the encoder.

    Raises:
        ScoringError: See :func:`embed_text`.
        ColumnError: The column is missing or holds no bytes, or an image cannot be read or is too large.
        OSError: See :func:`embed_text`.
    """
    settings = ImageSettings(signature, model_output, max_bytes, max_pixels, batch_size)
    return CachedEncoder.of(encoder, settings, cache).with_vectors(df, column, output)


@dataclass(frozen=True)
class _EncoderInput:
    """An encoder's input: the content of one column, texts or images.

    Attributes:
        field: First field of an embedded column; also its name in messages.
        one: One of them, for messages.
        type_name: Name of the column's values, for messages.
        types: Spark's types of such columns.
        normalised: Returns the content of a column, null for missing values.
        kept: Returns the column that an embedded column keeps, given the content and its key.
    """

    field: str
    one: str
    type_name: str
    types: tuple[type[DataType], ...]
    normalised: Callable[[Column], Column]
    kept: Callable[[Column, Column], Column]


_TEXT_INPUT = _EncoderInput(
    embedded_columns.TEXT,
    "a text",
    "strings",
    (StringType, CharType, VarcharType),
    normalised_text,
    kept=lambda text, key: text,
)
# A table with the images themselves would be many times as large.
_IMAGE_INPUT = _EncoderInput(
    embedded_columns.IMAGE, "an image", "bytes", (BinaryType,), present_image, kept=lambda image, key: key
)


@dataclass(frozen=True)
class CachedEncoder:
    """An encoder with its settings, and the cache of the resulting vectors.

    Attributes:
        location: Folder or file of the encoder, as the user wrote it.
        digest: Digest of its files.
        settings: Its settings, which also name its input.
    """

    location: str | Path
    digest: str
    settings: Settings
    vectors: VectorCache

    @classmethod
    def of(
        cls,
        encoder: str | Path,
        settings: Settings,
        cache: Location,
        given: Location | None = None,
        tracking_uri: str | None = None,
    ) -> "CachedEncoder":
        """Return an encoder with its own part of ``cache``, the folder of all encoders.

        Args:
            encoder: Its folder, file or URI.
            settings: Its settings.
            cache: The folder of the vectors.
            given: The user's location of which ``cache`` was made, for its scheme; by default ``cache`` itself.
            tracking_uri: Address of the MLflow store of a URI.

        Raises:
            ScoringError: There is no encoder.
            ModelNotFoundError: The URI does not lead to a model.
            ModelStoreError: The store of a URI cannot be used.
        """
        location = pinned_encoder(encoder, tracking_uri)
        digest = encoder_digest(location)
        return cls(location, digest, settings, VectorCache.of(cache, settings.digest(digest), given))

    @property
    def _input(self) -> _EncoderInput:
        return _IMAGE_INPUT if isinstance(self.settings, ImageSettings) else _TEXT_INPUT

    def with_vectors(self, df: DataFrame, column: str, output: str) -> DataFrame:
        """Return the result of :func:`embed_text` or :func:`embed_images`.

        Args:
            df: The table.
            column: The texts or images.
            output: Name of the new column.

        Raises:
            ScoringError: See :func:`embed_text`.
            ColumnError: See :func:`embed_text`; or an image cannot be read.
            OSError: See :func:`embed_text`.
        """
        if output.lower() in [name.lower() for name in df.columns]:
            raise ScoringError(f"the table has a column '{output}' already; give another name as output")
        self._encode(df, column, progress=True)
        key = content_key(self._input.normalised(quoted(column)))
        return self._joined(df.withColumn(_OWN_KEY, key), column).withColumnRenamed(_OWN_VECTOR, output).drop(_OWN_KEY)

    def embedded(self, df: DataFrame, column: str, *, progress: bool) -> DataFrame:
        """Return ``df`` with an embedded column in the place of its texts or images.

        Args:
            df: The table.
            column: The texts or images.
            progress: Show a bar of Spark's tasks where one can be seen.

        Raises:
            ScoringError: See :meth:`with_vectors`.
            ColumnError: See :meth:`with_vectors`.
            OSError: See :meth:`with_vectors`.
        """
        self._encode(df, column, progress=progress)
        content = self._input.normalised(quoted(column))
        key = content_key(content)
        # Images stay behind before the join moves the rows.
        kept = df.withColumns({_OWN_KEY: key, column: self._input.kept(content, key)})
        joined = self._joined(kept, column)
        pair = F.struct(quoted(column).alias(self._input.field), F.col(_OWN_VECTOR).alias(embedded_columns.VECTOR))
        return joined.withColumn(column, F.when(F.col(_OWN_VECTOR).isNotNull(), pair)).drop(_OWN_KEY, _OWN_VECTOR)

    def _joined(self, df: DataFrame, column: str) -> DataFrame:
        """Return ``df`` with the vectors of its column of keys."""
        found = self.vectors.table(df.sparkSession).dropDuplicates([KEY])
        found = found.select(F.col(KEY).alias(_OWN_KEY), F.col(embedded_columns.VECTOR).alias(_OWN_VECTOR))
        joined = df.join(found, _OWN_KEY, "left")
        is_lost = F.col(_OWN_KEY).isNotNull() & F.col(_OWN_VECTOR).isNull()
        error = F.raise_error(
            F.lit(
                f"{self._input.one} of '{column}' has no vector in {self.vectors.folder}: the table gives other "
                f"{self._input.field}s than before, or files of the cache were removed; try again, with a table that "
                f"gives the same rows each time"
            )
        )
        return joined.withColumn(_OWN_VECTOR, F.when(is_lost, error).otherwise(F.col(_OWN_VECTOR)))

    def _encode(self, df: DataFrame, column: str, *, progress: bool) -> None:
        """Encode the contents of a column that the cache lacks; equal values are encoded once."""
        self._check_column(df, column)
        spark = df.sparkSession
        content = F.col(_CONTENT)
        contents = df.select(self._input.normalised(quoted(column)).alias(_CONTENT)).where(content.isNotNull())
        distinct = contents.groupBy(content_key(content).alias(KEY)).agg(F.first(content).alias(_CONTENT))
        cached = self.vectors.table(spark).select(KEY).distinct().withColumn("is_cached", F.lit(True))
        # Cached contents are not sent to the tasks, which only count them.
        new = F.when(F.col("is_cached").isNull(), content).alias(_CONTENT)
        tasks = _TASKS_PER_SLOT * session_of(spark).default_parallelism
        dealt = distinct.join(cached, KEY, "left").select(KEY, new).repartitionById(tasks, task_of(F.col(KEY), tasks))
        bar = progress_bar(spark, "embed") if progress else contextlib.nullcontext()
        with encoder_folder(self.location) as folder, bar:
            pinned = PinnedModel(str(folder), folder.name, self.digest[:12], self.digest, folder)
            task = EmbedTask(ship(spark, pinned), self.settings, self.vectors)
            try:
                rows = map_batches(dealt, task, f"{_REPORT} string").collect()
            except SPARK_ERRORS as error:
                raise OSError(f"column '{column}' cannot be embedded: {task_message(error)}") from error
        self._check_reports(column, [json.loads(row[_REPORT]) for row in rows])

    def _check_column(self, df: DataFrame, column: str) -> None:
        if df.columns.count(column) != 1:
            found = f"{df.columns.count(column)} times{raw_columns.meant(column, df.columns)}"
            raise raw_columns.ColumnError(f"the table has the column '{column}' {found}; it has {df.columns}")
        kind, expected = df.schema[column].dataType, self._input
        if not isinstance(kind, expected.types):
            raise raw_columns.ColumnError(
                f"column '{column}' is {kind.simpleString()}, and {expected.field}s are {expected.type_name}; cast it"
            )

    def _check_reports(self, column: str, reports: Sequence[Mapping[str, Any]]) -> None:
        if refused := [report["refused"] for report in reports if report["refused"]]:
            raise ScoringError(f"the encoder {self.location} cannot be used: {min(refused)}")
        if missing := self.vectors.missing([file for report in reports for file in report["files"]]):
            raise OSError(
                f"tasks have written {len(missing)} files of {self.vectors.folder} that are not there on the driver; "
                f"give a cache that all machines reach"
            )
        embedded, cached, unreadable = (sum(report[name] for report in reports) for name in _COUNTS)
        noun = self._input.field
        _LOGGER.info("embedded %s new %ss, %s from the cache", f"{embedded:,}", noun, f"{cached:,}")
        if unreadable:
            named = sorted((key, reason) for report in reports for key, reason in report["examples"].items())
            examples = "; ".join(f"{key}: {reason}" for key, reason in named[:_NAMED_IN_MESSAGE])
            raise raw_columns.ColumnError(
                f"column '{column}' has {unreadable:,} different {noun}s that cannot be read, such as those with these "
                f"SHA-256: {examples}; correct them, or make them null in the query (sha2(`{column}`, 256) finds them)"
            )


@dataclass(frozen=True)
class EmbedTask:
    """Body of a Spark task of :class:`CachedEncoder`."""

    encoder: ShippedModel
    settings: Settings
    cache: VectorCache

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Encode the contents of ``batches``, write their vectors, and yield a report; null ones are cached."""
        writer = VectorWriter(self.cache)
        report: dict[str, Any] = {**dict.fromkeys(_COUNTS, 0), "refused": None, "examples": {}}
        try:
            for batch in regrouped(batches):
                new = batch.filter(pc.is_valid(batch.column(_CONTENT)))
                report["cached"] += batch.num_rows - new.num_rows
                if new.num_rows:
                    self._add(new, writer, report)
            writer.flush()
        except (ScoringError, protocol.UnsupportedModelError) as error:
            # Reported, not raised: Spark would try the same again.
            report["refused"] = str(error)
        yield _reported(report | {"files": writer.files})

    def _add(self, new: pa.RecordBatch, writer: VectorWriter, report: dict[str, Any]) -> None:
        """Encode and write one batch or more of new contents, and count them."""
        vectors, reasons = readable_vectors(self._load(), new.column(_CONTENT).to_pylist())
        keys = new.column(KEY)
        if len(vectors):
            writer.add(keys.take(pa.array(good_rows(new.num_rows, reasons))), vectors)
        report["embedded"] += len(vectors)
        report["unreadable"] += len(reasons)
        named = report["examples"] | {keys[place].as_py(): reason for place, reason in reasons.items()}
        # The smallest keys, so that the choice does not depend on the division among tasks.
        report["examples"] = dict(sorted(named.items())[:_NAMED_IN_MESSAGE])

    def _load(self) -> Encoder:
        return load_once(self.encoder, self.settings, task_cores())


def _reported(report: Mapping[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({_REPORT: [json.dumps(report)]})


# Spark reuses Python workers, and nothing else of a task survives it.
@lru_cache(maxsize=1)
def load_once(encoder: ShippedModel, settings: Settings, threads: int | None) -> Encoder:
    """Return the encoder. This process keeps the one that it loaded last.

    Raises:
        ModelChangedError: Its files are no longer those that the driver saw.
        ScoringError: It cannot be used.
        UnsupportedModelError: It cannot be loaded.
    """
    folder = encoder.folder()
    # The vectors are kept under the digest of these files.
    if folder_digest(folder) != encoder.digest:
        raise ModelChangedError(f"the files of the encoder {folder} have changed since the call; call embed_text again")
    if threads is not None:
        limit_tensorflow(threads)
    loaded = load_encoder(folder, settings, threads=threads)
    if threads is not None:
        limit_numeric_libraries(threads)
        freeze_gc(has_dropped=False)
    return loaded
