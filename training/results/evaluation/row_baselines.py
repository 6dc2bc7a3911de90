"""The baselines of a model that scores rows: read from its dataset, fitted by library, and scored."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csc_matrix  # type: ignore[import-untyped]

from mirrorspark.data_pipelines.dataset import block_format
from mirrorspark.data_pipelines.features import RaggedIds, SparseRows
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.training.configuration import MONOTONE, STRENGTHS, RowBaseline
from mirrorspark.training.executor import OnProgress
from mirrorspark.training.results.evaluation.baseline_fit import (
    BaselineData,
    BaselineFeature,
    FittedBaseline,
    baseline_data,
    free_threads,
)
from mirrorspark.training.results.evaluation.boosting import gradient_boosting
from mirrorspark.training.results.evaluation.linear import linear_model
from mirrorspark.training.results.report import in_words

# A baseline holds its rows in memory on the driver: at most this number of rows, and of numbers of all features.
BASELINE_ROWS = 1_000_000
BASELINE_NUMBERS = 50_000_000
# Of many labels, each of which has a model of its own: the numbers of all features times the labels, and the rows times
# the labels.
BASELINE_PRODUCTS = 500_000_000
BASELINE_PAIRS = 50_000_000

# No feature can have these names.
_LABEL, _WEIGHT = "\0label", "\0weight"


def label_rates(dataset: Dataset) -> np.ndarray:
    """Return the share of the training rows, by weight, that have each label: ``[classes]``."""
    counts, rows = np.zeros(dataset.features.classes), 0.0
    for block in dataset.blocks("train"):
        assert isinstance(block.label, RaggedIds)  # noqa: S101 - a multi-label dataset stores it so
        weights = np.repeat(block.weight, block.label.row_lengths)
        counts += np.bincount(block.label.values, weights, len(counts))
        rows += float(block.weight.sum())
    return counts / rows


def read_baseline_data(
    dataset: Dataset, task: str, class_weights: Sequence[float] = (), monotone: Mapping[str, str] | None = None
) -> BaselineData:
    """Read the rows that baselines of a model that scores rows are fitted from.

    Args:
        dataset: The dataset.
        task: The task of that model.
        class_weights: Factors of the rows' weights by class, of the validation rows, too: the loss that is learnt stops
            a baseline. Empty leaves the weights as they are.
        monotone: Directions of features that gradient boosting must hold, by their names.
    """
    labels = _label_count(dataset)
    limits = BASELINE_ROWS, BASELINE_NUMBERS
    if labels:
        limits = min(BASELINE_ROWS, BASELINE_PAIRS // labels), min(BASELINE_NUMBERS, BASELINE_PRODUCTS // labels)
    train, validation = (_columns(dataset.blocks(split), labels, limits) for split in ("train", "validation"))
    sizes = {feature.name: int(getattr(feature, "size", 0)) for feature in dataset.spec}
    signs = {name: MONOTONE[direction] for name, direction in (monotone or {}).items()}
    features = [
        BaselineFeature(feature.name, feature.form, sizes[feature.name], signs.get(feature.name, 0))
        for feature in dataset.spec
    ]
    # Weights of one differ from no weights: with them scikit-learn samples other rows for its bins, and does worse.
    weight = _WEIGHT if dataset.spec.weight or class_weights else None
    for columns in (train, validation):
        columns[_WEIGHT] = weighed_by_class(columns[_WEIGHT], columns[_LABEL], class_weights)
    return baseline_data(train, validation, features, _LABEL, weight=weight, task=task)


def weighed_by_class(weight: np.ndarray, label: Any, class_weights: Sequence[float]) -> np.ndarray:
    """Return the weights ``[rows]`` times those of the rows' classes.

    They stay as they are without class weights, and where these leave nothing: validation rows may all be of classes of
    the weight 0, and means by weights have to exist.
    """
    if not class_weights:
        return weight
    weighed = weight * np.array(class_weights)[label.astype(np.int64)]
    return weighed if weighed.any() else weight


def train_fraction(data: BaselineData, all_rows: int) -> dict[str, int]:
    """Return the number of ``rows`` that baselines learn from, ``of`` all training rows; empty if it is all."""
    return {"rows": data.train.count, "of": all_rows} if data.train.count < all_rows else {}


def fit_baseline(
    asked: RowBaseline, data: BaselineData, seed: int, on_progress: OnProgress = lambda doing, done=0, total=0: None
) -> FittedBaseline:
    """Fit a baseline on the training rows; the validation rows stop it or choose its regularisation.

    Args:
        asked: One of the task's baselines (:mod:`training.configuration.tasks`).
        data: The result of :func:`read_baseline_data`.
        seed: Fixes the sampling inside the fit.
        on_progress: Gets its progress.
    """
    if asked.name in STRENGTHS:
        return linear_model(data, strengths=asked.options.get(STRENGTHS[asked.name]), on_progress=on_progress)
    return gradient_boosting(data, seed=seed, library=asked.name, options=asked.options, on_progress=on_progress)


def progress_of(asked: Sequence[RowBaseline], place: int, on_progress: OnProgress) -> OnProgress:
    """Return the function that takes the progress of one of the baselines, and passes it on with its name."""
    which = in_words(asked[place].label) + (f" ({place + 1} of {len(asked)})" if len(asked) > 1 else "")

    def named(doing: str, done: int = 0, total: int = 0, /) -> None:
        on_progress(f"{which}: {doing}", done, total)

    return named


def baseline_scores(model: FittedBaseline, dataset: Dataset, split: str, step: int = 1) -> np.ndarray:
    """Return the prediction of a baseline for every ``step``-th row of a split.

    Returns:
        ``[rows]``, or ``[rows, classes]`` of several classes or labels.
    """
    labels, before, parts = _label_count(dataset), 0, []
    with free_threads():
        for block in dataset.blocks(split):
            parts.append(model.predict(_columns([block], labels))[-before % step :: step])
            before += block.rows
    found = np.concatenate(parts)
    if labels or model.class_numbers is None:
        return found
    # The rows that it learnt from may lack some classes.
    scores = np.zeros((len(found), dataset.features.classes))
    scores[:, model.class_numbers] = found
    return scores


def _label_count(dataset: Dataset) -> int:
    """Return the number of labels of which a row may have several; 0 for other datasets."""
    return dataset.features.classes if dataset.spec.label.kind == "multi_label" else 0


def _columns(
    source: Iterable[block_format.Block], labels: int, limits: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Return features, label and weight of the blocks.

    Args:
        source: The blocks.
        labels: Number of labels of which a row may have several.
        limits: Numbers of rows and of numbers of all features. The block that reaches one of them is the last.
    """
    blocks, rows, numbers = [], 0, 0
    for block in source:
        blocks.append(block)
        rows += block.rows
        numbers += sum(of.size if isinstance(of, np.ndarray) else of.values.size for of in block.features.values())
        if limits is not None and (rows >= limits[0] or numbers >= limits[1]):
            break
    columns = {name: _joined([block.features[name] for block in blocks]) for name in blocks[0].features}
    stored: list[Any] = [block.label for block in blocks if block.label is not None]
    columns[_LABEL] = _sparse_labels(stored, labels) if labels else np.concatenate(stored)
    columns[_WEIGHT] = np.concatenate([block.weight for block in blocks])
    return columns


def _sparse_labels(parts: Sequence[RaggedIds], labels: int) -> csc_matrix:
    """Return ones where a row has a label, ``[rows, labels]``."""
    lengths, ids = (np.concatenate([getattr(part, name) for part in parts]) for name in ("row_lengths", "values"))
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return csc_matrix((np.ones(len(ids), bool), (rows, ids)), (len(lengths), labels))


def _joined(parts: Sequence[Any]) -> Any:
    """Return the rows of all parts, NumPy arrays or ``SparseRows``."""
    if not isinstance(parts[0], SparseRows):
        return np.concatenate(parts)
    return SparseRows(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("indices", "values", "row_lengths"))
    )
