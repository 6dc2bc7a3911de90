"""Embedding of the texts of a DataFrame on Spark, with a cache: an encoder computes each text once."""

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark import TaskContext
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import CharType, StringType, VarcharType

from mirrorspark.data_pipelines.features.raw_columns import ColumnError, meant
from mirrorspark.data_pipelines.spark.errors import task_message
from mirrorspark.data_pipelines.spark.tasks import map_batches, progress_bar
from mirrorspark.scoring.backends.protocol import UnsupportedModelError
from mirrorspark.scoring.backends.tensorflow_runtime import limit_tensorflow
from mirrorspark.scoring.embedding.encoder import (
    EncoderSettings,
    TextEncoder,
    encoder_digest,
    encoder_folder,
    load_encoder,
)
from mirrorspark.scoring.embedding.vector_cache import (
    KEY,
    VECTOR,
    VectorCache,
    VectorWriter,
    normalised_text,
    task_of,
    text_key,
)
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.model.cache import ModelChangedError, freeze_gc, limit_numeric_libraries
from mirrorspark.scoring.model.directory import PinnedModel, folder_digest
from mirrorspark.scoring.plan import column_named
from mirrorspark.scoring.task.batches import regrouped
from mirrorspark.scoring.task.scorer import ShippedModel, ship
from mirrorspark.storage.paths import Location

_LOGGER = logging.getLogger(__name__)

_TEXT, _REPORT = "text", "report"
# Names in the user's table for a moment.
_OWN_KEY, _OWN_VECTOR = "__mirrorspark_text_key", "__mirrorspark_vector"
# Tasks per slot: fast and slow ones even out, and a lost one costs less.
_TASKS_PER_SLOT = 4


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
            (``.onnx``) or a file of tf-keras (``.keras``). It takes one array of texts ``[batch]``, or token ids
            ``[batch, length]`` as ``input_ids``, ``attention_mask`` and ``token_type_ids`` (the last two if it has
            them) with a vocabulary of WordPiece beside it, ``vocab.txt``. It gives vectors ``[batch, d]``, or of token
            ids ``[batch, length, d]``, whose mean is taken.
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


@dataclass(frozen=True)
class CachedEncoder:
    """An encoder with its settings, and the cache of the vectors that both of them decide.

    Attributes:
        location: Folder or file of the encoder, as the user wrote it.
        digest: Digest of its files.
    """

    location: str | Path
    digest: str
    settings: EncoderSettings
    vectors: VectorCache

    @classmethod
    def of(
        cls, location: str | Path, settings: EncoderSettings, cache: Location, given: Location | None = None
    ) -> "CachedEncoder":
        """Return an encoder with its own part of ``cache``, the folder of all encoders.

        Args:
            location: Its folder or file.
            settings: Its settings.
            cache: The folder of the vectors.
            given: A location that tells the scheme of ``cache`` where that is made of it.

        Raises:
            ScoringError: There is no encoder.
        """
        digest = encoder_digest(location)
        return cls(location, digest, settings, VectorCache.of(cache, settings.digest(digest), given))

    def with_vectors(self, df: DataFrame, column: str, output: str, *, progress: bool = True) -> DataFrame:
        """Return what :func:`embed_text` does.

        Args:
            df: The table.
            column: The texts.
            output: Name of the new column.
            progress: Show a bar of Spark's tasks where one can be seen.

        Raises:
            ScoringError: As for :func:`embed_text`.
            ColumnError: As for that function.
            OSError: As for that function.
        """
        _check_columns(df, column, output)
        text = normalised_text(column_named(column))
        with progress_bar(df.sparkSession, "embed") if progress else contextlib.nullcontext():
            self._encode(df.select(text.alias(_TEXT)).where(F.col(_TEXT).isNotNull()))
        found = self.vectors.table(df.sparkSession).dropDuplicates([KEY])
        found = found.select(F.col(KEY).alias(_OWN_KEY), F.col(VECTOR).alias(_OWN_VECTOR))
        joined = df.withColumn(_OWN_KEY, text_key(text)).join(found, _OWN_KEY, "left")
        is_lost = F.col(_OWN_KEY).isNotNull() & F.col(_OWN_VECTOR).isNull()
        error = F.raise_error(
            F.lit(
                f"a text of '{column}' has no vector in {self.vectors.folder}: the table gives other texts than "
                f"before, or files of the cache were removed; try again, with a table that gives the same rows each "
                f"time"
            )
        )
        vector = F.when(is_lost, error).otherwise(F.col(_OWN_VECTOR))
        return joined.withColumn(output, vector).drop(_OWN_KEY, _OWN_VECTOR)

    def _encode(self, texts: DataFrame) -> None:
        """Encode those of the normalised ``texts`` that the cache lacks, equal ones once."""
        spark = texts.sparkSession
        distinct = texts.groupBy(text_key(F.col(_TEXT)).alias(KEY)).agg(F.first(_TEXT).alias(_TEXT))
        cached = self.vectors.table(spark).select(KEY).distinct().withColumn("is_cached", F.lit(True))
        # A text that is cached need not travel to a task, and is counted there.
        new = F.when(F.col("is_cached").isNull(), F.col(_TEXT)).alias(_TEXT)
        tasks = _TASKS_PER_SLOT * spark.sparkContext.defaultParallelism
        dealt = distinct.join(cached, KEY, "left").select(KEY, new).repartitionById(tasks, task_of(F.col(KEY), tasks))
        with encoder_folder(self.location) as folder:
            pinned = PinnedModel(str(folder), folder.name, self.digest[:12], self.digest, folder)
            task = EmbedTask(ship(spark, pinned), self.settings, self.vectors)
            try:
                rows = map_batches(dealt, task, f"{_REPORT} string").collect()
            except (Py4JJavaError, PySparkException) as error:
                raise OSError(f"texts cannot be embedded: {task_message(error)}") from error
        self._check_reports([json.loads(row[_REPORT]) for row in rows])

    def _check_reports(self, reports: Sequence[Mapping[str, Any]]) -> None:
        if refused := [report["refused"] for report in reports if report["refused"]]:
            raise ScoringError(f"the encoder {self.location} cannot be used: {min(refused)}")
        if missing := self.vectors.missing([file for report in reports for file in report["files"]]):
            raise OSError(
                f"tasks have written {len(missing)} files of {self.vectors.folder} that are not there on the driver; "
                f"give a cache that all machines reach"
            )
        embedded, cached = (sum(report[name] for report in reports) for name in ("embedded", "cached"))
        _LOGGER.info("embedded %s new texts, %s from the cache", f"{embedded:,}", f"{cached:,}")


def _check_columns(df: DataFrame, column: str, output: str) -> None:
    if df.columns.count(column) != 1:
        found = f"{df.columns.count(column)} times{meant(column, df.columns)}"
        raise ColumnError(f"the table has the column '{column}' {found}; it has {df.columns}")
    kind = df.schema[column].dataType
    if not isinstance(kind, StringType | CharType | VarcharType):
        raise ColumnError(f"column '{column}' is {kind.simpleString()}, and texts are strings; cast it")
    if output.lower() in [name.lower() for name in df.columns]:
        raise ScoringError(f"the table has a column '{output}' already; give another name as output")


@dataclass(frozen=True)
class EmbedTask:
    """Body of a Spark task of :func:`embed_text`."""

    encoder: ShippedModel
    settings: EncoderSettings
    cache: VectorCache

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Encode the texts of ``batches``, write their vectors, and yield a report; texts that are null are cached."""
        writer = VectorWriter(self.cache)
        report: dict[str, Any] = {"embedded": 0, "cached": 0, "refused": None}
        try:
            for batch in regrouped(batches):
                new = batch.filter(pc.is_valid(batch.column(_TEXT)))
                report["cached"] += batch.num_rows - new.num_rows
                if new.num_rows:
                    writer.add(new.column(KEY), self._load().encode(new.column(_TEXT).to_pylist()))
                    report["embedded"] += new.num_rows
            writer.flush()
        except (ScoringError, UnsupportedModelError) as error:
            # Reported, not raised: Spark would try the same again.
            report["refused"] = str(error)
        yield _reported(report | {"files": writer.files})

    def _load(self) -> TextEncoder:
        context = TaskContext.get()
        return load_once(self.encoder, self.settings, context.cpus() if context is not None else None)


def _reported(report: Mapping[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({_REPORT: [json.dumps(report)]})


# Spark reuses Python workers, and nothing else of a task survives it.
@lru_cache(maxsize=1)
def load_once(encoder: ShippedModel, settings: EncoderSettings, threads: int | None) -> TextEncoder:
    """Return the encoder, loaded once in this process while no other one is.

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
