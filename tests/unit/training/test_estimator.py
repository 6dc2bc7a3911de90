"""T2, T8: an estimator's params are the run's settings; its work on a table, without Spark."""

import json
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from mirrorspark.data_pipelines import converted_once as convert_once
from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.training.configuration.config import ConfigError, TrainingConfig
from mirrorspark.training.entry_points import estimator
from mirrorspark.training.entry_points.estimator import TrainedModel, TrainingEstimator

FEATURES = {"town": {"kind": "categorical"}, "distance": {"kind": "numeric"}}


def rides(**values: Any) -> TrainingEstimator:
    return TrainingEstimator(FEATURES, label="late", keys="ride_id", **values)


def test_every_knob_of_a_training_is_a_param_with_its_default() -> None:
    params = rides().getParams()
    config = TrainingConfig(name="late")
    # A built one has filled these in.
    filled_in = dict.fromkeys(("mode", "monitor", "epochs", "patience", "optimizer")) | {"model": {}}
    known = {name: value for name, value in vars(config).items() if name != "name"} | filled_in
    assert {name: params[name] for name in known} == known
    assert rides().config == config


def test_the_spec_is_that_of_a_recipe() -> None:
    assert rides(weight="trips").spec == FeatureSpec.from_dict(
        {"features": FEATURES, "label": "late", "keys": "ride_id", "weight": "trips"}
    )


def test_params_are_set_by_name_as_sparks_own() -> None:
    stage = rides().setParams(epochs=3, output=Path("there"))
    assert (stage.config.epochs, stage.config.output) == (3, "there")
    assert stage.getOrDefault(stage.epochs) == 3
    assert "epochs: see TrainingConfig (default: None, current: 3)" in stage.explainParams()


def test_a_copy_with_other_params_leaves_the_stage_as_it_was() -> None:
    stage = rides(epochs=3)
    other = stage.copy({stage.epochs: 5, stage.label: "early"})
    assert (other.config.epochs, other.config.name, other.uid) == (5, "early", stage.uid)
    assert (stage.config.epochs, stage.config.name) == (3, "late")


def test_the_column_of_the_likeliest_class_is_named_as_in_spark_ml(
    tmp_path: Path, calls: list[tuple[str, Any]]
) -> None:
    assert rides().getPredictionCol() == TrainedModel(model_uri="m").getPredictionCol() == "prediction"
    table: Any = Table("ride_id", "town", "distance", "late", "split")
    model = rides(output=tmp_path, predictionCol="way").fit(table)
    assert model.getPredictionCol() == "way"
    assert model.copy({model.predictionCol: "other"}).getPredictionCol() == "other"


def test_a_param_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"params \['epoch'\] are unknown; use some of \['accept_data_errors'"):
        rides(epoch=3)


def test_a_value_that_cannot_be_is_refused_in_the_words_of_the_knob() -> None:
    with pytest.raises(ConfigError, match="epochs is 0; use 1 or more"):
        _ = rides(epochs=0).config


def test_a_day_is_saved_as_text() -> None:
    """T12: stages are saved as JSON."""
    for day in (date(2026, 1, 31), datetime(2026, 1, 31, 8, 30)):
        stage = rides(run_date=day)
        assert stage.config.run_date == "2026-01-31"
        saved = stage.write().instance  # type: ignore[attr-defined]
        assert json.loads(json.dumps(saved.getParams()))["run_date"] == "2026-01-31"
        assert stage.copy({stage.getParam("run_date"): date(2026, 2, 28)}).config.run_date == "2026-02-28"


def test_passwords_are_not_saved() -> None:
    for stage in (
        rides(tracking_uri="https://ann:s3cret@host"),
        TrainedModel(model_uri="m", tracking_uri="https://ann:s3cret@host"),
    ):
        saved = stage.write().instance  # type: ignore[attr-defined]
        assert saved.getParams()["tracking_uri"] == "https://host"
        assert stage.getParams()["tracking_uri"] == "https://ann:s3cret@host"


def test_passwords_in_any_other_param_are_not_saved_either() -> None:
    stage = rides(checkpoints="s3://KEY:S3CRET@bucket/there", model={"name": "mlp", "api_key": "k3y"})
    saved = stage.write().instance  # type: ignore[attr-defined]
    assert saved.getParams()["checkpoints"] == "s3://bucket/there"
    assert saved.getParams()["model"] == {"name": "mlp", "api_key": "***"}
    assert stage.getParams()["checkpoints"] == "s3://KEY:S3CRET@bucket/there"


def test_a_model_that_is_told_to_be_another_one_is_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimator, "resolve", lambda *where: where)
    model = TrainedModel(model_uri="models:/late/1", tracking_uri="sqlite:///x")
    trained: Any = SimpleNamespace(version_uri="models:/late/1", tracking_uri="sqlite:///x", model="trained")
    model.trained = trained
    assert model.pinned() == "trained"
    other: Any = model.copy({model.model_uri: "models:/late/2"}).pinned()
    assert other == ("models:/late/2", "sqlite:///x")
    elsewhere: Any = model.copy({model.tracking_uri: "sqlite:///y"}).pinned()
    assert elsewhere == ("models:/late/1", "sqlite:///y")


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Return the fetched models, each with its store."""
    made: list[tuple[str, str | None]] = []

    def resolve(uri: str, tracking_uri: str | None) -> str:
        made.append((uri, tracking_uri))
        return f"copy {len(made)}"

    monkeypatch.setattr(estimator, "resolve", resolve)
    return made


def test_a_model_is_fetched_once_however_often_it_scores(fetched: list[Any]) -> None:
    model = TrainedModel(model_uri="models:/late/1", tracking_uri="https://host")
    assert [model.pinned(), model.pinned(), model.copy({model.batch_size: 7}).pinned()] == ["copy 1"] * 3
    model.setParams(model_uri="models:/late/2")
    assert model.pinned() == "copy 2"
    assert fetched == [("models:/late/1", "https://host"), ("models:/late/2", "https://host")]


@pytest.mark.parametrize("uri", ["models:/late@champion", "exported/late"])
def test_aliases_and_paths_are_resolved_each_time(fetched: list[Any], uri: str) -> None:
    model = TrainedModel(model_uri=uri, tracking_uri="https://host")
    assert [model.pinned(), model.pinned()] == ["copy 1", "copy 2"]


def test_a_model_without_a_store_of_its_own_is_that_of_the_store_which_mlflow_is_set_to(
    fetched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ["https://one"]
    monkeypatch.setattr(estimator, "_mlflow_store", lambda: store[0])
    model = TrainedModel(model_uri="models:/late/1")
    assert [model.pinned(), model.pinned()] == ["copy 1", "copy 1"]
    store[0] = "https://two"
    assert model.pinned() == "copy 2"
    assert fetched[0] == ("models:/late/1", None)


class Table:
    """The part of a DataFrame that fitting looks at when the split is there already."""

    sparkSession = "spark"  # noqa: N815 - Spark's name

    def __init__(self, *columns: str) -> None:
        self.columns = list(columns)

    def select(self, *columns: str) -> "Table":
        return Table(*columns)

    def without_rows(self, columns: Sequence[str]) -> pa.Table:
        return pa.table({name: pa.nulls(0) for name in columns})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Return the calls made in the place of Spark, with their arguments."""
    made: list[tuple[str, Any]] = []

    def convert(table: Table, spec: FeatureSpec, path: Path, **options: Any) -> str:
        made.append(("convert", path))
        path.mkdir(parents=True)
        return "converted"

    def train(dataset: Any, config: TrainingConfig, spark: Any) -> Any:
        made.append(("train", dataset))
        return SimpleNamespace(version_uri="models:/late/1", tracking_uri="sqlite:///x", model="pinned")

    monkeypatch.setattr(convert_once, "content_hash", lambda table: "hash of " + ",".join(table.columns))
    monkeypatch.setattr(convert_once, "convert", convert)
    monkeypatch.setattr(estimator, "train", train)
    monkeypatch.setattr(estimator.early_checks, "check_session", lambda spark, workers: None)
    monkeypatch.setattr(convert_once, "is_published", Path.is_dir)
    monkeypatch.setattr(Dataset, "open", lambda path: f"opened {path.name}")
    return made


def test_fitting_converts_once_and_trains(tmp_path: Path, calls: list[tuple[str, Any]]) -> None:
    table: Any = Table("ride_id", "town", "distance", "late", "split", "unused")
    stage = rides(output=tmp_path)
    model = stage.fit(table)
    assert (model.getOrDefault("model_uri"), model.getOrDefault("keys")) == ("models:/late/1", ["ride_id"])
    assert model.pinned() == "pinned"
    (_, path), trained = calls
    assert trained == ("train", "converted")
    assert path.parent == tmp_path / "datasets"
    assert path.name.startswith("late-")
    stage.fit(table)
    assert calls[2:] == [("train", f"opened {path.name}")]
    stage.copy({stage.shards: 3}).fit(table)
    assert calls[3][0] == "convert"


def test_a_table_that_lacks_a_column_is_refused_before_anything_is_read(calls: list[tuple[str, Any]]) -> None:
    table: Any = Table("ride_id", "town", "late")
    with pytest.raises(ColumnError, match=r"lacks the columns \['distance'\]"):
        rides().fit(table)
    assert calls == []
