"""T3, H9: the defaults of ``fit`` make a valid configuration for every table and cluster."""

from typing import Any

import pytest

from mirrorspark.data_pipelines.features.kinds import Categorical, Label
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.training.config import ConfigError
from mirrorspark.training.fit import _require_valid, default_config, fit

SPEC = FeatureSpec((Categorical("town"),), Label("late"), ("ride",))


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 5, 6, 7, 8, 12])
@pytest.mark.parametrize("rows", [0, 100, 59_999, 60_000, 79_999, 100_000, 120_000, 10_000_000])
def test_a_batch_has_equal_parts_for_all_workers(rows: int, slots: int) -> None:
    config = default_config(SPEC, rows=rows, slots=slots, name="late")
    assert config.workers == max(1, min(slots, rows // 20_000))
    assert config.global_batch_size % config.workers == 0
    assert 64 <= config.global_batch_size < 2_048 + slots


def test_a_batch_is_divided_among_given_workers_and_their_parts() -> None:
    config = default_config(SPEC, rows=100_000, slots=8, name="late", workers=3, accumulate=5)
    assert config.global_batch_size == 1_035  # the first multiple of 15 from 1,024 on


def test_settings_are_refused_before_rows_are_converted_only_if_no_number_of_workers_takes_them() -> None:
    _require_valid(SPEC, 2, name="late", global_batch_size=63)
    with pytest.raises(ConfigError, match="epochs"):
        _require_valid(SPEC, 2, name="late", epochs=0)


@pytest.mark.parametrize("model", [None, "multi_field", {"name": "multi_field"}])
def test_callbacks_need_a_model_of_ones_own(model: Any) -> None:
    with pytest.raises(ConfigError, match="callbacks go with a model of your own"):
        fit("rides", "late", model=model, callbacks=[object()])
