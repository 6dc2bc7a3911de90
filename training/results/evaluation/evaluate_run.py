"""Comparison of a run with baselines by their predictions: metrics, plots. Pure functions, without Spark and MLflow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from mirrorspark.data_pipelines.features import RaggedIds, Vocabulary, kinds
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.evaluation import (
    binary_metrics,
    bootstrap,
    multi_class_metrics,
    multi_label_metrics,
    regression_metrics,
)
from mirrorspark.models.retrieval import RANKING_KS, catalogue_metrics, ranking_values
from mirrorspark.pages import drawn
from mirrorspark.pages.figures import (
    calibration_curve,
    class_quality,
    confusion_matrix,
    learning_curves,
    lift_chart,
    precision_recall_curve,
    predicted_and_actual,
    recall_at_k_curve,
    residuals_by_prediction,
    roc_curve,
    score_histogram,
)
from mirrorspark.training.executor import OnProgress
from mirrorspark.training.results.evaluation.segments import held_back_items, segment_metrics
from mirrorspark.training.results.report import as_baseline, in_words

# A multi-label model is evaluated on about this many pairs of a row and a label: metrics and plots sort them in memory.
EVALUATED_PAIRS = 10_000_000

# The prediction that is the same for all rows.
BASE_RATE = "base_rate"


@dataclass(frozen=True)
class BaselineComparison:
    """The metrics of a trained model, and its comparison with baselines.

    Attributes:
        metrics: Metrics by split.
        baseline: Name of the baseline, its test metrics, ``intervals``: by metric the difference, model minus
            baseline, and the ends of its 95% interval, ``resampled``: the samples drawn for them, in words,
            ``learnt_from``: how many ``rows`` ``of`` the training rows it learnt from, if not from all, and ``seconds``
            of its fit; empty without one. Of several it is the first one, with the same of each of the rest in
            ``others``.
        figures: Plots by file name.
        base_rate: The same as ``baseline`` for a prediction that is the same for all rows: the mean label, or the
            share of each class, of the validation rows. Empty with a baseline, and for lists of candidates.
    """

    metrics: Mapping[str, Mapping[str, float]]
    baseline: Mapping[str, Any]
    figures: Mapping[str, Figure] = field(repr=False)
    base_rate: Mapping[str, Any] = field(default_factory=dict)

    @property
    def compared(self) -> Mapping[str, Any]:
        """The baseline, or else the base rate."""
        return self.baseline or self.base_rate


@dataclass(frozen=True)
class ComparedModel:
    """A model that the trained one is compared with.

    Attributes:
        name: That of a baseline, or ``network``.
        scores: Its scores of the test rows in the dataset's stored order, as the predictions: both share label and
            weight.
        learnt_from: Number of ``rows`` it learnt from, ``of`` all training rows; empty for all.
        left_out: Parts of its fit that were left out to end in time, as a sentence.
        seconds: Time of its fit; None where it has none of its own.
    """

    name: str
    scores: np.ndarray
    learnt_from: Mapping[str, int] = field(default_factory=dict)
    left_out: str = ""
    seconds: float | None = None


def compare_binary(
    predictions: Mapping[str, pa.Table],
    baselines: Sequence[ComparedModel],
    seed: int,
    curves: Figure | None,
    on_progress: OnProgress = lambda doing, done=0, total=0: None,
) -> BaselineComparison:
    """Compare a binary model with baselines, from its ``score``, ``label`` and ``weight`` per split.

    Args:
        predictions: A table per split, in the dataset's stored order.
        baselines: The models to compare with.
        seed: Fixes the draws of the intervals.
        curves: The learning curves.
        on_progress: Gets the baseline whose intervals are computed.
    """
    metrics = {split: metrics_of("binary", table, split=split) for split, table in predictions.items()}
    label, score, weight = weighed_columns(predictions["test"])
    others = {in_words(baseline.name): baseline.scores for baseline in baselines}
    figures = _probability_figures(label, score, weight, others)
    constants = baselines or _base_rate(weighed_columns(predictions["validation"]), len(label))
    compared = _compared(
        constants, binary_metrics, bootstrap.binary_statistics, (label, score, weight), seed, on_progress
    )
    return _comparison(metrics, compared, figures, curves)


def compare_multi_label(
    predictions: Mapping[str, pa.Table],
    baselines: Sequence[ComparedModel],
    seed: int,
    curves: Figure | None,
    classes: int,
    on_progress: OnProgress = lambda doing, done=0, total=0: None,
) -> BaselineComparison:
    """Compare a multi-label model with baselines by ``scores``, ``label``, ``weight``; see :func:`compare_binary`.

    The plots show all pairs of a row and one of the ``classes`` labels. The baselines' scores are those of every
    :func:`evaluated_step`-th row.
    """
    judged = {split: labelled_columns(table, classes) for split, table in predictions.items()}
    metrics = {split: multi_label_metrics(*columns, split=split) for split, columns in judged.items()}
    label, scores, weight = judged["test"]
    others = {in_words(baseline.name): baseline.scores.ravel() for baseline in baselines}
    constants = baselines or _base_rate(judged["validation"], len(label))
    compared = _compared(
        constants, multi_label_metrics, bootstrap.multi_label_statistics, (label, scores, weight), seed, on_progress
    )
    figures = _probability_figures(label.ravel(), scores.ravel(), np.repeat(weight, classes), others)
    return _comparison(metrics, compared, figures, curves)


def compare_regression(
    predictions: Mapping[str, pa.Table],
    baselines: Sequence[ComparedModel],
    seed: int,
    curves: Figure | None,
    on_progress: OnProgress = lambda doing, done=0, total=0: None,
) -> BaselineComparison:
    """Compare a regression with baselines, from its ``score``, ``label`` and ``weight``; see :func:`compare_binary`."""
    metrics = {
        split: metrics_of("regression", table, split=split) | _interval_metrics(table)
        for split, table in predictions.items()
    }
    label, score, weight = weighed_columns(predictions["test"])
    others = {in_words(baseline.name): baseline.scores for baseline in baselines}
    constants = baselines or _base_rate(weighed_columns(predictions["validation"]), len(label))
    compared = _compared(
        constants, regression_metrics, bootstrap.regression_statistics, (label, score, weight), seed, on_progress
    )
    figures = drawn(
        {
            "predicted_and_actual": lambda: predicted_and_actual(label, score, weight=weight, baseline=others),
            "residuals": lambda: residuals_by_prediction(label, score, weight=weight, baseline=others),
        }
    )
    return _comparison(metrics, compared, figures, curves)


def _interval_metrics(table: pa.Table) -> dict[str, float]:
    """Return the share of labels between the lowest and the highest quantile, and the mean distance of the two."""
    if "quantiles" not in table.column_names:
        return {}
    lists = table["quantiles"].combine_chunks()
    bounds = lists.flatten().to_numpy().reshape(len(lists), -1)[:, [0, -1]].astype(np.float64)
    label, _, weight = weighed_columns(table)
    is_within = (bounds[:, 0] <= label) & (label <= bounds[:, 1])
    return {
        "interval_coverage": float(np.average(is_within, weights=weight)),
        "interval_width": float(np.average(bounds[:, 1] - bounds[:, 0], weights=weight)),
    }


def compare_multi_class(
    predictions: Mapping[str, pa.Table],
    baselines: Sequence[ComparedModel],
    seed: int,
    curves: Figure | None,
    names: Sequence[str],
    on_progress: OnProgress = lambda doing, done=0, total=0: None,
    *,
    is_ordinal: bool = False,
) -> BaselineComparison:
    """Compare a multi-class model with baselines by ``scores``, ``label``, ``weight``; see :func:`compare_binary`.

    ``names`` are those of the classes, in the order of the scores, which is theirs where ``is_ordinal`` is set.
    """
    classes = len(names)
    metrics = {
        split: metrics_of("multi_class", table, split=split, classes=classes, is_ordinal=is_ordinal)
        for split, table in predictions.items()
    }
    label, scores, weight = classed_columns(predictions["test"], classes)
    others = {in_words(baseline.name): baseline.scores.argmax(axis=1) for baseline in baselines}
    measured = partial(multi_class_metrics, is_ordinal=is_ordinal)
    resampled = partial(bootstrap.multi_class_statistics, is_ordinal=is_ordinal)
    constants = baselines or _base_rate(classed_columns(predictions["validation"], classes), len(label))
    compared = _compared(constants, measured, resampled, (label, scores, weight), seed, on_progress)
    best = scores.argmax(axis=1)
    figures = drawn(
        {
            "confusion_matrix": lambda: confusion_matrix(label, best, names, weight=weight),
            "classes": lambda: class_quality(label, best, names, weight=weight, baseline=others),
            # Of all pairs of a row and a class.
            "calibration": lambda: calibration_curve(
                (label[:, None] == np.arange(classes)).ravel(), scores.ravel(), weight=np.repeat(weight, classes)
            ),
        }
    )
    return _comparison(metrics, compared, figures, curves)


def compare_retrieval(
    dataset: Dataset,
    predictions: Mapping[str, pa.Table],
    baselines: Mapping[str, np.ndarray],
    k: int,
    curves: Figure | None,
    seconds: Mapping[str, float] = MappingProxyType({}),
    on_progress: OnProgress = lambda doing, done=0, total=0: None,
) -> BaselineComparison:
    """Compare a retrieval model with baselines, from its ``candidates`` and the held-back ``label`` per split.

    A label is the list of a query's relevant candidates, or one of them: rows with the same query are one query.

    Args:
        dataset: The dataset of the training.
        predictions: A table per split, in the dataset's stored order.
        baselines: By the name of each baseline, the ids of its lists for the test rows, ``[rows, k]``.
        k: Length of the lists.
        curves: The learning curves.
        seconds: Times of their fits, as far as they are known.
        on_progress: Gets the baseline whose lists are compared.
    """
    ranks = tuple(sorted({rank for rank in RANKING_KS if rank < k} | {k}))
    vocabulary = dataset.features.vocabulary(dataset.spec.candidate)
    counts = vocabulary.counts.to_numpy()
    items = {split: held_back_items(dataset, split) for split in predictions}
    lists = {
        split: (list_matrix(table["candidates"]), held_back_tokens(table["label"]))
        for split, table in predictions.items()
    }
    values = {
        split: ranking_values(*lists[split], ranks, queries=items[split].queries, rows=items[split].rows)
        for split in predictions
    }
    positions = {split: _positions(table["candidates"], vocabulary) for split, table in predictions.items()}
    metrics = {
        split: _means(values[split])
        | segment_metrics(*lists[split], items[split], ranks[-1], positions[split], counts)
        | catalogue_metrics(positions[split], counts)
        | _rating_metrics(table, split)
        for split, table in predictions.items()
    }
    compared = []
    shown = {"model": _recalls(metrics["test"], ranks)}
    of_test = items["test"]
    # Users by query, in the order of the values.
    users = of_test.users[np.unique(of_test.queries, return_index=True)[1]]
    for place, (name, listed) in enumerate(baselines.items()):
        on_progress(f"comparing with {in_words(name)}", place, len(baselines))
        # Missing and out-of-vocabulary items are in no list, so they are never a hit.
        baseline_values = ranking_values(listed, of_test.candidates, ranks, queries=of_test.queries, rows=of_test.rows)
        listed_positions = listed - kinds.FIRST_VOCABULARY_ID
        baseline_metrics = (
            _means(baseline_values)
            | segment_metrics(listed, of_test.candidates, of_test, ranks[-1], listed_positions, counts)
            | catalogue_metrics(listed_positions, counts)
        )
        intervals = ranking_intervals(values["test"], baseline_values, users)
        compared.append(
            {"name": name, "metrics": baseline_metrics, "intervals": intervals, "resampled": of_test.unit}
            | ({"seconds": seconds[name]} if name in seconds else {})
        )
        shown[in_words(name)] = _recalls(baseline_metrics, ranks)
    figures = drawn({"recall_at_k": lambda: recall_at_k_curve(shown)})
    return _comparison(metrics, as_baseline(compared), figures, curves)


def _comparison(
    metrics: Mapping[str, Mapping[str, float]],
    compared: Mapping[str, Any],
    figures: Mapping[str, Figure],
    curves: Figure | None,
) -> BaselineComparison:
    """Return the comparison with ``compared``, a baseline or the base rate."""
    figures = {**figures, **({"learning_curves": curves} if curves else {})}
    if compared.get("name") == BASE_RATE:
        return BaselineComparison(metrics, {}, figures, compared)
    return BaselineComparison(metrics, compared, figures)


def _base_rate(validation: tuple[np.ndarray, np.ndarray, np.ndarray], rows: int) -> "list[ComparedModel]":
    """Return the prediction that is the same for all ``rows``, from label, scores and weight of the validation rows.

    It is the mean label, or the share of each class, with one row more of each. None without validation rows.
    """
    label, scores, weight = validation
    if not weight.sum():
        return []
    if scores.ndim == label.ndim:
        mean = np.average(label, axis=0, weights=weight)
    else:  # a class per row, of several
        counts = np.bincount(label.astype(np.int64), weight, scores.shape[1]) + 1.0
        mean = counts / counts.sum()
    return [ComparedModel(BASE_RATE, np.broadcast_to(mean, (rows, *np.shape(mean))))]


def _rating_metrics(table: pa.Table, split: str) -> dict[str, float]:
    """Return ``rmse`` and ``mae`` of the predicted ratings; none of a model that predicts none."""
    if "predicted_rating" not in table.column_names:
        return {}
    rating, predicted, weight = (table[name].to_numpy() for name in ("rating", "predicted_rating", "weight"))
    found = regression_metrics(rating, predicted, weight, split=split)
    return {name: found[name] for name in ("rmse", "mae")}


def _means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(by_query.mean()) for name, by_query in values.items()}


def ranking_intervals(
    model: Mapping[str, np.ndarray], baseline: Mapping[str, np.ndarray], units: np.ndarray
) -> dict[str, dict[str, float]]:
    """Return the intervals of the metrics of lists, ``[queries]`` by name.

    They are those of :func:`evaluation.bootstrap.paired_intervals`.
    """
    own, other = (np.stack(list(values.values()), axis=1) for values in (model, baseline))
    label = np.zeros(len(own))  # It is in the values.
    return bootstrap.paired_intervals(
        bootstrap.mean_statistics(*model), label, own, other, np.ones(len(own)), units=units
    )


def curves_of(
    history: Sequence[Mapping[str, float]], best_epoch: int | None, restarts: Sequence[float]
) -> Figure | None:
    """Return the learning curves of the epochs' logs; None without any epoch, or where they cannot be drawn."""
    if not history or best_epoch is None:
        return None
    names = [name for name in history[0] if all(name in logs for logs in history)]
    columns = {name: [logs[name] for logs in history] for name in names}
    found = drawn({"learning_curves": lambda: learning_curves(columns, best_epoch=best_epoch, restarts=restarts)})
    return found.get("learning_curves")


def _compared(
    baselines: Sequence[ComparedModel],
    metrics: Callable[..., dict[str, float]],
    statistics: Callable[[np.ndarray, np.ndarray], bootstrap.Statistics],
    columns: tuple[np.ndarray, np.ndarray, np.ndarray],
    seed: int,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Return the ``baseline`` of a comparison; empty without any.

    ``columns`` are label, predictions and weight of the test rows.
    """
    label, score, weight = columns
    compared = []
    for place, baseline in enumerate(baselines):
        on_progress(f"comparing with {in_words(baseline.name)}", place, len(baselines))
        compared.append(
            {
                "name": baseline.name,
                "metrics": metrics(label, baseline.scores, weight),
                "intervals": bootstrap.paired_intervals(statistics, label, score, baseline.scores, weight, seed=seed),
                "resampled": bootstrap.TEST_ROWS,
            }
            | ({"learnt_from": dict(baseline.learnt_from)} if baseline.learnt_from else {})
            | ({"left_out": baseline.left_out} if baseline.left_out else {})
            | ({} if baseline.seconds is None else {"seconds": baseline.seconds})
        )
    return as_baseline(compared)


def _probability_figures(
    label: np.ndarray, score: np.ndarray, weight: np.ndarray, others: dict[str, np.ndarray] | None
) -> dict[str, Figure]:
    return drawn(
        {
            "roc": lambda: roc_curve(label, score, weight=weight, baseline=others),
            "precision_recall": lambda: precision_recall_curve(label, score, weight=weight, baseline=others),
            "calibration": lambda: calibration_curve(label, score, weight=weight),
            "lift": lambda: lift_chart(label, score, weight=weight),
            "score_histogram": lambda: score_histogram(label, score, weight=weight),
        }
    )


def labelled_columns(table: pa.Table, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels (zeros and ones) and scores ``[rows, classes]`` and weights of all rows, or of every n-th row."""
    kept = table.take(np.arange(0, table.num_rows, evaluated_step(table.num_rows, classes)))
    label, scores = (kept[name].combine_chunks() for name in ("label", "scores"))
    packed = RaggedIds(label.flatten().to_numpy(), label.value_lengths().to_numpy()).multi_hot(classes)
    return packed, scores.flatten().to_numpy().reshape(-1, classes), kept["weight"].to_numpy()


def evaluated_step(rows: int, labels: int) -> int:
    """Return n where every n-th row of a split with several labels is evaluated."""
    return max(1, rows * labels // EVALUATED_PAIRS)


def weighed_columns(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return label, score and weight of every row."""
    label, score, weight = (table[name].to_numpy() for name in ("label", "score", "weight"))
    return label, score, weight


def classed_columns(table: pa.Table, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return label, scores ``[rows, classes]`` and weight of every row."""
    scores = table["scores"].combine_chunks().flatten().to_numpy().reshape(-1, classes)
    return table["label"].to_numpy(), scores, table["weight"].to_numpy()


def list_column(scores: np.ndarray) -> pa.Array:
    """Return scores ``[rows, n]`` as a column of lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(scores.ravel()), scores.shape[1]).cast(pa.list_(pa.float32()))


def metrics_of(
    task: str, table: pa.Table, *, split: str, classes: int = 0, is_ordinal: bool = False
) -> dict[str, float]:
    """Return the metrics of predictions: a table with ``score`` or ``scores``, ``label`` and ``weight``."""
    if task == "multi_class":
        return multi_class_metrics(*classed_columns(table, classes), split=split, is_ordinal=is_ordinal)
    if task == "multi_label":
        return multi_label_metrics(*labelled_columns(table, classes), split=split)
    return (binary_metrics if task == "binary" else regression_metrics)(*weighed_columns(table), split=split)


def list_matrix(lists: pa.ChunkedArray) -> np.ndarray:
    """Return lists of equal length as objects, ``[rows, k]``."""
    return np.array(lists.to_pylist(), dtype=object)


def _positions(lists: pa.ChunkedArray, vocabulary: Vocabulary) -> np.ndarray:
    """Return the position of each listed candidate in the vocabulary, ``[rows, k]``; negative for an empty place."""
    listed = lists.combine_chunks()
    return vocabulary.ids(listed.flatten()).reshape(len(listed), -1) - kinds.FIRST_VOCABULARY_ID


def held_back_tokens(labels: pa.ChunkedArray) -> np.ndarray:
    """Return the tokens held back, one row's after the other's: ``[items]``."""
    # An out-of-vocabulary item has no token; the empty places of a short list must not match it. In lists each counts.
    if not pa.types.is_list(labels.type):
        return np.array([token or "\0" for token in labels.to_pylist()], dtype=object)
    tokens = labels.combine_chunks().flatten().to_pylist()
    return np.array([token or f"\0{place}" for place, token in enumerate(tokens)], dtype=object)


def _recalls(metrics: Mapping[str, float], ranks: Sequence[int]) -> dict[int, float]:
    return {rank: metrics[f"recall_at_{rank}"] for rank in ranks}
