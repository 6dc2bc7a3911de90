"""The better of a trained network and gradient boosting, by their quality on the validation rows.

The export decides, in its own process; the driver reads its decision.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.evaluation import is_better
from mirrorspark.models import catalog
from mirrorspark.storage import atomic_file
from mirrorspark.training.executor import OnProgress
from mirrorspark.training.results.evaluation.baselines import BaselineFeature
from mirrorspark.training.results.evaluation.boosting import FittedBoosting
from mirrorspark.training.results.evaluation.evaluate_run import metrics_of
from mirrorspark.training.results.evaluation.fitted_baselines import baseline_rows, baseline_scores, fitted_baseline

if TYPE_CHECKING:
    from mirrorspark.models import boosted_trees

CHOICE_FILE = "choice.json"
# Predictions of the one that was not chosen.
OTHER_FOLDER = "not_registered"

NETWORK = "network"
BASELINE = catalog.BOOSTED_TREES

# The metric that decides where the monitored one exists only for the network, such as its loss.
_FIRST_METRIC: Mapping[str, str] = {"binary": "auc", "multi_class": "log_loss", "regression": "rmse"}


@dataclass(frozen=True)
class Choice:
    """Choice of the model that is registered, and its reason.

    Attributes:
        registered: The better one, ``network`` or ``hist_gradient_boosting``.
        metric: Metric of the validation rows that decided.
        network: The network's value.
        baseline: Gradient boosting's value.
    """

    registered: str
    metric: str
    network: float
    baseline: float

    @property
    def other(self) -> str:
        """The one that is not registered."""
        return NETWORK if self.registered == BASELINE else BASELINE

    def in_words(self) -> str:
        """Return the choice as a sentence."""
        of = {NETWORK: self.network, BASELINE: self.baseline}
        names = {NETWORK: "the network", BASELINE: "gradient boosting"}
        values = f"{self.metric} {of[self.registered]:.4f} against {of[self.other]:.4f}"
        verdict = "better than" if of[self.registered] != of[self.other] else "as good as"
        return f"{names[self.registered]}, {verdict} {names[self.other]} on the validation rows ({values})"

    def save(self, folder: Path) -> None:
        """Write the choice next to the predictions."""
        atomic_file.write_atomically(folder / CHOICE_FILE, json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> "Choice":
        """Read the file of :meth:`save`.

        Raises:
            OSError: There is no choice.
        """
        return cls(**json.loads((folder / CHOICE_FILE).read_text(encoding="utf-8")))


def choose(task: str, monitor: str, network: Mapping[str, float], baseline: Mapping[str, float]) -> Choice:
    """Return the better of the two by the monitored metric; the network where they are equal.

    Args:
        task: ``binary``, ``multi_class`` or ``regression``.
        monitor: The monitored metric, with ``val_`` before it. If gradient boosting does not have it, AUC (binary),
            log loss (multi_class) or RMSE (regression) decides.
        network: Metrics of the network on the validation rows.
        baseline: Those of gradient boosting.
    """
    metric = monitor.removeprefix("val_")
    if metric not in network or metric not in baseline:
        metric = _FIRST_METRIC[task]
    values = network[metric], baseline[metric]
    return Choice(BASELINE if is_better(metric, values[1], values[0]) else NETWORK, metric, *values)


def challenge(
    dataset: Dataset,
    task: str,
    monitor: str,
    seed: int,
    tables: Mapping[str, pa.Table],
    folder: Path,
    on_progress: OnProgress = lambda doing, done=0, total=0: None,
) -> tuple[Choice, FittedBoosting, dict[str, pa.Table]]:
    """Fit gradient boosting, choose the better one, and keep the choice and the other one's predictions.

    Args:
        dataset: The dataset of the training.
        task: The network's task.
        monitor: The monitored metric.
        seed: Fixes the sampling of the fit.
        tables: The network's predictions by split.
        folder: Folder of the predictions.
        on_progress: As in :func:`training.results.evaluation.boosting.gradient_boosting`.

    Returns:
        The choice, the fitted gradient boosting, and the predictions of the better one.
    """
    fitted = fitted_baseline(BASELINE, baseline_rows(dataset, task), seed, on_progress)
    assert isinstance(fitted, FittedBoosting)  # noqa: S101 - BASELINE is one
    column = "scores" if task == "multi_class" else "score"
    found = {split: _with(table, column, baseline_scores(fitted, dataset, split)) for split, table in tables.items()}
    classes = dataset.features.classes if task == "multi_class" else 0
    is_ordinal = dataset.spec.label.order is not None
    values = [
        metrics_of(task, of["validation"], split="validation", classes=classes, is_ordinal=is_ordinal)
        for of in (tables, found)
    ]
    choice = choose(task, monitor, *values)
    chosen, other = (tables, found) if choice.registered == NETWORK else (found, tables)
    (folder / OTHER_FOLDER).mkdir(parents=True, exist_ok=True)
    for split, table in other.items():
        pq.write_table(table, folder / OTHER_FOLDER / f"{split}.parquet")
    choice.save(folder)
    return choice, fitted, dict(chosen)


def read_scores(file: Path) -> np.ndarray:
    """Return the scores in a file of predictions: ``[rows]``, or ``[rows, classes]``."""
    table = pq.read_table(file)
    if "score" in table.column_names:
        return np.asarray(table["score"].to_numpy())
    lists = table["scores"].combine_chunks()
    return np.asarray(lists.flatten().to_numpy().reshape(len(lists), -1))


def _with(table: pa.Table, column: str, scores: np.ndarray) -> pa.Table:
    scores = scores.astype(np.float32)
    values: Any = pa.array(scores)
    if scores.ndim == 2:
        values = pa.FixedSizeListArray.from_arrays(pa.array(scores.ravel()), scores.shape[1])
        values = values.cast(pa.list_(pa.float32()))
    return table.set_column(table.column_names.index(column), column, values)


def trees_of(fitted: FittedBoosting, classes: int = 0) -> "boosted_trees.Trees":
    """Return the trees of scikit-learn's gradient boosting for :mod:`models.boosted_trees`.

    ``classes`` is the number of classes of a multi-class label.

    scikit-learn has no public form of them: these are the attributes that its own prediction reads. The parity check of
    every run compares the scores of the export with scikit-learn's, so a version that means something else by
    them is noticed.
    """
    from mirrorspark.models import boosted_trees

    model: Any = fitted.model
    predictors = [predictor for of_iteration in model._predictors for predictor in of_iteration]
    nodes = np.concatenate([predictor.nodes for predictor in predictors])
    sizes = [len(predictor.nodes) for predictor in predictors]
    roots = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    first = np.repeat(roots, sizes)
    own = np.arange(len(nodes))
    is_leaf = nodes["is_leaf"].astype(bool)
    bitsets = [predictor.raw_left_cat_bitsets for predictor in predictors]
    bitset_counts = [len(of) for of in bitsets]
    first_bitset = np.repeat(np.concatenate([[0], np.cumsum(bitset_counts)[:-1]]), sizes)
    is_categorical = nodes["is_categorical"].astype(bool) & ~is_leaf
    outputs = model.n_trees_per_iteration_
    names = getattr(model, "classes_", ())
    return boosted_trees.Trees(
        columns=_tree_columns(fitted),
        column=np.where(is_leaf, 0, nodes["feature_idx"]),
        threshold=nodes["num_threshold"],
        left=np.where(is_leaf, own, nodes["left"] + first),
        right=np.where(is_leaf, own, nodes["right"] + first),
        missing_left=nodes["missing_go_to_left"].astype(bool),
        is_categorical=is_categorical,
        goes_left=_unpacked(np.concatenate(bitsets)),
        categories_at=np.where(is_categorical, nodes["bitset_idx"] + first_bitset, 0),
        value=np.where(is_leaf, nodes["value"], 0.0),
        roots=roots,
        outputs=np.tile(np.arange(outputs), len(predictors) // outputs),
        start=np.asarray(model._baseline_prediction, np.float64).ravel(),
        depth=int(nodes["depth"].max()),
        link="identity" if not len(names) else "softmax" if outputs > 1 else "logit",
        class_numbers=() if fitted.class_numbers is None else tuple(map(int, fitted.class_numbers)),
        classes=classes,
    )


def _tree_columns(fitted: FittedBoosting) -> tuple[Any, ...]:
    """Return the columns in the order of the trees' numbers, in which scikit-learn puts categories first."""
    from mirrorspark.models import boosted_trees

    parts: list[tuple[BaselineFeature, boosted_trees.Part]] = []
    for feature in fitted.features:
        parts.append((feature, "value"))
        if feature.form == "ids":
            parts.append((feature, "length"))
    model: Any = fitted.model
    encoders = dict(model._preprocessor.named_transformers_) if any(fitted.native_categorical) else {}
    categories = iter(encoders["encoder"].categories_ if encoders else ())
    columns = [
        boosted_trees.TreeColumn(
            feature.name,
            feature.form,
            part,
            np.asarray(next(categories), np.float64) if is_native else None,
            is_id=not is_native and part == "value" and feature.form in ("id", "ids"),
        )
        for (feature, part), is_native in zip(parts, fitted.native_categorical, strict=True)
    ]
    return tuple(sorted(columns, key=lambda column: column.categories is None))


def _unpacked(bitsets: np.ndarray) -> np.ndarray:
    """Return True for the numbers in each set, ``[sets or 1, 256]``."""
    words = bitsets.reshape(-1, 8).astype(np.uint32)
    bits = (words[:, :, None] >> np.arange(32, dtype=np.uint32)) & 1
    return bits.reshape(-1, 256).astype(bool) if len(words) else np.zeros((1, 256), bool)
