"""Shipping of models from the driver to the tasks."""

import hashlib
import threading
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pyspark.sql import SparkSession

from mirrorspark.scoring.model.stored import PinnedModel
from mirrorspark.spark_session import archive_folder, session_of


@dataclass(frozen=True)
class ShippedModel:
    """Location of a model for tasks. The model itself is too large for a closure.

    Attributes:
        digest: SHA-256 of the model's files.
        label: Value of the column ``model_version``, such as ``flights/3``.
        path: Folder on the driver's disk in local mode, else None.
        archive: On a cluster, name of the archive that Spark unpacks for tasks; it has one folder per model, named by
            digest.
    """

    digest: str
    label: str
    path: str | None
    archive: str | None

    def folder(self) -> Path:
        """Return the folder of the model on this host; to be called in the task."""
        return Path(self.path) if self.path is not None else archive_folder(self.archive or "") / self.digest


def ship(spark: SparkSession, model: PinnedModel) -> ShippedModel:
    """Make ``model`` available to the tasks of ``spark``, unless it is already.

    On a cluster, Spark's file server sends the files once to every executor; no shared disk is needed.
    """
    (shipped,) = ship_all(spark, [model])
    return shipped


def ship_all(spark: SparkSession, models: Sequence[PinnedModel]) -> Sequence[ShippedModel]:
    """Make ``models`` available to the tasks of ``spark`` in one archive, unless they are already.

    Spark sends the names of all archives with every task and logs them with every new archive: one archive for each of
    thousands of models would add a megabyte to every task. A model that is shipped again in another set of models is
    sent again.
    """
    session = session_of(spark)
    if session.is_local:
        return [ShippedModel(model.digest, model.label, path=str(model.path), archive=None) for model in models]
    folders = {model.digest: model.path for model in models}
    name = f"mirrorspark-models-{hashlib.sha256(''.join(sorted(folders)).encode()).hexdigest()}"
    name = session.send_archive(name, partial(_pack, folders))
    return [ShippedModel(model.digest, model.label, path=None, archive=name) for model in models]


def _pack(folders: Mapping[str, Path], archive: Path) -> None:
    """Write folders into an archive under the given names."""
    # Another thread may ship the same models. Each writes its own file, and the last one replaces an equal one.
    own = archive.with_name(f"{archive.name}.{threading.get_ident()}")
    # Weights hardly compress, so they are stored. Timestamps are not strict because files of reproducible images may be
    # dated before 1980, which a ZIP archive cannot hold.
    with zipfile.ZipFile(own, "w", zipfile.ZIP_STORED, strict_timestamps=False) as packed:
        for name, folder in folders.items():
            for path in sorted(folder.rglob("*")):
                packed.write(path, Path(name, path.relative_to(folder)))
    own.replace(archive)
