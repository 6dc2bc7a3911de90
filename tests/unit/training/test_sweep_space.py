"""The values of a search space become configurations, a grid of them, and text."""

from collections.abc import Callable

import pytest

from training.config import ConfigError, RunConfig
from training.sweeping.space import SearchSpace, in_words
from training.sweeping.specs import read_space

NewConfig = Callable[..., RunConfig]


def read(base: RunConfig, *flags: str) -> SearchSpace:
    return read_space(flags, None, base)


def test_values_become_a_configuration(new_config: NewConfig) -> None:
    space = read(new_config(), "learning_rate=log:1e-4:1e-1", "model.hidden_units=choice:[64],[128,64]")
    values = space.values({"learning_rate": 0.01, "model.hidden_units": "[128, 64]"})
    assert values == {"learning_rate": 0.01, "model.hidden_units": [128, 64]}
    config = space.configure(new_config(), values)
    assert (config.learning_rate, config.model) == (0.01, {"name": "multi_field", "hidden_units": [128, 64]})
    assert config.epochs == new_config().epochs


def test_a_setting_searched_for_another_architecture_is_left_out(new_config: NewConfig) -> None:
    base = new_config()
    space = read(base, "model.name=choice:multi_field,wide_deep", "model.cross_buckets=choice:100,1000")
    values = {"model.name": "multi_field", "model.cross_buckets": 100}
    assert space.configure(base, values).model == {"name": "multi_field"}
    values["model.name"] = "wide_deep"
    assert space.configure(base, values).model == {"name": "wide_deep", "cross_buckets": 100}


def test_a_grid_has_every_combination(new_config: NewConfig) -> None:
    space = read(new_config(), "epochs=uniform:1:2", "model.dropout=uniform:0:0.3:0.1", "optimizer=choice:adam,sgd")
    grid = space.grid()
    assert len(grid) == 2 * 4 * 2
    assert {"epochs": 2, "model.dropout": 0.3, "optimizer": "sgd"} in grid


@pytest.mark.parametrize(
    ("flag", "part"),
    [
        ("learning_rate=uniform:0.1:0.2", "sampler grid cannot try every value of ['learning_rate']"),
        ("seed=uniform:1:1000000", "the grid has 1,000,000 points"),
    ],
)
def test_a_grid_without_end_is_refused(new_config: NewConfig, flag: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(new_config(), flag).grid()
    assert part in str(caught.value)


def test_values_in_words() -> None:
    values = {"learning_rate": 0.00123456, "model.hidden_units": [64, 32], "optimizer": "adam"}
    assert in_words(values) == "learning_rate=0.001235, model.hidden_units=[64, 32], optimizer=adam"
