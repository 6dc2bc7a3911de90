"""The second stage of a cascade: a ranking model orders the candidates that a retrieval model has found."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines.features.raw_columns import ColumnError, meant
from mirrorspark.models.index.ranked_lists import CANDIDATES, SCORES
from mirrorspark.scoring.batch import score_as_planned
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input.null_policy import NullRule
from mirrorspark.scoring.model.directory import PinnedModel
from mirrorspark.scoring.model.loaded import DEFAULT_BATCH_SIZE
from mirrorspark.scoring.output.forms import AS_COLUMNS
from mirrorspark.scoring.plan import ScoringPlan, check_keys, column_named
from mirrorspark.scoring.task.scorer import Counters, Settings

RANKED_BY = "ranked_by"
"""The column with the version of the ranking model."""

_PLACE = "place_in_list"
_BEST = "best_first"


def rank_candidates(
    lists: DataFrame,
    model: str | Path | PinnedModel,
    *,
    keys: str | Sequence[str],
    key: str,
    items: DataFrame | None = None,
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
        lists: Rows with the column ``candidates``, as :func:`scoring.recommend.recommend` returns them, joined with the
            columns of users or requests that the model reads. They are read twice: cache what a model computes.
        model: URI of the ranking model, or the result of :func:`scoring.model.uri.resolve`.
        keys: Columns that identify a list.
        key: Column of ``items``, and of the model if it reads it, with the candidates' tokens.
        items: Attributes of the candidates, a row each.
        k: Length of the new lists; None keeps all candidates.
        output: The model's output to rank by, one number for each row.
        tracking_uri: Address of the MLflow store; by default the one that MLflow is configured with.
        batch_size: Rows per call of the model.
        nulls: As for :func:`scoring.batch.score`, like the next two.
        trust: Whether Python code that the model brings may run.
        counters: Collects the counters of the tasks.

    Raises:
        ModelNotFoundError: The URI does not lead to a model.
        ScoringError: ``k`` is below 1, the model has no such output or several numbers in it, or for a reason of
            :func:`scoring.batch.score`. The job fails if two lists have the same keys, or ``items`` has an item twice.
        ColumnError: A column is missing, is there twice, or has a type that the model does not accept.
    """
    if k is not None and k < 1:
        raise ScoringError(f"k is {k}; rank at least one candidate, or leave k out to keep them all")
    list_keys = (keys,) if isinstance(keys, str) else tuple(keys)
    check_keys(lists.columns, list_keys)
    if CANDIDATES not in lists.columns:
        found = meant(CANDIDATES, lists.columns)
        raise ColumnError(f"the table of lists has no column '{CANDIDATES}'{found}; it has {lists.columns}")
    settings = Settings.of(AS_COLUMNS, batch_size, False, nulls, "fail", "refuse")
    plan = ScoringPlan.of(model, (*list_keys, _PLACE, key), settings, tracking_uri, trust=trust)
    outputs = {field.name: str(field.type) for field in plan.added}
    if outputs.get(output) not in ("float", "double"):
        raise ScoringError(
            f"'{output}' is no number of {plan.pinned.label}, which gives {outputs}; name by output one that is"
        )
    scored = score_as_planned(_pairs(lists, items, key), plan, counters=counters)
    joined = lists.drop(SCORES, RANKED_BY).join(_in_order(scored, list_keys, key, output), list(list_keys), "left")
    kept = F.col(_BEST) if k is None else F.slice(_BEST, 1, k)
    # An empty list has no row in the other table; a null one stays null.
    empty = F.when(F.col(CANDIDATES).isNotNull(), F.array())
    return joined.select(
        *(column_named(name) for name in joined.columns if name not in (CANDIDATES, _BEST)),
        F.coalesce(kept["item"], empty).alias(CANDIDATES),
        F.coalesce(kept["score"], empty).alias(SCORES),
        F.lit(plan.pinned.label).alias(RANKED_BY),
    )


def _in_order(scored: DataFrame, keys: Sequence[str], key: str, output: str) -> DataFrame:
    """Return the keys of each list with its items and their scores, best first."""
    score, place = column_named(output), F.col(_PLACE)
    pair = F.struct((-score).alias("descending"), place, column_named(key).alias("item"), score.alias("score"))
    is_whole = F.count("*") == F.max(place) + 1
    twice = f"two lists have the same {', '.join(keys)}, or items has an item twice; leave one of each"
    in_order = F.when(is_whole, F.array_sort(F.collect_list(pair))).otherwise(F.raise_error(F.lit(twice)))
    return scored.groupBy(*map(column_named, keys)).agg(in_order.alias(_BEST))


def _pairs(lists: DataFrame, items: DataFrame | None, key: str) -> DataFrame:
    """Return a row for each candidate of each list."""
    others = [name for name in lists.columns if name not in (CANDIDATES, SCORES, key)]
    pairs = lists.select(*map(column_named, others), F.posexplode(CANDIDATES).alias(_PLACE, key))
    if items is None:
        return pairs
    if key not in items.columns:
        raise ColumnError(f"items has no column '{key}'{meant(key, items.columns)}; it has {items.columns}")
    if both := sorted({*others} & {*items.columns}):
        raise ColumnError(f"lists and items both have the columns {both}; rename or drop one of each")
    token = pairs.schema[key].dataType
    return pairs.join(items.withColumn(key, column_named(key).cast(token)), key, "left")
