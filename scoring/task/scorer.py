"""Scoring of batches in a task: options, the columns of the scores, and the shipping of the model."""

import hashlib
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession

from mirrorspark.data_pipelines.features import kinds, raw_columns
from mirrorspark.scoring.backends import limit_tensorflow
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input import NO_NULL_POLICY, NullPolicy, NullRule, column_types
from mirrorspark.scoring.model.folder import ModelDirectory, exported_with
from mirrorspark.scoring.model.loading import (
    DEFAULT_BATCH_SIZE,
    PROCESS_CACHE,
    LoadedModel,
    Search,
    check_versions,
    freeze_gc,
    limit_numeric_libraries,
    load_once,
)
from mirrorspark.scoring.model.stored import PinnedModel
from mirrorspark.scoring.output import (
    ADDED_COLUMNS,
    AS_COLUMNS,
    DEFAULT_COLUMNS,
    AddedColumn,
    BadRowError,
    BadRows,
    Entries,
    Form,
    Shaped,
    failure_message,
    form_of,
    good_rows,
)
from mirrorspark.scoring.task.counts import Counters, ScoringCounts
from mirrorspark.spark_session import archive_folder, session_of, task_cores

OtherVersions = Literal["refuse", "allow"]
"""Treatment of an executor whose library versions differ from the model's."""


@dataclass(frozen=True)
class ScoringOptions:
    """Options of a scoring call, which :func:`scoring.score` describes; checked when built.

    An entry point builds them from its keyword arguments and hands them down.
    """

    outputs: Form = AS_COLUMNS
    batch_size: int = DEFAULT_BATCH_SIZE
    with_columns: tuple[str, ...] = DEFAULT_COLUMNS
    nulls: NullPolicy = NO_NULL_POLICY
    bad_rows: BadRows = "fail"
    other_versions: OtherVersions = "refuse"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ScoringError(f"batch_size {self.batch_size} is below 1; use some thousands of rows")
        if self.other_versions not in get_args(OtherVersions):
            raise ScoringError(f"other_versions '{self.other_versions}' is unknown; use refuse or allow")
        if self.bad_rows not in get_args(BadRows):
            raise ScoringError(f"bad_rows '{self.bad_rows}' is unknown; use one of {list(get_args(BadRows))}")
        known = [column.name for column in ADDED_COLUMNS if column.with_bad_rows is None]
        if unknown := [name for name in self.with_columns if name not in known]:
            raise ScoringError(f"with_columns names {unknown}, which scoring does not add; use some of {known}")

    @classmethod
    def of(
        cls,
        outputs: Form | str,
        batch_size: int,
        with_columns: str | Sequence[str],
        nulls: Mapping[str, NullRule] | None,
        bad_rows: BadRows,
        other_versions: OtherVersions,
    ) -> "ScoringOptions":
        """Return the options for a caller's arguments, which may name a form and give rules for nulls.

        Raises:
            ScoringError: A setting is invalid.
        """
        policy = NullPolicy(nulls) if nulls else NO_NULL_POLICY
        form = outputs if outputs is AS_COLUMNS else form_of(outputs)
        columns = (with_columns,) if isinstance(with_columns, str) else tuple(with_columns)
        return cls(form, batch_size, columns, policy, bad_rows, other_versions)

    @property
    def added(self) -> tuple[AddedColumn, ...]:
        """The columns that follow the scores, in their order."""
        return tuple(
            column
            for column in ADDED_COLUMNS
            if column.name in self.with_columns or column.with_bad_rows == self.bad_rows
        )

    def schema(self, directory: ModelDirectory) -> pa.Schema:
        """Return the columns that follow the keys.

        Raises:
            ScoringError: The model's outputs do not fit the form.
        """
        outputs = pa.schema(
            [(name, column_types.ARROW_TYPES[type_]) for name, type_ in directory.description.outputs.items()]
        )
        columns = list(outputs)
        if self.outputs is not AS_COLUMNS:
            # Plain columns need no labels, which are in the features of a multi-label model.
            columns = list(self.outputs.fields(outputs, directory.labels))
        columns += [pa.field(column.name, column.type) for column in self.added]
        names = [column.name for column in columns]
        if len(set(names)) < len(names):
            raise ScoringError(
                f"the scores would have the columns {kinds.repeated_names(names)} twice: "
                f"the model has outputs or labels "
                f"of these names; use another form, or leave them out of with_columns"
            )
        return pa.schema(columns)


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


@dataclass(frozen=True)
class ScoredRows:
    """Scores with the numbers of their rows.

    Attributes:
        batch: Keys and scores.
        rows: int64 ``[rows of batch]``: number of the scored row of each entry, ascending; None if there is one entry
            per row.
    """

    batch: pa.RecordBatch
    rows: np.ndarray | None


@dataclass(frozen=True)
class Scorer:
    """Scores batches in a task; pickles.

    Attributes:
        counters: Collects the counters of the tasks, if any.
        search: Search of a retrieval model; None uses the model's default.
    """

    model: ShippedModel
    options: ScoringOptions = field(default_factory=ScoringOptions)
    counters: Counters | None = None
    search: Search | None = None

    def load(self, counts: ScoringCounts) -> LoadedModel:
        """Return the model, from the cache of this process or from its files.

        Raises:
            ModelVersionsError: The library versions of this Python differ from the model's.
        """
        folder = self.model.folder()
        if self.options.other_versions == "refuse":
            check_versions(exported_with(folder), self.model.label)
        counts.pause()
        threads = task_cores()
        if threads is not None:
            # This precedes any import of TensorFlow by a model or its hooks.
            limit_tensorflow(threads)
        loaded: list[LoadedModel] = []
        drops = PROCESS_CACHE.drops
        model = load_once(folder, self.model.digest, threads=threads, on_load=loaded.append)
        if loaded:
            limit_numeric_libraries(threads)
            freeze_gc(has_dropped=PROCESS_CACHE.drops > drops)
        counts.begin(loads=len(loaded), threads=model.threads)
        return model if self.search is None else model.with_search(self.search)

    def scored(
        self, model: LoadedModel, batch: pa.RecordBatch, counts: ScoringCounts, keys: Sequence[str] = ()
    ) -> pa.RecordBatch:
        """Return the keys and scores of the rows of ``batch``.

        Raises:
            BadRowError: A row cannot be scored, and bad rows are not marked.
            ColumnError: A column has a type that its feature does not accept.
        """
        return self.scored_rows(model, batch, counts, keys).batch

    def scored_rows(
        self, model: LoadedModel, batch: pa.RecordBatch, counts: ScoringCounts, keys: Sequence[str]
    ) -> ScoredRows:
        """Return the result of :meth:`scored` with the row of each score."""
        outputs, row_errors = self._outputs(model, batch, counts, keys)
        counts.add(batch, outputs, bad_rows=len(row_errors))
        shaped = self.options.outputs.shaped(outputs, model.labels)
        if row_errors:
            shaped = _with_rows_of_nulls(shaped, good_rows(batch.num_rows, row_errors), batch.num_rows)
        # Keys and scores stay in the same batch, so no row can get the score of another.
        columns = {key: _repeated(batch.column(key), shaped.rows) for key in keys} | dict(shaped.columns)
        length = batch.num_rows if shaped.rows is None else len(shaped.rows)
        entries = Entries(length, shaped.rows, self.model.label, row_errors)
        columns |= {column.name: column.values(entries) for column in self.options.added}
        return ScoredRows(pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns)), shaped.rows)

    def scored_parts(
        self, model: LoadedModel, batch: pa.RecordBatch, counts: ScoringCounts, keys: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        """Yield the result of :meth:`scored` in parts of bounded output size."""
        for rows in model.parts(batch, batch_size=self.options.batch_size):
            yield self.scored(model, rows, counts, keys)

    def report(self, counts: ScoringCounts) -> None:
        """Send the counters of a task to the driver if it collects them."""
        if self.counters is not None:
            self.counters.add(counts)

    def _outputs(
        self, model: LoadedModel, batch: pa.RecordBatch, counts: ScoringCounts, keys: Sequence[str]
    ) -> tuple[Mapping[str, pa.Array], dict[int, str]]:
        """Return the outputs of the good rows, and the error messages of the others by row number."""
        policy, fails = self.options.nulls, self.options.bad_rows == "fail"
        row_errors = policy.row_errors(batch)
        if row_errors and fails:
            raise BadRowError(failure_message(batch, keys, row_errors))
        numbers = good_rows(batch.num_rows, row_errors)
        rows = policy.filled(batch.take(pa.array(numbers)) if row_errors else batch)
        try:
            return self._called(model, rows, counts), row_errors
        except raw_columns.ColumnError:
            found = model.row_errors(rows, first=fails)
            if not found:
                raise
        more = {int(numbers[row]): message for row, message in found.items()}
        if fails:
            raise BadRowError(failure_message(batch, keys, more))
        good = rows.take(pa.array(good_rows(rows.num_rows, found)))
        return self._called(model, good, counts), dict(sorted({**row_errors, **more}.items()))

    def _called(self, model: LoadedModel, rows: pa.RecordBatch, counts: ScoringCounts) -> dict[str, pa.Array]:
        return model.score_arrow(rows, batch_size=self.options.batch_size, on_call=counts.count_call)


def _with_rows_of_nulls(shaped: Shaped, good: np.ndarray, rows: int) -> Shaped:
    """Return ``shaped``, which has the good ones of ``rows`` rows, with a row of nulls for each other row."""
    places = good if shaped.rows is None else good[shaped.rows]
    every = np.concatenate([places, np.delete(np.arange(rows), good)])
    order = np.argsort(every, kind="stable")
    # A null index yields a null.
    taken = pa.array(order, mask=order >= len(places))
    return Shaped({name: column.take(taken) for name, column in shaped.columns.items()}, every[order])


def _repeated(column: pa.Array, rows: np.ndarray | None) -> pa.Array:
    return column if rows is None else column.take(pa.array(rows))


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
    session.send_archive(name, partial(_pack, folders))
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
