"""Architectures by name, and settings that are checked before anything is built."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mirrorspark.models import catalog, multi_field, two_tower
from mirrorspark.models.settings import ModelSettingsError
from mirrorspark.training.configuration.tasks import TASKS


def test_every_name_of_the_catalog_leads_to_a_whole_architecture() -> None:
    tasks = {name: catalog.architecture(name).TASK for name in catalog.ARCHITECTURES}
    assert {name: task for name, task in tasks.items() if task not in TASKS} == {}


def test_settings_are_read_from_what_yaml_gives() -> None:
    settings = catalog.settings("multi_field", {"embedding_dim": 4, "hidden_units": [16, 8], "dropout": 0})
    assert settings == multi_field.Settings(embedding_dim=4, hidden_units=(16, 8), dropout=0)
    assert catalog.settings("two_tower", {}) == two_tower.Settings()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "multi_field",
            {"width": 4},
            r"'multi_field' has no setting \['width'\]; use \['cross_layers', .*'dropout', 'embedding_dim'",
        ),
        ("multi_field", {"embedding_dim": "8"}, "setting embedding_dim is '8'; it must be of type int"),
        ("multi_field", {"embedding_dim": True}, "setting embedding_dim is True; it must be of type int"),
        ("multi_field", {"embedding_dim": 0}, "setting embedding_dim is 0; use a whole number from 1 on"),
        ("multi_field", {"hidden_units": 64}, "setting hidden_units is 64; it must be of type tuple"),
        ("multi_field", {"hidden_units": [64, "32"]}, "setting hidden_units is '32'; use a whole number from 1 on"),
        ("multi_field", {"hidden_units": [64, 0]}, "setting hidden_units is 0"),
        ("multi_field", {"dropout": 1.0}, "setting dropout is 1.0; use a share from 0 up to, not including, 1"),
        ("multi_field", {"dropout": -0.1}, "setting dropout is -0.1"),
        ("multi_field", {"dropout": float("nan")}, "setting dropout is nan"),
        ("two_tower", {"temperature": 0.0}, "setting temperature is 0.0; use a number above 0"),
        ("two_tower", {"temperature": float("nan")}, "setting temperature is nan"),
        ("wide_deep", {"crosses": ["carrier"]}, "setting crosses has 'carrier'; name two features, for example"),
        ("wide_deep", {"crosses": ["carrier*carrier"]}, r"setting crosses has 'carrier\*carrier'"),
        ("wide_deep", {"cross_buckets": 0}, "setting cross_buckets is 0"),
        ("multi_label", {"heads": "tanh"}, "setting heads is 'tanh'; use sigmoid or softmax"),
        ("multi_label", {"dropout": 1.0}, "setting dropout is 1.0"),
        ("youtube_dnn", {"negatives": 0}, "setting negatives is 0; use a whole number from 1 on"),
        ("lstm_retrieval", {"lstm_units": 0}, "setting lstm_units is 0; use a whole number from 1 on"),
        ("lstm_retrieval", {"cell": "rnn"}, "setting cell is 'rnn'; use lstm or gru"),
        ("lstm_retrieval", {"lstm_units": [64]}, "setting lstm_units is .*; it must be of type int"),
        ("lstm_retrieval", {"dropout": 1.0}, "setting dropout is 1.0"),
        ("sasrec", {"heads": 3}, "setting heads is 3, which does not divide embedding_dim 64; use a divisor"),
        ("sasrec", {"blocks": 0}, "setting blocks is 0; use a whole number from 1 on"),
    ],
)
def test_a_setting_that_cannot_work_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelSettingsError, match=message):
        catalog.settings(name, options)


@pytest.mark.parametrize("name", ["transformer", "", ".relative", "two words.here", "a..b"])
def test_an_unknown_architecture_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(
        ModelSettingsError,
        match=r"is unknown; use one of \['als', 'bspm', 'ease', 'item_knn', 'lstm_retrieval', .*\] or the dotted",
    ):
        catalog.architecture(name)


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(
        ModelSettingsError, match=r"there is no module nobodys\.model; install it or put it on PYTHONPATH"
    ):
        catalog.architecture("nobodys.model")


def test_a_module_that_is_no_architecture_is_told_what_it_lacks() -> None:
    with pytest.raises(
        ModelSettingsError,
        match=r"module mirrorspark\.models\.settings lacks \['TASK', 'Settings', 'build', 'predict'\]",
    ):
        catalog.architecture("mirrorspark.models.settings")


def test_ones_own_module_is_an_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "own_models"
    package.mkdir()
    source = "from mirrorspark.models.multi_field import TASK, Settings, build, predict"
    (package / "linear.py").write_text(source)
    (package / "broken.py").write_text("import a_library_that_is_missing")
    monkeypatch.syspath_prepend(tmp_path)
    assert catalog.settings("own_models.linear", {"dropout": 0.5}) == multi_field.Settings(dropout=0.5)
    # A library that the module lacks is not the module: its own error is the one to show.
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_missing"):
        catalog.architecture("own_models.broken")


@pytest.mark.process
def test_checking_settings_does_not_load_tensorflow() -> None:
    program = (
        "import sys; from mirrorspark.models import catalog; "
        "[catalog.settings(name, {}) for name in catalog.ARCHITECTURES]; "
        "sys.exit('tensorflow' in sys.modules)"
    )
    repository = Path(catalog.__file__).parents[1]
    finished = subprocess.run([sys.executable, "-c", program], cwd=repository, timeout=60, check=False)
    assert finished.returncode == 0
