"""The exported model in the process that scores with it: loaded once, called batch by batch."""

import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipelines.parquet_rows import BATCH_ROWS
from data_pipelines.transform import Encoder
from scoring.model_directory import ARROW_TYPES, SAVED_MODEL_FOLDER, ModelDirectory, folder_digest, needs_scann

DEFAULT_BATCH_SIZE = 8192
CACHED_BYTES = 2 * 1024**3


class ModelChangedError(RuntimeError):
    """The files of a model are not those that were pinned."""


class ModelOutputError(RuntimeError):
    """A model that does not take or give what its description says."""


class LoadedModel:
    """A SavedModel with the encoder that feeds it. Scoring is safe from several threads."""

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        """Load the model; imports TensorFlow.

        Args:
            folder: The exported model.
            threads: Threads for TensorFlow where this process has not imported it yet and the environment
                (``TF_NUM_INTRAOP_THREADS``, ``TF_NUM_INTEROP_THREADS``) does not say; None leaves it its own choice.

        Raises:
            ModelDirectoryError: A part of the folder is missing or damaged.
            FeatureMismatchError: The features are not those that the model was trained with.
            ModelOutputError: The SavedModel does not fit its description.
            ModuleNotFoundError: TensorFlow or, for a model that needs it, ScaNN is not installed here.
        """
        directory = ModelDirectory.open(folder)
        tf = _tensorflow(threads)
        if needs_scann(folder):
            _register_scann()
        from models.preprocessing import encoded_signature
        from models.serving import ENCODED_SIGNATURE

        self.description = directory.description
        self.threads = _compute_threads(tf)
        self.inputs = directory.inputs
        self._encoder = Encoder(directory.features)
        # The signature does not keep its own variables and tables alive; the module does.
        self._module = tf.saved_model.load(str(folder / SAVED_MODEL_FOLDER))
        if ENCODED_SIGNATURE not in self._module.signatures:
            raise ModelOutputError(
                f"the SavedModel in {folder} has the signatures {sorted(self._module.signatures)} but not "
                f"'{ENCODED_SIGNATURE}'; export the model again"
            )
        self._signature = self._module.signatures[ENCODED_SIGNATURE]
        self._to_tensor = tf.constant
        self._check_names("inputs", self._signature.structured_input_signature[1], list(encoded_signature(self.inputs)))
        self._check_names("outputs", self._signature.structured_outputs, list(self.description.outputs))

    def _check_names(self, what: str, actual: Mapping[str, Any], expected: list[str]) -> None:
        if set(actual) != set(expected):
            raise ModelOutputError(
                f"the SavedModel has the {what} {sorted(actual)}, its description says {sorted(expected)}; "
                f"export the model again"
            )

    def score(self, batch: pa.Table | pa.RecordBatch, *, batch_size: int = DEFAULT_BATCH_SIZE) -> dict[str, np.ndarray]:
        """Return the outputs for the raw columns of ``batch``, in the order of the description.

        Args:
            batch: Raw columns; more than the model's inputs do no harm.
            batch_size: Rows per call of the model, which bounds the memory that a call takes.

        Returns:
            Per output ``[rows]`` or ``[rows, k]``; strings as an object array of ``bytes`` in UTF-8.

        Raises:
            ColumnError: A column is missing or has a type that its feature cannot take.
        """
        # A table without rows is scored too: it has outputs, of length zero.
        # Encoded together are several calls' rows, which share what a column costs besides its rows.
        step = max(batch_size, BATCH_ROWS // batch_size * batch_size)
        pieces = (batch.slice(start, step) for start in range(0, max(batch.num_rows, 1), step))
        parts = [
            self._call(inputs, min(batch_size, piece.num_rows - number * batch_size))
            for piece in pieces
            for number, inputs in enumerate(self._encoder.padded_parts(piece, self.inputs, batch_size))
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.description.outputs}

    def _call(self, inputs: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
        outputs = self._signature(**{name: self._to_tensor(values) for name, values in inputs.items()})
        arrays = {name: values.numpy() for name, values in outputs.items()}
        for name, values in arrays.items():
            described = self.description.outputs[name]
            dimensions = 2 if pa.types.is_list(ARROW_TYPES[described]) else 1
            if values.ndim != dimensions or len(values) != rows:
                raise ModelOutputError(
                    f"output '{name}' has shape {values.shape} for {rows} rows; its type {described} needs "
                    f"{'[rows, k]' if dimensions == 2 else '[rows]'}"
                )
        return arrays

    def score_arrow(
        self, batch: pa.Table | pa.RecordBatch, *, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> dict[str, pa.Array]:
        """Return what :meth:`score` does, as Arrow arrays of the described types."""
        outputs = self.score(batch, batch_size=batch_size)
        return {
            name: _arrow_array(values, ARROW_TYPES[self.description.outputs[name]]) for name, values in outputs.items()
        }


def _arrow_array(values: np.ndarray, arrow_type: pa.DataType) -> pa.Array:
    """Return ``[rows]`` or ``[rows, k]`` values as an array of ``arrow_type``: a scalar, or a list of k scalars."""
    if not pa.types.is_list(arrow_type):
        return pa.array(values).cast(arrow_type)
    rows, length = values.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * length)
    # TensorFlow's strings are bytes, which pyarrow takes for binary; the cast checks that they are UTF-8.
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel()).cast(arrow_type.value_type))


def _tensorflow(threads: int | None) -> Any:
    """Import TensorFlow, after setting what it reads from the environment only once."""
    if "tensorflow" not in sys.modules:
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        if threads is not None:
            # Left alone, every Python worker of a node would start a thread per core of the node.
            os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(threads))
            os.environ.setdefault("TF_NUM_INTEROP_THREADS", str(threads))
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        raise _not_installed("scoring needs TensorFlow", error) from error
    return tf


def _compute_threads(tf: Any) -> int:
    """Return how many threads TensorFlow computes with here; another UDF of this process may have started it before."""
    configured = int(tf.config.threading.get_intra_op_parallelism_threads())
    return configured or int(os.environ.get("TF_NUM_INTRAOP_THREADS") or os.cpu_count() or 1)


def _register_scann() -> None:
    try:
        import scann  # noqa: F401 - the import registers its op with TensorFlow
    except ModuleNotFoundError as error:
        raise _not_installed("the model holds a ScaNN index, which needs the package scann", error) from error


def _not_installed(need: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"{need}, but {sys.executable} has no module '{error.name}'; install mirrorspark with its requirements in the "
        f"Python of every executor (spark.pyspark.python, or an environment sent with --archives)",
        name=error.name,
    )


class ModelCache:
    """Loaded models by digest, the least recently used out first. Safe from several threads.

    Args:
        capacity_bytes: Size of the folders of all models kept. The newest stays, however large it is.
    """

    def __init__(self, capacity_bytes: int = CACHED_BYTES) -> None:
        self._capacity_bytes = capacity_bytes
        self._models: OrderedDict[str, tuple[LoadedModel, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._loads = 0

    @property
    def loads(self) -> int:
        """How many models have been loaded so far."""
        return self._loads

    def get(self, digest: str, size_bytes: int, load: Callable[[], LoadedModel]) -> LoadedModel:
        """Return the model with ``digest``; call ``load`` when it is not here."""
        # Held while loading, so that a second thread waits for the model instead of loading it again.
        with self._lock:
            if digest not in self._models:
                self._models[digest] = (load(), size_bytes)
                self._loads += 1
            self._models.move_to_end(digest)
            while len(self._models) > 1 and sum(size for _, size in self._models.values()) > self._capacity_bytes:
                self._models.popitem(last=False)
            return self._models[digest][0]

    def __contains__(self, digest: str) -> bool:
        with self._lock:
            return digest in self._models


# The one module-level state of this package: Spark keeps its Python workers, and what they import, from task to task,
# and nothing else of a task survives it.
PROCESS_CACHE = ModelCache()


def load_once(
    folder: Path,
    digest: str,
    *,
    threads: int | None = None,
    on_load: Callable[[LoadedModel], None] | None = None,
    cache: ModelCache = PROCESS_CACHE,
) -> LoadedModel:
    """Return the model with ``digest``, loaded at most once in this process while the cache keeps it.

    Args:
        folder: Where its files are.
        digest: The digest that was pinned.
        threads: As for :class:`LoadedModel`.
        on_load: Called with the model after each load.
        cache: Where loaded models stay.

    Raises:
        ModelChangedError: The files in ``folder`` have another digest.
    """

    def load() -> LoadedModel:
        found = folder_digest(folder)
        if found != digest:
            raise ModelChangedError(
                f"the model in {folder} has the digest {found[:12]}, pinned was {digest[:12]}: its files were changed "
                f"or damaged since; resolve the model's URI again"
            )
        model = LoadedModel(folder, threads=threads)
        if on_load is not None:
            on_load(model)
        return model

    size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return cache.get(digest, size_bytes, load)
