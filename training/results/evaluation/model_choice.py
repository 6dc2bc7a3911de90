"""The best of a trained network, its baselines and their blend, by their quality on the validation rows.

The export decides, in its own process; the driver reads its decision.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.evaluation import is_better
from mirrorspark.models import catalog
from mirrorspark.storage import atomic_file
from mirrorspark.training.configuration import RowBaseline
from mirrorspark.training.executor import OnProgress
from mirrorspark.training.results.evaluation.baseline_fit import BaselineData, BaselineFeature, FittedBaseline
from mirrorspark.training.results.evaluation.boosting import FittedBoosting
from mirrorspark.training.results.evaluation.evaluate_run import (
    classed_columns,
    evaluated_step,
    labelled_columns,
    list_column,
    metrics_of,
    weighed_columns,
)
from mirrorspark.training.results.evaluation.linear import FittedLinear, linear_of
from mirrorspark.training.results.evaluation.row_baselines import (
    baseline_scores,
    fit_baseline,
    progress_of,
    read_baseline_data,
    train_fraction,
    weighed_by_class,
)
from mirrorspark.training.results.report import in_words

if TYPE_CHECKING:
    from mirrorspark.models import boosted_trees

CHOICE_FILE = "choice.json"
# Predictions of those that were not chosen, each in a folder of its name.
OTHERS_FOLDER = "not_registered"

NETWORK = catalog.NETWORK
BLEND = catalog.BLEND

# The metric that decides where the monitored one exists only for the network, such as its loss.
_FIRST_METRIC: Mapping[str, str] = {
    "binary": "auc",
    "multi_class": "log_loss",
    "multi_label": "log_loss",
    "regression": "rmse",
}

# Models are added to a blend one by one, and again: its weights are multiples of a twentieth. Validation rows do not
# tell finer ones apart.
_PARTS = 20
_LEAST_PROBABILITY = 1e-7
# Scores of all models and splits, which are in memory together: 0.8 GB, and as much again as tables.
_MOST_SCORES = 200_000_000


@dataclass(frozen=True)
class Choice:
    """Choice of the model that is registered, and its reason.

    Attributes:
        registered: The best one: ``network``, ``blend`` or the label of a baseline.
        metric: Metric of the validation rows that decided.
        values: Its value of each one, the simplest first.
        weights: The share of each part of the blend.
        seconds: Time of the fit of each baseline.
        left_out: Parts of each fit that were left out to end in time, in words; empty for a whole one.
        learnt_from: Number of ``rows`` that the baselines learnt from, ``of`` all training rows; empty for all.
        monotone: True if the registered one has to hold monotone constraints.
        reason: Why nothing else was compared; empty otherwise.
    """

    registered: str
    metric: str
    values: Mapping[str, float]
    weights: Mapping[str, float]
    seconds: Mapping[str, float]
    left_out: Mapping[str, str] = field(default_factory=dict)
    learnt_from: Mapping[str, int] = field(default_factory=dict)
    monotone: bool = False
    reason: str = ""

    @property
    def others(self) -> list[str]:
        """Those that are not registered: baselines, the network, the blend."""
        names = [*self.seconds, NETWORK, BLEND]
        return [name for name in names if name in self.values and name != self.registered]

    def in_words(self) -> str:
        """Return the choice as a sentence."""
        if not self.others:
            return f"{in_words(self.registered)} alone, {self.reason}"
        own, others = self.values[self.registered], [self.values[name] for name in self.others]
        figure, *of_others = distinct_figures([own, *others])
        shares = [f"{share:.0%} {in_words(name)}" for name, share in self.weights.items()]
        verdict = "better than" if own not in others else "as good as or better than"
        verdict = "the best that holds the monotone constraints, compared with" if self.monotone else verdict
        if len(others) == 1:
            against, figures = in_words(self.others[0]), f"against {of_others[0]}"
        elif len(others) == 2:
            against = " and ".join(map(in_words, self.others))
            figures = f"against {of_others[0]} and {of_others[1]}"
        else:
            best = max(others) if is_better(self.metric, 1, 0) else min(others)
            place = others.index(best)
            figures = f"against {of_others[place]} of the next best, {in_words(self.others[place])}"
            against = f"the {len(others)} others"
        parts = f" ({', '.join(shares)})" if self.registered == BLEND else ""
        return (
            f"{in_words(self.registered)}{parts}, {verdict} "
            f"{against} on the validation rows ({self.metric} {figure} {figures})"
        )

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


def distinct_figures(values: Sequence[float]) -> list[str]:
    """Return values with four digits after the point, or with as many as make different values look different."""
    texts = ([f"{value:.{digits}f}" for value in values] for digits in range(4, 9))
    return next((found for found in texts if len(set(found)) == len(set(values))), [str(value) for value in values])


def best_by_metric(
    task: str, monitor: str, metrics: Mapping[str, Mapping[str, float]]
) -> tuple[str, str, dict[str, float]]:
    """Return the best one by the monitored metric and the first of equal ones, the metric, and its values.

    Args:
        task: ``binary``, ``multi_class``, ``multi_label`` or ``regression``.
        monitor: The monitored metric, with ``val_`` before it. If one of the models does not have it, AUC (binary), log
            loss (several classes or labels) or RMSE (regression) decides.
        metrics: Metrics on the validation rows by the names of the models, the simplest first.
    """
    metric = monitor.removeprefix("val_")
    if any(metric not in of for of in metrics.values()):
        metric = _FIRST_METRIC[task]
    values = {name: of[metric] for name, of in metrics.items()}
    best = next(iter(values))
    for name, value in values.items():
        best = name if is_better(metric, value, values[best]) else best
    return best, metric, values


def best_weights(
    task: str, label: np.ndarray, predictions: Mapping[str, np.ndarray], weight: np.ndarray
) -> dict[str, float]:
    """Return the share of each model in the mean of predictions with the smallest loss; those above 0.

    The loss is the log loss of probabilities, and the squared error of numbers. The mean begins with the best model,
    and takes the one that is best for it, twenty times. Source: Caruana et al. 2004, "Ensemble Selection from Libraries
    of Models".

    Args:
        task: ``binary``, ``multi_class``, ``multi_label`` or ``regression``.
        label: 0 or 1, numbers of classes, or numbers, ``[rows]``; of several labels 0 or 1, ``[rows, labels]``.
        predictions: By the model's name ``[rows]`` or ``[rows, classes or labels]``.
        weight: Weight of each row.
    """
    if task == "multi_class":  # the probabilities of the right classes alone
        right = np.arange(len(label)), label.astype(np.int64)
        predictions = {name: scores[right] for name, scores in predictions.items()}
    if task == "multi_label":
        predictions = {name: scores.ravel() for name, scores in predictions.items()}
        weight = np.repeat(weight, label.size // len(weight))
        label = label.ravel()
    if task in ("binary", "multi_label"):
        predictions = {name: np.where(label > 0, scores, 1 - scores) for name, scores in predictions.items()}

    def loss(mean: np.ndarray) -> float:
        lost = (mean - label) ** 2 if task == "regression" else -np.log(np.maximum(mean, _LEAST_PROBABILITY))
        return float(np.average(lost, weights=weight))

    counts, total = dict.fromkeys(predictions, 0), np.zeros(len(label))
    for taken in range(_PARTS):
        losses = {name: loss((total + scores) / (taken + 1)) for name, scores in predictions.items()}
        best = min(losses, key=losses.__getitem__)
        counts[best] += 1
        total = total + predictions[best]
    return {name: count / _PARTS for name, count in counts.items() if count}


@dataclass(frozen=True)
class ChosenModel:
    """The model that was chosen for the export, and what it was chosen from.

    Attributes:
        choice: The choice.
        fitted: The fits by their labels.
        tables: The predictions of the one that is registered, by split.
    """

    choice: Choice
    fitted: Mapping[str, FittedBaseline]
    tables: Mapping[str, pa.Table] = field(repr=False)


def choose_model(
    dataset: Dataset,
    task: str,
    monitor: str,
    seed: int,
    asked: Sequence[RowBaseline],
    tables: Mapping[str, pa.Table],
    folder: Path,
    on_progress: OnProgress = lambda doing, done=0, total=0: None,
    class_weights: Sequence[float] = (),
    monotone: Mapping[str, str] | None = None,
) -> ChosenModel:
    """Fit the baselines, choose the best model, and keep the choice and the others' predictions.

    Args:
        dataset: The dataset of the training.
        task: The network's task.
        monitor: The monitored metric.
        seed: Fixes the sampling of the fits.
        asked: The baselines. A linear one that reads only a part of the columns is left out.
        tables: The network's predictions by split.
        folder: Folder of the predictions.
        on_progress: As in :func:`training.results.evaluation.boosting.gradient_boosting`.
        class_weights: Factors of the rows' weights by class in what is learnt, which the choice itself leaves out.
        monotone: Directions of features that the registered model must hold, as only gradient boosting does.
    """
    classes = classes_of(dataset, task)
    scores = sum(table.num_rows for table in tables.values()) * max(classes, 1) * (len(asked) + 2)
    reason = f"as {scores:,} scores of all models are more than {_MOST_SCORES:,}" if scores > _MOST_SCORES else ""
    data = read_baseline_data(dataset, task, class_weights, monotone)
    fitted, seconds = _fit_all(() if reason else asked, data, seed, on_progress)
    on_progress("comparing the models on the validation rows")
    parts = {
        split: {NETWORK: scores_of(table)}
        | {name: baseline_scores(model, dataset, split).astype(np.float32) for name, model in fitted.items()}
        for split, table in tables.items()
    }
    # Of trees alone each one holds the constraints, and so does a blend of them.
    allowed = [NETWORK, *fitted]
    if monotone:
        allowed = [name for name, model in fitted.items() if isinstance(model, FittedBoosting)]
    label, weight, step = _judged(task, tables["validation"], classes)
    sampled = {name: of[::step] for name, of in parts["validation"].items() if name in allowed}
    weights = best_weights(task, label, sampled, weighed_by_class(weight, label, class_weights))
    if len(weights) > 1:
        allowed.append(BLEND)
        for of_split in parts.values():
            of_split[BLEND] = np.sum([share * of_split[name] for name, share in weights.items()], axis=0)
    found = _predictions(tables, parts, "scores" if classes else "score")
    is_ordinal = dataset.spec.label.order is not None
    metrics = {
        name: metrics_of(task, of["validation"], split="validation", classes=classes, is_ordinal=is_ordinal)
        for name, of in found.items()
    }
    _, metric, values = best_by_metric(task, monitor, metrics)
    best, _, _ = best_by_metric(task, f"val_{metric}", {name: of for name, of in metrics.items() if name in allowed})
    choice = Choice(
        *(best, metric, values),
        weights=weights,
        seconds=seconds,
        left_out={name: model.left_out for name, model in fitted.items()},
        learnt_from=train_fraction(data, dataset.manifest.rows("train")),
        monotone=bool(monotone),
        reason=reason or "as the linear model has too many weights to be exported",
    )
    _keep(choice, found, folder)
    return ChosenModel(choice, fitted, found[choice.registered])


def _predictions(
    tables: Mapping[str, pa.Table], parts: Mapping[str, Mapping[str, np.ndarray]], column: str
) -> dict[str, dict[str, pa.Table]]:
    """Return the predictions of each model by split: the network's tables, with the scores of the others."""
    return {
        name: {
            split: table if name == NETWORK else _with(table, column, parts[split][name])
            for split, table in tables.items()
        }
        for name in parts["validation"]
    }


def _keep(choice: Choice, predictions: Mapping[str, Mapping[str, pa.Table]], folder: Path) -> None:
    """Write the choice, and the predictions of those that are not registered."""
    shutil.rmtree(folder / OTHERS_FOLDER, ignore_errors=True)  # of an earlier try, which may have chosen another one
    for name in choice.others:
        (folder / OTHERS_FOLDER / name).mkdir(parents=True, exist_ok=True)
        for split, table in predictions[name].items():
            pq.write_table(table, folder / OTHERS_FOLDER / name / f"{split}.parquet")
    choice.save(folder)


def _fit_all(
    asked: Sequence[RowBaseline], data: BaselineData, seed: int, on_progress: OnProgress
) -> tuple[dict[str, FittedBaseline], dict[str, float]]:
    """Fit the baselines; return the fits that can be exported, and their seconds, by label."""
    fitted: dict[str, FittedBaseline] = {}
    seconds = {}
    for place, one in enumerate(asked):
        begin = time.monotonic()
        model = fit_baseline(one, data, seed, progress_of(asked, place, on_progress))
        if isinstance(model, FittedLinear) and model.kept is not None:
            continue
        fitted[one.label], seconds[one.label] = model, time.monotonic() - begin
    return fitted, seconds


def _judged(task: str, table: pa.Table, classes: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the labels and the weights of every n-th row, and n."""
    if task == "multi_label":
        label, _, weight = labelled_columns(table, classes)
        return label, weight, evaluated_step(table.num_rows, classes)
    label, _, weight = classed_columns(table, classes) if classes else weighed_columns(table)
    return label, weight, 1


def read_scores(file: Path) -> np.ndarray:
    """Return the scores in a file of predictions: see :func:`scores_of`."""
    return scores_of(pq.read_table(file))


def scores_of(table: pa.Table) -> np.ndarray:
    """Return the scores of predictions: ``[rows]``, or ``[rows, classes or labels]``."""
    if "score" in table.column_names:
        return np.asarray(table["score"].to_numpy())
    lists = table["scores"].combine_chunks()
    return np.asarray(lists.flatten().to_numpy().reshape(len(lists), -1))


def _with(table: pa.Table, column: str, scores: np.ndarray) -> pa.Table:
    scores = scores.astype(np.float32)
    values = list_column(scores) if scores.ndim == 2 else pa.array(scores)
    return table.set_column(table.column_names.index(column), column, values)


def classes_of(dataset: Dataset, task: str) -> int:
    """Return the number of classes, or of labels; 0 where a row has one score."""
    return dataset.features.classes if task in ("multi_class", "multi_label") else 0


def graph_of(fitted: FittedBaseline, task: str, classes: int) -> tuple[Any, Any]:
    """Return the architecture of a fit, and the fit as its model.

    Args:
        fitted: One of :attr:`ChosenModel.fitted`.
        task: Its task.
        classes: Number of classes, or of labels.
    """
    from mirrorspark.models import boosted_trees, linear_model

    if isinstance(fitted, FittedLinear):
        linear = linear_of(fitted, task, classes if task == "multi_class" else 0)
        return linear_model, linear_model.LinearModel(linear)
    assert isinstance(fitted, FittedBoosting)  # noqa: S101 - there are no others
    trees = trees_of(fitted, classes if task == "multi_class" else 0)
    return boosted_trees, boosted_trees.BoostedTrees(trees)


def trees_of(fitted: FittedBoosting, classes: int = 0) -> "boosted_trees.Trees":
    """Return the trees of scikit-learn's gradient boosting for :mod:`models.boosted_trees`.

    ``classes`` is the number of classes of a multi-class label.

    scikit-learn has no public form of them: these are the attributes that its own prediction reads. The export compares
    its scores with scikit-learn's, so a version that means something else by them is noticed.
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
