"""MLflow models of other people score as MLflow has them predict, or say what keeps them from it."""

import os
import py_compile
import shutil
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from mlflow.models import infer_signature

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.scoring.backends.protocol import ModelOutputError, UnsupportedModelError
from mirrorspark.scoring.backends.pyfunc import PyfuncBackend
from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.model.folder.errors import ModelDirectoryError
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.stored.digest import folder_digest
from mirrorspark.scoring.model.stored.uri import resolve
from tests.unit.scoring.other_models import people, save_sklearn

PEOPLE = pa.Table.from_pandas(people(), preserve_index=False)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("mlflow")
    return folder / "model", save_sklearn(folder / "model", outputs="probabilities")


def test_a_pipeline_of_scikit_learn_scores_a_table_with_missing_values(pipelines: tuple[Path, Any]) -> None:
    folder, pipeline = pipelines
    pinned = resolve(folder)
    assert (pinned.path, pinned.digest) == (folder, folder_digest(folder))
    directory = ModelDirectory.open(pinned.path)
    assert directory.inputs.columns == ("age", "city", "visits")
    assert directory.description.outputs == {"prediction": "array<double>"}
    model = LoadedModel(folder, threads=1)
    scores = model.score(PEOPLE, batch_size=7)["prediction"]
    np.testing.assert_allclose(scores, pipeline.predict_proba(people()), rtol=1e-12)
    assert len(np.unique(scores[:, 0])) == 4
    assert model.threads == 1


def test_classes_of_scikit_learn_are_numbers(tmp_path: Path) -> None:
    pipeline = save_sklearn(tmp_path / "model")
    scores = LoadedModel(tmp_path / "model").score_arrow(PEOPLE)["prediction"]
    assert scores.type == pa.int64()
    assert scores.to_pylist() == pipeline.predict(people()).tolist()


def test_columns_of_the_signature_are_checked(pipelines: tuple[Path, Any]) -> None:
    inputs = ModelDirectory.open(pipelines[0]).inputs
    inputs.check(PEOPLE.schema)
    with pytest.raises(ColumnError, match="column 'city' is missing"):
        inputs.check(PEOPLE.drop_columns(["city"]).schema)
    with pytest.raises(ColumnError, match="column 'visits' has type string, the model takes bigint; cast it"):
        inputs.check(PEOPLE.set_column(2, "visits", PEOPLE["visits"].cast(pa.string())).schema)
    inputs.check(PEOPLE.set_column(2, "visits", PEOPLE["visits"].cast(pa.float64())).schema)  # as pandas has gaps


def test_null_in_a_column_of_whole_numbers_is_refused_by_name(pipelines: tuple[Path, Any]) -> None:
    """MLflow would say that types are incompatible: pandas makes floats of whole numbers with a null."""
    visits = pa.array([None, *range(19)], pa.int64())
    with pytest.raises(ColumnError, match=r"column 'visits' \(bigint\) has null, which.*coalesce"):
        LoadedModel(pipelines[0]).score(PEOPLE.set_column(2, "visits", visits))


def test_a_model_without_signature_says_how_to_log_one(tmp_path: Path) -> None:
    """Pain 17: no type is guessed."""
    save_sklearn(tmp_path / "model", signature=False)
    with pytest.raises(ModelDirectoryError, match=r"has no signature .*signature=infer_signature\(inputs, model"):
        ModelDirectory.open(resolve(tmp_path / "model").path)


# The forms of predictions that MLflow allows, and one of other names than any signature here says.
FORMS: dict[str, Any] = {
    "array": lambda values: values,
    "list": lambda values: values.tolist(),
    "series": lambda values: pd.Series(values, index=range(5, 5 + len(values))),
    "frame": lambda values: pd.DataFrame({"doubled": values, "name": [f"row {value:g}" for value in values]}),
    "dict": lambda values: {"doubled": values, "name": np.array([f"row {value:g}" for value in values])},
    "lists": lambda values: pd.DataFrame({"pair": [[value, -value] for value in values]}),
    "other names": lambda values: pd.DataFrame({"tripled": values, "name": values, "more": values}),
}
X = pd.DataFrame({"x": [0.5, 1.5]})
NAMED = pd.DataFrame({"doubled": [1.0], "name": ["a"]})


@pytest.mark.filterwarnings("ignore:.*An input example was not provided:UserWarning")
@pytest.mark.parametrize(
    ("form", "outputs", "expected"),
    [
        ("array", np.array([1.0]), {"prediction": [1.0, 3.0]}),
        ("list", np.array([1.0]), {"prediction": [1.0, 3.0]}),
        ("series", np.array([1.0]), {"prediction": [1.0, 3.0]}),
        ("frame", NAMED, {"doubled": [1.0, 3.0], "name": ["row 1", "row 3"]}),
        ("dict", NAMED, {"doubled": [1.0, 3.0], "name": ["row 1", "row 3"]}),
        ("lists", pd.DataFrame({"pair": [[1.0, 2.0]]}), {"pair": [[1.0, -1.0], [3.0, -3.0]]}),
    ],
)
def test_predictions_of_every_form_become_columns(
    tmp_path: Path, form: str, outputs: Any, expected: dict[str, list[Any]]
) -> None:
    save_doubled(tmp_path / "model", form, outputs)
    columns = LoadedModel(tmp_path / "model").score_arrow(pa.table({"x": [0.5, 1.5]}))
    assert {name: column.to_pylist() for name, column in columns.items()} == expected


@pytest.mark.filterwarnings("ignore:.*An input example was not provided:UserWarning")
def test_predictions_other_than_the_signature_says_are_refused(tmp_path: Path) -> None:
    save_doubled(tmp_path / "model", "other names", NAMED)
    with pytest.raises(
        ModelOutputError, match=r"says that it gives \['doubled'\], but it has given \['more', 'name', 't"
    ):
        LoadedModel(tmp_path / "model").score(pa.table({"x": [0.5]}))


def save_doubled(folder: Path, form: str, outputs: Any) -> None:
    """Save a model that predicts twice the column ``x``."""

    class Doubled(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            return FORMS[form](2 * model_input["x"].to_numpy())

    signature = infer_signature(X, outputs)
    mlflow.pyfunc.save_model(str(folder), python_model=Doubled(), signature=signature, pip_requirements=[])


def test_a_model_that_takes_an_array_without_names_says_what_to_log(tmp_path: Path) -> None:
    from sklearn.linear_model import LinearRegression

    rows = np.arange(6.0).reshape(3, 2)
    model = LinearRegression().fit(rows, rows[:, 0])
    mlflow.sklearn.save_model(
        model, str(tmp_path / "model"), signature=infer_signature(rows, rows[:, 0]), pip_requirements=[]
    )
    with pytest.raises(ModelDirectoryError, match="columns have no names; log it with a signature of a DataFrame"):
        ModelDirectory.open(tmp_path / "model")


def test_a_module_that_a_model_needs_and_that_is_missing_is_named(
    pipelines: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.sklearn", None)  # type: ignore[arg-type]
    with pytest.raises(ModuleNotFoundError, match=r"needs the module 'mlflow\.sklearn'.*requirements\.txt"):
        LoadedModel(pipelines[0])


@pytest.mark.filterwarnings("ignore:.*An input example was not provided:UserWarning")
def test_bytecode_planted_in_a_model_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S12: the digest covers the sources, so these have to be what runs."""
    monkeypatch.setattr(sys, "pycache_prefix", None)
    source = "class M:\n    def predict(self, rows): return rows['x'] * 2\ndef _load_pyfunc(path): return M()\n"
    (tmp_path / "planted_model.py").write_text(source)
    mlflow.pyfunc.save_model(
        str(tmp_path / "model"),
        loader_module="planted_model",
        code_paths=[str(tmp_path / "planted_model.py")],
        signature=infer_signature(X, np.array([1.0])),
        pip_requirements=[],
    )
    module = tmp_path / "model" / "code" / "planted_model.py"
    before = module.stat()
    module.write_text(source.replace("* 2", "* 9"))
    # Python takes bytecode for that of a source of the same size and time.
    os.utime(module, ns=(before.st_atime_ns, before.st_mtime_ns))
    py_compile.compile(str(module), doraise=True)
    module.write_text(source)
    os.utime(module, ns=(before.st_atime_ns, before.st_mtime_ns))
    try:
        (scores,) = LoadedModel(tmp_path / "model").score(pa.table({"x": [0.5, 1.5]})).values()
    finally:
        sys.modules.pop("planted_model", None)
    assert scores.tolist() == [1.0, 3.0]


@pytest.mark.filterwarnings("ignore:.*An input example was not provided:UserWarning")
def test_models_with_modules_of_the_same_name_run_their_own_code(tmp_path: Path) -> None:
    """S12: in one process, as the versions of one model usually are."""
    source = "class M:\n    def predict(self, rows): return rows['x'] * {}\ndef _load_pyfunc(path): return M()\n"
    models = []
    for factor in (2, 3):
        (tmp_path / "versioned_model.py").write_text(source.format(factor))
        mlflow.pyfunc.save_model(
            str(tmp_path / f"model-{factor}"),
            loader_module="versioned_model",
            code_paths=[str(tmp_path / "versioned_model.py")],
            signature=infer_signature(X, np.array([1.0])),
            pip_requirements=[],
        )
        models.append(LoadedModel(tmp_path / f"model-{factor}"))
    try:
        found = [next(iter(model.score(pa.table({"x": [0.5, 1.5]})).values())).tolist() for model in models]
    finally:
        sys.modules.pop("versioned_model", None)
    assert found == [[1.0, 3.0], [1.5, 4.5]]


def test_the_cache_of_a_models_code_does_not_change_its_digest(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "model.py").write_text("x = 1")
    before = folder_digest(tmp_path)
    (tmp_path / "code" / "__pycache__").mkdir()
    (tmp_path / "code" / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"compiled")
    assert folder_digest(tmp_path) == before


def test_the_digest_covers_all_but_the_caches_of_python(tmp_path: Path) -> None:
    """S12: a module could be imported by a name without a tag, and other files be read."""
    (tmp_path / "code" / "__pycache__").mkdir(parents=True)
    digests = [folder_digest(tmp_path)]
    for name in ("linear.json", "evil.pyc", "evil.py"):
        (tmp_path / "code" / "__pycache__" / name).write_bytes(b"x")
        digests.append(folder_digest(tmp_path))
    assert len(set(digests)) == 4


@pytest.mark.parametrize(
    ("flavor", "key", "name"),
    [
        ("python_function", "data", "__pycache__/model.cpython-311.pyc"),
        ("python_function", "data", "../model.pkl"),
        ("python_function", "code", "__pycache__"),
        ("python_function", "loader_module", "__pycache__.evil"),
        ("sklearn", "pickled_model", "/model.pkl"),
    ],
)
def test_an_mlflow_model_loads_nothing_outside_of_its_digest(
    pipelines: tuple[Path, Any], tmp_path: Path, flavor: str, key: str, name: str
) -> None:
    """S12."""
    copy = Path(shutil.copytree(pipelines[0], tmp_path / "model"))
    document = yaml.safe_load((copy / "MLmodel").read_text())
    document["flavors"][flavor][key] = name
    (copy / "MLmodel").write_text(yaml.safe_dump(document))
    with pytest.raises(ModelDirectoryError, match=f"names {key} '{name}', which is outside of its folder or its"):
        ModelDirectory.open(copy)
    with pytest.raises(UnsupportedModelError, match="outside of its folder or its digest"):
        PyfuncBackend(copy)
