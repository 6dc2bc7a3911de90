"""What a task needs to score a batch: the pinned model, and how to call it."""

import gc
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyspark import Accumulator, TaskContext
from pyspark.sql.types import StringType, StructField, StructType

from scoring.counters import Tally
from scoring.loaded_model import LoadedModel, load_once
from scoring.model_directory import ModelDirectory
from scoring.model_uri import PinnedModel, resolve
from scoring.shipping import ShippedModel

VERSION_COLUMN = "model_version"


@dataclass(frozen=True)
class Scorer:
    """What a task needs to score a batch.

    Attributes:
        model: Where the model is.
        batch_size: Rows per call of the model.
        with_version: Whether the outputs end with the model's version.
        loads: Counts the loads of the model.
    """

    model: ShippedModel
    batch_size: int
    with_version: bool = True
    loads: "Accumulator[int] | None" = None

    def load(self, tally: Tally | None = None) -> LoadedModel:
        """Return the model, from the cache of this process or its files."""
        context = TaskContext.get()
        loaded: list[LoadedModel] = []
        model = load_once(
            self.model.folder(),
            self.model.digest,
            threads=context.cpus() if context is not None else None,
            on_load=loaded.append,
        )
        if loaded:
            _spare_the_garbage_collector()
            if self.loads is not None:
                self.loads.add(1)
        if tally is not None:
            tally.loads += len(loaded)
            tally.threads = model.threads
        return model

    def outputs(self, model: LoadedModel, batch: pa.RecordBatch, tally: Tally | None = None) -> dict[str, pa.Array]:
        """Return the output columns for the rows of ``batch``."""
        columns = model.score_arrow(batch, batch_size=self.batch_size)
        if self.with_version:
            columns[VERSION_COLUMN] = pa.repeat(self.model.label, batch.num_rows)
        if tally is not None:
            tally.add(batch, calls=-(-batch.num_rows // self.batch_size))
        return columns


def _spare_the_garbage_collector() -> None:
    """Take all objects that live now out of garbage collection.

    Spark's Python daemon collects after every task, and walks the 340,000 objects of TensorFlow each time: measured,
    an empty task takes 210 ms of CPU, and 2 ms when they are frozen.
    """
    # Frozen objects that refer to each other are never freed, so models that left the cache go first.
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def pinned_model(model: str | Path | PinnedModel, tracking_uri: str | None) -> PinnedModel:
    """Return ``model`` where it is pinned already, else what its URI leads to now."""
    return model if isinstance(model, PinnedModel) else resolve(model, tracking_uri)


def output_schema(directory: ModelDirectory, *, with_version: bool) -> StructType:
    """Return the columns that scoring adds, as Spark has them."""
    schema = StructType.fromDDL(directory.description.output_schema)
    assert isinstance(schema, StructType)  # noqa: S101 - a list of columns is one
    return StructType([*schema.fields, StructField(VERSION_COLUMN, StringType())]) if with_version else schema
