"""What a task needs to score a batch: the pinned model, how to call it, and what its scores look like."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from pyspark import TaskContext

from data_pipelines.raw_columns import ColumnError
from data_pipelines.repeated_names import repeated_names
from scoring.backends.tensorflow_runtime import limit_tensorflow
from scoring.bad_rows import ERROR_COLUMN, BadRowError, BadRows, check_bad_rows, described, sound_rows
from scoring.checks import ScoringError
from scoring.column_types import ARROW_TYPES
from scoring.counters import Counters, Tally
from scoring.forms import AS_COLUMNS, Form, Shaped, form_of
from scoring.loaded_model import DEFAULT_BATCH_SIZE, LoadedModel, Search
from scoring.model_cache import PROCESS_CACHE, load_once
from scoring.model_directory import ModelDirectory, exported_with
from scoring.null_policy import NullPolicy, NullRule
from scoring.process_tuning import limit_numeric_libraries, spare_the_garbage_collector
from scoring.shipping import ShippedModel
from scoring.versions import check_versions

VERSION_COLUMN = "model_version"

OtherVersions = Literal["refuse", "allow"]
"""What to do on an executor whose libraries are not those that the model was exported with."""


@dataclass(frozen=True)
class Settings:
    """How a model is called, and what its scores look like; checked when built.

    Attributes:
        outputs: The form of the scores.
        batch_size: Rows per call of the model, unless it takes a number of its own.
        with_version: Whether the columns end with the model's version.
        nulls: What stands in for nulls, and where none may be.
        bad_rows: What becomes of a row that cannot be scored; with ``mark`` a column ``error`` follows the scores.
        other_versions: What to do where an executor's libraries are not those that the model was exported with.
    """

    outputs: Form = AS_COLUMNS
    batch_size: int = DEFAULT_BATCH_SIZE
    with_version: bool = True
    nulls: NullPolicy = field(default_factory=NullPolicy)
    bad_rows: BadRows = "fail"
    other_versions: OtherVersions = "refuse"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ScoringError(f"batch_size {self.batch_size} is below 1; use some thousands of rows")
        if self.other_versions not in get_args(OtherVersions):
            raise ScoringError(f"other_versions '{self.other_versions}' is unknown; use refuse or allow")
        check_bad_rows(self.bad_rows)

    @classmethod
    def of(
        cls,
        outputs: Form | str,
        batch_size: int,
        with_version: bool,
        nulls: Mapping[str, NullRule] | None,
        bad_rows: BadRows,
        other_versions: OtherVersions,
    ) -> "Settings":
        """Return the settings that a caller's arguments stand for: a form by its name, and rules for nulls.

        Raises:
            ScoringError: There is no such form, or as when built.
        """
        return cls(form_of(outputs), batch_size, with_version, NullPolicy(nulls or {}), bad_rows, other_versions)

    def schema(self, directory: ModelDirectory) -> pa.Schema:
        """Return the columns behind the keys.

        Raises:
            ScoringError: The model's outputs cannot take the form.
        """
        outputs = pa.schema([(name, ARROW_TYPES[type_]) for name, type_ in directory.description.outputs.items()])
        fields = list(self.outputs.fields(outputs, directory.labels))
        if self.bad_rows == "mark":
            fields.append(pa.field(ERROR_COLUMN, pa.string()))
        if self.with_version:
            fields.append(pa.field(VERSION_COLUMN, pa.string()))
        names = [one.name for one in fields]
        repeated = repeated_names(names)
        if repeated:
            raise ScoringError(
                f"the scores would have the columns {repeated} twice: the model has outputs or labels of these names; "
                f"use another form, or leave the version out"
            )
        return pa.schema(fields)


@dataclass(frozen=True)
class ScoredRows:
    """Scores, and the rows that they are of.

    Attributes:
        batch: The keys of the rows, and what the model says of each.
        rows: int64 ``[rows of batch]``: the number of the row that each is of, rising; None where there is one for each
            row.
    """

    batch: pa.RecordBatch
    rows: np.ndarray | None


@dataclass(frozen=True)
class Scorer:
    """What a task needs to score a batch.

    Attributes:
        model: Where the model is.
        settings: How to call it, and what its scores look like.
        counters: Is told what each task did.
        search: In which index of a retrieval model to search, and how; None leaves that to the model.
    """

    model: ShippedModel
    settings: Settings = field(default_factory=Settings)
    counters: Counters | None = None
    search: Search | None = None

    def load(self, tally: Tally) -> LoadedModel:
        """Return the model, from the cache of this process or its files.

        Raises:
            ModelVersionsError: The libraries of this Python are not the model's.
        """
        folder = self.model.folder()
        if self.settings.other_versions == "refuse":
            check_versions(exported_with(folder), self.model.label)
        tally.pause()
        context = TaskContext.get()
        threads = context.cpus() if context is not None else None
        if threads is not None:
            # Before any model or its hooks can import it.
            limit_tensorflow(threads)
        loaded: list[LoadedModel] = []
        drops = PROCESS_CACHE.drops
        model = load_once(folder, self.model.digest, threads=threads, on_load=loaded.append)
        if loaded:
            limit_numeric_libraries(threads)
            spare_the_garbage_collector(has_dropped=PROCESS_CACHE.drops > drops)
        tally.begin(loads=len(loaded), threads=model.threads)
        return model if self.search is None else model.searching(self.search)

    def scored(
        self, model: LoadedModel, batch: pa.RecordBatch, tally: Tally, keys: Sequence[str] = ()
    ) -> pa.RecordBatch:
        """Return the keys of the rows of ``batch``, and behind them what the model says of each.

        Raises:
            BadRowError: A row cannot be scored, and bad rows are not to be marked.
            ColumnError: A column has a type that its feature cannot take.
        """
        return self.scored_rows(model, batch, tally, keys).batch

    def scored_rows(self, model: LoadedModel, batch: pa.RecordBatch, tally: Tally, keys: Sequence[str]) -> ScoredRows:
        """Return what :meth:`scored` returns, with the row that each score is of."""
        outputs, faults = self._outputs(model, batch, tally, keys)
        tally.add(batch, outputs, bad_rows=len(faults))
        shaped = self.settings.outputs.shaped(outputs, model.labels)
        if faults:
            shaped = _with_rows_of_nulls(shaped, sound_rows(batch.num_rows, faults), batch.num_rows)
        # Keys leave in the batch that they came in, so no row can get another's score.
        columns = {key: _repeated(batch.column(key), shaped.rows) for key in keys} | dict(shaped.columns)
        length = batch.num_rows if shaped.rows is None else len(shaped.rows)
        if self.settings.bad_rows == "mark":
            columns[ERROR_COLUMN] = _reasons(faults, shaped.rows, length)
        if self.settings.with_version:
            columns[VERSION_COLUMN] = pa.repeat(self.model.label, length)
        return ScoredRows(pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns)), shaped.rows)

    def scored_parts(
        self, model: LoadedModel, batch: pa.RecordBatch, tally: Tally, keys: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        """Yield what :meth:`scored` returns, in parts whose outputs do not take much memory."""
        for rows in model.parts(batch, batch_size=self.settings.batch_size):
            yield self.scored(model, rows, tally, keys)

    def tell(self, tally: Tally) -> None:
        """Tell the driver what a task did, where it asked for it."""
        if self.counters is not None:
            self.counters.add(tally)

    def _outputs(
        self, model: LoadedModel, batch: pa.RecordBatch, tally: Tally, keys: Sequence[str]
    ) -> tuple[Mapping[str, pa.Array], dict[int, str]]:
        """Return the outputs of the rows that can be scored, and what is wrong with the others, by their numbers."""
        policy, fails = self.settings.nulls, self.settings.bad_rows == "fail"
        faults = policy.faults(batch)
        if faults and fails:
            raise BadRowError(described(batch, keys, faults))
        numbers = sound_rows(batch.num_rows, faults)
        rows = policy.filled(batch.take(pa.array(numbers)) if faults else batch)
        try:
            return self._called(model, rows, tally), faults
        except ColumnError:
            found = model.faults(rows, first=fails)
            if not found:
                raise
        more = {int(numbers[row]): message for row, message in found.items()}
        if fails:
            raise BadRowError(described(batch, keys, more))
        sound = rows.take(pa.array(sound_rows(rows.num_rows, found)))
        return self._called(model, sound, tally), dict(sorted({**faults, **more}.items()))

    def _called(self, model: LoadedModel, rows: pa.RecordBatch, tally: Tally) -> dict[str, pa.Array]:
        return model.score_arrow(rows, batch_size=self.settings.batch_size, on_call=tally.count_call)


def _with_rows_of_nulls(shaped: Shaped, sound: np.ndarray, rows: int) -> Shaped:
    """Return ``shaped``, which has the sound ones of so many rows, with a row of nulls for each of the others."""
    places = sound if shaped.rows is None else sound[shaped.rows]
    every = np.concatenate([places, np.delete(np.arange(rows), sound)])
    order = np.argsort(every, kind="stable")
    # A place that is null takes a null.
    taken = pa.array(order, mask=order >= len(places))
    return Shaped({name: column.take(taken) for name, column in shaped.columns.items()}, every[order])


def _repeated(column: pa.Array, rows: np.ndarray | None) -> pa.Array:
    return column if rows is None else column.take(pa.array(rows))


def _reasons(faults: Mapping[int, str], rows: np.ndarray | None, length: int) -> pa.Array:
    if not faults or rows is None:
        return pa.nulls(length, pa.string())
    return pa.array([faults.get(row) for row in rows.tolist()], pa.string())
