"""Scoring of batches in a task."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.scoring.backends import limit_tensorflow
from mirrorspark.scoring.model.folder import exported_with
from mirrorspark.scoring.model.loading import (
    PROCESS_CACHE,
    LoadedModel,
    Search,
    check_versions,
    freeze_gc,
    limit_numeric_libraries,
    load_once,
)
from mirrorspark.scoring.output import (
    BadRowError,
    Entries,
    Shaped,
    failure_message,
    good_rows,
)
from mirrorspark.scoring.task.counts import Counters, ScoringCounts
from mirrorspark.scoring.task.options import ScoringOptions
from mirrorspark.scoring.task.shipping import ShippedModel
from mirrorspark.spark_session import task_cores


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
