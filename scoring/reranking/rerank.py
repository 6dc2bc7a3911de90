"""Re-ranking of lists of recommendations, on Spark, in pandas or in Arrow."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame

from mirrorspark.data_pipelines.features.raw_columns import ColumnError, meant
from mirrorspark.data_pipelines.reading.parquet_rows import BATCH_ROWS
from mirrorspark.data_pipelines.spark.schema import sent_schema_of
from mirrorspark.data_pipelines.spark.tasks import map_batches
from mirrorspark.models.index.ranked_lists import CANDIDATES, SCORES
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.plan import column_named
from mirrorspark.scoring.reranking.items import ItemAttributes, is_list, lists_of
from mirrorspark.scoring.reranking.rules import Rules
from mirrorspark.scoring.task.batches import regrouped

if TYPE_CHECKING:
    import pandas as pd

Lists = TypeVar("Lists", DataFrame, pa.Table, "pd.DataFrame")


def rerank(
    lists: Lists,
    items: "DataFrame | pa.Table | pd.DataFrame",
    *,
    key: str,
    k: int,
    category: str | None = None,
    at_most: int | Mapping[str, int] | None = None,
    at_least: Mapping[str, int] | None = None,
    diversity: float = 0.0,
    vector: str | None = None,
    calibration: float = 0.0,
    history: str | None = None,
    boost: str | None = None,
    available: str | None = None,
) -> Lists:
    """Return ``lists`` with the ``k`` candidates of each list that fit the rules best, in their new order.

    A list is filled from its first place on, each time with the candidate that is worth most beside those that are in
    it; of equal ones with the one that came first. A candidate's worth is its score, scaled to 0..1 within its list,
    plus its boost, less what ``diversity`` and ``calibration`` take off. Columns other than ``candidates`` and
    ``scores`` stay as they are, as does the score of a candidate.

    Args:
        lists: Rows with the columns ``candidates`` and ``scores``, as :func:`scoring.recommend.recommend` returns them.
        items: Attributes of the candidates, a row each. A candidate that it lacks has no category, vector or boost.
        key: Column of ``items`` with the candidates' tokens.
        k: Length of the new lists. One is shorter if fewer candidates are available or ``at_most`` leaves fewer.
        category: Column of ``items``: a category, or a list of several, each of which counts.
        at_most: Largest number of candidates of any category, or of each that is named.
        at_least: Smallest number of candidates by category, as far as a list has so many. It always holds if each item
            has one category; of items of several, those that ``at_most`` leaves.
        diversity: Weight of dissimilarity, 0 to 1: maximal marginal relevance (Carbonell and Goldstein 1998). A
            candidate is worth ``diversity`` times its largest cosine to one in the list less, and its relevance counts
            ``1 - diversity - calibration``.
        vector: Column of ``items`` for ``diversity``: lists of numbers, all of one length.
        calibration: Weight of interests, 0 to 1: the categories of a list get the shares that they have in the row's
            history, as far as the Kullback-Leibler divergence says (Steck 2018).
        history: Column of ``lists`` for ``calibration``: lists of the tokens of earlier items.
        boost: Column of ``items``: numbers to add to the scaled score; 0.1 is a tenth of a list's range of scores.
        available: Column of ``items``: booleans. A candidate that is not available, or not in ``items``, is left out
            before the best are chosen.

    Raises:
        ScoringError: The rules contradict one another, or name a category that no item has.
        ColumnError: A column is missing or has a type or a value that cannot be used.
    """
    rules = Rules(k, category, at_most, dict(at_least or {}), diversity, vector, calibration, history, boost, available)
    task = RerankTask(ItemAttributes.of(_arrow(items, rules.item_columns(key)), key, rules), rules)
    if isinstance(lists, DataFrame):
        task.check(sent_schema_of(lists.schema))
        return map_batches(lists, task, lists.schema)
    table = lists if isinstance(lists, pa.Table) else pa.Table.from_pandas(lists, preserve_index=False)
    task.check(table.schema)
    batches = table.combine_chunks().to_batches(max_chunksize=BATCH_ROWS)
    done = pa.Table.from_batches([task.reranked(batch) for batch in batches], table.schema)
    return done if isinstance(lists, pa.Table) else done.to_pandas().set_axis(lists.index)


def _arrow(items: "DataFrame | pa.Table | pd.DataFrame", columns: Iterable[str]) -> pa.Table:
    """Return the named columns of the items, as far as there are such columns."""
    if isinstance(items, DataFrame):
        return items.select(*(column_named(name) for name in columns if name in items.columns)).toArrow()
    return items if isinstance(items, pa.Table) else pa.Table.from_pandas(items, preserve_index=False)


@dataclass(frozen=True)
class RerankTask:
    """Body of a Spark task of :func:`rerank`."""

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
        for name in (CANDIDATES, SCORES, *([self.rules.history] if self.rules.history else [])):
            if schema.names.count(name) != 1:
                found = f"{schema.names.count(name)} times{meant(name, schema.names)}"
                raise ColumnError(f"the table of lists has the column '{name}' {found}; it has {schema.names}")
            if not is_list(schema.field(name).type):
                raise ColumnError(f"'{name}' is {schema.field(name).type}, and has to be lists")

    def reranked(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows of ``batch`` with their lists re-ranked; null lists stay null.

        Raises:
            ScoringError: A row has another number of scores than of candidates.
        """
        # Numba, which this imports, takes 90 MB, and the driver needs none of it.
        from mirrorspark.scoring.reranking.kernel import choose

        lengths, candidates = lists_of(batch.column(CANDIDATES))
        score_lengths, scores = lists_of(batch.column(SCORES))
        if (lengths != score_lengths).any():
            row = int(np.flatnonzero(lengths != score_lengths)[0])
            raise ScoringError(
                f"row {row} of a batch has {lengths[row]} candidates and {score_lengths[row]} scores; give the lists "
                f"as recommend returns them"
            )
        starts = _starts(lengths)
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
            _starts(history_lengths),
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
            offsets = pa.array(_starts(counts).astype(np.int32))
            made = pa.ListArray.from_arrays(offsets, values.take(chosen), mask=column.is_null())
            batch = batch.set_column(batch.schema.get_field_index(name), batch.schema.field(name), _cast(made, column))
        return batch


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.append(0, np.cumsum(lengths)).astype(np.int64)


def _cast(lists: pa.ListArray, column: pa.Array) -> Any:
    type_ = column.type
    if pa.types.is_fixed_size_list(type_):
        raise ColumnError(f"a column of lists is {type_}, whose length cannot change; cast it to list")
    return lists.cast(type_)
