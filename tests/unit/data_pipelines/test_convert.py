"""The options and the address of a conversion, and a dataset that another one publishes meanwhile (T1)."""

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mirrorspark.data_pipelines import conversion
from mirrorspark.data_pipelines.conversion import (
    ConversionOptions,
    DatasetExistsError,
    convert,
)
from mirrorspark.data_pipelines.dataset.manifest import DatasetError
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.reading.dataset import Dataset


@pytest.mark.parametrize("option", ["shards", "rows_per_block"])
def test_options_that_write_nothing_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} 0 is below 1"):
        ConversionOptions(**{option: 0})


def test_a_dataset_that_another_conversion_publishes_meanwhile_has_an_error_of_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_dataset: Callable[..., Dataset],
    flight_features: FittedFeatures,
) -> None:
    path = tmp_path / "dataset"

    def another_is_faster(*_: Any) -> list[Any]:
        write_dataset(path, [[3]])
        return []

    monkeypatch.setattr(conversion, "_checked", lambda table, spec, *_: (spec, {}))
    monkeypatch.setattr(conversion._Conversion, "write", another_is_faster)
    table: Any = SimpleNamespace(sparkSession=SimpleNamespace())
    with pytest.raises(DatasetExistsError, match=f"another conversion has made {path} meanwhile; open it") as raised:
        convert(table, flight_features.spec, path, progress=False)
    assert isinstance(pickle.loads(pickle.dumps(raised.value)), DatasetError)  # noqa: S301 - our own bytes
    assert Dataset.open(path, checksums=True).manifest.rows("train") == 3
    assert [folder.name for folder in tmp_path.iterdir()] == ["dataset"]
