"""Baselines, comparisons and explanations of a trained model on its test rows.

A comparison with a baseline is over the same rows, and its intervals come from a paired bootstrap.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.results.evaluation import (
        evaluate_run,
        model_choice,
        recommender_choice,
        row_baselines,
    )
    from mirrorspark.training.results.evaluation.explanation import (
        EXPLANATION_FILE,
        REPEATS,
        SAMPLE_ROWS,
        Explanation,
        explain,
        explain_on_kept_rows,
    )
    from mirrorspark.training.results.evaluation.model_choice import (
        CHOICE_FILE,
        NETWORK,
        OTHERS_FOLDER,
        Choice,
        read_scores,
    )
    from mirrorspark.training.results.evaluation.paired_comparison import Tested, paired_differences
    from mirrorspark.training.results.evaluation.ranking import best_candidates
    from mirrorspark.training.results.evaluation.recommender_choice import RecommenderChoice, read_lists
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "CHOICE_FILE",
    "EXPLANATION_FILE",
    "NETWORK",
    "OTHERS_FOLDER",
    "REPEATS",
    "SAMPLE_ROWS",
    "Choice",
    "Explanation",
    "RecommenderChoice",
    "Tested",
    "best_candidates",
    "evaluate_run",
    "explain",
    "explain_on_kept_rows",
    "model_choice",
    "paired_differences",
    "read_lists",
    "read_scores",
    "recommender_choice",
    "row_baselines",
]
