"""The second stage of a cascade: a ranking model orders the candidates that a retrieval model has found."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.types import StructType

from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.data_pipelines.spark import map_batches, spark_schema_of
from mirrorspark.models.index import CANDIDATES, SCORES
from mirrorspark.recommending.reranking.lists import check_lists
from mirrorspark.recommending.reranking.ranking import Ranking, candidate_schema, ranked
from mirrorspark.recommending.reranking.reranker import arrow_items
from mirrorspark.scoring import ScoringError, ScoringPlan, SentColumns, check_keys
from mirrorspark.scoring.input import NullRule
from mirrorspark.scoring.model.loading import DEFAULT_BATCH_SIZE, LoadedModel
from mirrorspark.scoring.model.stored import PinnedModel
from mirrorspark.scoring.output import AS_COLUMNS
from mirrorspark.scoring.task import Counters, Scorer, ScoringCounts, ScoringOptions, regrouped
from mirrorspark.spark_session import on_running_session

if TYPE_CHECKING:
    import pandas as pd

RANKED_BY = "ranked_by"
"""The column with the version of the ranking model."""


@on_running_session
def rank_candidates(  # noqa: D417 - the others are those of score
    lists: DataFrame,
    model: str | Path | PinnedModel,
    *,
    keys: str | Sequence[str],
    key: str,
    items: "DataFrame | pa.Table | pd.DataFrame | None" = None,
    k: int | None = None,
    output: str = "score",
    tracking_uri: str | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    nulls: Mapping[str, NullRule] | None = None,
    trust: bool = False,
    counters: Counters | None = None,
) -> DataFrame:
    """Return ``lists`` with the candidates of each list in the order of another model's scores, best first.

    Each candidate becomes a row for the model: the columns of its list, the candidate itself in the column ``key``, and
    the columns that ``items`` has for it, null where it has none. ``scores`` are then the model's, and ``ranked_by``
    says which version they are from; all other columns stay. Of equal scores the candidate that came first stays first.

    Args:
        lists: Rows with the column ``candidates``, as :func:`recommending.recommend` returns them, joined with the
            columns of users or requests that the model reads.
        model: URI of the ranking model, or the result of :func:`scoring.model.stored.resolve`.
        keys: Columns that identify a list, by which messages name it.
        key: Column of ``items``, and of the model if it reads it, with the candidates' tokens.
        items: Attributes of the candidates, a row each. The columns that the model reads are sent to the tasks.
        k: Length of the new lists; None keeps all candidates.
        output: The model's output to rank by, one number for each row.

    The other arguments are those of :func:`scoring.score`.

    Raises:
        ModelNotFoundError: The URI does not lead to a model.
        ScoringError: ``k`` is below 1, the model has no such output or several numbers in it, or for a reason of
            :func:`scoring.score`.
        ColumnError: A column is missing, is there twice, or has a type that the model does not accept; or ``items`` has
            an item twice.
    """
    if k is not None and k < 1:
        raise ScoringError(f"k is {k}; rank at least one candidate, or leave k out to keep them all")
    list_keys = (keys,) if isinstance(keys, str) else tuple(keys)
    check_keys(lists.columns, list_keys)
    check_lists(lists.columns, (CANDIDATES,))
    options = ScoringOptions.of(AS_COLUMNS, batch_size, (), nulls, "fail", "refuse")
    plan = ScoringPlan.of(model, (*list_keys, key), options, tracking_uri, trust=trust)
    outputs = {field.name: str(field.type) for field in plan.results}
    if outputs.get(output) not in ("float", "double"):
        raise ScoringError(
            f"'{output}' is not a number of {plan.pinned.label}, which gives {outputs}; name by output one that is"
        )
    ranking = _ranking(lists, items, plan, key)
    kept = [field for field in lists.schema.fields if field.name not in (CANDIDATES, SCORES, RANKED_BY)]
    made = pa.schema([(SCORES, pa.list_(plan.results.field(output).type)), (RANKED_BY, pa.string())])
    schema = StructType([*kept, lists.schema[CANDIDATES], *spark_schema_of(made).fields])
    scorer = plan.scorer(lists.sparkSession, counters=counters)
    task = RankTask(ranking, scorer, plan.keys, tuple(field.name for field in kept), k, output, made.field(SCORES).type)
    return map_batches(lists, task, schema)


def _ranking(
    lists: DataFrame, items: "DataFrame | pa.Table | pd.DataFrame | None", plan: ScoringPlan, key: str
) -> Ranking:
    """Check the columns that the plan's model reads, and return where they come from."""
    others = [name for name in lists.columns if name not in (CANDIDATES, SCORES, key)]
    table = None
    if items is not None:
        named = items.column_names if isinstance(items, pa.Table) else list(items.columns)
        if key not in named:
            raise raw_columns.ColumnError(f"items has no column '{key}'{raw_columns.meant(key, named)}; it has {named}")
        if both := sorted({*others} & {*named}):
            raise raw_columns.ColumnError(f"lists and items both have the columns {both}; rename or drop one of each")
        table = arrow_items(items, dict.fromkeys((key, *plan.inputs.columns)))
    of_candidates = candidate_schema(key, plan.inputs, pa.schema([]) if table is None else table.schema)
    ranking = Ranking.of(key, of_candidates.field(key).type, plan.columns, table)
    plan.check_names([*others, *of_candidates.names])
    plan.check_types(pa.schema([*SentColumns.of(lists.schema).schema(ranking.row_columns), *of_candidates]))
    return ranking


@dataclass(frozen=True)
class RankTask:
    """Body of a Spark task of :func:`rank_candidates`.

    Attributes:
        keys: Columns by which messages name a candidate.
        kept: Columns of the lists that stay.
        k: Length of the new lists; None keeps all candidates.
        output: The model's output to rank by.
        scores: Type of the lists of scores.
    """

    ranking: Ranking
    scorer: Scorer
    keys: tuple[str, ...]
    kept: tuple[str, ...]
    k: int | None
    output: str
    scores: pa.DataType

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the rows in their order."""
        model, counts = None, ScoringCounts()
        try:
            for batch in regrouped(batches):
                # An empty partition does not need the model.
                model = model or self.scorer.load(counts)
                yield self._ranked(model, batch, counts)
        finally:
            # Spark may stop reading before the last row, for a LIMIT for example.
            if model is not None:
                self.scorer.report(counts)

    def _ranked(self, model: LoadedModel, batch: pa.RecordBatch, counts: ScoringCounts) -> pa.RecordBatch:
        def score(pairs: pa.RecordBatch) -> np.ndarray:
            scored = self.scorer.scored(model, pairs, counts, self.keys)
            return np.asarray(scored.column(self.output).to_numpy(zero_copy_only=False))

        candidates, scores = ranked(batch, self.ranking, score, self.k)
        made = {name: batch.column(name) for name in self.kept} | {
            CANDIDATES: candidates.cast(batch.schema.field(CANDIDATES).type),
            SCORES: scores.cast(self.scores),
            RANKED_BY: pa.repeat(self.scorer.model.label, batch.num_rows),
        }
        return pa.RecordBatch.from_arrays(list(made.values()), names=list(made))
