"""The core and the extras: the names that work with each, their packages and their size."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PATIENCE
from tests.unit.scoring.other_models import LINEAR, NAMES, boxes, logistic, save_logistic_onnx
from tools import weight

# Hides the packages of all extras but some, and prints what each public name needs.
NEEDS = """
import json, sys, time
begin = time.perf_counter()
import mirrorspark as ms
seconds = time.perf_counter() - begin
from mirrorspark.extras import EXTRAS, MissingPackageError, install_line
hidden = EXTRAS.keys() - set(sys.argv[1:])
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
needs = {}
for name in ms.__all__:
    try:
        getattr(ms, name)
        needs[name] = ""
    except MissingPackageError as error:
        assert str(error).startswith(f"mirrorspark.{name} needs the package "), error
        assert str(error).endswith(install_line(error.name)), error
        needs[name] = error.name.partition(".")[0]
print(json.dumps([seconds, needs]))
"""
PREDICT = """
import json, sys
import mirrorspark as ms
source, folder, row = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
print(json.dumps(ms.Predictor(ms.package_model(source, folder, columns=list(row))).predict(row)))
"""
# Names that the core has, and those that PySpark alone adds.
IN_CORE = {"FeatureSpec", "Predictor", "package_model", "register_model", "resolve", "ScoringError", "TrainingConfig"}
WITH_SPARK = {"open_session", "read_table", "recommend", "register_sql", "score", "score_by_group", "scorer_udf"}


def run(python: str, program: str, *arguments: str) -> str:
    """Run a program; an environment of its own does not see the clone."""
    hidden = set() if python == sys.executable else {"PYTHONPATH", "VIRTUAL_ENV"}
    done = subprocess.run(
        [python, "-c", program, *arguments],
        env={name: value for name, value in os.environ.items() if name not in hidden},
        capture_output=True,
        text=True,
        timeout=PATIENCE * 60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.process
@pytest.mark.parametrize("extra", ["core", "PySpark"])
def test_a_name_that_needs_an_extra_says_so_and_the_others_work_without(extra: str) -> None:
    seconds, needs = json.loads(run(sys.executable, NEEDS, *(["pyspark"] if extra == "PySpark" else [])))
    assert seconds < 0.3
    wanted = IN_CORE | (WITH_SPARK if extra == "PySpark" else set())
    assert {name: needs[name] for name in wanted if needs[name]} == {}
    assert needs["EventCallback"] == "tf_keras"
    assert needs["roc_curve"] == "matplotlib"
    assert needs["convert"] == needs["fit"] == ("numba" if extra == "PySpark" else "pyspark")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weight.built(tmp_path_factory.mktemp("dist"))


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Callable[[str], weight.Environment]:
    return lambda extra: weight.Environment.made(tmp_path / "environment", weight.requirement(wheel, extra))


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("extra", "packages", "megabytes", "model"),
    [("", 30, 250, "linear"), ("data", 40, 550, "linear"), ("score", 40, 600, "onnx")],
)
def test_an_extra_is_light_and_scores_alone(
    installed: Callable[[str], weight.Environment],
    tmp_path: Path,
    extra: str,
    packages: int,
    megabytes: int,
    model: str,
) -> None:
    environment = installed(extra)
    assert len(environment.versions) <= packages
    assert environment.megabytes <= megabytes
    heavy = {"pyspark", "mlflow", "tensorflow", "tf-keras", *(() if extra else ("pandas", "numba"))}
    assert not heavy & environment.versions.keys()
    table, source = boxes(1), tmp_path / f"boxes.{'onnx' if model == 'onnx' else 'json'}"
    if model == "onnx":
        save_logistic_onnx(source)
    else:
        source.write_text(json.dumps(LINEAR))
    row = json.dumps({name: table[name][0].as_py() for name in NAMES})
    found = json.loads(run(environment.python, PREDICT, str(source), str(tmp_path / "packaged"), row))
    assert found["score"] == pytest.approx(logistic(table)[0], rel=1e-6)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_training_beside_the_packages_of_a_platform_changes_none_of_them(wheel: Path, tmp_path: Path) -> None:
    platform = weight.Environment.made(tmp_path / "platform", *weight.PLATFORM)
    before = platform.versions
    platform.pip_install(weight.requirement(wheel, "train"))
    platform.pip_install("tf-keras==2.19.*")  # the line that the first call names
    after = platform.versions
    assert weight.changed(before, after) == {}
    assert {"mirrorspark", "optuna", "tf-keras"} <= after.keys() - before.keys()
