"""T3, H2: mistakes in a call of ``fit`` or ``train`` are named before a session is started."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from inspect import Parameter, signature
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Unpack, get_type_hints

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from mirrorspark.data_pipelines.dataset.manifest import DatasetError
from mirrorspark.data_pipelines.features.kinds import FeatureSpecError
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.memory_tables import TableError
from mirrorspark.data_pipelines.quality.splits import SplitError
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.fleet.training.train import train_fleet
from mirrorspark.models.settings import ModelSettingsError
from mirrorspark.spark_session.errors import SparkStartError
from mirrorspark.spark_session.stopped import StoppedSessionError
from mirrorspark.training.configuration.config import ConfigError, TrainingConfig
from mirrorspark.training.configuration.setting_types import FurtherSettings, TrainingSettings
from mirrorspark.training.entry_points import early_checks, fit_table
from mirrorspark.training.entry_points.estimator import TrainingEstimator
from mirrorspark.training.entry_points.fit_table import fit
from mirrorspark.training.entry_points.train_dataset import train
from mirrorspark.training.job.readiness.checks import PreflightError
from mirrorspark.training.results.fit_result import FitResult
from tests.unit.storage.writes import without_sqlite
from tests.unit.training.token_dataset import write_token_dataset

ROOT = Path(__file__).resolve().parents[3]
TABLE = pd.DataFrame({"town": ["here", "there"], "late": [0, 1]})


@pytest.fixture(autouse=True)
def _no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a session was started")

    monkeypatch.setattr("mirrorspark.spark_session.ahead.open_session", started)
    monkeypatch.setattr(fit_table, "started_ahead_on_driver", lambda *_, **__: nullcontext())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epoch": 3}, ConfigError, r"settings \['epoch'\] are unknown; did you mean epochs\?"),
        ({"batch_size": 64}, ConfigError, r"settings \['batch_size'\] are unknown; did you mean global_batch_size\?"),
        ({"excludes": "x"}, ConfigError, r"settings \['excludes'\] are unknown; did you mean exclude\?"),
        (
            {"workerz": 2, "kees": 1},
            ConfigError,
            r"settings \['kees', 'workerz'\] are unknown; did you mean keys and wor",
        ),
        ({"zzz": 3}, ConfigError, r"settings \['zzz'\] are unknown; use fields of TrainingConfig"),
        ({"label": ["late"]}, FeatureSpecError, r"label must be a column's name, .*, not \['late'\]"),
        ({"label": {"kind": "binary"}}, FeatureSpecError, "label must be a column's name"),
        (
            {"user": "town", "label": {"name": "late", "kind": "binary"}},
            FeatureSpecError,
            "user goes with a label of kind",
        ),
        ({"items": TABLE, "keys": "town"}, ConfigError, "keys go with neither items nor user"),
        (
            {"items": TABLE, "label": {"name": "late", "kind": "binary"}},
            FeatureSpecError,
            "items go with a label of kind",
        ),
        (
            {"items": TABLE[["town"]]},
            FeatureSpecError,
            r"items has no column 'late', only \['town'\]; its key must have",
        ),
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


def test_settings_are_checked_for_the_inferred_label_before_a_session(tmp_path: Path) -> None:
    rides = {"name": "town", "kind": "candidate"}
    for model, message in (({"blocks": -1}, "blocks"), ({"cross_layers": -1}, "cross_layers"), ({"x": 1}, "two_tower")):
        with pytest.raises(ModelSettingsError, match=message):
            fit(TABLE, label=rides, model=model, output=tmp_path)
    for settings in ({"monitor": "val_rmse"}, {"model": "two_tower"}, {"baseline": "popularity"}):
        for label in ("late", {"name": "late", "kind": "binary"}):
            with pytest.raises(ConfigError):
                fit(TABLE, label=label, output=tmp_path, **settings)  # type: ignore[arg-type]
    rows = pd.DataFrame({"town": ["here", "there", "here"] * 20, "late": [0, 1, 0] * 20})
    with pytest.raises(AssertionError, match="a session was started"):
        fit(rows, label="late", workers="1:3", output=tmp_path, tracking_uri=f"sqlite:///{tmp_path}/runs.db")


def test_a_store_that_cannot_be_used_is_refused_before_mlflow_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow.db").touch()
    without_sqlite(monkeypatch, tmp_path)
    spec = FeatureSpec.from_dict({"features": {"x": {"kind": "numeric"}}, "label": "late", "keys": "id"})
    with pytest.raises(PreflightError, match="keeps no SQLite"):
        fit_table._require_valid(spec, 1, name="late", output=str(tmp_path))


def test_a_session_that_cannot_train_is_refused_before_anything_is_inferred(tmp_path: Path) -> None:
    settings = {"spark.dynamicAllocation.enabled": "true"}
    spark: Any = SimpleNamespace(sparkContext=SimpleNamespace(master="yarn", getConf=lambda: settings))
    message = r"allocation: spark\.dynamicAllocation\.enabled is true, .*; set it to false$"
    with pytest.raises(PreflightError, match=message):
        fit(TABLE, label="late", spark=spark, output=tmp_path / "out")
    with pytest.raises(PreflightError, match=message):
        TrainingEstimator(label="late")._fit(SimpleNamespace(sparkSession=spark))
    with pytest.raises(PreflightError, match=message):
        train_fleet(TABLE, ["late"], spark=spark, output=tmp_path / "out")
    spark.sparkContext._jsc = None
    with pytest.raises(StoppedSessionError):
        fit(TABLE, label="late", spark=spark, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("SPARK_HOME", "SPARK_HOME is /none, not a folder, and .* unset SPARK_HOME"),
        ("PYSPARK_PYTHON", "PYSPARK_PYTHON is /none, which does not start as a Python"),
    ],
)
def test_settings_of_another_installation_are_named_before_anything_is_inferred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: None)
    monkeypatch.setenv(variable, "/none")
    with pytest.raises(SparkStartError, match=message):
        fit(TABLE, label="late")
    assert list(tmp_path.iterdir()) == []


def test_columns_to_exclude_are_those_of_the_items() -> None:
    """Interactions of no item are left out; the session comes after the early checks."""
    items = pd.DataFrame({"late": [0, 1], "title": ["a", "b"]})
    with pytest.raises(AssertionError, match="a session was started"):
        fit(TABLE.assign(late=pd.array([0, None], "Int64")), label="late", items=items, exclude="title")


# Wider than a field: they become one.
_WIDER = {"output": str | PathLike[str], "run_date": str | date | None} | dict.fromkeys(
    ("warm_start", "checkpoints"), str | PathLike[str] | None
)


def test_the_better_of_two_needs_no_baseline_of_its_own() -> None:
    def check(label: Any, **further: Any) -> None:
        settings = {"register": "better", **further}
        early_checks.check_arguments(TABLE, label, None, None, (), settings, null_labels="refuse", known=())

    check("late")
    for kind in ("numeric", "multi_label", "candidate"):
        check({"name": "late", "kind": kind})
    with pytest.raises(ConfigError, match="register better needs a baseline that can be registered, and 'none' cannot"):
        check({"name": "late", "kind": "multi_label"}, baseline="none")


def test_monotone_constraints_need_no_setting_for_their_model_and_exclude_a_named_one() -> None:
    """#55."""

    def check(**given: Any) -> None:
        settings = {"monotone": {"age": "increasing"}, **given}
        model = settings.pop("model", None)
        early_checks.check_arguments(TABLE, "late", None, model, (), settings, null_labels="refuse", known=())

    check()
    check(model="multi_field", register="better")
    for given in ({"model": "multi_field"}, {"register": "model"}):
        with pytest.raises(ConfigError, match="register is model, and gradient boosting alone holds the constraints"):
            check(**given)


def test_the_arguments_of_fit_are_the_settings_of_a_training() -> None:
    """#52: type checkers and editors know every setting by its name and type, and no other."""
    fields = get_type_hints(TrainingConfig)
    typed = get_type_hints(TrainingSettings)
    assert typed == fields | _WIDER
    named = {name for name, each in signature(fit).parameters.items() if each.kind is Parameter.KEYWORD_ONLY}
    assert set(get_type_hints(FurtherSettings)) == set(fields) - named
    # The result is imported after the checks of the arguments.
    hints = get_type_hints(fit, localns={"FitResult": FitResult})
    assert hints["further"] == Unpack[FurtherSettings]
    for name in named & set(fields) - {"model"}:
        assert hints[name] == typed[name] | None, name
        assert signature(fit).parameters[name].default is None, name


@pytest.mark.full
@pytest.mark.process
@pytest.mark.timeout(600)
def test_mypy_finds_a_misspelt_setting(tmp_path: Path) -> None:
    (tmp_path / "call.py").write_text(
        "import mirrorspark as ms\n"
        'ms.fit("t", "late", epochs=3, clip_norm=1.0)\n'
        'ms.fit("t", "late", epoch=3)\n'
        'ms.fit("t", "late", keep_last="two")\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "setup.cfg"), str(tmp_path / "call.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert [line.split(":")[1] for line in found] == ["3", "4"], done.stdout
    assert 'Unexpected keyword argument "epoch"' in found[0]


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
