"""The re-ranking of lists by rules, in Arrow: the body of a Spark task, and the last stage of a cascade."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.models.index import CANDIDATES, SCORES
from mirrorspark.recommending.reranking.items import ItemAttributes
from mirrorspark.recommending.reranking.lists import check_lists, is_list, lists_of, starts_of
from mirrorspark.recommending.reranking.rules import Rules
from mirrorspark.scoring import ScoringError
from mirrorspark.scoring.task import regrouped


@dataclass(frozen=True)
class RerankTask:
    """Body of a Spark task of :func:`recommending.reranking.rerank`."""

    items: ItemAttributes
    rules: Rules

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the rows in their order."""
        for batch in regrouped(batches):
            yield self.reranked(batch)

    def check(self, schema: pa.Schema) -> None:
        """Check the columns of the lists.

        Raises:
            ColumnError: One is missing or holds no lists.
        """
        names = (CANDIDATES, SCORES, *([self.rules.history] if self.rules.history else []))
        check_lists(schema.names, names)
        for name in names:
            if not is_list(schema.field(name).type):
                raise raw_columns.ColumnError(f"'{name}' is {schema.field(name).type}, and has to be lists")

    def reranked(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows of ``batch`` with their lists re-ranked; null lists stay null.

        Raises:
            ScoringError: A row has another number of scores than of candidates.
        """
        # Numba, which this imports, takes 90 MB, and the driver needs none of it.
        from mirrorspark.recommending.reranking.kernel import choose

        lengths, candidates = lists_of(batch.column(CANDIDATES))
        score_lengths, scores = lists_of(batch.column(SCORES))
        if (lengths != score_lengths).any():
            row = int(np.flatnonzero(lengths != score_lengths)[0])
            raise ScoringError(
                f"row {row} of a batch has {lengths[row]} candidates and {score_lengths[row]} scores; give the lists "
                f"as recommend returns them"
            )
        starts = starts_of(lengths)
        history_lengths, history = np.zeros(batch.num_rows, np.int64), np.zeros(0, np.int64)
        if self.rules.history is not None:
            history_lengths, tokens = lists_of(batch.column(self.rules.history))
            history = self.items.numbers(tokens)
        places = np.zeros((batch.num_rows, self.rules.k), np.int64)
        counts = np.zeros(batch.num_rows, np.int64)
        choose(
            scores.cast(pa.float64()).to_numpy(zero_copy_only=False),
            starts,
            self.items.numbers(candidates),
            self.items.category_starts,
            self.items.categories,
            self.items.at_most,
            self.items.at_least,
            self.items.vectors,
            self.items.boosts,
            self.items.is_available,
            starts_of(history_lengths),
            history,
            self.rules.diversity,
            self.rules.calibration,
            places,
            counts,
        )
        is_chosen = np.arange(self.rules.k) < counts[:, np.newaxis]
        chosen = pa.array((places + starts[:-1, np.newaxis])[is_chosen])
        for name, values in ((CANDIDATES, candidates), (SCORES, scores)):
            column = batch.column(name)
            offsets = pa.array(starts_of(counts).astype(np.int32))
            made = pa.ListArray.from_arrays(offsets, values.take(chosen), mask=column.is_null())
            batch = batch.set_column(batch.schema.get_field_index(name), batch.schema.field(name), _cast(made, column))
        return batch


def _cast(lists: pa.ListArray, column: pa.Array) -> Any:
    type_ = column.type
    if pa.types.is_fixed_size_list(type_):
        raise raw_columns.ColumnError(f"a column of lists is {type_}, whose length cannot change; cast it to list")
    return lists.cast(type_)
