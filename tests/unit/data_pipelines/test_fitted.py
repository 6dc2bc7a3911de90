"""Fitted features: ids, scaling, a hash that tells two apart, and files that are what was saved (F1, L5)."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.fitted import (
    FeatureMismatchError,
    FittedFeatures,
    NumericStatistics,
    Vocabulary,
)
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec

SPEC = FeatureSpec((Numeric("distance"), Categorical("carrier")), Label("late"), ("id",))


def vocabulary(tokens: list[str], counts: list[int]) -> Vocabulary:
    return Vocabulary(pa.array(tokens, pa.string()), pa.array(counts, pa.int64()))


def fitted(
    tokens: list[str], counts: list[int], *, mean: float = 100.0, deviation: float = 50.0, spec: FeatureSpec = SPEC
) -> FittedFeatures:
    statistics = {"distance": NumericStatistics(mean, deviation, 0.0, 200.0, 4)}
    return FittedFeatures(spec, {"carrier": vocabulary(tokens, counts)}, statistics)


FITTED = fitted(["UA", "ü"], [3, 1])


def test_a_vocabulary_has_two_ids_more_than_tokens() -> None:
    assert FITTED.id_count(Categorical("carrier")) == 4


def test_missing_numbers_become_the_mean_or_the_number_of_the_spec() -> None:
    assert FITTED.imputed(Numeric("distance")) == 100.0
    assert FITTED.imputed(Numeric("distance", impute=7)) == 7.0


def test_scaling_is_by_mean_and_spread_and_never_by_zero() -> None:
    assert FITTED.scaling(Numeric("distance")) == (100.0, 50.0)
    assert FITTED.scaling(Numeric("distance", standardise=False)) == (0.0, 1.0)
    assert fitted(["UA"], [1], deviation=0.0).scaling(Numeric("distance")) == (100.0, 1.0)


@pytest.mark.parametrize(
    "other",
    [
        fitted(["ü", "UA"], [3, 1]),
        fitted(["UA", "ü"], [3, 2]),
        fitted(["UA"], [3]),
        fitted(["UAü", ""], [3, 1]),
        fitted(["UA", "ü"], [3, 1], mean=100.5),
        fitted(["UA", "ü"], [3, 1], spec=dataclasses.replace(SPEC, keys=("key",))),
    ],
    ids=["other ids", "other counts", "fewer tokens", "tokens cut elsewhere", "other mean", "other spec"],
)
def test_the_hash_changes_with_tokens_counts_statistics_and_spec(other: FittedFeatures) -> None:
    assert other.hash != FITTED.hash


def test_the_hash_depends_on_nothing_else() -> None:
    assert fitted(["UA", "ü"], [3, 1]).hash == FITTED.hash


def test_saved_features_come_back_equal(tmp_path: Path) -> None:
    FITTED.save(tmp_path)
    loaded = FittedFeatures.load(tmp_path)
    assert loaded.hash == FITTED.hash
    assert (loaded.spec, loaded.statistics) == (FITTED.spec, FITTED.statistics)
    assert loaded.vocabularies["carrier"].tokens.to_pylist() == ["UA", "ü"]
    assert loaded.vocabularies["carrier"].counts.to_pylist() == [3, 1]


def test_recorded_types_come_back_and_are_part_of_the_hash(tmp_path: Path) -> None:
    typed = dataclasses.replace(FITTED, column_types={"carrier": "bool", "distance": "double"})
    assert typed.hash not in (FITTED.hash, dataclasses.replace(FITTED, column_types={"carrier": "int64"}).hash)
    typed.save(tmp_path)
    assert FittedFeatures.load(tmp_path).column_types == {"carrier": "bool", "distance": "double"}


def test_features_of_which_no_types_were_recorded_are_read(tmp_path: Path) -> None:
    FITTED.save(tmp_path)
    assert "column_types" not in json.loads((tmp_path / "features.json").read_text())
    assert FittedFeatures.load(tmp_path).column_types == {}


def test_a_vocabulary_changed_on_disk_is_refused(tmp_path: Path) -> None:
    FITTED.save(tmp_path)
    vocabulary(["UA", "DL"], [3, 1]).save(tmp_path / "vocabularies" / "carrier.arrow")
    with pytest.raises(FeatureMismatchError, match=f"written was {FITTED.hash}.*convert the data again"):
        FittedFeatures.load(tmp_path)


def test_a_statistic_changed_on_disk_is_refused(tmp_path: Path) -> None:
    FITTED.save(tmp_path)
    file = tmp_path / "features.json"
    document = json.loads(file.read_text())
    document["statistics"]["distance"]["mean"] = 0.0
    file.write_text(json.dumps(document))
    with pytest.raises(FeatureMismatchError, match="a vocabulary or statistic was changed"):
        FittedFeatures.load(tmp_path)


@pytest.mark.parametrize("file", ["features.json", "vocabularies/carrier.arrow"])
def test_a_cut_off_file_is_refused_with_its_folder(tmp_path: Path, file: str) -> None:
    FITTED.save(tmp_path)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(FeatureMismatchError, match=f"{tmp_path} are damaged .*convert the data again"):
        FittedFeatures.load(tmp_path)


def test_features_that_are_not_there_are_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"features\.json"):
        FittedFeatures.load(tmp_path)
