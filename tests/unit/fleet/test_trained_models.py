"""M1, M17: the models of a training of fleets, and their targets, are complete, or refused before the training."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.fleet.columns import FleetError
from mirrorspark.fleet.training.declared import check_columns, declared_models
from mirrorspark.fleet.training.plan import StackSettings
from mirrorspark.fleet.training.targets import TargetsTask, TargetSums, check_targets
from mirrorspark.training.configuration.fields import ConfigError


def test_targets_are_measured_by_split() -> None:
    rows = pa.record_batch(
        {
            "split": ["train", "test", "train", "train"],
            "first": [1.0, None, 0.0, None],
            "second": [4.0, 2.0, None, math.nan],
        }
    )
    (found,) = TargetsTask(2)([rows])
    sums = {
        split: TargetSums(*np.array(values).reshape(-1, 2))
        for split, values in zip(*(column.to_pylist() for column in found.columns), strict=True)
    }
    train = sums["train"].merged(TargetSums.of(np.array([[1.0, math.inf]])))
    assert train.rows.tolist() == [3, 3]
    assert (train.labels.tolist(), train.total.tolist(), train.others.tolist()) == ([3, 2], [2, 4], [0, 2])
    assert (train.least.tolist(), train.most.tolist()) == ([0, 4], [1, math.inf])
    assert train.logs.tolist() == [0, pytest.approx(4 * math.log(4))]
    assert sums["test"].at(np.array([1])).total.tolist() == [2]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "there is no model to train"),
        (["a", "b", "a"], "several models have the name 'a'"),
        ([3], r"the models \[3\] are not names"),
        ({"model": ["a"], "link": ["probit"]}, r"unknown link 'probit' in 1 model \('a'\); use one of identity, logit"),
        (
            {"model": ["a", "b"], "penalty": [0.1, -1.0]},
            r"a penalty that is not a finite number .* in 1 model \('b'\)",
        ),
        ({"model": ["a"], "penalty": [math.inf]}, "a penalty that is not a finite number"),
        ({"model": ["a", "b"], "threshold": [0.5, 2.0]}, r"the threshold is not a value .* in 1 model \('b'\)"),
        ({"model": ["a"], "cut_points": [[0.5, 0.2]]}, "cut-points do not ascend"),
        ({"model": ["a"], "columms": [["x"]]}, r"has the column 'columms'.*did you mean 'columns'"),
        ({"target": ["a"]}, r"the table of models lacks the columns \['model'\]"),
    ],
)
def test_models_that_cannot_be_trained_are_refused(models: Any, message: str) -> None:
    given = pa.table(models) if isinstance(models, dict) else models
    with pytest.raises(FleetError, match=message):
        declared_models(given, link="logit", penalty=0.0)


def test_models_may_come_from_a_file_and_share_a_target(tmp_path: Path) -> None:
    file = tmp_path / "models.csv"
    file.write_text("model,target,penalty,columns,threshold\ny,,,,\nstrict,y,2,x state,0.3\n")
    declared = declared_models(str(file), link="logit", penalty=0.1).to_pylist()
    assert [(row["target"], row["penalty"], row["link"]) for row in declared] == [
        ("y", 0.1, "logit"),
        ("y", 2, "logit"),
    ]
    assert [row["columns"] for row in declared] == [None, ["x", "state"]]
    assert [row["threshold"] for row in declared] == [None, 0.3]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["x", "z"], r"column 'z' is not among columns= in 1 model \('a'\)"),
        ([], "an empty list of columns in 1 model"),
        (["y"], "a target among the columns in 1 model"),
    ],
)
def test_models_read_columns_that_there_are_but_not_their_own_targets(columns: list[str], message: str) -> None:
    declared = declared_models(
        pa.table({"model": ["a", "b"], "target": ["y", "w"], "columns": [columns, ["x"]]}), link="logit", penalty=0.0
    )
    with pytest.raises(FleetError, match=message):
        check_columns(declared, ["x", "y"])


NONE, NAN = [math.nan] * 4, math.nan


@pytest.mark.parametrize(
    ("link", "train", "validation", "message"),
    [
        ("logit", NONE, NONE, "null in every row"),
        ("logit", NONE, [1.0, 0, NAN, NAN], "no label in any training row"),
        ("logit", [1.0, 0, NAN, NAN], NONE, "no label in any validation row"),
        ("logit", [1.0, 1, NAN, 1], [1.0, 0, 0, 0], "one class only in the training rows"),
        ("logit", [1.0, 0, 1, 0], [1.0, 2, 0, 0], "labels other than 0 and 1"),
        ("log", [1.0, 0, 1, 0], [1.0, -1, 0, 0], "negative labels with the link log"),
        ("log", [0.0, 0, 0, 0], [1.0, 0, 0, 0], "the same number in all training rows"),
        ("identity", [7.0, 7, 7, NAN], [1.0, 0, 0, 0], "the same number in all training rows"),
        ("identity", [math.inf, 7, 7, NAN], [1.0, 0, 0, 0], "an infinite label"),
    ],
)
def test_targets_that_teach_nothing_are_refused(
    link: str, train: list[float], validation: list[float], message: str
) -> None:
    good = [0.0, 1, 0, 1]
    parts = {"train": train, "validation": validation, "test": NONE}
    sums = {split: TargetSums.of(np.array([values, good]).T) for split, values in parts.items()}
    with pytest.raises(FleetError, match=rf"{message}.* in 1 model \('bad'\)"):
        check_targets(sums, [link, "logit"], ["bad", "good"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0; use 1 or more"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; use a finite number above 0"),
        ({"hidden": (8, 0)}, r"hidden is \(8, 0\); give the units"),
        ({"activation": "gelu"}, "activation 'gelu' is unknown; use one of linear, relu"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StackSettings(**settings)
