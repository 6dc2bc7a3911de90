"""Models of a fleet that no kernel computes: each is a package, which a backend of the scorer loads and calls."""

import hashlib
import io
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
from mlflow.exceptions import MlflowException
from pyspark import SparkFiles, TaskContext

from mirrorspark.data_pipelines.features.fitted import FeatureMismatchError
from mirrorspark.data_pipelines.features.raw_columns import ColumnError, plain_column
from mirrorspark.scoring.fleet.columns import FleetError, numbers_of
from mirrorspark.scoring.fleet.fleet import Fleet
from mirrorspark.scoring.input.column_types import is_array
from mirrorspark.scoring.model.consent import check_consent
from mirrorspark.scoring.model.digest import folder_digest, model_files
from mirrorspark.scoring.model.directory import ModelDirectory
from mirrorspark.scoring.model.errors import ModelDirectoryError
from mirrorspark.scoring.model.loaded import LoadedModel
from mirrorspark.scoring.model.versions import ModelVersionsError
from mirrorspark.scoring.task.scorer import Scorer, Settings, ShippedModel, Tally

MOST_BYTES = 512 * 2**20
"""Largest size of a package: a fleet's table holds it, and each process that scores a copy of it."""

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
    numbers = [name for name, type_ in outputs.items() if not is_array(type_) and type_ != "string"]
    if output is not None and output not in numbers:
        raise FleetError(f"model {label} has no number '{output}' among its outputs {outputs}")
    if output is None and len(numbers) != 1:
        raise FleetError(
            f"model {label} has the outputs {outputs}, and a fleet takes one number per row; name one as output, or "
            f"score the model on its own with score_files"
        )
    return output or numbers[0]


class PackagedModelError(RuntimeError):
    """Raised where the library of a packaged model cannot load or call it for a reason outside of the rows."""


@dataclass(frozen=True)
class PackagedModel:
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
        except ColumnError as error:
            raise ColumnError(f"model '{self.name}': {error}") from error

    def load(self) -> None:
        """Import its library and load it, unless this process has it.

        Raises:
            PackagedModelError: It cannot be loaded here.
            ModelDirectoryError: The package is damaged.
        """
        _ = self.directory  # A disk that is full while files are unpacked is no fault of the model.
        with self._blamed():
            _ = self._loaded

    def scores(self, rows: pa.RecordBatch) -> np.ndarray:
        """Return float32 ``[1, rows]``, NaN for rows that it cannot score.

        Raises:
            PackagedModelError: Its library raises an error of files or connections.
            Exception: It raises another one.
        """
        names = self.directory.inputs.columns
        own = pa.RecordBatch.from_arrays([plain_column(rows, name) for name in names], names=list(names))
        with self._blamed():
            found = self._scorer.scored(self._loaded, own, Tally()).column(self.output)
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
        settings = Settings(bad_rows="mark", with_version=False)
        return Scorer(ShippedModel(folder_digest(path), self.name, path=str(path), archive=None), settings)

    @cached_property
    def _loaded(self) -> LoadedModel:
        return self._scorer.load(Tally())


def packages_of(fleet: Fleet) -> Iterator[PackagedModel]:
    """Yield the packaged models of a fleet."""
    packages, outputs = fleet.table["package"], fleet.table["package_output"]
    for place in np.flatnonzero(fleet.is_packaged).tolist():
        yield PackagedModel(fleet.names[place], packages[place], outputs[place].as_py())


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
        check_consent(model.directory, f"'{model.name}' of the fleet")


def _unpacked(content: pa.Buffer, name: str) -> Path:
    target = _scratch() / f"mirrorspark-model-{hashlib.sha256(content).hexdigest()}"
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            whole = Path(scratch, "model")
            try:
                with zipfile.ZipFile(pa.BufferReader(content)) as archive:
                    archive.extractall(whole)
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
                raise ModelDirectoryError(
                    f"the files of model '{name}' are damaged ({error}); import it again"
                ) from error
            try:
                whole.rename(target)
            except OSError:  # another process was quicker
                if not target.is_dir():
                    raise
    return target


_OWN_FOLDER_LOCK = Lock()


@lru_cache(maxsize=1)
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mirrorspark-models-")


def _scratch() -> Path:
    """Return Spark's folder for files of the application in a task, else one that is removed with this process."""
    if TaskContext.get() is not None:
        return Path(SparkFiles.getRootDirectory()).absolute()
    with _OWN_FOLDER_LOCK:
        return Path(_own_folder().name)
