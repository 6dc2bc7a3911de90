"""Names of runs in MLflow's pages say what differs between runs of an experiment (L6)."""

from collections.abc import Callable
from datetime import datetime

from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.run_records.run_title import run_title, settings_in_words

BEGAN = datetime(2026, 11, 29, 1, 55, 21)


def test_a_name_has_the_settings_and_the_time(new_config: Callable[..., RunConfig]) -> None:
    config = new_config(learning_rate=0.003, global_batch_size=512)
    words = settings_in_words(config)
    assert words == ["lr 0.003", "batch 512", config.model["name"]]
    assert settings_in_words(new_config(seed=7))[-1] == "seed 7"
    assert run_title("", words[:2], began=BEGAN) == "lr 0.003 · batch 512 · 2026-11-29 01:55"
    assert run_title("flights", began=BEGAN) == "flights · 2026-11-29 01:55"


def test_a_long_name_loses_its_last_settings_and_keeps_the_time() -> None:
    title = run_title("flights", [f"setting_{number} {number}" for number in range(40)], began=BEGAN)
    assert len(title) <= 120
    assert title.startswith("flights · setting_0 0 · setting_1 1")
    assert title.endswith(" · 2026-11-29 01:55")
