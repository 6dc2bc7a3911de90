"""Facts about each task: the kind of its label, the metrics to monitor, and the baselines."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mirrorspark.callbacks.checkpoints import Mode
from mirrorspark.data_pipelines.features import kinds
from mirrorspark.models import classical

# ``val_recall_at_K`` and ``val_ndcg_at_K`` of a retrieval model, for any K.
RANKING = re.compile(r"val_(?:recall|ndcg)_at_([1-9]\d{0,3})", re.ASCII)

# The error of the rating, which a retrieval model also learns if the label has one.
RATING_ERROR = "val_rmse"


@dataclass(frozen=True)
class Task:
    """Facts about a task.

    Attributes:
        label: The kind of label that its models learn.
        monitors: The metrics by which the best epoch may be chosen, the default first, and which way is better.
        baselines: The models that it may be compared with.
    """

    label: kinds.LabelKind
    monitors: Mapping[str, Mode]
    baselines: tuple[str, ...]


RowBaselineName = Literal["hist_gradient_boosting", "xgboost", "lightgbm", "logistic_regression", "ridge"]
BaselineName = Literal["none", RowBaselineName, "popularity", "item_knn", "bspm", "ease", "als"]
"""The names of all baselines. A new one is a name here, an entry of its task in :data:`TASKS`, and its fit in
``training.results.evaluation``."""

PACKAGED_BASELINES = ("xgboost", "lightgbm")
"""Those that are a package of that name, which may be missing."""

BOOSTED_BASELINES = ("hist_gradient_boosting", *PACKAGED_BASELINES)
"""The baselines by gradient boosting, which take no sparse features or vectors."""

POPULARITY = "popularity"
"""The baseline that gives every row the same: the rates of the labels, or the most frequent candidates."""

LINEAR_BASELINES = {
    "binary": "logistic_regression",
    "multi_class": "logistic_regression",
    "multi_label": "logistic_regression",
    "regression": "ridge",
}
"""The linear baseline by task, which takes features of all kinds."""

_OF_ROWS = {task: (*BOOSTED_BASELINES, linear) for task, linear in LINEAR_BASELINES.items()}

TASKS: Mapping[str, Task] = {
    "binary": Task("binary", {"val_auc": "max", "val_log_loss": "min", "val_loss": "min"}, _OF_ROWS["binary"]),
    "multi_label": Task(
        "multi_label",
        {"val_auc": "max", "val_log_loss": "min", "val_loss": "min"},
        (POPULARITY, LINEAR_BASELINES["multi_label"]),
    ),
    "multi_class": Task(
        "multi_class", {"val_log_loss": "min", "val_accuracy": "max", "val_loss": "min"}, _OF_ROWS["multi_class"]
    ),
    "regression": Task("numeric", {"val_rmse": "min", "val_mae": "min", "val_loss": "min"}, _OF_ROWS["regression"]),
    # Lists of any other length, too.
    "retrieval": Task(
        "candidate",
        {"val_loss": "min", "val_recall_at_20": "max", "val_ndcg_at_20": "max", RATING_ERROR: "min"},
        tuple(classical.RECOMMENDERS),
    ),
}
