"""A model loaded in the process that scores with it."""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features import Encoder, item_rows, kinds
from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.models.index import CANDIDATES, SCORES
from mirrorspark.models.serving import signatures
from mirrorspark.scoring.backends import TrainedBackend, TrainedGraph, load_backend, protocol
from mirrorspark.scoring.embedding import ModelEncoders
from mirrorspark.scoring.input import ColumnFeed, FeatureFeed, Feed, RowErrors, column_types, decoders
from mirrorspark.scoring.model.folder import SAVED_MODEL_FOLDER, ModelDirectory, PackagedDescription
from mirrorspark.scoring.model.hooks import HOOKS_FILE, PREPROCESS, Hooks, with_hooks
from mirrorspark.scoring.model.loading.composites import composite_of
from mirrorspark.scoring.output import arrow_array, checked_output, no_values

DEFAULT_BATCH_SIZE = 8192
# Largest size of the scores of a part. Larger parts take more memory without being faster.
PART_BYTES = 16 * 2**20
# A query of ALS has a matrix of its own.
_VECTOR_ROWS = 2048


@dataclass(frozen=True)
class CandidateVectors:
    """The candidates of a model.

    Attributes:
        tokens: Their tokens in UTF-8, objects ``[candidates]``, in the order of their ids.
        vectors: float32 ``[candidates, dim]``.
    """

    tokens: np.ndarray
    vectors: np.ndarray


@dataclass(frozen=True)
class Search:
    """Index and limits of a search with a retrieval model.

    Attributes:
        index: Name of the index and of its signature.
        most_candidates: Candidates to find for every row.
        unavailable_ids: int64 ``[any]``, ids of candidates that must not be found.
        of_models: For a router, the search of each of its retrieval models by name, for as many candidates as it has.
    """

    index: str
    most_candidates: int
    unavailable_ids: np.ndarray
    of_models: Mapping[str, "Search"] = field(default_factory=dict)


@runtime_checkable
class CompositeModel(protocol.Backend, Feed, Protocol):
    """A loaded composite: backend and feed in one, as each of its models has a feed of its own."""

    def with_search(self, searches: Mapping[str, Any], most_candidates: int) -> "CompositeModel":
        """Return a composite whose models search, and whose lists have at most ``most_candidates`` candidates."""


class LoadedModel:
    """A model with its feed. Scoring is thread-safe."""

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        """Load the model; imports the library that computes it, and runs code that the model brings.

        Args:
            folder: Folder of the model, whose code has the caller's consent (:mod:`scoring.model.stored.consent`).
            threads: Threads of the library, if they can be limited per model. TensorFlow, NumPy and MLflow models share
                the threads of the process, which stay as they are; with 1, a model that was trained here runs all but
                large operations in the calling thread. None keeps the library's default.

        Raises:
            ModelDirectoryError: A part of the folder is missing or damaged.
            FeatureMismatchError: The features differ from those that the model was trained with.
            ModelOutputError: The loaded model does not fit its description.
            UnsupportedModelError: A model of another library cannot be loaded.
            HookError: Its hooks cannot be loaded.
            ModuleNotFoundError: A library that the model needs is not installed here.
        """
        directory = ModelDirectory.open(folder)
        self.description = directory.description
        self.labels = directory.labels
        self._folder = folder
        self._backend, self._feed = _loaded(directory, threads)
        self._own_backend = self._backend
        self.threads = self._backend.threads
        widths = {array.name: array.width for array in self._backend.signature.outputs}
        # Largest number of elements per row of each output; None if unknown before the first call. The lock protects
        # concurrent calls that update it.
        self._widths = {name: widths[of] for name, of in self.description.model_outputs.items()}
        self._widths_lock = threading.Lock()
        # Backends of the vectors' signatures, made on the first call and shared by the searches with this model.
        self._vector_backends: dict[str, TrainedBackend] = {}
        self._vectors_lock = threading.Lock()
        for name, labels in self.labels.items():
            self._check_labels(name, labels)

    def with_search(self, search: Search) -> "LoadedModel":
        """Return a model that outputs the results of ``search`` and shares all else with this one.

        Raises:
            ModelOutputError: The model has no such index.
            ModuleNotFoundError: The index needs the package ScaNN, which is not installed here.
            UnsupportedModelError: ScaNN is built for another TensorFlow.
        """
        model = copy.copy(self)
        model._widths = self._widths | dict.fromkeys((CANDIDATES, SCORES), search.most_candidates)
        if isinstance(self._backend, CompositeModel):
            model._backend = model._feed = self._backend.with_search(search.of_models, search.most_candidates)
            return model
        if not isinstance(self._backend, TrainedBackend):
            raise protocol.ModelOutputError(
                f"the model in {self._folder} has no indexes; give one that mirrorspark.training.run exported"
            )
        graph = self._scann_graph if search.index == signatures.SCANN else self._backend.graph
        wanted = {"most_candidates": np.int32(search.most_candidates), "unavailable_ids": search.unavailable_ids}
        model._backend = TrainedBackend(graph, search.index, wanted, self._backend.names)
        return model

    def finding(self, most: int, search: Search | None, available: pa.Array | None) -> "LoadedModel":
        """Return a retrieval model that finds the best ``most`` candidates, or itself if it is of another library.

        Args:
            most: Candidates to find for every row; all, if there are fewer.
            search: The index, limits and unavailable candidates of a search; None is an exact search of all.
            available: Tokens of the candidates that may be found; None for all.
        """
        if not isinstance(self._backend, TrainedBackend):
            return self
        features = ModelDirectory.open(self._folder).features
        tokens = features.vocabulary(features.spec.candidate).tokens
        search = search or Search(signatures.EXACT, len(tokens), np.zeros(0, np.int64))
        gone = search.unavailable_ids
        if available is not None:
            is_gone = ~pc.is_in(tokens, value_set=available).to_numpy(zero_copy_only=False)
            gone = np.union1d(gone, np.flatnonzero(is_gone) + kinds.FIRST_VOCABULARY_ID)
        return self.with_search(
            replace(search, most_candidates=min(most, search.most_candidates), unavailable_ids=gone)
        )

    def vectors(self) -> CandidateVectors:
        """Return the vectors of the candidates of a retrieval model, and their tokens.

        Raises:
            ModelOutputError: Its scores are not products of vectors, or it was exported without them.
        """
        (found,) = self._vector_backend(signatures.CANDIDATE_VECTORS)({}, (signatures.VECTORS,)).values()
        features = ModelDirectory.open(self._folder).features
        tokens = features.vocabulary(features.spec.candidate).tokens
        # A removed item adds nothing, also where another model still knows it.
        found = found.copy()
        found[self._removed_ids] = 0
        return CandidateVectors(
            tokens.cast(pa.binary()).to_numpy(zero_copy_only=False), found[kinds.FIRST_VOCABULARY_ID :]
        )

    def query_vectors(self, batch: pa.RecordBatch) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the vectors of rows, float32 ``[some rows, dim]``, and the ids that each excludes, int64 ``[…, any]``.

        Raises:
            ModelOutputError: See :meth:`vectors`.
            ColumnError: See :meth:`score`.
        """
        backend = self._vector_backend(signatures.QUERY_VECTORS)
        for _, inputs in self._feed.parts(batch, _VECTOR_ROWS):
            found = backend(inputs, (signatures.VECTORS, signatures.EXCLUDED))
            yield found[signatures.VECTORS], found[signatures.EXCLUDED]

    @property
    def unavailable_ids(self) -> np.ndarray:
        """int64 ``[any]``: candidates that this model must not find: those of its search, and removed items."""
        given = self._backend.given if isinstance(self._backend, TrainedBackend) else {}
        return np.union1d(np.asarray(given.get("unavailable_ids", np.zeros(0)), np.int64), self._removed_ids)

    @cached_property
    def _removed_ids(self) -> np.ndarray:
        """int64 ``[any]``: candidates of the training that the catalogue lacks."""
        catalogue: Mapping[str, Any] = getattr(self.description, "catalogue", {})
        if not catalogue.get("refreshed_from"):
            return np.zeros(0, np.int64)
        return item_rows.ids_without_item(ModelDirectory.open(self._folder).features)

    def list_length(self, batch: pa.RecordBatch) -> int:
        """Return the number of places in a list of a retrieval model, found by scoring one row the first time."""
        if self._widths[CANDIDATES] is None:
            self.score(batch.slice(0, 1))
        return self._widths[CANDIDATES] or 0

    def _vector_backend(self, signature: str) -> TrainedBackend:
        with self._vectors_lock:
            if signature not in self._vector_backends:
                names = self._trained.names
                self._vector_backends[signature] = TrainedBackend(self._trained.graph, signature, names=names)
            return self._vector_backends[signature]

    @property
    def _trained(self) -> TrainedBackend:
        """The SavedModel with the stock operations."""
        if not isinstance(self._own_backend, TrainedBackend):
            raise protocol.ModelOutputError(
                f"the model in {self._folder} has no vectors; give one that was trained here"
            )
        return self._own_backend

    @cached_property
    def _scann_graph(self) -> TrainedGraph:
        """The graph of the SavedModel with ScaNN's index, loaded by the first search."""
        return TrainedGraph(
            signatures.scann_folder(self._folder / SAVED_MODEL_FOLDER), scann=True, threads=self.threads
        )

    def row_errors(self, batch: pa.RecordBatch, *, first: bool = False) -> RowErrors:
        """Return the rows that cannot be scored with the reasons, without scoring.

        Args:
            batch: The rows.
            first: Stop at the first one where that is faster.

        Raises:
            ColumnError: No row can be scored: a column is missing or has a type that the model does not accept.
        """
        return self._feed.row_errors(batch, first=first)

    def most_rows(self, batch_size: int) -> int:
        """Return the largest number of rows of a call: the model's fixed number, or ``batch_size``.

        It is below ``batch_size`` if decoded values would take more than 64 MB.
        """
        return self._backend.signature.rows or self._feed.rows_per_call(batch_size)

    def least_rows(self, batch_size: int) -> int:
        """Return the smallest useful number of rows of a part: one, or a whole call if calls are padded.

        With a fixed number of rows a smaller call takes as long, and XLA may compile it again.
        """
        signature = self._backend.signature
        return self.most_rows(batch_size) if signature.rows or signature.compiles_each_shape else 1

    def _padded_rows(self, rows: int, most: int) -> int:
        """Return the number of rows that a call of ``rows`` rows is padded to, at most ``most``.

        For a model that is compiled for every number of rows it is the next power of two: a single row is fast, and few
        sizes are compiled.
        """
        signature = self._backend.signature
        if signature.rows:
            return signature.rows
        return min(1 << (rows - 1).bit_length(), most) if signature.compiles_each_shape else rows

    def parts(self, batch: pa.RecordBatch, *, batch_size: int = DEFAULT_BATCH_SIZE) -> Iterator[pa.RecordBatch]:
        """Yield ``batch`` in parts whose outputs take 16 MB or less: whole calls, or less than one.

        The outputs of a whole batch would take hundreds of megabytes for a model with thousands of outputs per row. A
        padded call is not divided, because each part would cost as the whole or be compiled again. Score each
        part before requesting the next: if the number of outputs per row is unknown, the first part has ``batch_size``
        rows and its outputs reveal the number. A batch without rows is one part.
        """
        start = 0
        while start < max(1, batch.num_rows):
            rows = self.part_rows(batch_size)
            yield batch.slice(start, rows)
            start += rows

    def part_rows(self, batch_size: int) -> int:
        """Return the number of rows of a part, see :meth:`parts`."""
        row_bytes, call = self._row_bytes, self.most_rows(batch_size)
        if not row_bytes:
            return call
        part = PART_BYTES // row_bytes
        return part // call * call or max(part, self.least_rows(batch_size))

    @property
    def _row_bytes(self) -> int | None:
        """Bytes of a row's outputs, with strings as pointers; None while the width of an output is unknown."""
        elements = {
            name: column_types.ELEMENT_TYPES[column_types.element_name(type_)]
            for name, type_ in self.description.outputs.items()
        }
        sizes = [elements[name].size_bytes * width for name, width in self._widths.items() if width is not None]
        return sum(sizes) if len(sizes) == len(self._widths) else None

    def _check_labels(self, name: str, labels: Sequence[str]) -> None:
        width = self._widths[name]
        if width != len(labels):
            raise protocol.ModelOutputError(
                f"output '{name}' of the model has {width} elements per row, and its description names "
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
            batch: Raw columns; columns that the model does not read are ignored.
            batch_size: Rows per call of the model, which bounds the memory of a call; see :meth:`most_rows`.
            on_call: Called after each call of the model.

        Returns:
            Arrays ``[rows]`` or ``[rows, k]`` by output; strings as an object array of ``bytes`` in UTF-8.

        Raises:
            ColumnError: A column is missing or has a type or a value that the model does not accept.
            HookError: A hook fails or returns an invalid result.
        """
        most = self.most_rows(batch_size)
        # A table without rows has outputs of length zero. The rows of several calls are encoded together because each
        # column has a fixed cost.
        step = max(most, parquet_rows.BATCH_ROWS // most * most)
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
            # Some libraries reject an empty batch.
            return {name: no_values(type_) for name, type_ in outputs.items()}
        size = self._padded_rows(rows, most)
        given = self._backend(inputs if size == rows else _padded(inputs, rows, size), tuple(names.values()))
        if on_call is not None:
            on_call()
        made = {
            name: checked_output(name, type_, given[names[name]], size, self.labels.get(name))[:rows]
            for name, type_ in outputs.items()
        }
        self._record_widths(made, rows)
        return made

    def _record_widths(self, outputs: Mapping[str, np.ndarray], rows: int) -> None:
        """Record the largest number of elements per row of each output."""
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
        """Return the result of :meth:`score` as Arrow arrays of the described types.

        Raises:
            ModelOutputError: A string is not UTF-8.
            ColumnError: See :meth:`score`.
            HookError: See :meth:`score`.
        """
        outputs = self.score(batch, batch_size=batch_size, on_call=on_call)
        return {
            name: arrow_array(name, values, column_types.ARROW_TYPES[self.description.outputs[name]])
            for name, values in outputs.items()
        }


def _loaded(directory: ModelDirectory, threads: int | None) -> tuple[protocol.Backend, Feed]:
    """Return the backend of a model, and the feed that makes its inputs from a table."""
    description = directory.description
    if isinstance(description, PackagedDescription):
        return _packaged(directory.path, description, threads)
    encoder, features = Encoder(directory.features), directory.scored_features
    graph = TrainedGraph(directory.path / SAVED_MODEL_FOLDER, threads=threads)
    trained = TrainedBackend(graph, description.signature, names=signatures.encoded_names(features))
    _check_names("inputs", trained.signature.inputs, signatures.encoded_names(features))
    _check_names("outputs", trained.signature.outputs, description.outputs)
    # Older exports, and models whose Keras inputs have a fixed length, need lists padded to that length.
    any_length = {array.name for array in trained.signature.inputs if array.shape == (None, None)}
    encoders = ModelEncoders(directory.path, features, threads=threads)
    return trained, FeatureFeed(encoder, features, any_length, encoders)


def _packaged(folder: Path, description: PackagedDescription, threads: int | None) -> tuple[protocol.Backend, Feed]:
    name = description.backend
    hooks = Hooks.load(folder / HOOKS_FILE) if description.hooks else None
    composite = composite_of(description)
    if composite is not None:
        load_member = partial(LoadedModel, threads=threads)
        loaded = composite.load(folder / description.file, description, load_member, hooks, threads)
        return loaded, loaded
    backend = load_backend(
        name,
        folder / description.file,
        signature=description.signature,
        threads=threads,
        trusted=description.trusted,
    )
    assert description.inputs is not None  # noqa: S101 - only composites leave them to their models
    found = decoders(description.inputs, backend.signature, name, hooks)
    takes = None if PREPROCESS in description.hooks else backend.signature
    return with_hooks(backend, hooks, description.hooks), ColumnFeed(description.inputs, takes, found)


def _check_names(what: str, actual: Iterable[protocol.ArrayType], expected: Iterable[str]) -> None:
    names = sorted(array.name for array in actual)
    if names != sorted(expected):
        raise protocol.ModelOutputError(
            f"the SavedModel has the {what} {names}, its description says {sorted(expected)}; export the model again"
        )


def _padded(inputs: Mapping[str, np.ndarray], rows: int, size: int) -> dict[str, np.ndarray]:
    """Return arrays ``[rows, ...]`` padded to ``[size, ...]`` with copies of the last row.

    The model accepts that row; zeros and empty strings may be invalid for it.
    """
    places = np.minimum(np.arange(size), rows - 1)
    return {name: values[places] for name, values in inputs.items()}
