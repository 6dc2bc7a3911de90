"""Metrics of each task, in two halves: the additive values of rows, and the metrics that their sums give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mirrorspark.data_pipelines.features import candidate_lists, raw_columns
from mirrorspark.evaluation import PRECISION_KS, bootstrap, rank_columns, rank_metrics
from mirrorspark.lifecycle.gate.metric_sums import NEGATIVES, POSITIVES, SCORES, AdditiveValues, Pairs
from mirrorspark.models.retrieval import RANKING_KS, list_values
from mirrorspark.scoring.model.folder import Task

Values = dict[str, NDArray[np.float64]]
"""Metrics by name, ``[draws]`` each; NaN where a metric is not defined."""

ROWS, INVALID, WEIGHT = range(3)
"""The first columns of all tasks: scored rows, rows without a valid score, and the weight of the former."""

_FIRST = 3
CALIBRATION_BINS = 10


class TaskMetrics(Protocol):
    """The metrics of a task."""

    def rows(self, label: pa.Array, output: pa.Array, weight: NDArray[np.float64]) -> AdditiveValues:
        """Return the additive values of rows.

        Raises:
            ValueError: A label is not one of the task.
        """
        ...

    def values(self, sums: NDArray[np.float64], counts: Sequence[NDArray[np.float64]]) -> Values:
        """Return the metrics of sums.

        Args:
            sums: Sums of the values, ``[draws, columns]``.
            counts: For each kind of pairs the counts by score, ``[cells, 3, draws]``, lowest scores first.
        """
        ...


def metrics_of_task(task: Task, threshold: float, classes: Sequence[str], *, is_ordinal: bool = False) -> TaskMetrics:
    """Return the metrics of a task.

    Args:
        task: The task.
        threshold: Score from which a row counts as positive.
        classes: Names of the classes or labels, for tasks that have them.
        is_ordinal: The classes have an order, the lowest first.
    """
    if task == "binary":
        return Binary(threshold)
    if task == "regression":
        return Regression()
    if task == "retrieval":
        return Retrieval()
    if not classes:
        raise ValueError(f"the model has no names of its classes, which the task {task} needs; package it with labels")
    if task == "multi_class":
        return MultiClass(tuple(classes), is_ordinal)
    return MultiLabel(tuple(classes), threshold)


@dataclass(frozen=True)
class Binary:
    """Metrics of a probability per row."""

    threshold: float

    def rows(self, label: pa.Array, output: pa.Array, weight: NDArray[np.float64]) -> AdditiveValues:
        """Return the additive values of rows with labels 0 and 1."""
        labels, scores = _numbers(label), _numbers(output)
        if (bad := np.flatnonzero((labels != 0) & (labels != 1))).size:
            raise ValueError(f"a label is {labels[bad[0]]}; a binary label is 0 or 1")
        valid = (scores >= 0) & (scores <= 1)
        losses = _losses(labels == 1, scores, valid, np.float32 if output.type == pa.float32() else np.float64)
        called = scores >= self.threshold
        columns = [scores, labels, *losses, called & (labels == 1), called]
        own = np.flatnonzero(valid)
        pairs = Pairs(own, scores[own], labels[own] == 1, weight[own])
        return AdditiveValues(_additive(columns, valid, weight), (pairs,))

    def values(self, sums: NDArray[np.float64], counts: Sequence[NDArray[np.float64]]) -> Values:
        """Return the metrics of a slice."""
        score, label, log_loss, brier, hits, called = sums[:, _FIRST:].T
        weight = sums[:, WEIGHT]
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "auc": auc(counts[0]),
                "pr_auc": pr_auc(counts[0]),
                "log_loss": log_loss / weight,
                "brier": brier / weight,
                "ece": calibration_error(counts[0]),
                "calibration": score / label,
                "accuracy": (weight - called - label + 2 * hits) / weight,
                "precision": hits / called,
                "recall": hits / label,
                "base_rate": label / weight,
            }


@dataclass(frozen=True)
class Regression:
    """Metrics of a number per row."""

    def rows(self, label: pa.Array, output: pa.Array, weight: NDArray[np.float64]) -> AdditiveValues:
        """Return the additive values of rows."""
        labels, scores = _numbers(label), _numbers(output)
        if not np.isfinite(labels).all():
            raise ValueError("a label is not finite; a label of a regression is a number")
        valid = np.isfinite(scores)
        error = scores - labels
        return AdditiveValues(_additive([error, np.abs(error), error**2, labels, labels**2], valid, weight))

    def values(self, sums: NDArray[np.float64], counts: Sequence[NDArray[np.float64]]) -> Values:
        """Return the metrics of a slice."""
        with np.errstate(divide="ignore", invalid="ignore"):
            bias, mae, mse, mean, mean_square = (sums[:, _FIRST:] / sums[:, [WEIGHT]]).T
            r2 = 1 - mse / (mean_square - mean**2)
        return {"rmse": np.sqrt(mse), "mae": mae, "mse": mse, "r2": r2, "bias": bias}


@dataclass(frozen=True)
class MultiClass:
    """Metrics of a probability per row and class; of classes that have an order those of their ranks, too."""

    classes: tuple[str, ...]
    is_ordinal: bool = False

    def rows(self, label: pa.Array, output: pa.Array, weight: NDArray[np.float64]) -> AdditiveValues:
        """Return the additive values of rows whose labels are names of classes."""
        actual = _class_numbers(label, self.classes)
        scores, valid = _matrix(output, len(self.classes))
        best = scores.argmax(axis=1)
        sure = np.clip(scores / np.maximum(scores.sum(axis=1, keepdims=True), 1e-15), 1e-15, 1.0)
        log_loss = -np.log(sure[np.arange(len(actual)), actual])
        numbers = np.arange(len(self.classes))[:, None]
        is_actual, is_called = actual == numbers, best == numbers
        columns = [actual == best, log_loss, *(is_actual & is_called), *is_actual, *is_called]
        columns += list(rank_columns(actual, best).T) if self.is_ordinal else []
        return AdditiveValues(_additive(columns, valid, weight))

    def values(self, sums: NDArray[np.float64], counts: Sequence[NDArray[np.float64]]) -> Values:
        """Return the metrics of a slice."""
        ranks = _FIRST + 2 + 3 * len(self.classes)
        weight, of_class = sums[:, WEIGHT], sums[:, _FIRST + 2 : ranks].reshape(len(sums), 3, -1)
        hits, either = of_class[:, 0], of_class[:, 1] + of_class[:, 2]
        f1 = np.divide(2 * hits, either, out=np.zeros_like(hits), where=either > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "accuracy": sums[:, _FIRST] / weight,
                "log_loss": sums[:, _FIRST + 1] / weight,
                "macro_f1": f1.sum(axis=1) / (either > 0).sum(axis=1),
                **(rank_metrics((sums[:, ranks:] / weight[:, None]).T) if self.is_ordinal else {}),
            }


@dataclass(frozen=True)
class MultiLabel:
    """Metrics of a probability per row and label: over all pairs of a row and a label, and means over labels."""

    classes: tuple[str, ...]
    threshold: float

    def rows(self, label: pa.Array, output: pa.Array, weight: NDArray[np.float64]) -> AdditiveValues:
        """Return the additive values of rows whose labels are lists of names, or a 0 or 1 for each name."""
        width = len(self.classes)
        has = _label_matrix(label, self.classes)
        scores, valid = _matrix(output, width)
        valid &= ((scores >= 0) & (scores <= 1)).all(axis=1)
        losses = _losses(
            has, scores, valid[:, None], np.float32 if output.type.value_type == pa.float32() else np.float64
        )
        called = scores >= self.threshold
        columns = [of.mean(axis=1) for of in (*losses, has, called, has & called)]
        best = np.argsort(-scores, axis=1, kind="stable")[:, : max(PRECISION_KS)]
        hits = np.take_along_axis(has, best, axis=1)
        columns += [hits[:, :k].mean(axis=1) for k in self._ks]
        own = np.flatnonzero(valid)
        each = [Pairs(own, scores[own, one], has[own, one], weight[own]) for one in range(width)]
        every = Pairs(np.repeat(own, width), scores[own].ravel(), has[own].ravel(), np.repeat(weight[own], width))
        return AdditiveValues(_additive(columns, valid, weight), (every, *each))

    @property
    def _ks(self) -> tuple[int, ...]:
        return tuple(k for k in PRECISION_KS if k <= len(self.classes))

    def values(self, sums: NDArray[np.float64], counts: Sequence[NDArray[np.float64]]) -> Values:
        """Return the metrics of a slice."""
        with np.errstate(divide="ignore", invalid="ignore"):
            log_loss, brier, base_rate, called, hits, *precisions = (sums[:, _FIRST:] / sums[:, [WEIGHT]]).T
            found = {
                "auc": auc(counts[0]),
                "pr_auc": pr_auc(counts[0]),
                "macro_auc": _mean_of_defined([auc(of) for of in counts[1:]]),
                "macro_pr_auc": _mean_of_defined([pr_auc(of) for of in counts[1:]]),
                "log_loss": log_loss,
                "brier": brier,
                "ece": calibration_error(counts[0]),
                "accuracy": 1 - called - base_rate + 2 * hits,
                "precision": hits / called,
                "recall": hits / base_rate,
                "base_rate": base_rate,
            }
        return found | {f"precision_at_{k}": of for k, of in zip(self._ks, precisions, strict=True)}


@dataclass(frozen=True)
class Retrieval:
    """Metrics of ranked lists, each with its held-back item or items: see :mod:`models.retrieval.list_metrics`."""

    ks: tuple[int, ...] = RANKING_KS

    def rows(self, label: pa.Array, output: pa.Array, weight: NDArray[np.float64]) -> AdditiveValues:
        """Return the additive values of rows; a metric at more than the length of the lists is that of the list."""
        lengths = pc.fill_null(pc.list_value_length(output), 0).to_numpy(zero_copy_only=False)
        longest = max(int(lengths.max(initial=0)), *self.ks)
        lists = np.full((len(output), longest), "", object)
        flat = pc.fill_null(pc.list_flatten(output).cast(pa.string()), "").to_numpy(zero_copy_only=False)
        lists[np.arange(longest) < lengths[:, None]] = flat
        if not len(label):
            return AdditiveValues(np.zeros((_FIRST + len(self._names), 0)))
        found = list_values(lists.astype(str), *_held_back(label), self.ks)
        valid = output.is_valid().to_numpy(zero_copy_only=False)
        return AdditiveValues(_additive([found[name] for name in self._names], valid, weight))

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(f"{metric}_at_{k}" for k in self.ks for metric in ("recall", "ndcg", "mrr"))

    def values(self, sums: NDArray[np.float64], counts: Sequence[NDArray[np.float64]]) -> Values:
        """Return the metrics of a slice."""
        with np.errstate(divide="ignore", invalid="ignore"):
            means = (sums[:, _FIRST:] / sums[:, [WEIGHT]]).T
        return dict(zip(self._names, means, strict=True))


def auc(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of pairs of a negative and a positive in the right order, ties half: ``[draws]``."""
    negatives, positives = counts[:, NEGATIVES], counts[:, POSITIVES]
    below = np.cumsum(negatives, axis=0) - negatives
    with np.errstate(divide="ignore", invalid="ignore"):
        return (positives * (below + negatives / 2)).sum(axis=0) / (positives.sum(axis=0) * negatives.sum(axis=0))


def pr_auc(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the average precision, ``[draws]``."""
    negatives, positives = counts[::-1, NEGATIVES], counts[::-1, POSITIVES]
    found = np.cumsum(positives, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.nan_to_num(found / (found + np.cumsum(negatives, axis=0)))
        return (positives * precision).sum(axis=0) / positives.sum(axis=0)


def binning_errors(counts: NDArray[np.float64]) -> dict[str, float]:
    """Return the largest distance of ``auc`` and ``pr_auc`` to their exact values, if cells have several scores.

    Args:
        counts: Fine counts of one draw, ``[cells, 3]``.
    """
    negatives, positives = counts[::-1, NEGATIVES], counts[::-1, POSITIVES]
    found, wrong = np.cumsum(positives), np.cumsum(negatives)
    with np.errstate(divide="ignore", invalid="ignore"):
        tied = float(np.divide(negatives @ positives / 2, found[-1] * wrong[-1])) if len(counts) else 0.0
        # The order within a cell that is best for its positives, and the worst one.
        best = found / (found + wrong - negatives)
        worst = (found - positives) / (found - positives + wrong)
        spread = np.nan_to_num(best) - np.nan_to_num(worst)
        has_both = (negatives > 0) & (positives > 0)
        precision = float((spread * positives)[has_both].sum() / found[-1]) if len(counts) and found[-1] else 0.0
    return {"auc": tied if np.isfinite(tied) else 0.0, "pr_auc": precision}


def calibration_bins(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sums by quantile bin of the scores, ``[CALIBRATION_BINS, 3, draws]``: negatives, positives, scores."""
    weight = counts[:, NEGATIVES] + counts[:, POSITIVES]
    total = weight.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = np.nan_to_num((np.cumsum(weight, axis=0) - weight / 2) / total)
    number = np.minimum((middle * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    bins = range(CALIBRATION_BINS)
    return np.stack([np.where((number == one)[:, None], counts, 0.0).sum(axis=0) for one in bins])


def calibration_error(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the expected calibration error on ten quantile bins (Naeini et al., 2015), ``[draws]``."""
    bins = calibration_bins(counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = bins[:, NEGATIVES] + bins[:, POSITIVES]
        return np.abs(bins[:, SCORES] - bins[:, POSITIVES]).sum(axis=0) / weight.sum(axis=0)


def _additive(
    columns: Sequence[NDArray[np.float64] | NDArray[np.bool_]], valid: NDArray[np.bool_], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the first columns and weighted ``columns``, 0 in rows without a valid score: ``[columns, rows]``."""
    first = [valid, ~valid, np.where(valid, weight, 0.0)]
    return np.stack([*first, *(np.where(valid, weight * column, 0.0) for column in columns)]).astype(np.float64)


def _losses(
    positive: NDArray[np.bool_], scores: NDArray[np.float64], valid: NDArray[np.bool_], dtype: type
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    safe = np.where(valid, scores, 0.5)
    return bootstrap.row_log_losses(positive, safe.astype(dtype)), (safe - positive) ** 2


def _numbers(column: pa.Array) -> NDArray[np.float64]:
    """Return numbers and booleans as float64, NaN for null."""
    return pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)


def _matrix(column: pa.Array, width: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return lists as ``[rows, width]``, and which of them have that length and finite numbers."""
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
    if wrong := sorted(set(lengths[lengths >= 0].tolist()) - {width}):
        raise ValueError(f"a row has {wrong[0]} scores, and the model has {width} labels; package it with its labels")
    valid = lengths == width
    matrix = np.full((len(column), width), np.nan)
    matrix[valid] = _numbers(column.drop_null().flatten()).reshape(-1, width)
    valid &= np.isfinite(matrix).all(axis=1)
    return np.where(valid[:, None], matrix, 0.0), valid


def _class_numbers(label: pa.Array, classes: Sequence[str]) -> NDArray[np.int64]:
    numbers = pc.index_in(pc.cast(label, pa.string()), pa.array(classes, pa.string()))
    if numbers.null_count:
        unknown = label.filter(pc.is_null(numbers))[0].as_py()
        raise ValueError(f"a label is {unknown!r}; the model knows {list(classes)[:10]}")
    return numbers.to_numpy(zero_copy_only=False).astype(np.int64)


def _held_back(label: pa.Array) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the row and the token of each held-back item; a label is an item, or a list of items."""
    row, items = np.arange(len(label)), label
    if raw_columns.is_list(label.type):
        counts = candidate_lists.candidate_counts(label)
        if not counts.all():
            raise ValueError(
                f"a label is {label[int(counts.argmin())].as_py()!r}; a row of a retrieval holds back one item or more"
            )
        items, rows = candidate_lists.candidates_of(label)
        row = rows.to_numpy().astype(np.int64)
    return row, pc.cast(items, pa.string()).to_numpy(zero_copy_only=False).astype(str)


def _label_matrix(label: pa.Array, classes: Sequence[str]) -> NDArray[np.bool_]:
    """Return a mask of the labels of each row, ``[rows, labels]``."""
    if not pa.types.is_string(label.type.value_type) and not pa.types.is_large_string(label.type.value_type):
        matrix, valid = _matrix(label, len(classes))
        if not valid.all() or not np.isin(matrix, (0.0, 1.0)).all():
            raise ValueError("a list of labels has a value other than 0 and 1")
        return matrix == 1
    has = np.zeros((len(label), len(classes)), bool)
    parents = pc.list_parent_indices(label).to_numpy(zero_copy_only=False)
    flat = label.flatten()
    # Labels that are too rare to have an output of the model are not classes.
    numbers = pc.index_in(flat, pa.array(classes, pa.string())).to_numpy(zero_copy_only=False)
    known = ~np.isnan(numbers.astype(np.float64))
    has[parents[known], numbers[known].astype(np.int64)] = True
    return has


def _mean_of_defined(values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the mean over labels for which a value is defined, ``[draws]``."""
    stacked = np.stack(values)
    defined = np.isfinite(stacked)
    return np.where(defined, stacked, 0.0).sum(axis=0) / defined.sum(axis=0)
