"""The stages of a cascade that follow the search: a model ranks the candidates, and rules re-rank its list.

They are those of :func:`recommending.reranking.rank_candidates` and :func:`recommending.reranking.rerank`, within a
router. This module does not import Spark or TensorFlow.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.models.index import CANDIDATES, SCORES
from mirrorspark.recommending.reranking import (
    ItemAttributes,
    Ranking,
    RerankTask,
    Score,
    candidate_schema,
    is_list,
    lists_of,
    ranked,
)
from mirrorspark.recommending.routing.blend import as_arrays, as_lists
from mirrorspark.recommending.routing.router import Cascade
from mirrorspark.scoring.input import Inputs, RowErrors
from mirrorspark.scoring.output import good_rows


@dataclass(frozen=True)
class StageInputs:
    """The columns of rows that the stages read.

    Attributes:
        ranking: Inputs of the ranking model; None without one.
        of_candidates: Columns that it gets from the candidates.
    """

    cascade: Cascade
    ranking: Inputs | None
    of_candidates: pa.Schema

    @classmethod
    def of(cls, cascade: Cascade, ranking: Inputs | None, items: pa.Schema) -> "StageInputs":
        """Separate the columns of rows from those of the items."""
        return cls(cascade, ranking, candidate_schema(cascade.key, ranking, items))

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names, each once."""
        names = self.ranking.columns if self.ranking is not None else ()
        own = [name for name in names if name not in self.of_candidates.names]
        return tuple(dict.fromkeys([*own, *_history(self.cascade)]))

    def check(self, schema: pa.Schema) -> None:
        """Check the columns; see :class:`scoring.input.Inputs`."""
        if self.ranking is not None:
            of_rows = [field for field in schema if field.name not in self.of_candidates.names]
            self.ranking.check(pa.schema([*of_rows, *self.of_candidates]))
        for name in _history(self.cascade):
            if schema.get_field_index(name) < 0:
                raise raw_columns.ColumnError(
                    f"column '{name}' is missing, whose categories the re-ranking follows; add it"
                )
            type_ = schema.field(name).type
            if not (is_list(type_) or pa.types.is_null(type_)):
                raise raw_columns.ColumnError(
                    f"column '{name}' has type {type_}, and a history has to be lists of tokens"
                )


class Stages:
    """The stages of one cascade with the items that they read. Its methods are thread-safe."""

    def __init__(self, cascade: Cascade, ranker: Inputs | None, items: pa.Table | None) -> None:
        """Read the items.

        Args:
            cascade: The cascade.
            ranker: Inputs of the ranking model; None without one.
            items: Attributes of the candidates; None without any.

        Raises:
            ColumnError: A column of the items is missing, or has a type or a value that cannot be used.
            ScoringError: A rule names a category that no item has.
        """
        self.cascade, self._items = cascade, items
        of_candidates = candidate_schema(cascade.key, ranker, pa.schema([]) if items is None else items.schema)
        columns = () if ranker is None else ranker.columns
        self.ranking = Ranking.of(cascade.key, of_candidates.field(cascade.key).type, columns, items)
        # By the length of the lists, which limits depend on.
        self._rerank_tasks: dict[int, RerankTask] = {}
        task = self._rerank_task(cascade.k)
        self.available: pa.Array | None = None
        """Tokens of the candidates that may be listed; None for all."""
        if task is not None and task.rules.available is not None:
            self.available = task.items.known.tokens.filter(pa.array(task.items.is_available[:-1]))

    def listed(
        self, rows: pa.RecordBatch, found: Mapping[str, np.ndarray], k: int, score: Score
    ) -> dict[str, np.ndarray]:
        """Return the lists of rows, ``[rows, k]`` by output, with empty places at the end of short ones.

        Args:
            rows: The rows, with the columns of :class:`StageInputs`.
            found: The candidates that the first stage has found for them, ``[rows, places]`` by output.
            k: Length of the lists.
            score: The ranking model; not called without one.
        """
        candidates, scores = as_lists(found)
        task = self._rerank_task(k)
        if self.cascade.rank is not None:
            lists = self._lists(rows, self.ranking.row_columns, candidates)
            candidates, scores = ranked(lists, self.ranking, score, k if task is None else None)
        if task is not None:
            lists = self._lists(rows, _history(self.cascade), candidates)
            lists = task.reranked(lists.append_column(SCORES, scores))
            candidates, scores = lists.column(CANDIDATES), lists.column(SCORES)
        return as_arrays(candidates, scores, k)

    def row_errors(
        self, rows: pa.RecordBatch, found: Mapping[str, np.ndarray], examine: Callable[[pa.RecordBatch], RowErrors]
    ) -> RowErrors:
        """Return the rows with a candidate that the ranking model cannot score.

        Args:
            rows: As in :meth:`listed`.
            found: As in :meth:`listed`.
            examine: Returns the errors of the ranking model's rows.
        """
        candidates, _ = as_lists(found)
        errors = self.ranking.row_errors(candidates)
        lists = self._lists(rows, self.ranking.row_columns, candidates)
        good = good_rows(rows.num_rows, errors)
        pairs = self.ranking.pairs(lists.take(pa.array(good)) if errors else lists)
        lengths, tokens = lists_of(candidates.take(pa.array(good)) if errors else candidates)
        row = np.repeat(good, lengths)
        for pair, message in (examine(pairs) if pairs.num_rows else {}).items():
            errors.setdefault(int(row[pair]), f"candidate {tokens[pair].as_py()!r}: {message}")
        return dict(sorted(errors.items()))

    def _lists(self, rows: pa.RecordBatch, names: Sequence[str], candidates: pa.ListArray) -> pa.RecordBatch:
        columns = {name: _with_type(rows.column(name), name in _history(self.cascade)) for name in names}
        made = columns | {CANDIDATES: candidates}
        return pa.RecordBatch.from_arrays(list(made.values()), names=list(made))

    def _rerank_task(self, k: int) -> RerankTask | None:
        if k not in self._rerank_tasks:
            rules = self.cascade.rules(k)
            if rules is None:
                return None
            assert self._items is not None  # noqa: S101 - no cascade is packaged with rules and without items
            self._rerank_tasks[k] = RerankTask(ItemAttributes.of(self._items, self.cascade.key, rules), rules)
        return self._rerank_tasks[k]


def _history(cascade: Cascade) -> tuple[str, ...]:
    name = cascade.rerank.get("history")
    return () if name is None else (name,)


def _with_type(column: pa.Array, is_history: bool) -> pa.Array:
    """Return a column; histories that are all null have no type where they come from Python."""
    if is_history and pa.types.is_null(column.type):
        return pa.nulls(len(column), pa.list_(pa.string()))
    return column
