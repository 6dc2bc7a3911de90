"""The options of a sweep: how many slots its trials take, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirrorspark.training.configuration.config import ConfigError, RunConfig
from mirrorspark.training.sweep.options import SweepOptions
from mirrorspark.training.sweep.space import read_space


@pytest.fixture
def new_options(new_config: Callable[..., RunConfig]) -> Callable[..., SweepOptions]:
    def build(search: str = "learning_rate=log:1e-4:1e-1", **how: Any) -> SweepOptions:
        return SweepOptions(new_config(), read_space([search], None, new_config()), **how)

    return build


def test_parameter_servers_and_their_coordinator_need_slots_too(
    new_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = new_config(output=str(tmp_path), strategy="parameter_server", parameter_servers=2)
    for search, slots in (("learning_rate=log:1e-4:1e-1", 4), ("workers=choice:1,4", 7)):
        assert SweepOptions(config, read_space([search], None, config)).slots_per_trial == slots


def test_the_longest_trial_counts(new_options: Callable[..., SweepOptions]) -> None:
    assert new_options("epochs=uniform:2:9").epochs == 9
    assert new_options("epochs=choice:7,3").epochs == 7


def test_a_grid_gives_no_more_trials_than_it_has_points(new_options: Callable[..., SweepOptions]) -> None:
    assert new_options("epochs=uniform:1:3", sampler="grid", trials=50).trials == 3
    assert new_options("epochs=uniform:1:3", sampler="grid", trials=2).trials == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "--trials is 0; use 1 or more"),
        ({"parallel": 0}, "--parallel is 0; use 1 or more"),
        ({"max_failures": 0}, "--max-failures is 0; use 1 or more"),
        ({"timeout_seconds": 0.0}, "--timeout is 0; use seconds above 0"),
        ({"study": "a/b"}, "study 'a/b' must be letters"),
        ({"sampler": "grid"}, "sampler grid cannot try every value of"),
        ({"sampler": "grid", "search": "seed=uniform:1:1000000"}, "the grid has 1,000,000 points"),
    ],
)
def test_options_that_cannot_work_are_refused(
    new_options: Callable[..., SweepOptions], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        new_options(**options)
