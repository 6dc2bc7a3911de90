"""The folder of an exported model says what it holds, and what is wrong with it."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.fitted import FeatureMismatchError
from mirrorspark.data_pipelines.features.kinds import Label
from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.scoring.input.inputs import FeatureInputs
from mirrorspark.scoring.model.folder.directory import DESCRIPTION_FILE, ModelDescription, ModelDirectory, exported_with
from mirrorspark.scoring.model.folder.errors import ModelDirectoryError
from mirrorspark.scoring.model.stored.digest import folder_digest
from mirrorspark.scoring.model.stored.pinned import find_model_directory
from tests.unit.scoring.exported_models import FLIGHTS, TAGS, export_baskets


def description(**changes: Any) -> ModelDescription:
    values = {
        "task": "binary",
        "architecture": "multi_field",
        "features_hash": "0123456789abcdef",
        "outputs": {"score": "float"},
        "versions": {"tensorflow": "2.20.0"},
    }
    return ModelDescription(**(values | changes))


@pytest.fixture
def copied_model(flights_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(flights_model, tmp_path / "copy"))


def test_a_description_is_read_as_it_was_written(tmp_path: Path) -> None:
    original = description(task="retrieval", outputs={"candidates": "array<string>", "scores": "array<float>"})
    original.save(tmp_path / "new" / "folder")
    assert ModelDescription.load(tmp_path / "new" / "folder") == original


def test_a_description_of_before_there_were_indexes_has_none(tmp_path: Path) -> None:
    original = description(task="retrieval", indexes={"exact": 1.0, "ivf": 0.96})
    original.save(tmp_path)
    assert ModelDescription.load(tmp_path).indexes == {"exact": 1.0, "ivf": 0.96}
    document = json.loads((tmp_path / DESCRIPTION_FILE).read_text())
    del document["indexes"]
    (tmp_path / DESCRIPTION_FILE).write_text(json.dumps(document))
    assert ModelDescription.load(tmp_path).indexes == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "ranking"}, "task 'ranking' is unknown; use one of"),
        ({"outputs": {}}, "at least one output"),
        ({"outputs": {"score": "decimal"}}, r"output types \{'score': 'decimal'\} are unknown"),
        ({"format_version": 2}, "format version 2, this library reads 1"),
    ],
)
def test_a_description_that_cannot_be_used_says_why(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelDirectoryError, match=message):
        description(**changes)


def test_a_folder_without_description_is_no_exported_model(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=r"holds no exported model: mirrorspark\.json is missing"):
        ModelDescription.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"), [('{"task": ', "is damaged"), ('{"format_version": 9}', "version 9"), ("3", "version None")]
)
def test_a_damaged_or_later_description_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / DESCRIPTION_FILE).write_text(text)
    with pytest.raises(ModelDirectoryError, match=message):
        ModelDescription.load(tmp_path)


def test_an_opened_folder_knows_the_models_raw_inputs(flights_model: Path) -> None:
    directory = ModelDirectory.open(flights_model)
    assert directory.inputs.columns == ("carrier", "hour", "stops", "distance")
    assert directory.features.hash == directory.description.features_hash


@pytest.mark.parametrize(
    "part", ["saved_model/saved_model.pb", "features/features.json", "features/vocabularies/hour.arrow"]
)
def test_a_missing_part_is_named(copied_model: Path, part: str) -> None:
    (copied_model / part).unlink()
    with pytest.raises(ModelDirectoryError, match=Path(part).name):
        ModelDirectory.open(copied_model)


def test_features_of_another_model_are_refused(copied_model: Path) -> None:
    path = copied_model / DESCRIPTION_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"features_hash": "ffffffffffffffff"}))
    with pytest.raises(FeatureMismatchError, match="the model was trained with ffffffffffffffff"):
        ModelDirectory.open(copied_model)


def test_a_table_with_the_types_of_the_training_is_checked_without_the_features(flights_model: Path) -> None:
    directory = ModelDirectory.open(flights_model)
    directory.inputs.check(FLIGHTS.schema)
    assert "features" not in vars(directory)


def test_a_table_with_other_types_is_checked_by_the_features(flights_model: Path) -> None:
    directory = ModelDirectory.open(flights_model)
    hour = FLIGHTS.schema.get_field_index("hour")
    directory.inputs.check(FLIGHTS.schema.set(hour, pa.field("hour", pa.int16())))
    assert "features" in vars(directory)
    with pytest.raises(ColumnError, match="column 'hour'"):
        directory.inputs.check(FLIGHTS.schema.set(hour, pa.field("hour", pa.string())))
    with pytest.raises(ColumnError, match="column 'hour'"):
        directory.inputs.check(FLIGHTS.drop_columns(["hour"]).schema)


def test_the_inputs_go_to_executors_without_the_drivers_folder(copied_model: Path) -> None:
    inputs = ModelDirectory.open(copied_model).inputs
    sent = pickle.dumps(inputs)
    shutil.rmtree(copied_model)
    arrived = pickle.loads(sent)  # noqa: S301 - made above
    assert (type(arrived), arrived.columns) == (FeatureInputs, inputs.columns)


def test_a_model_that_was_exported_without_its_columns_is_read_from_its_features(copied_model: Path) -> None:
    columns = ModelDirectory.open(copied_model).inputs.columns
    path = copied_model / DESCRIPTION_FILE
    document = json.loads(path.read_text())
    del document["columns"], document["sealed"]
    path.write_text(json.dumps(document))
    inputs = ModelDirectory.open(copied_model).inputs
    assert (type(inputs), inputs.columns) == (FeatureInputs, columns)


def test_features_that_were_changed_after_the_export_are_read_again(copied_model: Path) -> None:
    path = copied_model / "features" / "features.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document))
    assert "features" in vars(ModelDirectory.open(copied_model))
    document["statistics"]["distance"]["mean"] += 1
    path.write_text(json.dumps(document))
    with pytest.raises(FeatureMismatchError, match="a vocabulary or statistic was changed"):
        ModelDirectory.open(copied_model)


def test_the_exported_model_is_found_in_an_mlflow_model(tmp_path: Path) -> None:
    description().save(tmp_path / "data" / "export")
    (tmp_path / "data" / "other").mkdir()
    assert find_model_directory(tmp_path) == tmp_path / "data" / "export"
    assert find_model_directory(tmp_path / "data" / "export") == tmp_path / "data" / "export"


@pytest.mark.parametrize(
    ("label", "names"),
    [(TAGS, ("tea", "milk", "ü")), (Label("tags", "multi_label", classes=3), ("0", "1", "2"))],
    ids=["tokens", "numbers"],
)
def test_a_multi_label_model_tells_the_names_of_its_scores_in_their_order(
    tmp_path: Path, label: Label, names: tuple[str, ...]
) -> None:
    """S7: they travel with the model."""
    assert ModelDirectory.open(export_baskets(tmp_path, label)).labels == {"scores": names}


def test_other_models_name_no_elements(flights_model: Path) -> None:
    assert ModelDirectory.open(flights_model).labels == {}


def test_tensorflow_versions_are_compared_for_a_model_trained_here(tmp_path: Path) -> None:
    """L10: its features have the same bits whatever else is installed."""
    versions = {"python": "3.11.9", "pyspark": "4.1.0", "numpy": "2.4.6", "tensorflow": "2.20.0"}
    description(versions=versions).save(tmp_path)
    assert exported_with(tmp_path).compared == {"tensorflow": "2.20.0"}


def test_a_folder_with_no_exported_model_or_two_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match="holds no exported model"):
        find_model_directory(tmp_path)
    description().save(tmp_path / "data" / "one")
    description().save(tmp_path / "data" / "two")
    with pytest.raises(ModelDirectoryError, match=r"holds 2 exported models: .*one.*two"):
        find_model_directory(tmp_path)


def test_the_digest_follows_names_and_content_and_nothing_else(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, names in ((first, ("b", "a")), (second, ("a", "b"))):
        (folder / "inner").mkdir(parents=True)
        for name in names:
            (folder / "inner" / name).write_text(name)
    assert folder_digest(first) == folder_digest(second)
    assert len(folder_digest(first)) == 64
    (second / "inner" / "a").rename(second / "inner" / "c")
    assert folder_digest(first) != folder_digest(second)
    (second / "inner" / "c").rename(second / "inner" / "a")
    (second / "inner" / "b").write_text("B")
    assert folder_digest(first) != folder_digest(second)
