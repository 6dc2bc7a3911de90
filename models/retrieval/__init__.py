"""Towers, losses, sampling and training steps of retrieval models, and metrics of ranked lists.

All trained retrieval architectures use the one model class in ``model``.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.models.retrieval import blended_recommender, saved_towers
    from mirrorspark.models.retrieval.blended_recommender import BlendedRecommender
    from mirrorspark.models.retrieval.fitted_recommender import FittedRecommender
    from mirrorspark.models.retrieval.graph import GraphCandidates, GraphEmbeddings
    from mirrorspark.models.retrieval.graph_model import GraphRetrieval
    from mirrorspark.models.retrieval.item_tower import configured_candidate_tower
    from mirrorspark.models.retrieval.list_metrics import (
        RANKING_KS,
        catalogue_metrics,
        list_values,
        ranking_metrics,
        ranking_values,
    )
    from mirrorspark.models.retrieval.model import RetrievalModel
    from mirrorspark.models.retrieval.rating import RatingTask, rating_task
    from mirrorspark.models.retrieval.saved_towers import SavedQueryTower
    from mirrorspark.models.retrieval.sequence import SequenceRetrieval
    from mirrorspark.models.retrieval.task import RetrievalTask
    from mirrorspark.models.retrieval.towers import crossed, ids_in_pieces, of_length_1, query_tower
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "RANKING_KS",
    "BlendedRecommender",
    "FittedRecommender",
    "GraphCandidates",
    "GraphEmbeddings",
    "GraphRetrieval",
    "RatingTask",
    "RetrievalModel",
    "RetrievalTask",
    "SavedQueryTower",
    "SequenceRetrieval",
    "blended_recommender",
    "catalogue_metrics",
    "configured_candidate_tower",
    "crossed",
    "ids_in_pieces",
    "list_values",
    "of_length_1",
    "query_tower",
    "ranking_metrics",
    "ranking_values",
    "rating_task",
    "saved_towers",
]
