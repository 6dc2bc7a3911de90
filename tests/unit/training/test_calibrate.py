"""#23: a trained model is calibrated on the validation rows, with their weights, and keeps what that changed."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit

from mirrorspark.data_pipelines.dataset.block_format import Block
from mirrorspark.data_pipelines.features.kinds import Numeric
from mirrorspark.data_pipelines.features.transform import RaggedIds
from mirrorspark.models import multi_class, multi_field, multi_label
from mirrorspark.models.calibration import CALIBRATION_FILE
from mirrorspark.training.results import calibrate as module
from mirrorspark.training.results.calibrate import CalibrationResult, calibrate

# Log-odds of the rows, which the models say 2.5 times as large.
LOGITS = np.random.default_rng(3).normal(size=4_000).astype(np.float32)
SCALE = 2.5


def dataset(label: np.ndarray | RaggedIds, weights: np.ndarray) -> Any:
    """Return a dataset whose validation split has two blocks of these rows."""

    def blocks(split: str) -> Iterator[Block]:
        assert split == "validation"
        for start, stop in ((0, 1_500), (1_500, 4_000)):
            part = label.cut(start, stop) if isinstance(label, RaggedIds) else label[start:stop]
            yield Block({"logit": LOGITS[start:stop]}, part, weights[start:stop], {})

    spec = SimpleNamespace(query_features=(Numeric("logit"),))
    manifest = SimpleNamespace(rows=lambda split: len(LOGITS))
    return SimpleNamespace(blocks=blocks, spec=spec, manifest=manifest, features=SimpleNamespace(classes=2))


class Overconfident:
    """An architecture of the catalog whose logits are those of the rows times ``SCALE``."""

    def __init__(self, of: Any) -> None:
        self.TASK, self.probabilities = of.TASK, of.probabilities

    def logits(self, model: float, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        columns = {"binary": [1.0], "multi_label": [1.0, -1.0], "multi_class": [-0.5, 0.5]}[self.TASK]
        return model * inputs["logit"][:, None] * tf.constant([columns])


def calibrated(of: Any, label: Any, weights: np.ndarray, kind: str, folder: Path) -> tuple[Any, CalibrationResult]:
    reports: list[tuple[str, int, int]] = []
    given = dataset(label, weights)
    architecture = calibrate(
        cast(Any, Overconfident(of)), SCALE, given, kind, folder, lambda *rows: reports.append(rows)
    )
    assert [rows for _, *rows in reports] == [[1_500, 4_000], [4_000, 4_000]]
    result = CalibrationResult.load(folder)
    assert result is not None
    return architecture, result


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Return labels by the log-odds, and weights; rows of weight 0 have the opposite label."""
    random = np.random.default_rng(4)
    label = random.random(len(LOGITS)) < expit(LOGITS)
    weights = (random.random(len(LOGITS)) < 0.8).astype(np.float32)
    return np.where(weights > 0, label, ~label).astype(np.int64), weights


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_an_overconfident_model_is_calibrated_by_the_rows_that_count(kind: str, tmp_path: Path) -> None:
    architecture, found = calibrated(multi_field, *drawn(), kind, tmp_path)
    assert found.before.calibration_error > 0.1 > 0.03 > found.after.calibration_error
    assert found.after.log_loss < found.before.log_loss - 0.05
    at = np.linspace(-1.5, 1.5, 7)
    score = architecture.predict(SCALE, {"logit": tf.constant(at, tf.float32)})["score"]
    assert score.dtype == tf.float32
    np.testing.assert_allclose(score, expit(at), atol=0.06)
    assert (f"{kind} 2." in found.in_words()) == (kind == "temperature")


def test_all_labels_of_a_row_share_the_map_and_all_classes_the_temperature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label, weights = drawn()
    # A row of label 1 has the first one of two labels, one of label 0 the second.
    ragged = RaggedIds(1 - label, np.ones_like(label))
    architecture, all_pairs = calibrated(multi_label, ragged, weights, "isotonic", tmp_path)
    np.testing.assert_allclose(
        architecture.predict(SCALE, {"logit": tf.constant([1.0, -1.0])})["scores"],
        expit(np.array([[1.0, -1.0], [-1.0, 1.0]])),
        atol=0.06,
    )
    monkeypatch.setattr(module, "_PAIRS", 2_000)
    _, some_pairs = calibrated(multi_label, ragged, weights, "isotonic", tmp_path)
    assert some_pairs.after != all_pairs.after
    assert some_pairs.after.log_loss == pytest.approx(all_pairs.after.log_loss, rel=0.1)
    _, classes = calibrated(multi_class, label, weights, "temperature", tmp_path)
    assert classes.temperature == pytest.approx(SCALE, rel=0.1)
    assert classes.after.calibration_error < 0.03 < classes.before.calibration_error


def test_a_calibration_that_does_not_lower_the_log_loss_is_dropped_and_said(tmp_path: Path) -> None:
    """All rows are predicted rightly and surely, and the two rows that keep rates off 0 and 1 can only cost."""
    given, sure = dataset((LOGITS > 0).astype(np.int64), np.ones(len(LOGITS), np.float32)), 1e6
    own = cast(Any, Overconfident(multi_field))
    assert calibrate(own, sure, given, "isotonic", tmp_path, lambda *_: None) is own
    found = CalibrationResult.load(tmp_path)
    assert found is not None
    assert not found.is_kept
    assert found.after.log_loss > found.before.log_loss
    assert found.in_words() == (
        f"none: isotonic was fitted on the validation rows and dropped, because with it they would have a log loss of "
        f"{found.after.log_loss:.4f} (is 0.0000)"
    )


def test_a_model_without_calibration_has_no_file_of_one(tmp_path: Path) -> None:
    assert CalibrationResult.load(tmp_path) is None
    calibrated(multi_field, *drawn(), "temperature", tmp_path)
    assert (tmp_path / CALIBRATION_FILE).is_file()
