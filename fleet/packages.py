"""Models of a fleet that no kernel computes: each is a package, which a backend of the scorer loads and calls."""

import hashlib
import io
import json
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
from mlflow.exceptions import MlflowException

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.features import FeatureMismatchError, raw_columns
from mirrorspark.fleet.columns import FleetError, numbers_of
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.scoring.input import column_types
from mirrorspark.scoring.model.folder import DESCRIPTION_FILE, ModelDirectory, ModelDirectoryError
from mirrorspark.scoring.model.loading import LoadedModel, ModelVersionsError
from mirrorspark.scoring.model.stored import (
    UntrustedModelError,
    archive_digest,
    check_consent,
    check_described,
    folder_digest,
    is_outside_digest,
    model_files,
)
from mirrorspark.scoring.task import Scorer, ScoringCounts, ScoringOptions, ShippedModel
from mirrorspark.spark_session import files_folder, is_in_task
from mirrorspark.storage import leads_out

MOST_BYTES = 512 * 2**20
"""Largest size of a package: a fleet's table holds it, and each process that scores a copy of it."""

# A model of TensorFlow has some dozens of files.
_MOST_FILES = 10_000
# Weights hardly compress: we store them as they are, and an archive that grows more than this is a bomb.
_MOST_TIMES = 20
# Of all files in an archive, whatever their age.
_DATE = (1980, 1, 1, 0, 0, 0)


def packed(folder: Path, name: str) -> bytes:
    """Return the files of a model's folder that its digest covers, as an archive that depends on nothing else.

    Raises:
        FleetError: They are too large.
    """
    size = sum(path.stat().st_size for _, path in model_files(folder))
    if size > MOST_BYTES:
        raise FleetError(
            f"model '{name}' takes {size / 2**20:,.0f} MB, and a fleet holds models of up to "
            f"{MOST_BYTES / 2**20:,.0f} MB; score it on its own with score_files"
        )
    sink = io.BytesIO()
    # Weights hardly compress, and another version of zlib would give other bytes.
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for file, path in model_files(folder):
            archive.writestr(zipfile.ZipInfo(file, _DATE), path.read_bytes())
    return sink.getvalue()


def single_output(directory: ModelDirectory, label: str, output: str | None) -> str:
    """Return the name of the one number that a model gives for a row.

    Raises:
        FleetError: It has none, or several and ``output`` names none of them.
    """
    outputs = dict(directory.description.outputs)
    numbers = [name for name, type_ in outputs.items() if not column_types.is_array(type_) and type_ != "string"]
    if output is not None and output not in numbers:
        raise FleetError(f"model {label} has no number '{output}' among its outputs {outputs}")
    if output is None and len(numbers) != 1:
        raise FleetError(
            f"model {label} has the outputs {outputs}, and a fleet takes one number per row; name one as output, or "
            f"score the model on its own with score_files"
        )
    return output or numbers[0]


class PackagedModelError(ClearError, RuntimeError):
    """Raised where the library of a packaged model cannot load or call it for a reason outside of the rows."""


@dataclass(frozen=True)
class FleetPackage:
    """A packaged model, whose library is not loaded before it scores.

    Attributes:
        output: Which of its outputs the score is.
    """

    name: str
    package: pa.Scalar
    output: str

    def check(self, schema: pa.Schema) -> None:
        """Check the types of the columns that it reads.

        Raises:
            ColumnError: It cannot read one.
            ModelDirectoryError: The package is damaged.
        """
        try:
            self.directory.inputs.check(schema)
        except raw_columns.ColumnError as error:
            raise raw_columns.ColumnError(f"model '{self.name}': {error}") from error

    def load(self) -> None:
        """Import its library and load it, unless this process has it.

        Raises:
            PackagedModelError: It cannot be loaded here.
            ModelDirectoryError: The package is damaged.
        """
        _ = self.directory  # A disk that is full while files are unpacked is not the model's fault.
        with self._blamed():
            _ = self._loaded

    def scores(self, rows: pa.RecordBatch) -> np.ndarray:
        """Return float32 ``[1, rows]``, NaN for rows that it cannot score.

        Raises:
            PackagedModelError: Its library raises an error of files or connections.
            Exception: It raises another one.
        """
        names = self.directory.inputs.columns
        own = pa.RecordBatch.from_arrays([raw_columns.plain_column(rows, name) for name in names], names=list(names))
        with self._blamed():
            found = self._scorer.scored(self._loaded, own, ScoringCounts()).column(self.output)
        return numbers_of(found).astype(np.float32)[None, :]

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Raise errors of the model's library as its own: an ``OSError`` would be taken for one of a store."""
        try:
            yield
        except ModelVersionsError as error:
            # Its own advice names an option that fleets do not have.
            raise PackagedModelError(f"{str(error).split('; ')[0]}; install these versions on the executors") from error
        except OSError as error:
            raise PackagedModelError(f"{type(error).__name__}: {error}") from error

    @cached_property
    def directory(self) -> ModelDirectory:
        """Its folder, unpacked once by each process.

        Raises:
            ModelDirectoryError: A part is missing or damaged.
        """
        folder = _unpacked(self.package.as_buffer(), self.name)
        try:
            return ModelDirectory.open(folder)
        except (FeatureMismatchError, ImportError, MlflowException) as error:
            raise ModelDirectoryError(f"model '{self.name}' cannot be opened: {error}") from error

    @cached_property
    def _scorer(self) -> Scorer:
        path = self.directory.path
        # A row that it cannot score, such as one with a null, has no score.
        options = ScoringOptions(bad_rows="mark", with_columns=())
        return Scorer(ShippedModel(folder_digest(path), self.name, path=str(path), archive=None), options)

    @cached_property
    def _loaded(self) -> LoadedModel:
        return self._scorer.load(ScoringCounts())


def packages_of(fleet: Fleet) -> Iterator[FleetPackage]:
    """Yield the packaged models of a fleet."""
    packages, outputs = fleet.table["package"], fleet.table["package_output"]
    for place in np.flatnonzero(fleet.is_packaged).tolist():
        yield FleetPackage(fleet.names[place], packages[place], outputs[place].as_py())


def check_trust(fleet: Fleet, *, trust: bool) -> None:
    """Ask for consent to the Python code of packaged models, which runs here and on the executors.

    Raises:
        UntrustedModelError: One brings code, the caller has not said that it may run, and this process did not package
            the model.
        ModelDirectoryError: A package is damaged.
    """
    if trust:
        return
    for model in packages_of(fleet):
        _check_described(model.package.as_buffer(), model.name)
        check_consent(model.directory, f"'{model.name}' of the fleet")


def _unpacked(content: pa.Buffer, name: str) -> Path:
    target = _scratch() / f"mirrorspark-model-{hashlib.sha256(content).hexdigest()}"
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            whole = Path(scratch, "model")
            with _opened(content, name) as archive:
                archive.extractall(whole)
            try:
                whole.rename(target)
            except OSError:  # another process was quicker
                if not target.is_dir():
                    raise
    return target


@contextmanager
def _opened(content: pa.Buffer, name: str) -> Iterator[zipfile.ZipFile]:
    """Open a package whose table of contents may be unpacked.

    Raises:
        ModelDirectoryError: It is damaged, or too large.
    """
    try:
        with zipfile.ZipFile(pa.BufferReader(content)) as archive:
            _check_archive(archive, content.size, name)
            yield archive
    except (ModelDirectoryError, UntrustedModelError):
        raise
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # The disk refuses; Arrow's error for a place outside of the package has no number.
        raise ModelDirectoryError(f"the files of model '{name}' are damaged ({error}); import it again") from error


def _check_described(content: pa.Buffer, name: str) -> None:
    """Ask for consent by a package's description, so that a refused package is not unpacked.

    Raises:
        UntrustedModelError: It brings code, and this process has not packaged it.
        ModelDirectoryError: It is damaged, or too large.
    """
    with _opened(content, name) as archive:
        # A model without a description is one of MLflow.
        is_described = DESCRIPTION_FILE in archive.namelist()
        document = json.loads(archive.read(DESCRIPTION_FILE)) if is_described else {"backend": "pyfunc"}
        if not isinstance(document, dict):
            raise ModelDirectoryError(f"the description of model '{name}' is damaged; import it again")
        check_described(document, lambda: archive_digest(archive), f"'{name}' of the fleet")


def _check_archive(archive: zipfile.ZipFile, packed_bytes: int, name: str) -> None:
    """Make sure that an archive may be unpacked, by its table of contents; unpacking stops at the sizes in there.

    Raises:
        ModelDirectoryError: It has too many or too large files, files outside of its folder, twice or under each other,
            or links.
    """
    entries = archive.infolist()
    size = sum(entry.file_size for entry in entries)
    problem = None
    if len(entries) > _MOST_FILES:
        problem = f"{len(entries):,} files, and a model has up to {_MOST_FILES:,}"
    elif size > MOST_BYTES or size > _MOST_TIMES * max(packed_bytes, 2**16):
        problem = (
            f"{size / 2**20:,.0f} MB in {packed_bytes / 2**20:,.1f} MB, and a model takes up to what its package does"
        )
    elif (odd := next((entry.filename for entry in entries if _is_odd(entry)), None)) is not None:
        problem = f"the entry {odd[:80]!r}, which is a link or leads out of the model's folder"
    elif len({entry.filename for entry in entries}) < len(entries):
        problem = "two files of one name"
    if problem is not None:
        raise ModelDirectoryError(
            f"the package of model '{name}' has {problem}; import the model again, from its source"
        )


def _is_odd(entry: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    parts = entry.filename.rstrip("/").split("/")
    return (
        kind not in (0, stat.S_IFREG, stat.S_IFDIR)
        or leads_out(entry.filename)
        or not {"", ".", ".."}.isdisjoint(parts)
        or "\\" in entry.filename
        or is_outside_digest(entry.filename)
    )


_OWN_FOLDER_LOCK = Lock()


@lru_cache(maxsize=1)
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mirrorspark-models-")


def _scratch() -> Path:
    """Return Spark's folder for files of the application in a task, else one that is removed with this process."""
    if is_in_task():
        return files_folder()
    with _OWN_FOLDER_LOCK:
        return Path(_own_folder().name)
