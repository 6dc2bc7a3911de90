"""The calibration of a trained classifier on the validation rows, kept in the folder of its model."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array  # type: ignore[import-untyped]

from mirrorspark.data_pipelines.features import RaggedIds, SparseRows
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.evaluation import precisions_at
from mirrorspark.models import (
    CALIBRATION_FILE,
    CalibratedArchitecture,
    CentroidArchitecture,
    Floats,
    LabelledRows,
    counted_rows,
    fit,
    fit_centroids,
    fit_mixture,
    log_loss,
    save_calibration,
    sparse_features,
)
from mirrorspark.pages.figures import binary_inputs, calibration_bins

# A multi-label model is calibrated on about this many pairs of a row and a label, which are sorted in memory.
_PAIRS = 10_000_000
_BINS = 10


@dataclass(frozen=True)
class Fit:
    """The fit of a model to the validation rows.

    Attributes:
        calibration_error: Expected calibration error in quantile bins, of all pairs of a row and a class or label.
        precision: Mean of the precision at 1, 3 and 5 labels, by which centroids are judged, too.
    """

    log_loss: float
    calibration_error: float
    precision: float | None = None


@dataclass(frozen=True)
class CalibrationResult:
    """Effect of a calibration on the validation rows, on which it was fitted.

    Attributes:
        is_kept: True if the log loss is lower with it; otherwise the model is as it was before.
    """

    kind: str
    temperature: float
    before: Fit
    after: Fit
    is_kept: bool = True

    @classmethod
    def load(cls, folder: Path) -> "CalibrationResult | None":
        """Return that of the model in ``folder``; None for a model that is not calibrated."""
        try:
            document = json.loads((folder / CALIBRATION_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        measured = {name: Fit(**values) for name, values in document["measured"].items()}
        return cls(
            document["kind"], document.get("temperature", 1.0), **measured, is_kept=document.get("is_kept", True)
        )

    def in_words(self) -> str:
        """Return it as a line of the report."""
        kind = f"{self.kind} {self.temperature:.3g}" if self.kind == "temperature" else self.kind
        before, after = self.before, self.after
        is_ranking = before.precision is not None and after.precision is not None
        if not self.is_kept:
            precision = f" and mean precision {after.precision:.4f} (is {before.precision:.4f})" if is_ranking else ""
            return (
                f"none: {self.kind} was fitted on the validation rows and dropped, because with it they would have a "
                f"log loss of {after.log_loss:.4f} (is {before.log_loss:.4f}){precision}"
            )
        precision = f"mean precision {after.precision:.4f} (was {before.precision:.4f}), " if is_ranking else ""
        return (
            f"{kind}, fitted on the validation rows: log loss {after.log_loss:.4f} (was {before.log_loss:.4f}), "
            f"{precision}expected calibration error {after.calibration_error:.4f} (was {before.calibration_error:.4f})"
        )


def calibrate(
    architecture: Any,
    model: Any,
    dataset: Dataset,
    kind: str,
    folder: Path,
    on_progress: Callable[[str, int, int], None],
) -> Any:
    """Return the architecture with calibrated predictions, and keep the calibration in the model's ``folder``.

    A calibration that does not lower the log loss of the validation rows is dropped, of centroids one that does not
    raise the precision of the best labels either: the model is returned with its own probabilities, and the folder gets
    the kind and the measurements.

    Args:
        architecture: A classifier's, with ``predict``, ``logits`` and ``probabilities``.
        model: The model.
        dataset: Its dataset.
        kind: ``temperature``, ``isotonic`` or ``centroids``.
        folder: The model's folder.
        on_progress: Gets the kind of rows that are read, the rows so far, and the number of all.

    Raises:
        CalibrationError: The validation rows that count have one class only.
        ModelSettingsError: The dataset has no sparse feature, or too large ones, for centroids.
    """
    on_rows = partial(on_progress, "validation rows to calibrate by")
    rows = _validation(partial(architecture.logits, model), architecture.TASK, dataset, on_rows)
    fitted = (
        _fitted_centroids(architecture, dataset, *rows, on_progress)
        if kind == "centroids"
        else _fitted_curve(architecture, kind, *rows)
    )
    measured = {"before": asdict(fitted.before), "after": asdict(fitted.after)}
    if not fitted.is_better:
        save_calibration(folder, {"kind": kind, "is_kept": False, "measured": measured})
        return architecture
    fitted.save(folder, measured)
    return fitted.architecture


@dataclass(frozen=True)
class _Fitted:
    """A calibration after its fit: how it is saved, and the architecture with it."""

    save: Callable[[Path, Mapping[str, Any]], None]
    architecture: Any
    before: Fit
    after: Fit

    @property
    def is_better(self) -> bool:
        """True if the calibration does what it is for."""
        is_more_precise = self.before.precision is not None and (self.after.precision or 0.0) > self.before.precision
        return is_more_precise or self.after.log_loss < self.before.log_loss


def _fitted_curve(architecture: Any, kind: str, logits: Floats, labels: np.ndarray, weights: Floats) -> _Fitted:
    before = measure(logits, labels, weights)
    calibration = fit(kind, logits, labels, weights)
    after = measure(calibration.applied(logits), labels, weights)
    return _Fitted(calibration.save, CalibratedArchitecture(architecture, calibration), before, after)


def _fitted_centroids(
    architecture: Any,
    dataset: Dataset,
    logits: Floats,
    labels: np.ndarray,
    weights: Floats,
    on_progress: Callable[[str, int, int], None],
) -> _Fitted:
    counted_rows(labels, weights)  # an error of theirs comes before all training rows are read, twice
    centroids = fit_centroids(partial(_training_rows, dataset, on_progress)).in_variables()
    on_rows = partial(on_progress, "validation rows against the centroids")
    cosines, *_ = _validation(centroids.cosines, architecture.TASK, dataset, on_rows)
    pairs, classes = (logits, cosines, labels, weights), dataset.features.classes
    mixtures = [fit_mixture(*pairs, with_log_odds=with_log_odds) for with_log_odds in (False, True)]
    precisions = [_precision(one(logits, cosines), labels, weights, classes) for one in mixtures]
    mixture = mixtures[int(np.argmax(precisions))]
    before = replace(measure(logits, labels, weights), precision=_precision(logits, labels, weights, classes))
    after = replace(measure(mixture(logits, cosines), labels, weights), precision=max(precisions))
    return _Fitted(mixture.save, CentroidArchitecture(architecture, centroids, mixture), before, after)


def measure(logits: Floats, labels: np.ndarray, weights: Floats) -> Fit:
    """Return the fit of log-odds ``[rows]``, or of logits ``[rows, classes]``."""
    # The driver imports this module to read a result.
    from scipy.special import expit, softmax  # type: ignore[import-untyped]

    if logits.ndim == 1:
        pairs = binary_inputs(labels, expit(logits), weights)
    else:
        classes = logits.shape[1]
        is_label = (labels[:, None] == np.arange(classes)).ravel()
        pairs = binary_inputs(is_label, softmax(logits, axis=1).ravel(), np.repeat(weights, classes))
    error = calibration_bins(pairs, _BINS).expected_calibration_error
    return Fit(log_loss(logits, labels, weights), error)


def _precision(logits: Floats, labels: np.ndarray, weights: Floats, classes: int) -> float:
    """Return the mean precision of the best labels of each row, from pairs of a row and a label."""
    found = precisions_at(labels.reshape(-1, classes), logits.reshape(-1, classes))
    return float(np.average(np.mean(list(found.values()), axis=0), weights=weights.reshape(-1, classes)[:, 0]))


def _training_rows(dataset: Dataset, on_progress: Callable[[str, int, int], None]) -> Iterator[LabelledRows]:
    """Yield the training rows of a multi-label dataset, block by block."""
    features = sparse_features(dataset.spec, dataset.features.classes)
    rows, total = 0, dataset.manifest.rows("train")
    for block in dataset.blocks("train"):
        sparse = {feature.name: _csr(block.features[feature.name], feature.size) for feature in features}
        assert isinstance(block.label, RaggedIds)  # noqa: S101 - as of every multi-label dataset
        yield LabelledRows(sparse, _label_rows(block.label, dataset.features.classes), block.weight)
        rows += block.rows
        on_progress("training rows for the centroids", rows, total)


def _label_rows(labels: RaggedIds, classes: int) -> csr_array:
    """Return float32 ``[rows, classes]``, 1 at the ids of each row."""
    found = _csr(SparseRows(labels.values, np.ones(len(labels.values), np.float32), labels.row_lengths), classes)
    found.data[:] = 1
    return found


def _csr(rows: Any, size: int) -> csr_array:
    """Return the same rows with the values of repeated indices added up."""
    parts = rows.values, rows.indices, rows.row_starts
    found = csr_array(parts, (len(rows.row_lengths), size), copy=True)  # the block's own arrays stay as they are
    found.sum_duplicates()
    return found


def _validation(
    outputs_of: Callable[[Any], Any], task: str, dataset: Dataset, on_progress: Callable[[int, int], None]
) -> tuple[Floats, np.ndarray, Floats]:
    """Return outputs, labels and weights: a row per validation row, or per pair of a row and a label.

    Args:
        outputs_of: Returns logits ``[batch, classes]``, or other numbers of that shape, of a model's inputs.
        task: The model's task.
        dataset: Its dataset.
        on_progress: Gets the validation rows so far, and the number of all.
    """
    import tensorflow as tf

    from mirrorspark.models.serving import input_tensors

    traced = tf.function(outputs_of, reduce_retracing=True, autograph=False)
    classes = dataset.features.classes if task == "multi_label" else 1
    total = dataset.manifest.rows("validation")
    every = max(1, total * classes // _PAIRS)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    rows = 0
    for block in dataset.blocks("validation"):
        outputs = traced(input_tensors(dataset.spec.query_features, block.features)).numpy()
        # Rows at equal distances in the whole split.
        kept = slice(-rows % every, None, every)
        labels = block.label.multi_hot(classes) if isinstance(block.label, RaggedIds) else np.asarray(block.label)
        parts.append((outputs[kept], labels[kept], np.asarray(block.weight)[kept]))
        rows += block.rows
        on_progress(rows, total)
    outputs, labels, weights = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    if task == "multi_class":
        return outputs.astype(np.float64), labels, weights.astype(np.float64)
    return outputs.ravel().astype(np.float64), labels.ravel(), np.repeat(weights.astype(np.float64), outputs.shape[1])
