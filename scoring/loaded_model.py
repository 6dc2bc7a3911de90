"""The model in the process that scores with it: loaded once, called batch by batch."""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipelines.parquet_rows import BATCH_ROWS
from data_pipelines.transform import Encoder
from models.signatures import ENCODED_SIGNATURE, SCANN, encoded_names, scann_folder
from scoring.backends.catalog import load_backend
from scoring.backends.protocol import ArrayType, Backend, ModelOutputError
from scoring.backends.trained_model import TrainedBackend, TrainedGraph
from scoring.column_types import ARROW_TYPES, ELEMENT_TYPES, element_name
from scoring.decoding import decoders
from scoring.feed import ColumnFeed, FeatureFeed, Feed
from scoring.hooks import HOOKS_FILE, PREPROCESS, Hooks, hooked
from scoring.inputs import Faults
from scoring.model_directory import SAVED_MODEL_FOLDER, ModelDirectory, PackagedDescription
from scoring.output_arrays import arrow_array, checked_output, no_values

DEFAULT_BATCH_SIZE = 8192
# What the scores of a part take at most; larger parts take more memory and are no faster.
PART_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Search:
    """How to search in an index of a retrieval model.

    Attributes:
        index: Its name, which is that of its signature.
        most_candidates: How many to find for every row.
        unavailable_ids: int64 ``[any]``, ids of candidates that must not be found for any row.
    """

    index: str
    most_candidates: int
    unavailable_ids: np.ndarray


class LoadedModel:
    """A model with what feeds it. Scoring is safe from several threads."""

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        """Load the model; imports the library that computes it.

        Args:
            folder: The model.
            threads: Threads for the library, as far as it can be told without changing those of the whole process.
                TensorFlow's belong to the process, and so do NumPy's and those of an MLflow model; with 1, a model
                that was trained here does all but large operations in the thread that calls. None leaves the library
                its own choice.

        Raises:
            ModelDirectoryError: A part of the folder is missing or damaged.
            FeatureMismatchError: The features are not those that the model was trained with.
            ModelOutputError: What is loaded does not fit its description.
            UnsupportedModelError: A model of another library cannot be loaded.
            HookError: Its hooks cannot be.
            ModuleNotFoundError: A library that the model needs is not installed here.
        """
        directory = ModelDirectory.open(folder)
        self.description = directory.description
        self.labels = directory.labels
        self._folder = folder
        self._backend, self._feed = _loaded(directory, threads)
        self.threads = self._backend.threads
        widths = {array.name: array.width for array in self._backend.signature.outputs}
        # Elements per row of each output, at most; None where the model does not say, until a call has told. The lock
        # is for two calls that tell at once.
        self._widths = {name: widths[of] for name, of in self.description.model_outputs.items()}
        self._widths_lock = threading.Lock()
        for name, labels in self.labels.items():
            self._check_labels(name, labels)

    def searching(self, search: Search) -> "LoadedModel":
        """Return the model with outputs that are found by ``search``; it shares all else with this one.

        Raises:
            ModelOutputError: The model has no such index.
            ModuleNotFoundError: It is ScaNN's, and the package is not installed here.
        """
        if not isinstance(self._backend, TrainedBackend):
            raise ModelOutputError(f"the model in {self._folder} has no indexes; give one that training.run exported")
        graph = self._scann_graph if search.index == SCANN else self._backend.graph
        wanted = {"most_candidates": np.int32(search.most_candidates), "unavailable_ids": search.unavailable_ids}
        searching = copy.copy(self)
        searching._backend = TrainedBackend(graph, search.index, wanted)
        searching._widths = dict.fromkeys(self._widths, search.most_candidates)
        return searching

    @cached_property
    def _scann_graph(self) -> TrainedGraph:
        """The graph of the SavedModel beside the model's own, loaded when its index is first searched in."""
        return TrainedGraph(scann_folder(self._folder / SAVED_MODEL_FOLDER), scann=True, threads=self.threads)

    def faults(self, batch: pa.RecordBatch, *, first: bool = False) -> Faults:
        """Return the rows that cannot be scored, without scoring any.

        Args:
            batch: The rows.
            first: Look for the first one alone, as far as that is quicker.

        Raises:
            ColumnError: No row could be scored, for a column is missing or of a type that the model cannot take.
        """
        return self._feed.faults(batch, first=first)

    def most_rows(self, batch_size: int) -> int:
        """Return how many rows a call has at most: the number that the model has itself, or ``batch_size``.

        It is fewer than ``batch_size`` where what is decoded would take more than 64 MB.
        """
        return self._backend.signature.rows or self._feed.rows_per_call(batch_size)

    def least_rows(self, batch_size: int) -> int:
        """Return how many rows a part should have at least: one, or a whole call where calls are padded.

        Fewer would take as long where the model has a fixed number of rows, and may be compiled anew by XLA.
        """
        signature = self._backend.signature
        return self.most_rows(batch_size) if signature.rows or signature.compiles_each_shape else 1

    def _padded_rows(self, rows: int, most: int) -> int:
        """Return how many rows the model is called with for so many, of ``most`` in a call.

        Where it would be compiled anew for every number, that is the next power of two: a single row does not take as
        long as thousands, and there are few to compile for.
        """
        signature = self._backend.signature
        if signature.rows:
            return signature.rows
        return min(1 << (rows - 1).bit_length(), most) if signature.compiles_each_shape else rows

    def parts(self, batch: pa.RecordBatch, *, batch_size: int = DEFAULT_BATCH_SIZE) -> Iterator[pa.RecordBatch]:
        """Yield ``batch`` in parts whose outputs take 16 MB or less: whole calls, or less than one.

        Of a batch as it is read, a model with thousands of outputs per row would have hundreds of megabytes to give.
        A call that is padded is not divided: each part would cost what the whole does, or be compiled. Score a part
        before the next one is asked for: where the model does not say how many it gives, the first part is
        ``batch_size`` rows, whose outputs tell. A batch without rows is one part.
        """
        start = 0
        while start < max(1, batch.num_rows):
            rows = self.part_rows(batch_size)
            yield batch.slice(start, rows)
            start += rows

    def part_rows(self, batch_size: int) -> int:
        """Return how many rows a part has, as :meth:`parts` says."""
        row_bytes, call = self._row_bytes, self.most_rows(batch_size)
        if not row_bytes:
            return call
        part = PART_BYTES // row_bytes
        return part // call * call or max(part, self.least_rows(batch_size))

    @property
    def _row_bytes(self) -> int | None:
        """Bytes of a row's outputs, a text as a pointer; None where the width of one is not known yet."""
        elements = {name: ELEMENT_TYPES[element_name(type_)] for name, type_ in self.description.outputs.items()}
        sizes = [elements[name].size_bytes * width for name, width in self._widths.items() if width is not None]
        return sum(sizes) if len(sizes) == len(self._widths) else None

    def _check_labels(self, name: str, labels: Sequence[str]) -> None:
        width = self._widths[name]
        if width != len(labels):
            raise ModelOutputError(
                f"output '{name}' of the model has {width} elements per row, and what stands beside it names "
                f"{len(labels)} labels: they belong to different trainings; export or package the model again"
            )

    def score(
        self,
        batch: pa.Table | pa.RecordBatch,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        on_call: Callable[[], object] | None = None,
    ) -> dict[str, np.ndarray]:
        """Return the outputs for the raw columns of ``batch``, in the order of the description.

        Args:
            batch: Raw columns; more than the model's inputs do no harm.
            batch_size: Rows per call of the model, which bounds the memory that a call takes; see :meth:`most_rows`.
            on_call: Called for each call of the model.

        Returns:
            Per output ``[rows]`` or ``[rows, k]``; strings as an object array of ``bytes`` in UTF-8.

        Raises:
            ColumnError: A column is missing or has a type or a value that the model cannot take.
            HookError: A hook fails, or gives what it must not.
        """
        most = self.most_rows(batch_size)
        # A table without rows is scored too: it has outputs, of length zero.
        # Encoded together are several calls' rows, which share what a column costs besides its rows.
        step = max(most, BATCH_ROWS // most * most)
        pieces = (batch.slice(start, step) for start in range(0, max(batch.num_rows, 1), step))
        parts = [
            self._call(inputs, rows, most, on_call)
            for piece in pieces
            for rows, inputs in self._feed.parts(piece, most)
        ]
        if len(parts) == 1:
            return {name: parts[0][name] for name in self.description.outputs}
        return {name: np.concatenate([part[name] for part in parts]) for name in self.description.outputs}

    def _call(
        self, inputs: Mapping[str, np.ndarray], rows: int, most: int, on_call: Callable[[], object] | None
    ) -> dict[str, np.ndarray]:
        outputs, names = self.description.outputs, self.description.model_outputs
        if not rows:
            # Not every library takes a batch of none.
            return {name: no_values(type_) for name, type_ in outputs.items()}
        size = self._padded_rows(rows, most)
        given = self._backend(inputs if size == rows else _padded(inputs, rows, size), tuple(names.values()))
        if on_call is not None:
            on_call()
        made = {
            name: checked_output(name, type_, given[names[name]], size, self.labels.get(name))[:rows]
            for name, type_ in outputs.items()
        }
        self._note_widths(made, rows)
        return made

    def _note_widths(self, outputs: Mapping[str, np.ndarray], rows: int) -> None:
        """Remember the most elements per row that each output has had."""
        with self._widths_lock:
            for name, values in outputs.items():
                self._widths[name] = max(self._widths[name] or 0, values.size // rows)

    def score_arrow(
        self,
        batch: pa.Table | pa.RecordBatch,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        on_call: Callable[[], object] | None = None,
    ) -> dict[str, pa.Array]:
        """Return what :meth:`score` does, as Arrow arrays of the described types.

        Raises:
            ModelOutputError: A text is not UTF-8.
            ColumnError: As there.
            HookError: As there.
        """
        outputs = self.score(batch, batch_size=batch_size, on_call=on_call)
        return {
            name: arrow_array(name, values, ARROW_TYPES[self.description.outputs[name]])
            for name, values in outputs.items()
        }


def _loaded(directory: ModelDirectory, threads: int | None) -> tuple[Backend, Feed]:
    """Return what computes the model's outputs, and what makes its inputs of a table."""
    description = directory.description
    if isinstance(description, PackagedDescription):
        return _packaged(directory.path, description, threads)
    encoder, features = Encoder(directory.features), directory.scored_features
    graph = TrainedGraph(directory.path / SAVED_MODEL_FOLDER, threads=threads)
    trained = TrainedBackend(graph, ENCODED_SIGNATURE)
    _check_names("inputs", trained.signature.inputs, encoded_names(features))
    _check_names("outputs", trained.signature.outputs, description.outputs)
    # Exports of before, and models whose Keras inputs have a fixed length, take every list padded to that.
    any_length = {array.name for array in trained.signature.inputs if array.shape == (None, None)}
    return trained, FeatureFeed(encoder, features, any_length)


def _packaged(folder: Path, description: PackagedDescription, threads: int | None) -> tuple[Backend, Feed]:
    name = description.backend
    backend = load_backend(name, folder / description.file, signature=description.signature, threads=threads)
    hooks = Hooks.load(folder / HOOKS_FILE) if description.hooks else None
    found = decoders(description.inputs, backend.signature, name, hooks)
    takes = None if PREPROCESS in description.hooks else backend.signature
    return hooked(backend, hooks, description.hooks), ColumnFeed(description.inputs, takes, found)


def _check_names(what: str, actual: Iterable[ArrayType], expected: Iterable[str]) -> None:
    names = sorted(array.name for array in actual)
    if names != sorted(expected):
        raise ModelOutputError(
            f"the SavedModel has the {what} {names}, its description says {sorted(expected)}; export the model again"
        )


def _padded(inputs: Mapping[str, np.ndarray], rows: int, size: int) -> dict[str, np.ndarray]:
    """Return arrays of ``[rows, ...]`` as ``[size, ...]``: behind the last row itself, again and again.

    Whatever its type, the model takes that row; zeros and empty texts may be outside what it knows.
    """
    places = np.minimum(np.arange(size), rows - 1)
    return {name: values[places] for name, values in inputs.items()}
