"""Rows for a ranking model from lists of candidates, and the lists in the order of its scores, in Arrow."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.models.index.ranked_lists import CANDIDATES
from mirrorspark.scoring.reranking.items import (
    check_item_columns,
    item_column,
    item_numbers,
    known_items,
    lists_of,
    starts_of,
)

# Rows for the ranking model that are in memory at a time, unless one list has more.
_PAIRS_AT_ONCE = 1 << 16

Score = Callable[[pa.RecordBatch], np.ndarray]
"""From a row for each candidate to the number of the ranking model for each, ``[rows]``."""


@dataclass(frozen=True)
class Ranking:
    """What a ranking model reads of a list and of its candidates; pickles.

    Attributes:
        key: Column of the candidate's token.
        row_columns: Columns of the list's row.
        known: Tokens of the items; None without any.
        item_columns: Columns of the items by name, each with a null at the end for what is no item.
    """

    key: str
    row_columns: tuple[str, ...]
    known: Vocabulary | None = None
    item_columns: Mapping[str, pa.Array] = field(default_factory=dict)

    @classmethod
    def of(cls, key: str, columns: Iterable[str], items: pa.Table | None) -> "Ranking":
        """Take what columns the items have from them, and the others from the list's row.

        Args:
            key: Column of the candidates' tokens, also in ``items``.
            columns: The columns that the model reads, and those that its messages name.
            items: Attributes of the candidates, a row each; None without any.

        Raises:
            ColumnError: ``items`` lacks the column ``key``, has a column twice, or an item that is null or twice.
        """
        names = dict.fromkeys(columns)
        names.pop(key, None)
        if items is None:
            return cls(key, tuple(names))
        of_items = [name for name in names if name in items.column_names]
        check_item_columns(items, (key, *of_items))
        of_rows = tuple(name for name in names if name not in of_items)
        columns_of_items = {name: _with_null(item_column(items, name)) for name in of_items}
        return cls(key, of_rows, known_items(items, key), columns_of_items)

    def pairs(self, lists: pa.RecordBatch) -> pa.RecordBatch:
        """Return a row for each candidate of each list, in their order; an item that is not known has nulls."""
        lengths, candidates = lists_of(lists.column(CANDIDATES))
        tokens = candidates.cast(pa.string())
        row = pa.array(np.repeat(np.arange(lists.num_rows), lengths))
        made = {name: lists.column(name).take(row) for name in self.row_columns} | {self.key: tokens}
        if self.known is not None:
            item = pa.array(item_numbers(self.known, tokens))
            made |= {name: column.take(item) for name, column in self.item_columns.items()}
        return pa.RecordBatch.from_arrays(list(made.values()), names=list(made))


def candidate_schema(key: str, columns: Iterable[str], items: pa.Schema) -> pa.Schema:
    """Return the columns that a ranking model gets from a candidate: its token, and what the items have of its columns.

    Args:
        key: Column of the candidates' tokens.
        columns: The columns that the model reads.
        items: The columns of the items.
    """
    wanted = {*columns} - {key}
    return pa.schema([pa.field(key, pa.string()), *(field for field in items if field.name in wanted)])


def ranked(lists: pa.RecordBatch, ranking: Ranking, score: Score, k: int | None) -> tuple[pa.ListArray, pa.ListArray]:
    """Return the candidates of each list in the order of a ranking model's scores, best first, and the scores.

    Of equal scores the candidate that came first stays first; NaN comes last. Null lists stay null.

    Args:
        lists: Rows with the column ``candidates``, and those of ``ranking``.
        ranking: What the model reads.
        score: The model; it is called with some lists at a time.
        k: Length of the new lists; None keeps all candidates.
    """
    column = lists.column(CANDIDATES)
    lengths, candidates = lists_of(column)
    values = [score(ranking.pairs(part)) for part in _parts(lists, lengths)]
    scores = np.concatenate(values) if values else np.zeros(0, np.float32)
    # This sort is stable.
    order = np.lexsort((-scores, np.repeat(np.arange(len(lengths)), lengths)))
    if k is not None:
        place = np.arange(len(order)) - np.repeat(starts_of(lengths)[:-1], lengths)
        order, lengths = order[place < k], np.minimum(lengths, k)
    offsets, is_null = pa.array(starts_of(lengths).astype(np.int32)), column.is_null()
    chosen = candidates.take(pa.array(order))
    return (
        pa.ListArray.from_arrays(offsets, chosen, mask=is_null),
        pa.ListArray.from_arrays(offsets, pa.array(scores[order]), mask=is_null),
    )


def _with_null(column: pa.Array) -> pa.Array:
    return pa.concat_arrays([column, pa.nulls(1, column.type)])


def _parts(lists: pa.RecordBatch, lengths: np.ndarray) -> Iterator[pa.RecordBatch]:
    """Yield consecutive lists with so many candidates that they are in memory together; none without candidates."""
    starts, start = starts_of(lengths), 0
    while start < len(lengths):
        fitting = int(np.searchsorted(starts, starts[start] + _PAIRS_AT_ONCE, side="right")) - 1
        stop = max(start + 1, fitting)
        if starts[stop] > starts[start]:
            yield lists.slice(start, stop - start)
        start = stop
