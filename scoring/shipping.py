"""How a model and the code that scores with it get from the driver to the tasks."""

import hashlib
import pickle
import re
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
from pyspark import SparkFiles
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from data_pipelines.spark_schema import with_plain_names
from scoring.model_uri import PinnedModel

BatchFunction: TypeAlias = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]


@dataclass(frozen=True)
class ShippedModel:
    """Where a task finds a model; never the model itself, which no closure could carry.

    Attributes:
        digest: SHA-256 of the model's files.
        label: What stands on every scored row, such as ``flights/3``.
        path: Folder on the driver's disk, in local mode, where tasks run on the same machine.
        archive: Name of the archive that Spark has unpacked for the task, on a cluster; it has a folder for each of its
            models, by digest.
    """

    digest: str
    label: str
    path: str | None
    archive: str | None

    def folder(self) -> Path:
        """Return the folder of the model on this machine; call it in the task."""
        return Path(self.path) if self.path is not None else Path(SparkFiles.get(self.archive or ""), self.digest)


def is_local(spark: SparkSession) -> bool:
    """Tell whether tasks run beside the driver, with its files and packages.

    ``local-cluster[...]`` does not count: it has executors of its own.
    """
    return re.match(r"local$|local\[", str(spark.sparkContext.master)) is not None


def ship(spark: SparkSession, model: PinnedModel) -> ShippedModel:
    """Make ``model`` available to the tasks of ``spark``; the second time does nothing.

    On a cluster its files travel once to every executor, through Spark's own file server: no shared disk is needed.
    """
    (shipped,) = ship_all(spark, [model])
    return shipped


def ship_all(spark: SparkSession, models: Sequence[PinnedModel]) -> Sequence[ShippedModel]:
    """Make ``models`` available to the tasks of ``spark``, in one archive; the second time does nothing.

    Spark tells every task the names of all archives, and its event log whenever there is one more: an archive for each
    of thousands of models would be a megabyte for every task. A model that is sent again with others travels again.
    """
    context = spark.sparkContext
    if is_local(spark):
        return [ShippedModel(model.digest, model.label, path=str(model.path), archive=None) for model in models]
    folders = {model.digest: model.path for model in models}
    name = f"mirrorspark-models-{hashlib.sha256(''.join(sorted(folders)).encode()).hexdigest()}"
    if not any(archive.endswith(f"#{name}") for archive in context.listArchives):
        # Spark's folder for added files lives as long as the application, which serves the archive from it.
        archive = Path(SparkFiles.getRootDirectory()) / f"{name}.packed.zip"
        _pack(folders, archive)
        context.addArchive(f"{archive}#{name}")
    return [ShippedModel(model.digest, model.label, path=None, archive=name) for model in models]


def _pack(folders: Mapping[str, Path], archive: Path) -> None:
    """Write the files of some folders into an archive that has them by these names."""
    # Another thread may ship the same models: each writes its file, and the last one to finish replaces an equal.
    partial = archive.with_name(f"{archive.name}.{threading.get_ident()}")
    # Stored, not compressed: weights hardly shrink.
    # Nor are their times of any use, and those of reproducible images are before 1980, which an archive cannot hold.
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, strict_timestamps=False) as packed:
        for name, folder in folders.items():
            for path in sorted(folder.rglob("*")):
                packed.write(path, Path(name, path.relative_to(folder)))
    partial.replace(archive)


def portable(task: Callable[[Iterable[Any]], Iterator[Any]]) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """Return ``task`` in a form that an executor can unpickle even where our packages are missing, to say so.

    A task pickles as a reference to its module. Where Spark fails to import that, all that the user sees is a pickle
    error; the function below travels as code and imports for itself.
    """
    payload = pickle.dumps(task)

    def run(batches: Iterable[Any]) -> Iterator[Any]:
        import pickle
        import sys

        try:
            unpacked = pickle.loads(payload)  # noqa: S301 - the driver of this very job wrote it
        except ImportError as error:
            raise ModuleNotFoundError(
                f"{sys.executable} on this executor cannot import '{error.name}'; install mirrorspark in the Python of "
                f"every executor (spark.pyspark.python, or an environment sent with --archives)",
                name=error.name,
            ) from error
        return unpacked(batches)

    return run


def map_batches(table: DataFrame, task: BatchFunction, schema: StructType | str) -> DataFrame:
    """Return what ``task`` makes of the rows of ``table``, whose columns may have any name.

    Args:
        table: The rows.
        task: The body of a task; it pickles, by reference to its module.
        schema: Of what it yields.
    """
    names = tuple(table.columns)
    return with_plain_names(table).mapInArrow(portable(NamedTask(names, task)), schema)


@dataclass(frozen=True)
class NamedTask:
    """The body of a task whose batches have lost the names of their columns.

    Attributes:
        names: Of the columns.
        task: Gets the batches with these names.
    """

    names: tuple[str, ...]
    task: BatchFunction

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield what the task does."""
        return self.task(batch.rename_columns(self.names) for batch in batches)
