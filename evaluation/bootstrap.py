"""Intervals of the difference between a model and its baseline: a paired bootstrap of the test rows, vectorised."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mirrorspark.evaluation.metrics import precisions_at, rank_columns, rank_metrics, right_and_either

RESAMPLES = 200
CONFIDENCE = 0.95

# Name of the drawn units, unless the rows belong to users.
TEST_ROWS = "test rows"

# Of more units this many are resampled, and the spread is scaled to all of them.
MOST_UNITS = 100_000

# Weights that are held at once: about 100 MB with the arrays that are made of them.
_WEIGHTS_AT_ONCE = 2_000_000

# Returns the metrics for each of several weightings of the rows, ``[resamples, rows]``: ``[resamples]`` each.
Statistics = Callable[[NDArray[np.float64]], Mapping[str, NDArray[np.float64]]]


def paired_intervals(
    statistics: Callable[[NDArray[Any], NDArray[Any]], Statistics],
    label: NDArray[Any],
    model: NDArray[Any],
    baseline: NDArray[Any],
    weight: NDArray[Any],
    *,
    units: NDArray[Any] | None = None,
    seed: int = 1,
    resamples: int = RESAMPLES,
) -> dict[str, dict[str, float]]:
    """Return by metric the ``difference``, model minus baseline, and the ``low`` and ``high`` end of its 95% interval.

    Units are drawn with replacement, the same ones for both (Efron and Tibshirani, 1993, chapter 13). Of more than
    ``MOST_UNITS`` a sample is resampled, and the spread scaled by the root of its share (Bickel, Götze and van Zwet,
    1997).

    Args:
        statistics: Makes the metrics of a label and predictions, such as :func:`binary_statistics`.
        label: Labels, ``[rows, …]``.
        model: The model's predictions, ``[rows, …]``.
        baseline: The baseline's predictions of the same rows.
        weight: Non-negative row weights, ``[rows]``.
        units: Unit that is drawn for each row, for example its user; by default the row.
        seed: Fixes the draws.
        resamples: Number of draws.
    """
    weight = np.asarray(weight, np.float64)
    used = np.flatnonzero(weight > 0)
    label, model, baseline, weight = (np.asarray(column)[used] for column in (label, model, baseline, weight))
    unit = np.arange(len(used)) if units is None else np.unique(np.asarray(units)[used], return_inverse=True)[1]
    of_all = _differences(statistics(label, model), statistics(label, baseline), weight[None])
    random = np.random.default_rng(seed)
    count, scale = int(unit.max()) + 1, 1.0
    of_sample = of_all
    if count > MOST_UNITS:
        chosen = random.permutation(count) < MOST_UNITS
        rows = chosen[unit]
        label, model, baseline, weight = label[rows], model[rows], baseline[rows], weight[rows]
        unit = np.unique(unit[rows], return_inverse=True)[1]
        count, scale = MOST_UNITS, (MOST_UNITS / count) ** 0.5
        of_sample = _differences(statistics(label, model), statistics(label, baseline), weight[None])
    own, other = statistics(label, model), statistics(label, baseline)
    parts = [_differences(own, other, drawn) for drawn in _draws(unit, count, weight, resamples, random)]
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    found = {}
    for name, (difference,) in of_all.items():
        values = np.concatenate([part[name] for part in parts])
        # A draw of few rows may have one class only.
        values = values[np.isfinite(values)]
        if not len(values) or not np.isfinite(difference):
            continue
        low, high = difference + scale * (np.quantile(values, tails) - of_sample[name][0])
        found[name] = {"difference": float(difference), "low": float(low), "high": float(high)}
    return found


def binary_statistics(label: NDArray[Any], score: NDArray[Any]) -> Statistics:
    """Return ``auc``, ``pr_auc``, ``log_loss`` and ``brier`` of probabilities."""
    positive = np.asarray(label) > 0
    losses = np.stack([row_log_losses(positive, score), (score - positive) ** 2.0], axis=1)
    # Rows with the same score have one rank.
    order = np.argsort(score, kind="stable")
    ordered = np.asarray(score)[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    is_positive = positive[order].astype(np.float64)

    def statistics(weights: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
        by_rank = weights[:, order]
        positives = np.add.reduceat(by_rank * is_positive, starts, axis=1)
        negatives = np.add.reduceat(by_rank, starts, axis=1) - positives
        total, others = positives.sum(axis=1), negatives.sum(axis=1)
        below = np.cumsum(negatives, axis=1) - negatives
        log_loss, brier = _means(weights, losses)
        with np.errstate(divide="ignore", invalid="ignore"):
            # The share of pairs in the right order; a tie is half of one.
            auc = np.einsum("rg,rg->r", positives, below + negatives / 2) / (total * others)
            found = np.cumsum(positives[:, ::-1], axis=1)
            precision = found / (found + np.cumsum(negatives[:, ::-1], axis=1))
            pr_auc = np.einsum("rg,rg->r", positives[:, ::-1], np.nan_to_num(precision)) / total
        return {"auc": auc, "pr_auc": pr_auc, "log_loss": log_loss, "brier": brier}

    return statistics


def regression_statistics(label: NDArray[Any], score: NDArray[Any]) -> Statistics:
    """Return ``rmse``, ``mae`` and ``r2`` of predicted numbers."""
    actual = np.asarray(label, np.float64)
    errors = np.asarray(score, np.float64) - actual
    centred = actual - actual.mean()
    columns = np.stack([errors**2, np.abs(errors), centred, centred**2], axis=1)

    def statistics(weights: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
        square, mae, mean, mean_square = _means(weights, columns)
        with np.errstate(divide="ignore", invalid="ignore"):
            r2 = 1 - square / (mean_square - mean**2)
        return {"rmse": np.sqrt(square), "mae": mae, "r2": r2}

    return statistics


def multi_class_statistics(label: NDArray[Any], scores: NDArray[Any], *, is_ordinal: bool = False) -> Statistics:
    """Return ``accuracy``, ``macro_f1`` and ``log_loss`` of a probability per class.

    Of classes that have an order ``rank_mae`` and ``quadratic_kappa``, too.
    """
    actual, probabilities = np.asarray(label, np.int64), np.asarray(scores, np.float64)
    best = probabilities.argmax(axis=1)
    sure = np.clip(probabilities / probabilities.sum(axis=1, keepdims=True), 1e-15, 1.0)
    columns = np.stack([actual == best, -np.log(sure[np.arange(len(actual)), actual])], axis=1)
    names, numbers = np.unique(np.concatenate([actual, best]), return_inverse=True)
    actual_number, best_number = numbers[: len(actual)], numbers[len(actual) :]
    is_right = (actual == best).astype(np.float64)
    ranks = rank_columns(actual, best)

    def statistics(weights: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
        accuracy, log_loss = _means(weights, columns)
        right = _sums(weights * is_right, actual_number, len(names))
        either = _sums(weights, actual_number, len(names)) + _sums(weights, best_number, len(names))
        f1 = np.divide(2 * right, either, out=np.zeros_like(right), where=either > 0)
        # A class that is in no row of a draw has no F1.
        f1 = f1.sum(axis=1) / np.maximum((either > 0).sum(axis=1), 1)
        of_ranks = rank_metrics(_means(weights, ranks)) if is_ordinal else {}
        return {"accuracy": accuracy, "macro_f1": f1, "log_loss": log_loss, **of_ranks}

    return statistics


def mean_statistics(*names: str) -> Callable[[NDArray[Any], NDArray[Any]], Statistics]:
    """Return the function that averages a value of each row: predictions are then ``[rows, names]``."""

    def of(_: NDArray[Any], values: NDArray[Any]) -> Statistics:
        columns = np.asarray(values, np.float64)
        return lambda weights: dict(zip(names, _means(weights, columns), strict=True))

    return of


def multi_label_statistics(label: NDArray[Any], scores: NDArray[Any]) -> Statistics:
    """Return ``log_loss``, ``brier``, ``precision_at_K`` and ``micro_f1`` of a probability per label.

    Ranks of all pairs of a row and a label, which AUC needs, would take minutes.
    """
    positive, probabilities = np.asarray(label) > 0, np.asarray(scores)
    columns = {
        "log_loss": row_log_losses(positive, probabilities).mean(axis=1),
        "brier": ((probabilities - positive) ** 2.0).mean(axis=1),
        **precisions_at(positive, probabilities),
    }
    right, either = right_and_either(positive, probabilities)
    values = np.stack([*columns.values(), 2.0 * right, either], axis=1)

    def statistics(weights: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
        *means, twice_right, of_either = _means(weights, values)
        f1 = np.divide(twice_right, of_either, out=np.zeros_like(of_either), where=of_either > 0)
        return dict(zip(columns, means, strict=True)) | {"micro_f1": f1}

    return statistics


def _draws(
    unit: NDArray[np.int64], units: int, weight: NDArray[np.float64], resamples: int, random: np.random.Generator
) -> Iterator[NDArray[np.float64]]:
    """Yield weights of the rows ``[some resamples, rows]``: how often their unit was drawn, times their own."""
    at_once = max(1, _WEIGHTS_AT_ONCE // len(unit))
    for first in range(0, resamples, at_once):
        drawn = [
            np.bincount(random.integers(units, size=units), minlength=units)
            for _ in range(min(at_once, resamples - first))
        ]
        yield np.stack(drawn)[:, unit] * weight


def _differences(own: Statistics, other: Statistics, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    ours, theirs = own(weights), other(weights)
    return {name: values - theirs[name] for name, values in ours.items()}


def _means(weights: NDArray[np.float64], columns: NDArray[Any]) -> NDArray[np.float64]:
    """Return the weighted means of columns ``[rows, columns]``, each ``[resamples]``."""
    return np.asarray((weights @ columns / weights.sum(axis=1, keepdims=True)).T)


def row_log_losses(positive: NDArray[np.bool_], score: NDArray[Any]) -> NDArray[np.float64]:
    """Return the log loss of each probability in nats, in the shape of ``score``.

    As in scikit-learn, no probability is more certain than its type can express.
    """
    least = np.finfo(score.dtype).eps
    probability = np.clip(score, least, 1 - least).astype(np.float64)
    return np.asarray(-np.where(positive, np.log(probability), np.log1p(-probability)))


def _sums(weights: NDArray[np.float64], number: NDArray[np.int64], numbers: int) -> NDArray[np.float64]:
    """Return the sum of the weights by number, ``[resamples, numbers]``."""
    order = np.argsort(number, kind="stable")
    present, starts = np.unique(number[order], return_index=True)
    sums = np.zeros((len(weights), numbers))
    sums[:, present] = np.add.reduceat(weights[:, order], starts, axis=1)
    return sums
