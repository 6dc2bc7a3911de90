"""T3, H9: the defaults of ``fit`` make a valid configuration for every table and cluster."""

import contextlib
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.any_table import in_memory
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, MultiValued, Numeric, Sparse
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.training.configuration.config import ConfigError, RunConfig
from mirrorspark.training.configuration.defaults import (
    check_presets,
    default_baseline,
    default_batch_size,
    few_updates,
    learns_histories,
)
from mirrorspark.training.entry_points.fit_table import _require_valid, default_config, fit

NewConfig = Callable[..., RunConfig]

SPEC = FeatureSpec((Categorical("town"),), Label("late"), ("ride",))
ENSEMBLE = {"numeric_embedding": "piecewise", "members": 8, "dropout": 0.1}


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 5, 6, 7, 8, 12])
@pytest.mark.parametrize("rows", [0, 100, 59_999, 60_000, 79_999, 100_000, 120_000, 10_000_000])
def test_a_batch_has_equal_parts_for_all_workers(rows: int, slots: int) -> None:
    config = default_config(SPEC, rows=rows, slots=slots, name="late")
    assert config.workers == max(1, min(slots, rows // 20_000))
    assert config.global_batch_size % config.workers == 0
    assert 64 <= config.global_batch_size < 4_096 + slots


def test_a_batch_is_divided_among_given_workers_and_their_parts() -> None:
    config = default_config(SPEC, rows=100_000, slots=8, name="late", workers=3, accumulate=5)
    assert config.global_batch_size == 1_035  # the first multiple of 15 from 1,024 on


@pytest.mark.parametrize(
    ("rows", "size"),
    [(0, 64), (9_000, 64), (9_100, 128), (27_677, 256), (262_000, 2048), (300_000, 4096), (10**9, 4096)],
)
def test_a_batch_is_the_power_of_two_nearest_to_a_hundredth_of_the_rows(rows: int, size: int) -> None:
    assert default_batch_size(rows) == size


@pytest.mark.parametrize(
    ("kind", "name", "classes"),
    [
        ("binary", "multi_field", None),
        ("multi_class", "multi_class", 3),
        ("numeric", "regression", None),
        ("ordinal", "ordinal", ("S", "M", "L")),
    ],
)
def test_without_a_model_a_table_gets_the_ensemble_with_its_optimizer(kind: Any, name: str, classes: Any) -> None:
    """F15: explicit settings stay as they are."""
    spec = FeatureSpec((Categorical("town"),), Label("late", kind, classes=classes), ("id",))
    config = default_config(spec, rows=100, slots=1, name="late")
    assert config.model == {"name": name, **ENSEMBLE}
    assert (config.optimizer, config.weight_decay, config.patience) == ("adamw", 0.01, 5)
    assert config.baseline == "hist_gradient_boosting"
    config.require_features(spec)
    given = default_config(spec, rows=100, slots=1, name="late", optimizer="adam", patience=7)
    assert (given.model, given.optimizer, given.weight_decay, given.patience) == (config.model, "adam", None, 7)
    several = default_config(spec, rows=100, slots=1, name="late", presets="good")
    assert [each.name for each in several.registrable] == ["hist_gradient_boosting"] * 4
    best = default_config(spec, rows=100, slots=1, name="late", presets="best", model={"dropout": 0.3})
    assert best.model == {**config.model, "members": 32, "dropout": 0.3}
    assert (best.register, len(best.registrable)) == ("model", 0)  # a setting of the network asks for it
    assert default_config(spec, rows=100, slots=1, name="late", presets="best").register == "better"
    with pytest.raises(ConfigError, match=r"presets 'god' is unknown \(did you mean 'good'\?\); use fast, good, best"):
        check_presets("god")
    numbers = dataclasses.replace(spec, features=tuple(Numeric(f"x{number}") for number in range(16)))
    assert default_config(numbers, rows=100, slots=1, name="late").model == {**config.model, "plain_members": 4}
    few = default_config(numbers, rows=100, slots=1, name="late", model={"members": 2})
    assert few.model == {**config.model, "members": 2}
    assert default_config(numbers, rows=100, slots=1, name="late", presets="best").model["plain_members"] == 16
    named = default_config(spec, rows=100, slots=1, name="late", model={"name": name})
    assert (named.model, named.optimizer, named.patience) == ({"name": name}, "adam", 15)


@pytest.mark.parametrize(
    ("kind", "name", "baseline"),
    [("multi_label", "multi_label", "logistic_regression"), ("candidate", "two_tower", "popularity")],
)
def test_many_labels_and_candidates_get_their_architecture_alone(kind: str, name: str, baseline: str) -> None:
    features = (Categorical("town"), *([Categorical("late")] if kind == "candidate" else []))
    spec = FeatureSpec(features, Label("late", kind), ("id",))
    config = default_config(spec, rows=100, slots=1, name="late")
    assert (config.model, config.optimizer, config.baseline) == ({"name": name}, "adam", baseline)


@pytest.mark.parametrize(
    ("model", "learns"),
    [
        (None, True),
        ({"blocks": 2, "embedding_dim": 32}, True),
        ("sasrec", False),
        ({"name": "sasrec", "every_position": True}, True),
        ({"every_position": False}, False),
        ({"cross_layers": 1}, False),
        ({"sampling": "in_batch"}, False),
        ("two_tower", False),
        (print, False),
    ],
)
def test_a_recommender_learns_histories_unless_its_model_is_another(model: Any, learns: bool) -> None:
    """#55: settings without a name are of the model of sequences if that has them, else of towers."""
    assert learns_histories(model) is learns
    history = MultiValued("seen", max_length=5, vocabulary_of="late")
    label = Label("late", "candidate", history_items=learns)
    spec = FeatureSpec((Categorical("late"), Categorical("user"), history), label, ("id",), user="user")
    if not callable(model) and not isinstance(model, str):
        config = default_config(spec, rows=100, slots=1, name="late", model=model, time_limit=60)
        assert (config.model["name"] == "sasrec") == (learns or model == {"every_position": False})
        assert (config.epochs, config.monitor == "val_recall_at_20") == (1_000, "name" not in (model or {}))


def test_rows_of_histories_are_for_the_model_of_sequences_only_if_it_can_read_them() -> None:
    lists = [MultiValued(name, max_length=5, vocabulary_of="late") for name in ("seen", "bought")]
    features = (Categorical("late"), Categorical("user"), *lists)
    spec = FeatureSpec(features, Label("late", "candidate", history_items=True), ("id",), user="user")
    assert default_config(spec, rows=100, slots=1, name="late").model["name"] == "two_tower"
    named = default_config(spec, rows=100, slots=1, name="late", model={"name": "two_tower"})
    assert (named.epochs, named.learning_rate, named.monitor) == (40, 0.001, "val_loss")


def test_gradient_boosting_is_no_baseline_of_sparse_columns() -> None:
    assert default_baseline(SPEC) == "hist_gradient_boosting"
    wide = (Sparse("words", size=9),)
    assert default_baseline(FeatureSpec(wide, Label("late"), ("id",))) == "logistic_regression"
    assert default_baseline(FeatureSpec(wide, Label("late", kind="numeric"), ("id",))) == "ridge"


@pytest.mark.parametrize(
    ("kind", "settings", "register"),
    [
        ("binary", {}, "better"),
        ("numeric", {"epochs": 3, "patience": 1}, "better"),
        ("binary", {"baseline": ["logistic_regression", "hist_gradient_boosting"]}, "better"),
        ("binary", {"register": "model"}, "model"),
        ("binary", {"model": {"name": "wide_deep"}}, "model"),
        ("numeric", {"model": {"loss": "quantile"}}, "model"),
        ("binary", {"baseline": "logistic_regression"}, "better"),
        ("binary", {"baseline": "lightgbm"}, "model"),
        ("binary", {"baseline": "none"}, "model"),
        ("binary", {"calibration": "temperature"}, "better"),
        ("binary", {"warm_start": "models:/late/1"}, "model"),
        ("multi_label", {}, "better"),
    ],
)
def test_the_better_one_is_registered_where_nothing_is_asked_of_the_model(
    kind: Any, settings: dict[str, Any], register: str
) -> None:
    spec = FeatureSpec((Categorical("town"),), Label("late", kind), ("id",))
    assert default_config(spec, rows=1_000, slots=2, name="late", **settings).register == register


def test_settings_are_refused_before_rows_are_converted_only_if_no_number_of_workers_takes_them() -> None:
    _require_valid(SPEC, 2, name="late", global_batch_size=63)
    with pytest.raises(ConfigError, match="epochs"):
        _require_valid(SPEC, 2, name="late", epochs=0)


@pytest.mark.parametrize(
    ("label", "setting", "message"),
    [
        (
            Label("late", positive="yes"),
            {"class_weights": {"yess": 3}},
            "class 'yess', which label 'late' does not have",
        ),
        (Label("late", positive="yes"), {"class_weights": {"no": 1, "yes": 3}}, None),
        (
            Label("late", "multi_class"),
            {"costs": {"no": {"si": 3}}},
            "costs names class 'si', which label 'late' does not",
        ),
        (Label("late", "multi_class"), {"costs": {"no": {"yes": 3}}}, None),
    ],
)
def test_classes_of_a_table_in_memory_are_known_before_it_is_converted(
    label: Label, setting: dict[str, Any], message: str | None
) -> None:
    """#55."""
    rows = in_memory(pa.table({"town": ["here", "there"], "late": ["no", "yes"], "id": [1, 2]}))
    spec = FeatureSpec((Categorical("town"),), label, ("id",))
    with pytest.raises(ConfigError, match=message) if message else contextlib.nullcontext():
        _require_valid(spec, 2, rows, name="late", **setting)


@pytest.mark.parametrize("model", [None, "multi_field", {"name": "multi_field"}])
def test_callbacks_need_a_model_of_ones_own(model: Any) -> None:
    with pytest.raises(ConfigError, match="callbacks go with a model of your own"):
        fit("rides", "late", model=model, callbacks=[object()])


def test_a_recipe_that_is_silent_trains_as_fit_does(new_config: NewConfig) -> None:
    """9,770 rows in batches of 2,048 were 5 updates an epoch, and the model was worse than chance."""
    settings = ("model", "epochs", "optimizer", "weight_decay", "patience", "global_batch_size")
    for given in ({}, {"time_limit": 60.0}):
        of_recipe = new_config(**given).fitted_to(9_770)
        of_fit = default_config(new_config().spec, rows=9_770, slots=1, name="late", **given)
        assert [getattr(of_recipe, name) for name in settings] == [getattr(of_fit, name) for name in settings]
        assert (of_recipe.epochs, of_recipe.global_batch_size) == (1000 if given else 200, 128)
    label = {"name": "delay", "kind": "numeric"}
    assert new_config(label=label).model["name"] == "regression"


def test_explicit_settings_of_a_recipe_win(new_config: NewConfig) -> None:
    given = new_config(optimizer="sgd", patience=9, global_batch_size=2_048, model={"dropout": 0.3}).fitted_to(9_770)
    assert (given.optimizer, given.weight_decay, given.patience, given.global_batch_size) == ("sgd", None, 9, 2_048)
    assert given.model == {"name": "multi_field", **ENSEMBLE, "dropout": 0.3}
    named = new_config(model={"name": "multi_field"})
    assert (named.model, named.epochs, named.optimizer, named.patience) == ({"name": "multi_field"}, 40, "adam", 15)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"workers": 3}, 129),
        ({"workers": "2:3"}, 132),
        ({"workers": "1:2", "batch_rule": "keep_batch_per_worker"}, 128),
        ({"workers": "2:4", "batch_rule": "keep_batch_per_worker", "accumulate": 3}, 768),
        ({"gpus_per_worker": 3, "workers": 2}, 132),
    ],
)
def test_a_batch_that_is_left_out_fits_every_number_of_workers(
    new_config: NewConfig, settings: dict[str, Any], size: int
) -> None:
    assert new_config(**settings).fitted_to(9_770).global_batch_size == size


@pytest.mark.parametrize(
    ("rows", "settings", "found"),
    [
        (9_770, {}, None),
        (150, {}, None),
        (9_770, {"global_batch_size": 2_048}, "has 5 updates, .*use 128 "),
        (1_000, {"global_batch_size": 1_000, "workers": 2}, "has 1 update, .*use 64 "),
        (9_770, {"epochs": 1}, "1 epoch of 9,770 .* have 77 updates, .*use 2 epochs"),
        (120, {"epochs": 5}, "have 10 updates, .*use 50 epochs"),
        (244_737, {"epochs": 1}, None),
    ],
)
def test_too_few_updates_are_told_with_the_remedy(
    new_config: NewConfig, rows: int, settings: dict[str, Any], found: str | None
) -> None:
    """The remedy is tried: it warns no more."""
    config = new_config(**settings).fitted_to(rows)
    warning = few_updates(config, rows)
    assert (warning is None) if found is None else re.search(found, warning or "")
    if found is not None and "epochs" in found:
        epochs = int(re.findall(r"--epochs (\d+)", str(warning))[0])
        assert few_updates(new_config(**settings | {"epochs": epochs}).fitted_to(rows), rows) is None
