"""A search space is read from flags or YAML into Optuna's distributions, whose values become configurations."""

import dataclasses
from collections.abc import Callable

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from mirrorspark.training.configuration.config import ConfigError, RunConfig
from mirrorspark.training.sweep.space import SEARCHABLE, SearchSpace, decode_values, in_words, read_space

NewConfig = Callable[..., RunConfig]


def read(base: RunConfig, *flags: str) -> SearchSpace:
    return read_space(flags, None, base)


@pytest.mark.parametrize(
    ("flag", "name", "distribution"),
    [
        ("learning_rate=log:1e-4:1e-1", "learning_rate", FloatDistribution(1e-4, 1e-1, log=True)),
        ("learning-rate=uniform:0.1:0.2", "learning_rate", FloatDistribution(0.1, 0.2)),
        ("model.dropout=uniform:0:0.5:0.2", "model.dropout", FloatDistribution(0.0, 0.4, step=0.2)),
        ("epochs=uniform:1:5", "epochs", IntDistribution(1, 5)),
        ("epochs=uniform:2:9:3", "epochs", IntDistribution(2, 8, step=3)),
        ("model.embedding_dim=log:4:64", "model.embedding_dim", IntDistribution(4, 64, log=True)),
        (
            "model.hidden_units=choice:[64],[128,64]",
            "model.hidden_units",
            CategoricalDistribution(["[64]", "[128, 64]"]),
        ),
        ("global_batch_size=choice:1024,2048", "global_batch_size", CategoricalDistribution([1024, 2048])),
        ("optimizer=choice:adam,sgd", "optimizer", CategoricalDistribution(["adam", "sgd"])),
        ("clip_norm=choice:null,1e-1,5", "clip_norm", CategoricalDistribution([None, 0.1, 5])),
        ("xla=choice:true,false", "xla", CategoricalDistribution([True, False])),
        (
            "learning_rate_scaling=choice:none,linear",
            "learning_rate_scaling",
            CategoricalDistribution(["none", "linear"]),
        ),
    ],
)
def test_a_spec_means_numbers_of_its_field_or_values(
    new_config: NewConfig, flag: str, name: str, distribution: BaseDistribution
) -> None:
    space = read(new_config(), flag)
    assert space.distributions == {name: distribution}
    assert space.specs == {name: flag.partition("=")[2]}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("rate", "search 'rate' is not of the form FIELD=SPEC; use for example learning_rate=log:1e-4:1e-2"),
        ("rate=log:1:2", "search rate: it cannot be searched; use one of ['accumulate', 'batch_rule'"),
        ("model=choice:1,2", "search model: it cannot be searched"),
        ("model.width=choice:1,2", "search model.width: it cannot be searched; use one of"),
        ("learning_rate=0.1", "search learning_rate: '0.1' is not of the form log:LOW:HIGH"),
        ("learning_rate=normal:0:1", "search learning_rate: 'normal:0:1' is not of the form log:LOW:HIGH"),
        ("learning_rate=log:1e-4", "is not of the form log:LOW:HIGH"),
        ("learning_rate=log:1:2:3", "is not of the form log:LOW:HIGH"),
        ("learning_rate=log:a:2", "'log:a:2' is not of the form log:LOW:HIGH"),
        ("learning_rate=uniform:0.1:inf", "is not of the form log:LOW:HIGH"),
        ("learning_rate=log:0:1", "'log:0:1' is not a range of numbers: `low > 0` must hold"),
        ("learning_rate=uniform:2:1", "'uniform:2:1' is not a range of numbers: `low <= high` must hold"),
        ("learning_rate=uniform:1:2:0", "'uniform:1:2:0' is not a range of numbers: `step > 0` must hold"),
        ("epochs=uniform:0.5:3", "'uniform:0.5:3' holds a fraction, but it must be a whole number"),
        ("model.hidden_units=uniform:1:2", "is a range, but it must be a list, each a whole number"),
        (
            "optimizer=choice:adam,adamax",
            "'adamax' does not fit; it must be one of ['adam', 'adamw', 'adagrad', 'lazy_adam', 'lion', 'sgd']",
        ),
        ("epochs=choice:3,many", "'many' does not fit; it must be a whole number"),
        ("epochs=choice:3,true", "True does not fit; it must be a whole number"),
        ("epochs=choice:3", "'choice:3' is not a choice; give two values or more, each of them once"),
        ("epochs=choice:3,3", "is not a choice; give two values or more, each of them once"),
        ("epochs=choice:[3", "cannot be read; write values with commas between"),
        ("model.name=choice:multi_field,deep", "search model.name: model 'deep' is unknown"),
    ],
)
def test_an_invalid_search_is_refused_with_the_field_and_the_remedy(
    new_config: NewConfig, flag: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(new_config(), flag)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "name", ["sql", "monitor", "output", "max_restarts", "step_limit_seconds", "run_date", "warm_start", "top_k"]
)
def test_dataset_yardstick_and_place_of_a_run_cannot_be_searched(new_config: NewConfig, name: str) -> None:
    with pytest.raises(ConfigError, match=f"search {name}: it cannot be searched"):
        read(new_config(), f"{name}=choice:1,2")


def test_a_model_without_epochs_cannot_be_searched(new_config: NewConfig) -> None:
    with pytest.raises(ConfigError, match=r"search: \['ease'\] have no epochs whose metric could be compared"):
        read(new_config(), "model.name=choice:two_tower,ease")


def test_searchable_names_are_fields_of_a_run() -> None:
    assert set(SEARCHABLE) <= {field.name for field in dataclasses.fields(RunConfig)}


def test_nothing_to_search_is_refused(new_config: NewConfig) -> None:
    with pytest.raises(ConfigError, match="nothing is searched; name a field and its values"):
        read(new_config())


def test_a_file_holds_specs_and_flags_stand_over_it(new_config: NewConfig) -> None:
    text = "learning_rate: log:1e-4:1e-2\nmodel.hidden_units: choice:[64],[128,64]\n"
    space = read_space(["learning_rate=log:1e-3:1e-2"], text, new_config())
    assert space.specs == {"learning_rate": "log:1e-3:1e-2", "model.hidden_units": "choice:[64],[128,64]"}


@pytest.mark.parametrize(
    ("text", "part"), [("a: [", "is not valid YAML"), ("- a", "must be a mapping"), ("a: 3", "must be a mapping")]
)
def test_a_file_that_is_no_mapping_of_specs_is_refused(new_config: NewConfig, text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        read_space([], text, new_config())


def test_values_become_a_configuration(new_config: NewConfig) -> None:
    space = read(new_config(), "learning_rate=log:1e-4:1e-1", "model.hidden_units=choice:[64],[128,64]")
    values = decode_values({"learning_rate": 0.01, "model.hidden_units": "[128, 64]"})
    assert values == {"learning_rate": 0.01, "model.hidden_units": [128, 64]}
    config = space.configure(new_config(), values)
    assert (config.learning_rate, config.model) == (0.01, new_config().model | {"hidden_units": [128, 64]})
    assert config.epochs == new_config().epochs


def test_a_value_may_need_its_fellows(new_config: NewConfig) -> None:
    # 3 workers do not share 2,048 rows, but they share 1,536.
    space = read(new_config(), "workers=choice:2,3", "global_batch_size=choice:1536,2048")
    assert space.configure(new_config(), {"workers": 3, "global_batch_size": 1536}).workers == 3


def test_a_setting_searched_for_another_architecture_is_left_out(new_config: NewConfig) -> None:
    base = new_config()
    space = read(base, "model.name=choice:multi_field,wide_deep", "model.cross_buckets=choice:100,1000")
    values = {"model.name": "multi_field", "model.cross_buckets": 100}
    assert space.configure(base, values).model == base.model
    values["model.name"] = "wide_deep"
    assert space.configure(base, values).model == {"name": "wide_deep", "cross_buckets": 100, "dropout": 0.1}


def test_a_grid_has_every_value(new_config: NewConfig) -> None:
    space = read(new_config(), "epochs=uniform:1:2", "model.dropout=uniform:0:0.3:0.1", "optimizer=choice:adam,sgd")
    grid = {name: list(values) for name, values in space.grid().items()}
    assert grid == {"epochs": [1, 2], "model.dropout": [0.0, 0.1, 0.2, 0.3], "optimizer": ["adam", "sgd"]}


@pytest.mark.parametrize("flag", ["learning_rate=uniform:0.1:0.2", "epochs=log:1:9"])
def test_a_grid_without_end_is_refused(new_config: NewConfig, flag: str) -> None:
    with pytest.raises(ConfigError, match="sampler grid cannot try every value of"):
        read(new_config(), flag).grid()


def test_values_in_words() -> None:
    values = {"learning_rate": 0.00123456, "model.hidden_units": [64, 32], "optimizer": "adam"}
    assert in_words(values) == "learning_rate=0.001235, model.hidden_units=[64, 32], optimizer=adam"
