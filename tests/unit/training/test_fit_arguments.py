"""T3, H2: mistakes in a call of ``fit`` or ``train`` are named before a session is started."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mirrorspark.data_pipelines.dataset.manifest import DatasetError
from mirrorspark.data_pipelines.features.kinds import FeatureSpecError
from mirrorspark.training import fit as module
from mirrorspark.training.config import ConfigError, TrainingConfig
from mirrorspark.training.fit import fit
from mirrorspark.training.train import train

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
        ({"label": ["late"]}, FeatureSpecError, r"label \['late'\] is no column; give the name of one"),
        ({"label": {"kind": "binary"}}, FeatureSpecError, "is no column; give the name of one"),
        ({"callbacks": [print]}, ConfigError, "callbacks go with a model of your own"),
        ({"callbacks": [print], "model": "wide_deep"}, ConfigError, "callbacks go with a model of your own"),
    ],
)
def test_mistakes_of_fit_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit(TABLE, **{"label": "late"} | arguments)


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
    with pytest.raises(DatasetError, match=r"a DataFrame is no dataset; give what ms.convert returns, or its path"):
        train(table, config)
