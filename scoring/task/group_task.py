"""Spark task that scores rows with the models of their groups. It splits batches and restores the order of rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.scoring.model.loading import LoadedModel
from mirrorspark.scoring.output import BadRowError, Entries, failure_message
from mirrorspark.scoring.task.batches import RowCount, regrouped
from mirrorspark.scoring.task.counts import ScoringCounts
from mirrorspark.scoring.task.scorer import ScoredRows, Scorer

Unknown = Literal["fail", "null"]
"""Treatment of a row whose group has no model: the job fails and names the row, or its scores are null."""

_NO_MODEL = -1


@dataclass(frozen=True)
class GroupTask:
    """Body of a Spark task of :func:`scoring.score_by_group`.

    Attributes:
        group: Column that selects the model.
        keys: Columns that pass through, including the group.
        scorers: One scorer per model.
        routes: Index in ``scorers`` by group.
        results: The columns after the keys: the scores, then the added columns.
        unknown: Treatment of rows whose group is not in ``routes``.
    """

    group: str
    keys: tuple[str, ...]
    scorers: tuple[Scorer, ...]
    routes: Mapping[Any, int]
    results: pa.Schema
    unknown: Unknown = "fail"

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the rows in their order.

        Raises:
            BadRowError: The group of a row has no model and ``unknown`` is ``fail``, or a row cannot be scored and bad
                rows are not marked.
            RowCountError: The number of rows changed on the way.
        """
        models, rows = _Models(self.scorers), RowCount()
        routes: _Routes | None = None
        try:
            for batch in regrouped(rows.count_input(batches)):
                routes = routes or _Routes(self.routes, batch.schema.field(self.group).type)
                places = self._places(batch, routes)
                scored = self._run_by_run if _is_grouped(places) else self._mixed
                yield from rows.count_output(scored(batch, places, models))
            rows.check(self.scorers[0].options.outputs)
        finally:
            # Spark may stop reading before the last row, for a LIMIT for example.
            if models.counts.rows:
                self.scorers[0].report(models.counts)

    def _places(self, batch: pa.RecordBatch, routes: "_Routes") -> np.ndarray:
        """Return int64 ``[rows]``: index of each row's model in ``scorers``, -1 for none."""
        column = batch.column(self.group)
        places = routes.places(column)
        unmatched = np.flatnonzero(places == _NO_MODEL)
        if self.unknown == "fail" and len(unmatched):
            row = int(unmatched[0])
            advice = "give a model for it, leave such rows out, or score with unknown='null' to have nulls for them"
            raise BadRowError(failure_message(batch, self.keys, {row: self._reason(column[row])}, advice=advice))
        return places

    def _run_by_run(self, batch: pa.RecordBatch, places: np.ndarray, models: "_Models") -> Iterator[pa.RecordBatch]:
        """Yield the scores of rows that are sorted by model."""
        bounds = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist(), len(places)]
        for start, stop in pairwise(bounds):
            run, place = batch.slice(start, stop - start), int(places[start])
            if place == _NO_MODEL:
                yield self._without_model(run, models.counts)
            else:
                parts = self.scorers[place].scored_parts(models.loaded(place), run, models.counts, self.keys)
                yield from map(self._in_columns, parts)

    def _mixed(self, batch: pa.RecordBatch, places: np.ndarray, models: "_Models") -> Iterator[pa.RecordBatch]:
        """Yield the scores of rows in any order, in parts of bounded output size."""
        most = models.part_rows(places)
        for start in range(0, batch.num_rows, most):
            part, of_part = batch.slice(start, most), places[start : start + most]
            numbers = [np.flatnonzero(of_part == place) for place in np.unique(of_part)]
            scored = [self._scored(part.take(pa.array(of)), int(of_part[of[0]]), models) for of in numbers]
            yield in_order(scored, numbers)

    def _scored(self, rows: pa.RecordBatch, place: int, models: "_Models") -> ScoredRows:
        if place == _NO_MODEL:
            return ScoredRows(self._without_model(rows, models.counts), None)
        scored = self.scorers[place].scored_rows(models.loaded(place), rows, models.counts, self.keys)
        return replace(scored, batch=self._in_columns(scored.batch))

    def _in_columns(self, scored: pa.RecordBatch) -> pa.RecordBatch:
        """Return the columns in the order of the table; models may have the same labels in another order."""
        return scored.select([*self.keys, *self.results.names])

    def _without_model(self, rows: pa.RecordBatch, counts: ScoringCounts) -> pa.RecordBatch:
        """Return the keys of rows whose group has no model, followed by nulls."""
        counts.add(rows, {}, bad_rows=rows.num_rows)
        columns = {key: rows.column(key) for key in self.keys}
        columns |= {field.name: pa.nulls(rows.num_rows, field.type) for field in self.results}
        options = self.scorers[0].options
        reasons: Iterable[str] = map(self._reason, rows.column(self.group)) if options.bad_rows == "mark" else ()
        entries = Entries(rows.num_rows, None, None, dict(enumerate(reasons)))
        columns |= {column.name: column.values(entries) for column in options.added}
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))

    def _reason(self, value: pa.Scalar) -> str:
        return f"no model is given for {self.group}={value.as_py()!r}"


class _Routes:
    """Look-up of model indexes by group, built once per task."""

    def __init__(self, routes: Mapping[Any, int], column_type: pa.DataType) -> None:
        self._groups = pa.array(list(routes), column_type)
        # The index -1 of an unknown group selects this last element.
        self._places = np.array([*routes.values(), _NO_MODEL])

    def places(self, column: pa.Array) -> np.ndarray:
        """Return int64 ``[rows]``: index of each row's model, -1 for none."""
        numbers = pc.fill_null(pc.index_in(column, value_set=self._groups), -1)
        return self._places[numbers.to_numpy(zero_copy_only=False)]


class _Models:
    """The models of a task, and its counters.

    References to the models are weak, because the cache of the process bounds their memory.
    """

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        self.counts = ScoringCounts()
        self._scorers = scorers
        self._loaded: WeakValueDictionary[int, LoadedModel] = WeakValueDictionary()

    def loaded(self, place: int) -> LoadedModel:
        """Return a model by its index; load it unless the process has it."""
        model = self._loaded.get(place)
        if model is None:
            model = self._scorers[place].load(self.counts)
            self._loaded[place] = model
        return model

    def part_rows(self, places: np.ndarray) -> int:
        """Return the number of rows whose outputs take 16 MB or less for every model at ``places``."""
        known = np.unique(places[places != _NO_MODEL]).tolist()
        return min(self.loaded(place).part_rows(self._scorers[place].options.batch_size) for place in known)


def _is_grouped(places: np.ndarray) -> bool:
    """Return whether equal places are adjacent."""
    return int(np.count_nonzero(np.diff(places))) + 1 == len(np.unique(places))


def in_order(parts: Sequence[ScoredRows], numbers: Sequence[np.ndarray]) -> pa.RecordBatch:
    """Merge the scores of parts of a batch in the order of the batch.

    Args:
        parts: Scores of disjoint rows, with the same columns.
        numbers: For each part int64 ``[rows]``: the numbers of its rows in the batch, ascending.
    """
    of = [own if part.rows is None else own[part.rows] for part, own in zip(parts, numbers, strict=True)]
    order = np.argsort(np.concatenate(of), kind="stable")
    return pa.concat_batches([part.batch for part in parts]).take(pa.array(order))
