"""The wheel: it holds all packages and recipe files, and runs where there is no clone."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Installation:
    """An environment with the wheel and the dependencies of this interpreter, but without the clone."""

    folder: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment's bin folder, away from the clone."""
        outside = self.folder.parent / "elsewhere"
        outside.mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
        return subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            cwd=outside,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )


def run_uv(*arguments: str) -> None:
    """Run the uv beside this interpreter; it finds everything on this machine, so it may not use the network."""
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    subprocess.run([str(uv), "--quiet", "--offline", *arguments], check=True, timeout=60)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what a wheel is built from: setuptools leaves a build folder, which has no place in the clone."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    for package in REPOSITORY.glob("*/__init__.py"):
        shutil.copytree(package.parent, folder / package.parent.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)],
        check=True,
        timeout=100,
        stdout=subprocess.DEVNULL,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("installed") / "venv"
    run_uv("venv", "--python", sys.executable, str(folder))
    run_uv("pip", "install", "--python", str(folder), "--no-deps", str(wheel))
    # A folder that a .pth file adds comes last and its own .pth files are not read, so the clone, which is installed
    # there in editable form, stays out of sight.
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installation(folder)


def test_wheel_holds_every_package_and_nothing_else(wheel: Path, source: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        folders = {name.split("/")[0] for name in archive.namelist()}
    # The benchmarks measure a clone; nobody installs them.
    packages = {path.parent.name for path in source.glob("*/__init__.py")} - {"benchmarks"}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == packages
    assert {"callbacks", "data_pipelines", "models", "plots", "recipes", "scoring", "training"} <= packages


def test_wheel_holds_every_recipe_file(wheel: Path) -> None:
    files = [path for pattern in ("*.yaml", "*.sql") for path in (REPOSITORY / "recipes").glob(f"*/{pattern}")]
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert {path.suffix for path in files} == {".yaml", ".sql"}
    assert [path.name for path in files if path.relative_to(REPOSITORY).as_posix() not in held] == []


def test_wheel_carries_the_licence_and_the_python_versions_it_runs_on(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
        assert any(name.endswith("/LICENSE") for name in archive.namelist())
    assert "Apache-2.0" in text
    assert "Requires-Python: <3.14,>=3.11" in text


def test_packages_come_from_the_wheel_and_not_from_the_clone(installation: Installation) -> None:
    found = installation.run("python", "-c", "import data_pipelines; print(data_pipelines.__file__)")
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()).is_relative_to(installation.folder)


def test_spark_finds_the_data_source_of_an_installation_by_itself(installation: Installation) -> None:
    """T1: Spark 4 looks for top-level modules named ``pyspark_*`` that have a ``DefaultSource``."""
    script = (
        "import pkgutil; names = [module.name for module in pkgutil.iter_modules()]; "
        "print('pyspark_tfrecord' in names); "
        "import pyspark_tfrecord; print(pyspark_tfrecord.DefaultSource.name(), pyspark_tfrecord.__file__)"
    )
    found = installation.run("python", "-c", script)
    assert found.returncode == 0, found.stderr
    has_module, named = found.stdout.splitlines()
    assert has_module == "True"
    assert named.startswith("tfrecord ")
    assert Path(named.removeprefix("tfrecord ")).is_relative_to(installation.folder)


def test_recipe_files_are_readable_outside_the_clone(installation: Installation) -> None:
    script = (
        "from importlib.resources import files\n"
        "for recipe in ('flights', 'movielens'):\n"
        "    names = sorted(file.name for file in files('recipes').joinpath(recipe).iterdir())\n"
        "    print(recipe, any(n.endswith('.yaml') for n in names), any(n.endswith('.sql') for n in names))\n"
    )
    found = installation.run("python", "-c", script)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == ["flights True True", "movielens True True"]


def test_console_command_explains_itself_outside_the_clone(installation: Installation) -> None:
    shown = installation.run("mirrorspark", "--help")
    assert shown.returncode == 0, shown.stderr
    for flag in ("--workers", "--recipe", "--data", "--output", "--tracking-uri", "--master", "--epochs", "--dry-run"):
        assert flag in shown.stdout


def test_module_and_console_command_are_the_same_program(installation: Installation) -> None:
    command = installation.run("mirrorspark", "--workers", "none")
    module = installation.run("python", "-m", "training.run", "--workers", "none")
    assert command.returncode == module.returncode == 2
    assert command.stderr.replace("mirrorspark", "") == module.stderr.replace("mirrorspark", "")
