"""Re-ranking of lists of candidates by categories, diversity, interests, boosts and availability.

Rules are data and are applied in a fixed order; equal input gives equal lists.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.recommending.reranking.cascade import rank_candidates
    from mirrorspark.recommending.reranking.items import ItemAttributes, check_item_columns
    from mirrorspark.recommending.reranking.lists import is_list, lists_of
    from mirrorspark.recommending.reranking.ranking import Ranking, Score, candidate_schema, ranked
    from mirrorspark.recommending.reranking.rerank_task import RerankTask
    from mirrorspark.recommending.reranking.reranker import arrow_items, rerank
    from mirrorspark.recommending.reranking.rules import Rules
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "ItemAttributes",
    "Ranking",
    "RerankTask",
    "Rules",
    "Score",
    "arrow_items",
    "candidate_schema",
    "check_item_columns",
    "is_list",
    "lists_of",
    "rank_candidates",
    "ranked",
    "rerank",
]
