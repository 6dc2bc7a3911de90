"""Facts about each task: the kind of its label, the metrics to monitor, and the baselines."""

import importlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mirrorspark.callbacks.checkpoints import Mode
from mirrorspark.data_pipelines.features import kinds
from mirrorspark.models import catalog, classical, labelled

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


@dataclass(frozen=True)
class BoostingLibrary:
    """A library of gradient boosting.

    Attributes:
        classes: Paths of its classifier and its regressor.
        iterations: Its setting for the most iterations.
        ours: Settings that the training chooses, so that they cannot be given.
        quiet: Settings of a fit on one thread that prints and writes nothing.
    """

    classes: tuple[str, str]
    iterations: str
    ours: frozenset[str]
    quiet: Mapping[str, Any] = field(default_factory=dict)

    def class_for(self, *, is_regression: bool) -> Any:
        """Return the classifier, or the regressor.

        Raises:
            ImportError: The library is not installed.
        """
        module, _, name = self.classes[is_regression].rpartition(".")
        return getattr(importlib.import_module(module), name)

    def setting_names(self, *, is_regression: bool) -> set[str]:
        """Return the settings that may be given."""
        kind = self.class_for(is_regression=is_regression)
        # XGBoost's classes have theirs in the signatures of their bases alone, CatBoost's in their own alone.
        return {*inspect.signature(kind).parameters, *kind().get_params()} - self.ours - {"kwargs"}


DEFAULT_BOOSTING = catalog.BOOSTED_TREES

REGISTRABLE = (DEFAULT_BOOSTING, "logistic_regression", "ridge")
"""The baselines whose fits can be exported, so that they may be registered in the place of the model."""

# The losses whose scores the graph of trees has (models.boosted_trees).
_LOSSES_IN_GRAPH = ("log_loss", "squared_error", "absolute_error")

BOOSTING: Mapping[str, BoostingLibrary] = {
    DEFAULT_BOOSTING: BoostingLibrary(
        ("sklearn.ensemble.HistGradientBoostingClassifier", "sklearn.ensemble.HistGradientBoostingRegressor"),
        "max_iter",
        frozenset(
            {"early_stopping", "validation_fraction", "scoring", "categorical_features", "random_state", "verbose"}
            | {"warm_start", "interaction_cst", "monotonic_cst", "class_weight"}
        ),
    ),
    "xgboost": BoostingLibrary(
        ("xgboost.XGBClassifier", "xgboost.XGBRegressor"),
        "n_estimators",
        frozenset(
            {"enable_categorical", "feature_types", "n_jobs", "random_state", "callbacks", "verbosity", "device"}
            | {"interaction_constraints", "monotone_constraints"}
        ),
        {"n_jobs": 1},
    ),
    "lightgbm": BoostingLibrary(
        ("lightgbm.LGBMClassifier", "lightgbm.LGBMRegressor"),
        "n_estimators",
        frozenset({"n_jobs", "random_state", "verbosity"}),
        {"n_jobs": 1, "verbosity": -1},
    ),
    "catboost": BoostingLibrary(
        ("catboost.CatBoostClassifier", "catboost.CatBoostRegressor"),
        "iterations",
        frozenset(
            {"cat_features", "thread_count", "random_seed", "random_state", "callbacks", "verbose", "logging_level"}
            | {"silent", "allow_writing_files", "train_dir", "monotone_constraints", "text_features", "task_type"}
            | {"od_type", "od_wait"}
        ),
        {"thread_count": 1, "allow_writing_files": False, "verbose": 0},
    ),
}
"""The baselines by gradient boosting, which take no sparse features or vectors. All but the first are packages of that
name, which may be missing."""

RowBaselineName = Literal["hist_gradient_boosting", "xgboost", "lightgbm", "catboost", "logistic_regression", "ridge"]
BaselineName = Literal["none", RowBaselineName, "popularity", "item_knn", "bspm", "ease", "slit", "als"]
"""The names of all baselines. A new one is a name here, an entry of its task in :data:`TASKS`, and its fit in
``training.results.evaluation``."""

MONOTONE = {"increasing": 1, "decreasing": -1}
"""The directions of monotone constraints, with the numbers that the libraries of gradient boosting have for them."""

POPULARITY = "popularity"
"""The baseline that gives every row the same: the rates of the labels, or the most frequent candidates."""

LINEAR_BASELINES = {
    "binary": "logistic_regression",
    "multi_class": "logistic_regression",
    "multi_label": "logistic_regression",
    "regression": "ridge",
}
"""The linear baseline by task, which takes features of all kinds."""
STRENGTHS: Mapping[str, str] = {"logistic_regression": "C", "ridge": "alpha"}
"""The setting of a linear baseline: a number, or numbers of which the validation rows choose one."""


@dataclass(frozen=True)
class RowBaseline:
    """A baseline of a model that scores rows, with the settings that a run gives it.

    Attributes:
        name: A name of :data:`TASKS`.
        options: Settings of its library that differ from our defaults.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, given: Any) -> "RowBaseline":
        """Return the baseline of a name, or of a mapping with ``name`` and settings, unchecked."""
        options = dict(given) if isinstance(given, Mapping) else {"name": given}
        plain = {name: value.item() if hasattr(value, "item") else value for name, value in options.items()}  # NumPy's
        return cls(str(plain.pop("name", None)), plain)

    @property
    def label(self) -> str:
        """Its name in tables and metrics: ``lightgbm``, or with its settings ``lightgbm_num_leaves_63``."""
        return labelled(self.name, self.options)

    @property
    def is_registrable(self) -> bool:
        """True if its fit can be exported."""
        leaves, loss = self.options.get("max_leaf_nodes", catalog.MOST_LEAVES), self.options.get("loss", "log_loss")
        fits_graph = leaves is not None and leaves <= catalog.MOST_LEAVES and loss in _LOSSES_IN_GRAPH
        return self.name in REGISTRABLE and (self.name != DEFAULT_BOOSTING or fits_graph)


_OF_ROWS = {task: (*BOOSTING, linear) for task, linear in LINEAR_BASELINES.items()}

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
