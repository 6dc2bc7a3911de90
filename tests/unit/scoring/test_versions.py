"""L10: an executor whose Python or libraries are not the model's says so before it loads anything."""

import logging
import platform
from importlib.metadata import version
from pathlib import Path

import pytest

from mirrorspark.scoring.backends.catalog import compared_libraries
from mirrorspark.scoring.model.loading.versions import (
    COMPARED_OF_TRAINED,
    OF_ENCODERS,
    ModelVersionsError,
    Versions,
    check_versions,
    pinned_versions,
    versions_here,
    warn_of_encoder_versions,
)

PYTHON = platform.python_version()
INSTALLED = version("tensorflow")
MINOR = ".".join(INSTALLED.split(".")[:2])


@pytest.mark.parametrize(
    "exported_with", [{}, {"tensorflow": INSTALLED}, {"tensorflow": f"{MINOR}.99", "python": PYTHON, "numpy": "2.4"}]
)
def test_patch_versions_may_differ(exported_with: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"tensorflow": INSTALLED, "python": PYTHON, "numpy": "2.4.6"}
    monkeypatch.setattr("mirrorspark.scoring.model.loading.versions.installed_version", here.get)
    check_versions(Versions(exported_with), "flights/3")


def test_all_minor_versions_that_differ_are_told_in_one_message_with_what_to_do() -> None:
    with pytest.raises(ModelVersionsError) as caught:
        check_versions(
            Versions({"python": "3.1.4", "numpy": version("numpy"), "tensorflow": "1.15.0"}),
            "flights/3",
        )
    message = str(caught.value)
    assert "flights/3 cannot be scored by " in message
    assert (
        f": it has python {PYTHON} instead of 3.1.4, tensorflow {INSTALLED} instead of 1.15.0, which the model was "
        f"exported with; install these minor versions in"
    ) in message
    assert "other_versions='allow'" in message


def test_a_whole_number_is_a_minor_version_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEP 440: 2 is 2.0."""
    monkeypatch.setattr(
        "mirrorspark.scoring.model.loading.versions.installed_version", {"one": "2.0.1", "other": "2.1"}.get
    )
    with pytest.raises(ModelVersionsError, match=r"it has other 2\.1 instead of 2, which"):
        check_versions(Versions({"one": "2", "other": "2"}), "flights/3")


def test_a_library_that_is_not_found_is_not_compared() -> None:
    """``onnxruntime-openvino``, ``tf-nightly``, a build of one's own: a missing library cannot be loaded anyway."""
    check_versions(Versions({"no-such-library": "7.1"}, {"none-either": "1.0"}), "flights/3")


def test_a_library_may_come_in_a_distribution_of_another_name() -> None:
    """The module ``xgboost`` belongs to ``xgboost-cpu`` here."""
    assert versions_here(compared_libraries("xgboost"), has_hooks=False) == {"xgboost": version("xgboost-cpu")}


def test_functions_of_a_model_add_python_and_numpy_to_what_is_compared() -> None:
    assert versions_here(compared_libraries("lightgbm"), has_hooks=True) == {
        "python": PYTHON,
        "lightgbm": version("lightgbm"),
        "numpy": version("numpy"),
    }


def save_pins(folder: Path, flavor: str, requirements: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "MLmodel").write_text(
        f"artifact_path: model\nflavors:\n  python_function:\n    env:\n      virtualenv: python_env.yaml\n"
        f"    loader_module: mlflow.{flavor}\n  {flavor}:\n    code: null\nmlflow_version: 3.17.2\n"
    )
    (folder / "requirements.txt").write_text(requirements)


def test_an_mlflow_model_is_compared_by_its_flavor_numpy_and_python(tmp_path: Path) -> None:
    assert pinned_versions(tmp_path) == Versions({})
    (tmp_path / "python_env.yaml").write_text("python: 3.1.4\nbuild_dependencies:\n- pip==1.0\n")
    save_pins(
        tmp_path,
        "sklearn",
        "# pandas==0.1\n"
        "mlflow==0.1.0\n"
        "numpy==0.2.5\n"
        "scikit_learn[tests] == 0.3+local  # as in training\n"
        "xgboost==0.4 \\\n    --hash=sha256:0123\n"
        "pandas>=0.1\n"
        "pyarrow==3.*\n"
        "psutil==0.1; sys_platform == 'win32'\n"
        "cloudpickle==0.1\n"
        "scipy\n"
        "-r more.txt",
    )
    assert pinned_versions(tmp_path) == Versions(
        {"python": "3.1.4", "numpy": "0.2.5", "scikit-learn": "0.3+local"}, {"xgboost": "0.4", "cloudpickle": "0.1"}
    )


@pytest.mark.parametrize(
    ("flavor", "pin", "library"),
    [
        ("lightgbm", "lightgbm==0.1", "lightgbm"),
        ("onnx", "onnxruntime-gpu==0.1", "onnxruntime"),
        ("prophet", "prophet==0.1", "prophet"),
        ("pytorch", "torch==0.1", "torch"),
        ("tensorflow", "tensorflow-cpu==0.1", "tensorflow"),
        ("xgboost", "xgboost==0.1", "xgboost"),
    ],
)
def test_a_flavor_tells_the_library_whatever_its_distribution_is(
    tmp_path: Path, flavor: str, pin: str, library: str
) -> None:
    save_pins(tmp_path, flavor, f"{pin}\npytz==0.1\n")
    assert pinned_versions(tmp_path) == Versions({library: "0.1"}, {"pytz": "0.1"})


def test_other_pins_that_differ_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    versions = Versions({}, {"psutil": "0.1.2", "pandas": "0.1", "numpy": version("numpy")})
    with caplog.at_level(logging.WARNING, logger="scoring"):
        check_versions(versions, "flights/3")
        check_versions(versions, "flights/4")
    (told,) = caplog.messages
    assert f"has psutil {version('psutil')} instead of 0.1.2, pandas {version('pandas')} instead of 0.1, wh" in told


def test_libraries_of_encoders_that_differ_are_one_warning_where_they_are_loaded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    versions = Versions({}, encoders={"onnxruntime": "0.1.2", "tf-keras": version("tf-keras")})
    check_versions(versions, "flights/3")
    assert not caplog.messages
    warn_of_encoder_versions(versions)
    warn_of_encoder_versions(versions)
    (told,) = caplog.messages
    assert f"has onnxruntime {version('onnxruntime')} instead of 0.1.2, which ran the encoders of a model when" in told


def test_every_library_that_may_run_an_encoder_is_compared_or_told() -> None:
    backends = ("keras", "keras3", "onnx", "saved_model")
    libraries = {library for backend in backends for library in compared_libraries(backend)}
    assert libraries == {*COMPARED_OF_TRAINED, *OF_ENCODERS}
