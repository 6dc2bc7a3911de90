"""S15: single rows without Spark have the scores that tables have."""

import json
import math
import pickle
import shutil
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.recommending.routing.package import package_router
from mirrorspark.recommending.routing.router import Route, Router
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input.inputs import Column
from mirrorspark.scoring.model.folder.directory import DESCRIPTION_FILE
from mirrorspark.scoring.model.folder.errors import ModelDirectoryError
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.loading.versions import ModelVersionsError
from mirrorspark.scoring.model.stored import consent
from mirrorspark.scoring.model.stored.consent import UntrustedModelError
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.predictor import Predictor
from tests.unit.scoring.exported_models import FLIGHTS, MEMBERS, export_members
from tests.unit.scoring.other_models import LINEAR, pictures, png, save_picture_keras, save_sklearn


@pytest.fixture(scope="module")
def predictor(flights_model: Path) -> Predictor:
    return Predictor(flights_model)


def test_each_row_has_the_score_of_the_table(predictor: Predictor, flights_model: Path) -> None:
    expected = LoadedModel(flights_model).score(FLIGHTS)["score"].tolist()
    rows = FLIGHTS.to_pylist()
    assert [predictor.predict(row)["score"] for row in rows] == pytest.approx(expected, rel=0, abs=1e-6)
    together = predictor.predict_rows(rows)
    assert [row["score"] for row in together] == pytest.approx(expected, rel=0, abs=1e-6)
    assert {row["model_version"] for row in together} == {resolve(flights_model).label}
    assert predictor.predict_rows([]) == []


def test_a_row_that_cannot_be_scored_says_why(predictor: Predictor, tmp_path: Path) -> None:
    row = FLIGHTS.to_pylist()[0]
    for wrong, message in (
        ({name: value for name, value in row.items() if name != "hour"}, "a row lacks the columns 'hour'; give"),
        (
            {"carrier": "UA", "Hour": 5, "stop": [], "distance": 1.0},
            r"a row lacks the columns 'hour' \(did you mean 'Hour'\? .*\), 'stops' \(did you mean 'stop'\?\); give",
        ),
        (row | {"distance": "far"}, "column 'distance' has type string"),
        (row | {"hour": 5.5}, "column 'hour' has type double and the value 5.5; the model was trained with int64"),
        (row | {"stops": "EWR"}, "column 'stops' has type string"),
        (row | {"stops": ["EWR", 3]}, "column 'stops' has values that are of no one type"),
        (row | {"hour": 2**64}, "column 'hour' has a whole number beyond 64 bits"),
    ):
        with pytest.raises(ColumnError, match=message):
            predictor.predict(wrong)
    for no_row in ([row], FLIGHTS.to_pandas()):
        with pytest.raises(ScoringError, match=f"a row is a mapping of .*, not a {type(no_row).__name__};"):
            predictor.predict(no_row)  # type: ignore[arg-type]
    members = Predictor(export_members(tmp_path))
    with pytest.raises(ColumnError, match="column 'member' has type int64, the model was trained with bool"):
        members.predict(MEMBERS.to_pylist()[0] | {"member": 1})


def test_a_row_of_pandas_has_its_missing_values(predictor: Predictor, tmp_path: Path) -> None:
    row = FLIGHTS.to_pylist()[0]
    missing = predictor.predict(row | {"hour": None, "carrier": None, "distance": None})["score"]
    for nothing in (pd.NA, pd.NaT, float("nan"), np.float64("nan"), np.float32("nan")):
        given = row | {"hour": nothing, "carrier": nothing, "distance": nothing}
        assert predictor.predict(given)["score"] == missing
    known = predictor.predict(row)["score"]
    for hour in (5.0, np.float64(5), np.int8(5), Decimal(5)):
        assert predictor.predict(row | {"hour": hour})["score"] == known
    records = pd.DataFrame({"carrier": ["UA", None], "hour": [5, None], "distance": [100.0, None], "stops": [[], []]})
    found = [one["score"] for one in predictor.predict_rows(records.to_dict("records"))]
    nothing = {"hour": None, "carrier": None, "distance": None}
    expected = [predictor.predict(row | {"stops": []} | more)["score"] for more in ({}, nothing)]
    assert found == pytest.approx(expected, rel=1e-6)
    members, member = Predictor(export_members(tmp_path)), MEMBERS.to_pylist()[0]
    for yes in (1.0, np.bool_(True)):
        assert members.predict(member | {"member": yes}) == members.predict(member | {"member": True})
    with pytest.raises(ColumnError, match=r"column 'member' has type double and the value 2\.0"):
        members.predict(member | {"member": 2.0})


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("carrier", "a\ud83d", "column 'carrier' has a text with '\\\\ud83d', half of a character"),
        ("stops", ["EWR", "\udc00"], "column 'stops' has a text with '\\\\udc00', half of a character"),
        ("distance", 10**400, "column 'distance' has a whole number beyond 64 bits"),
        ("hour", 2**70, "column 'hour' has a whole number beyond 64 bits"),
        ("hour", [[1], "x"], "column 'hour' has values that are of no one type"),
    ],
)
def test_a_value_that_arrow_cannot_hold_is_told_by_its_column(
    predictor: Predictor, column: str, value: object, message: str
) -> None:
    with pytest.raises(ColumnError, match=message):
        predictor.predict({**FLIGHTS.to_pylist()[0], column: value})


def test_a_damaged_description_is_told_before_its_versions_are_read(tmp_path: Path) -> None:
    model = package_model(LINEAR, tmp_path / "model")
    (model / DESCRIPTION_FILE).write_text("[]")
    with pytest.raises(ModelDirectoryError, match="does not have the fields"):
        Predictor(model)


def test_an_output_in_the_place_of_the_version_is_refused_until_it_has_another_name(tmp_path: Path) -> None:
    """L4: every row has the version."""
    row = dict.fromkeys(LINEAR["coefficients"], 0.0)
    taken = package_model(LINEAR, tmp_path / "taken", outputs={"model_version": "score"})
    with pytest.raises(ScoringError, match=r"has the outputs \['model_version'\], the names of .*; .*other names"):
        Predictor(taken)
    free = package_model(LINEAR, tmp_path / "free", outputs={"version": "score"})
    assert Predictor(free).predict(row).keys() == {"version", "model_version"}


def blas_threads() -> dict[str, int]:
    return {found["filepath"]: found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}


def test_a_linear_model_leaves_the_threads_of_the_process_alone(tmp_path: Path) -> None:
    """S10: whoever asks for a score may have matrices of their own to multiply."""
    model = package_model({**LINEAR, "intercept": 0.75}, tmp_path / "model")
    with threadpool_limits(2):
        before = blas_threads()
        score = Predictor(model).predict(dict.fromkeys(LINEAR["coefficients"], 0.0))["score"]
        assert blas_threads() == before
    assert score == pytest.approx(1 / (1 + math.exp(-0.75)))
    assert set(before.values()) == {2}


def test_an_mlflow_model_leaves_the_threads_of_the_process_alone(tmp_path: Path) -> None:
    save_sklearn(tmp_path / "model")
    with threadpool_limits(2):
        before = blas_threads()
        Predictor(tmp_path / "model", trust=True).predict({"age": 31.0, "city": "Bonn", "visits": 1})
        # Of what the model has loaded only now, nothing is known.
        assert before.items() <= blas_threads().items()
    assert set(before.values()) == {2}


def test_a_row_may_have_bytes_that_the_model_decodes(tmp_path: Path) -> None:
    model = save_picture_keras(tmp_path / "m.keras", 6, 5)
    columns = [Column("image", "binary", decode="image")]
    predictor = Predictor(package_model(tmp_path / "m.keras", tmp_path / "model", columns=columns))
    (picture,) = pictures(1, 6, 5)
    expected = float(model(picture[None].astype("float32"))[0, 0])
    assert predictor.predict({"image": png(picture)})["score"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ColumnError, match="column 'image' has a value that is not decoded by image"):
        predictor.predict({"image": b"no image"})


def test_a_model_of_another_tensorflow_is_refused_unless_it_is_allowed(flights_model: Path, tmp_path: Path) -> None:
    """L10: one process may have other versions than those that the model was checked with."""
    older = Path(shutil.copytree(flights_model, tmp_path / "older"))
    description = json.loads((older / DESCRIPTION_FILE).read_text())
    (older / DESCRIPTION_FILE).write_text(json.dumps(description | {"versions": {"tensorflow": "1.15.0"}}))
    with pytest.raises(ModelVersionsError, match=r"instead of 1\.15\.0"):
        Predictor(older)
    assert "score" in Predictor(older, other_versions="allow").predict(FLIGHTS.to_pylist()[0])


def test_a_package_of_other_libraries_is_refused_with_all_that_differs_unless_it_is_allowed(tmp_path: Path) -> None:
    """L10."""
    model, row = package_model(LINEAR, tmp_path / "model"), dict.fromkeys(LINEAR["coefficients"], 0.0)
    description = json.loads((model / DESCRIPTION_FILE).read_text())
    others = {"versions": {"python": "3.1.4", "numpy": "0.1.2"}}
    (model / DESCRIPTION_FILE).write_text(json.dumps(description | others))
    with pytest.raises(ModelVersionsError, match=r"python \S+ instead of 3\.1\.4, numpy \S+ instead of 0\.1\.2, which"):
        Predictor(model)
    assert "score" in Predictor(model, other_versions="allow").predict(row)
    # As packages were before they had versions.
    del description["versions"]
    (model / DESCRIPTION_FILE).write_text(json.dumps(description))
    assert "score" in Predictor(model).predict(row)


def test_an_mlflow_model_is_refused_by_other_libraries_than_it_pins_unless_it_is_allowed(tmp_path: Path) -> None:
    """L10: of the library of its flavor; a pin of another does not count, nor one of what is not installed."""
    save_sklearn(tmp_path / "model")
    row = {"age": 31.0, "city": "Bonn", "visits": 1}
    pins = "mlflow\npandas>=0.1\nno-such-library==1.0\ncloudpickle==0.1\nscikit-learn==0.1.2\n"
    (tmp_path / "model" / "requirements.txt").write_text(pins)
    with pytest.raises(ModelVersionsError, match=r": it has scikit-learn \S+ instead of 0\.1\.2, which"):
        Predictor(tmp_path / "model", trust=True)
    assert "prediction" in Predictor(tmp_path / "model", other_versions="allow", trust=True).predict(row)


def package_hooked(folder: Path) -> Path:
    """Package a model whose code leaves a file ``has_run`` in ``folder``."""
    (folder / "code.py").write_text(
        f"open({str(folder / 'has_run')!r}, 'w').close()\ndef postprocess(outputs):\n    return outputs\n"
    )
    return package_model(LINEAR, folder / "hooked", hooks=folder / "code.py")


def of_a_stranger(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a model with code, which another process has made."""
    if kind == "MLflow model":
        save_sklearn(folder / "model")
        return folder / "model"
    if kind == "trusted file":
        model = package_model(LINEAR, folder / "model")
        description = json.loads((model / DESCRIPTION_FILE).read_text())
        (model / DESCRIPTION_FILE).write_text(json.dumps(description | {"trusted": True}))
        return model
    hooked = package_hooked(folder)
    (folder / "has_run").unlink()
    monkeypatch.setattr(consent, "_PACKAGED_HERE", set())
    for name in [name for name in sys.modules if name.startswith("mirrorspark_hooks_")]:
        monkeypatch.delitem(sys.modules, name)
    if kind == "hooks":
        return hooked
    return package_router(Router((Route("own"),)), folder / "router", models={"own": hooked})


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("hooks", "your rights: postprocess of its hooks.py; if you trust who made it, give trust=True"),
        ("MLflow model", "the modules and pickled objects of its MLflow model; if"),
        ("trusted file", "parts of its linear.json, such as Lambda layers; if"),
        ("router", r"model 'own' in router/\w+ brings Python code, .*: postprocess of its hooks.py; if"),
    ],
)
def test_code_of_a_stranger_runs_only_with_the_callers_consent(
    kind: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S12: the folder's own description said that its code may run."""
    model = of_a_stranger(kind, tmp_path, monkeypatch)
    with pytest.raises(UntrustedModelError, match=code) as raised:
        Predictor(model)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)  # noqa: S301 - our own
    assert not (tmp_path / "has_run").exists()
    if kind != "trusted file":  # which this one is not
        row = dict.fromkeys(LINEAR["coefficients"], 0.0) | {"city": "Bonn", "visits": 1, "age": 31.0}
        assert Predictor(model, trust=True).predict(row)
    assert (tmp_path / "has_run").exists() == (kind in ("hooks", "router"))


def test_code_that_this_process_has_packaged_needs_no_consent_until_it_changes(tmp_path: Path) -> None:
    model = package_hooked(tmp_path)
    assert "score" in Predictor(model).predict(dict.fromkeys(LINEAR["coefficients"], 0.0))
    with (model / "hooks.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(UntrustedModelError, match=r"hooks\.py"):
        Predictor(model)
