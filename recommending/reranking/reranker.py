"""Re-ranking of lists of recommendations, on Spark, in pandas or in Arrow."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
from pyspark.sql import DataFrame

from mirrorspark.data_pipelines.features import quoted
from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.data_pipelines.spark import map_batches, sent_schema_of
from mirrorspark.recommending.reranking.items import ItemAttributes
from mirrorspark.recommending.reranking.rerank_task import RerankTask
from mirrorspark.recommending.reranking.rules import Rules
from mirrorspark.spark_session import on_running_session, versions

if TYPE_CHECKING:
    import pandas as pd

Lists = TypeVar("Lists", DataFrame, pa.Table, "pd.DataFrame")


@on_running_session
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

    A list is filled from its first place on, each time with the candidate that is worth most next to those that are in
    it; of equal ones with the one that came first. A candidate's worth is its score, scaled to 0..1 within its list,
    plus its boost, less what ``diversity`` and ``calibration`` take off. Columns other than ``candidates`` and
    ``scores`` stay as they are, as does the score of a candidate.

    Args:
        lists: Rows with the columns ``candidates`` and ``scores``, as :func:`recommending.recommend` returns them.
        items: Attributes of the candidates, a row each. A candidate that it lacks has no category, vector or boost.
        key: Column of ``items`` with the candidates' tokens.
        k: Length of the new lists. One is shorter if fewer candidates are available or ``at_most`` leaves fewer.
        category: Column of ``items``: a category, or a list of several, each of which counts.
        at_most: Largest number of candidates of any category, or of each that is named.
        at_least: Smallest number of candidates by category, if a list has that many. It always holds if each item
            has one category; of items of several, those that ``at_most`` leaves.
        diversity: Weight of dissimilarity, 0 to 1: maximal marginal relevance (Carbonell and Goldstein 1998). A
            candidate is worth ``diversity`` times its largest cosine to one in the list less, and its relevance counts
            ``1 - diversity - calibration``.
        vector: Column of ``items`` for ``diversity``: lists of numbers, all of one length.
        calibration: Weight of interests, 0 to 1: the categories of a list get the shares that they have in the row's
            history, as the Kullback-Leibler divergence says (Steck 2018).
        history: Column of ``lists`` for ``calibration``: lists of the tokens of earlier items.
        boost: Column of ``items``: numbers to add to the scaled score; 0.1 is a tenth of a list's range of scores.
        available: Column of ``items``: booleans. A candidate that is not available, or not in ``items``, is left out
            before the best are chosen.

    Raises:
        ScoringError: The rules contradict one another, or name a category that no item has.
        ColumnError: A column is missing or has a type or a value that cannot be used.
    """
    rules = Rules(k, category, at_most, dict(at_least or {}), diversity, vector, calibration, history, boost, available)
    task = RerankTask(ItemAttributes.of(arrow_items(items, rules.item_columns(key)), key, rules), rules)
    if isinstance(lists, DataFrame):
        task.check(sent_schema_of(lists.schema))
        return map_batches(lists, task, lists.schema)
    table = lists if isinstance(lists, pa.Table) else pa.Table.from_pandas(lists, preserve_index=False)
    task.check(table.schema)
    batches = table.combine_chunks().to_batches(max_chunksize=parquet_rows.BATCH_ROWS)
    done = pa.Table.from_batches([task.reranked(batch) for batch in batches], table.schema)
    return done if isinstance(lists, pa.Table) else done.to_pandas().set_axis(lists.index)


def arrow_items(items: "DataFrame | pa.Table | pd.DataFrame", columns: Iterable[str]) -> pa.Table:
    """Return a table of items in Arrow: of a Spark table the named columns, as it has them."""
    if isinstance(items, DataFrame):
        return versions.arrow_table(items.select(*(quoted(name) for name in columns if name in items.columns)))
    return items if isinstance(items, pa.Table) else pa.Table.from_pandas(items, preserve_index=False)
