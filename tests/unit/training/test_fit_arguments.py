"""T3, H2: mistakes in a call of ``fit`` or ``train`` are named before a session is started."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mirrorspark.data_pipelines.any_table import TableError
from mirrorspark.data_pipelines.dataset.manifest import DatasetError
from mirrorspark.data_pipelines.features.kinds import FeatureSpecError
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.training.configuration.config import ConfigError, TrainingConfig
from mirrorspark.training.entry_points.fit_table import fit
from mirrorspark.training.entry_points.train_dataset import train
from tests.unit.training.token_dataset import write_token_dataset

TABLE = pd.DataFrame({"town": ["here", "there"], "late": [0, 1]})


@pytest.fixture(autouse=True)
def _no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a session was started")

    monkeypatch.setattr("mirrorspark.spark_session.ahead.open_session", started)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epoch": 3}, ConfigError, r"settings \['epoch'\] are unknown; did you mean epochs\?"),
        ({"zzz": 3}, ConfigError, r"settings \['zzz'\] are unknown; use fields of TrainingConfig"),
        ({"label": ["late"]}, FeatureSpecError, r"label must be a column's name, .*, not \['late'\]"),
        ({"label": {"kind": "binary"}}, FeatureSpecError, "label must be a column's name"),
        ({"callbacks": [print]}, ConfigError, "callbacks go with a model of your own"),
        ({"callbacks": [print], "model": "wide_deep"}, ConfigError, "callbacks go with a model of your own"),
    ],
)
def test_mistakes_of_fit_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit(TABLE, **{"label": "late"} | arguments)


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
