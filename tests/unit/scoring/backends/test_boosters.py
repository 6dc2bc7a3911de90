"""Boosters of XGBoost and LightGBM score as their own libraries do, with the threads of the task."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mirrorspark.scoring.backends.protocol import UnsupportedModelError
from mirrorspark.scoring.model.folder.directory import ModelDirectory, exported_with
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.package import package_model
from tests.unit.scoring.other_models import (
    LINEAR,
    NAMES,
    boxes,
    matrix,
    save_lightgbm,
    save_logistic_onnx,
    save_xgboost,
)

BOXES = boxes(500, missing=0.3)


def scores_of(source: Path, **options: Any) -> np.ndarray:
    model = LoadedModel(package_model(source, source.parent / "package", **options), threads=1)
    assert model.threads == 1
    return model.score(BOXES, batch_size=128)["score"]


@pytest.mark.parametrize("ending", ["json", "ubj"])
@pytest.mark.parametrize("classes", [2, 3])
def test_xgboost_scores_rows_with_missing_values_as_the_booster_does(tmp_path: Path, ending: str, classes: int) -> None:
    import xgboost

    booster = save_xgboost(tmp_path / f"model.{ending}", classes=classes)
    expected = booster.predict(xgboost.DMatrix(matrix(BOXES), feature_names=list(NAMES)))
    scores = scores_of(tmp_path / f"model.{ending}")
    assert scores.shape == ((500,) if classes == 2 else (500, 3))
    np.testing.assert_array_equal(scores, expected)
    assert len(np.unique(scores)) > 10


def test_xgboost_knows_its_columns_by_name_or_is_told(tmp_path: Path) -> None:
    save_xgboost(tmp_path / "named.ubj")
    save_xgboost(tmp_path / "unnamed.ubj", names=False)
    named = package_model(tmp_path / "named.ubj", tmp_path / "named")
    told = package_model(tmp_path / "unnamed.ubj", tmp_path / "told", columns=NAMES)
    assert ModelDirectory.open(named).inputs.columns == NAMES
    np.testing.assert_array_equal(LoadedModel(named).score(BOXES)["score"], LoadedModel(told).score(BOXES)["score"])


def test_xgboost_leaves_out_the_trees_behind_the_best_iteration(tmp_path: Path) -> None:
    """XGBClassifier does the same with this file."""
    import xgboost

    booster = save_xgboost(tmp_path / "model.ubj")
    booster.set_attr(best_iteration="1")
    booster.save_model(tmp_path / "model.ubj")
    classifier = xgboost.XGBClassifier()
    classifier.load_model(tmp_path / "model.ubj")
    rows = pd.DataFrame(matrix(BOXES), columns=list(NAMES))
    scores = scores_of(tmp_path / "model.ubj")
    np.testing.assert_allclose(scores, classifier.predict_proba(rows)[:, 1], rtol=1e-6)
    assert not np.allclose(scores, booster.predict(xgboost.DMatrix(rows)))


@pytest.mark.parametrize("classes", [2, 3])
def test_lightgbm_scores_rows_with_missing_values_as_the_booster_does(tmp_path: Path, classes: int) -> None:
    booster = save_lightgbm(tmp_path / "model.txt", classes=classes)
    scores = scores_of(tmp_path / "model.txt")
    assert scores.shape == ((500,) if classes == 2 else (500, 3))
    np.testing.assert_array_equal(scores, booster.predict(matrix(BOXES).astype(np.float64)))
    assert len(np.unique(scores)) > 10


def test_a_package_of_a_booster_tells_the_version_of_its_library(tmp_path: Path) -> None:
    """L10."""
    import lightgbm
    import xgboost

    save_xgboost(tmp_path / "model.ubj")
    save_lightgbm(tmp_path / "model.txt")
    for source, library in (("model.ubj", xgboost), ("model.txt", lightgbm)):
        folder = package_model(tmp_path / source, tmp_path / library.__name__)
        assert exported_with(folder).compared == {library.__name__: library.__version__}


def test_codes_of_a_data_frame_s_categories_are_refused(tmp_path: Path) -> None:
    """A table has the categories, but not the codes that they had in training."""
    import lightgbm
    import xgboost

    frame = pd.DataFrame({"a": pd.Categorical(["x", "y"] * 50), "b": range(100)})
    target = np.arange(100) % 2
    settings = {"objective": "binary", "verbosity": -1, "num_threads": 1}
    lightgbm.train(settings, lightgbm.Dataset(frame, target), 2).save_model(tmp_path / "model.txt")
    rows = xgboost.DMatrix(frame, target, enable_categorical=True)
    xgboost.train({"nthread": 1}, rows, 2).save_model(tmp_path / "model.json")
    for source in ("model.txt", "model.json"):
        with pytest.raises(UnsupportedModelError, match="train on codes of your own"):
            package_model(tmp_path / source, tmp_path / "package")


@pytest.mark.process
def test_a_model_starts_no_more_threads_than_the_task_has(tmp_path: Path) -> None:
    """S10, pain 5: threads of the process are counted before and after."""
    save_xgboost(tmp_path / "model.ubj")
    save_lightgbm(tmp_path / "model.txt")
    save_logistic_onnx(tmp_path / "model.onnx")
    package_model(tmp_path / "model.ubj", tmp_path / "xgboost")
    package_model(tmp_path / "model.txt", tmp_path / "lightgbm")
    package_model(tmp_path / "model.onnx", tmp_path / "onnx", columns=NAMES)
    package_model(LINEAR, tmp_path / "linear")
    program = (
        "import sys, psutil, lightgbm, xgboost, onnxruntime\n"
        "from pathlib import Path\n"
        "from mirrorspark.scoring.model.loading.loaded import LoadedModel\n"
        "from tests.unit.scoring.other_models import boxes\n"
        "rows = boxes(20_000)\n"
        "for name, threads in (('linear', 1), ('onnx', 1), ('xgboost', 1), ('lightgbm', 1), ('onnx', 4)):\n"
        "    before = psutil.Process().num_threads()\n"
        "    model = LoadedModel(Path(sys.argv[1]) / name, threads=threads)\n"
        "    model.score(rows)\n"
        "    print(name, model.threads, psutil.Process().num_threads() - before)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # With four threads the calling one works too.
    expected = ["linear 1 0", "onnx 1 0", "xgboost 1 0", "lightgbm 1 0", "onnx 4 3"]
    assert result.stdout.splitlines() == expected, result.stderr
