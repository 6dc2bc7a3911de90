"""T3, H2: mistakes in a call of ``fit`` or ``train`` are named before a session is started."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.any_table import TableError
from mirrorspark.data_pipelines.dataset.manifest import DatasetError
from mirrorspark.data_pipelines.features.kinds import FeatureSpecError
from mirrorspark.data_pipelines.quality.splits import SplitError
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.models.settings import ModelSettingsError
from mirrorspark.training.configuration.config import ConfigError, TrainingConfig
from mirrorspark.training.entry_points import fit_table as module
from mirrorspark.training.entry_points.fit_table import fit
from mirrorspark.training.entry_points.train_dataset import train
from tests.unit.training.token_dataset import write_token_dataset

TABLE = pd.DataFrame({"town": ["here", "there"], "late": [0, 1]})


@pytest.fixture(autouse=True)
def _no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a session was started")

    monkeypatch.setattr(module, "open_session", started)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epoch": 3}, ConfigError, r"settings \['epoch'\] are unknown; did you mean epochs\?"),
        ({"zzz": 3}, ConfigError, r"settings \['zzz'\] are unknown; use fields of TrainingConfig"),
        ({"label": ["late"]}, FeatureSpecError, r"label must be a column's name, .*, not \['late'\]"),
        ({"label": {"kind": "binary"}}, FeatureSpecError, "label must be a column's name"),
        (
            {"label": "Late"},
            FeatureSpecError,
            r"label: the table has no column 'Late'; .*'late'\? Upper and lower case",
        ),
        ({"keys": "twn"}, FeatureSpecError, r"keys: the table has no column 'twn'; .* \(did you mean 'town'\?\)"),
        ({"time": "when"}, FeatureSpecError, r"time: the table has no column 'when'; it has \['town', 'late'\]"),
        ({"exclude": ["late", "twn"]}, FeatureSpecError, r"exclude: the table has no column 'twn'; .*'town'"),
        ({"label": {"name": "late", "kind": "binry"}}, FeatureSpecError, r"'binry' is unknown \(did you mean 'binary'"),
        ({"model": "mult_field"}, ModelSettingsError, r"'mult_field' is unknown \(did you mean 'multi_field'\?\)"),
        ({"model": {"droput": 0.1}}, ModelSettingsError, r"has no setting \['droput'\] \(did you mean 'dropout'\?\)"),
        ({"optimizer": "adamx"}, ConfigError, r"optimizer 'adamx' is unknown \(did you mean 'adam'\?\)"),
        ({"monitor": "val_acu"}, ConfigError, r"'val_acu' is not a metric .* \(did you mean 'val_auc'\?\)"),
        ({"baseline": "xgbost"}, ConfigError, r"baseline 'xgbost' .* \(did you mean 'xgboost'\?\)"),
        ({"workers": 0}, ConfigError, "workers 0 begins below 1; use 1 or more"),
        ({"name": "a/b"}, ConfigError, "name 'a/b' must be letters"),
        ({"null_labels": "dropp"}, ConfigError, r"null_labels 'dropp' is unknown \(did you mean 'drop'\?\)"),
        ({"callbacks": [print]}, ConfigError, "callbacks go with a model of your own"),
        ({"callbacks": [print], "model": "wide_deep"}, ConfigError, "callbacks go with a model of your own"),
    ],
)
def test_mistakes_of_fit_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit(TABLE, **{"label": "late"} | arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"split": ["train", "valid"]}, SplitError, r"the values \['valid'\] \(did you mean 'validation'\?\)"),
        ({"split": ["train", None]}, SplitError, "has no value in 1 of 2 rows"),
        ({"split": ["test", "test"]}, SplitError, "has no row of train"),
        (
            {"late": [None, 1.0]},
            FeatureSpecError,
            "has no value in 1 of 2 rows; leave them out with null_labels='drop'",
        ),
    ],
)
@pytest.mark.parametrize("form", [pd.DataFrame, pl.from_pandas, pa.Table.from_pandas])
def test_values_of_a_table_in_memory_are_checked_before_a_session(
    form: Callable[[pd.DataFrame], Any], changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit(form(TABLE.assign(**changes)), label="late")


def test_a_call_without_a_mistake_gets_to_the_session() -> None:
    """Settings that suit one kind of label are right until the label is known to be of another."""
    for settings in ({"monitor": "val_rmse"}, {"model": "two_tower"}, {"baseline": "popularity"}, {"workers": "1:3"}):
        with pytest.raises(AssertionError, match="a session was started"):
            fit(TABLE, label="late", **settings)
    with pytest.raises(ConfigError, match="'val_rmse' is not a metric of a binary model"):
        fit(TABLE, label={"name": "late", "kind": "binary"}, monitor="val_rmse")


@pytest.mark.parametrize("form", [str, Path, Dataset.open])
def test_a_converted_dataset_is_for_train(tmp_path: Path, form: Callable[[Path], Any]) -> None:
    write_token_dataset(tmp_path, {"train": 4}, tokens=2)
    with pytest.raises(TableError, match=f"{tmp_path} is a converted dataset, .* train on it with ms.train"):
        fit(form(tmp_path), label="is_odd")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": "3"}, "epochs is '3'; use 1 or more"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; use a finite number above 0"),
        ({"patience": [1]}, r"patience is \[1\]; use 0 or more"),
    ],
)
def test_a_setting_that_is_no_number_is_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(name="rides", **setting)


def test_mistakes_of_train_are_named(tmp_path: Path) -> None:
    config: Any = TrainingConfig(name="rides")
    with pytest.raises(DatasetError, match="nowhere"):
        train(tmp_path / "nowhere", config)
    table: Any = TABLE
    with pytest.raises(DatasetError, match=r"a DataFrame is not a dataset; give the result of ms.convert, or its path"):
        train(table, config)
