"""What a sweep does: how many slots its trials take, and names that are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from training.config import ConfigError, RunConfig
from training.sweeping.options import SweepOptions
from training.sweeping.specs import read_space


def test_parameter_servers_and_their_coordinator_need_slots_too(
    new_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = new_config(output=str(tmp_path), strategy="parameter_server", parameter_servers=2)
    for search, slots in (("learning_rate=log:1e-4:1e-1", 4), ("workers=choice:1,4", 7)):
        assert SweepOptions(config, read_space([search], None, config)).slots_per_trial == slots


def test_a_name_that_is_no_folder_is_refused(new_config: Callable[..., RunConfig]) -> None:
    config = new_config()
    space = read_space(["learning_rate=log:1e-4:1e-1"], None, config)
    with pytest.raises(ConfigError, match="study 'a/b' must be letters"):
        SweepOptions(config, space, study="a/b")
