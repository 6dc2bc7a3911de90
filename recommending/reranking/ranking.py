"""Rows for a ranking model from lists of candidates, and the lists in the order of its scores, in Arrow."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features import Vocabulary, raw_columns
from mirrorspark.models.index import CANDIDATES
from mirrorspark.recommending.reranking.items import (
    check_item_columns,
    item_column,
    item_numbers,
    known_items,
)
from mirrorspark.recommending.reranking.lists import lists_of, starts_of
from mirrorspark.scoring.input import Inputs, RowErrors

# Fewer digits than int64 may have, and as many.
_SHORT_INTEGER, _LONG_INTEGER = r"\A(?:0|-?[1-9][0-9]{0,17})\z", r"-?[1-9][0-9]{18}"
# Rows for the ranking model that are in memory at a time, unless one list has more.
_PAIRS_AT_ONCE = 1 << 16

Score = Callable[[pa.RecordBatch], np.ndarray]
"""From a row for each candidate to the number of the ranking model for each, ``[rows]``."""


@dataclass(frozen=True)
class Ranking:
    """Columns that a ranking model reads of a list and of its candidates; pickles.

    Attributes:
        key: Column of the candidate's token.
        key_type: Type of that column: strings, or int64 for a model that takes integers.
        row_columns: Columns of the list's row.
        known: Tokens of the items; None without any.
        item_columns: Columns of the items by name, each with a null at the end for tokens without an item.
    """

    key: str
    key_type: pa.DataType
    row_columns: tuple[str, ...]
    known: Vocabulary | None = None
    item_columns: Mapping[str, pa.Array] = field(default_factory=dict)

    @classmethod
    def of(cls, key: str, key_type: pa.DataType, columns: Iterable[str], items: pa.Table | None) -> "Ranking":
        """Take columns from the items if they have them, and the others from the list's row.

        Args:
            key: Column of the candidates' tokens, also in ``items``.
            key_type: Type of that column as the model takes it, see :func:`candidate_schema`.
            columns: The columns that the model reads, and those that its messages name.
            items: Attributes of the candidates, a row each; None without any.

        Raises:
            ColumnError: ``items`` lacks the column ``key``, has a column twice, or an item that is null or twice.
        """
        names = dict.fromkeys(columns)
        names.pop(key, None)
        if items is None:
            return cls(key, key_type, tuple(names))
        of_items = [name for name in names if name in items.column_names]
        check_item_columns(items, (key, *of_items))
        of_rows = tuple(name for name in names if name not in of_items)
        columns_of_items = {name: _with_null(item_column(items, name)) for name in of_items}
        return cls(key, key_type, of_rows, known_items(items, key), columns_of_items)

    def pairs(self, lists: pa.RecordBatch) -> pa.RecordBatch:
        """Return a row for each candidate of each list, in their order; an item that is not known has nulls.

        Raises:
            ColumnError: For a reason of :meth:`row_errors`.
        """
        for message in self.row_errors(lists.column(CANDIDATES)).values():
            raise raw_columns.ColumnError(message)
        lengths, candidates = lists_of(lists.column(CANDIDATES))
        tokens = candidates.cast(pa.string())
        row = pa.array(np.repeat(np.arange(lists.num_rows), lengths))
        key = tokens.cast(self.key_type)
        made = {name: lists.column(name).take(row) for name in self.row_columns} | {self.key: key}
        if self.known is not None:
            item = pa.array(item_numbers(self.known, tokens))
            made |= {name: column.take(item) for name, column in self.item_columns.items()}
        return pa.RecordBatch.from_arrays(list(made.values()), names=list(made))

    def row_errors(self, candidates: pa.Array) -> RowErrors:
        """Return the lists with a candidate that the model cannot take: it takes integers, and the token is none."""
        if not pa.types.is_integer(self.key_type):
            return {}
        lengths, values = lists_of(candidates)
        tokens = values.cast(pa.string())
        bad = np.flatnonzero(~_are_integers(tokens))
        row = np.repeat(np.arange(len(lengths)), lengths)
        found: RowErrors = {}
        for place in bad.tolist():
            found.setdefault(
                int(row[place]),
                f"candidate {tokens[place].as_py()!r} is not a 64-bit integer in plain decimal digits, and the ranking "
                f"model takes '{self.key}' as integers; rank by a model that was trained with these tokens, or leave "
                f"such candidates out",
            )
        return found


def candidate_schema(key: str, inputs: Inputs | None, items: pa.Schema) -> pa.Schema:
    """Return the columns that a ranking model gets from a candidate: its token, and those columns that the items have.

    Lists hold tokens as strings. A model that takes no strings gets them as int64, if it takes those.

    Args:
        key: Column of the candidates' tokens.
        inputs: The inputs of the model; None without one.
        items: The columns of the items.
    """
    columns = inputs.columns if inputs is not None else ()
    of_items = [field for field in items if field.name in columns and field.name != key]
    of_rows = [pa.field(name, pa.null()) for name in columns if name != key and name not in items.names]

    def takes(type_: pa.DataType) -> bool:
        assert inputs is not None  # noqa: S101 - it has the key
        try:
            inputs.check(pa.schema([*of_rows, *of_items, pa.field(key, type_)]))
        except raw_columns.ColumnError:
            return False
        return True

    is_integer = key in columns and not takes(pa.string()) and takes(pa.int64())
    return pa.schema([pa.field(key, pa.int64() if is_integer else pa.string()), *of_items])


def ranked(lists: pa.RecordBatch, ranking: Ranking, score: Score, k: int | None) -> tuple[pa.ListArray, pa.ListArray]:
    """Return the candidates of each list in the order of a ranking model's scores, best first, and the scores.

    Of equal scores the candidate that came first stays first; NaN comes last. Null lists stay null.

    Args:
        lists: Rows with the column ``candidates``, and those of ``ranking``.
        ranking: Columns that the model reads.
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


def _are_integers(tokens: pa.Array) -> np.ndarray:
    """Return bool ``[tokens]``: whether each is an int64 as Arrow and SQL write it; null counts."""
    are = pc.match_substring_regex(tokens, _SHORT_INTEGER).fill_null(True).to_numpy(zero_copy_only=False)
    for place in np.flatnonzero(~are).tolist():
        token = tokens[place].as_py()
        are[place] = re.fullmatch(_LONG_INTEGER, token) is not None and -(2**63) <= int(token) < 2**63
    return are


def _with_null(column: pa.Array) -> pa.Array:
    return pa.concat_arrays([column, pa.nulls(1, column.type)])


def _parts(lists: pa.RecordBatch, lengths: np.ndarray) -> Iterator[pa.RecordBatch]:
    """Yield consecutive lists whose candidates fit into memory together; none without candidates."""
    starts, start = starts_of(lengths), 0
    while start < len(lengths):
        fitting = int(np.searchsorted(starts, starts[start] + _PAIRS_AT_ONCE, side="right")) - 1
        stop = max(start + 1, fitting)
        if starts[stop] > starts[start]:
            yield lists.slice(start, stop - start)
        start = stop
