"""The sdist, and the wheel that is built from it: all packages and recipe files, which run where there is no clone."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import PATIENCE

REPOSITORY = Path(__file__).resolve().parents[2]
TOP_LEVEL = {"mirrorspark", "pyspark_tfrecord", "pyspark_tfrecords"}
BESIDE_THE_CODE = ("README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md")
NAMES_OF_USERS = (
    "callbacks",
    "data_pipelines",
    "evaluation",
    "fleet",
    "lifecycle",
    "models",
    "pages",
    "recipes",
    "recommending",
    "scoring",
    "serving",
    "spark_session",
    "storage",
    "testing",
    "training",
)


@dataclass(frozen=True)
class Installation:
    """An environment with the wheel and the dependencies of this interpreter, but without the clone."""

    folder: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment's bin folder, away from the clone.

        The working directory has packages of its own with the names of ours; to import one is an error.
        """
        outside = self.folder.parent / "elsewhere"
        for name in NAMES_OF_USERS:
            (outside / name).mkdir(parents=True, exist_ok=True)
            (outside / name / "__init__.py").write_text(f"raise AssertionError('the user\\'s own {name}')\n")
        environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
        environment["NUMBA_DISABLE_JIT"] = "1"  # to compile every kernel takes a minute
        return subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            cwd=outside,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE * 100,
            check=False,
        )


def run_uv(*arguments: str) -> None:
    """Run the uv of this environment; it finds everything on this machine, so it may not use the network."""
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    subprocess.run([str(uv), "--quiet", "--offline", *arguments], check=True, timeout=PATIENCE * 60)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what a wheel is built from: setuptools leaves a build folder, which has no place in the clone."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "MANIFEST.in", *BESIDE_THE_CODE):
        shutil.copy(REPOSITORY / name, folder)
    shutil.copytree(REPOSITORY / "docs", folder / "docs")
    for package in TOP_LEVEL - {"mirrorspark"}:
        shutil.copytree(REPOSITORY / "src" / package, folder / "src" / package)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(REPOSITORY / "src" / "mirrorspark", folder / "src" / "mirrorspark", symlinks=True, ignore=ignored)
    for link in (REPOSITORY / "src" / "mirrorspark").iterdir():
        if link.is_symlink():
            shutil.copytree(link, folder / link.name, ignore=ignored)
    return folder


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the sdist and of the wheel, which is built from the unpacked sdist."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)],
        check=True,
        timeout=PATIENCE * 100,
        stdout=subprocess.DEVNULL,
    )
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


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


def test_wheel_puts_three_names_into_site_packages_and_holds_every_package(wheel: Path, source: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {Path(name).parent.as_posix() for name in archive.namelist() if name.endswith("/__init__.py")}
        folders = {name.split("/")[0] for name in archive.namelist()}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == TOP_LEVEL
    packages = {
        (Path("mirrorspark") / path.parent.relative_to(source)).as_posix()
        for link in (source / "src" / "mirrorspark").iterdir()
        if link.is_symlink()
        for path in (source / link.name).rglob("__init__.py")
    }
    assert held == packages | TOP_LEVEL
    folders_of_the_clone = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")} - {"benchmarks"}
    assert {f"mirrorspark/{name}" for name in folders_of_the_clone} <= held


def test_wheel_holds_every_recipe_file(wheel: Path) -> None:
    files = [path for pattern in ("*.yaml", "*.sql") for path in (REPOSITORY / "recipes").glob(f"*/{pattern}")]
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert {path.suffix for path in files} == {".yaml", ".sql"}
    assert [path.name for path in files if f"mirrorspark/{path.relative_to(REPOSITORY).as_posix()}" not in held] == []


def test_wheel_says_that_it_has_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert "mirrorspark/py.typed" in archive.namelist()


def test_wheel_holds_every_template(wheel: Path) -> None:
    found = [
        path
        for folder in ("data_pipelines", "fleet", "lifecycle", "pages", "training")
        for path in (REPOSITORY / folder).rglob("*.j*")
    ]
    templates = [path.relative_to(REPOSITORY) for path in found if path.suffix in (".jinja", ".json")]
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert templates
    assert [path for path in templates if f"mirrorspark/{path.as_posix()}" not in held] == []


def test_wheel_carries_the_licence_and_the_python_versions_it_runs_on(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
        assert any(name.endswith("/LICENSE") for name in archive.namelist())
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Python: <3.14,>=3.11" in text
    assert "Classifier: Typing :: Typed" in text
    assert "URL" not in text.partition("\n\n")[0]  # there is no public address


def test_the_sdist_holds_real_files_and_the_pages_beside_the_code(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert [one.name for one in members if not (one.isfile() or one.isdir())] == []
    names = {one.name.partition("/")[2] for one in members}
    assert {*BESIDE_THE_CODE, "docs/index.md", "src/mirrorspark/scoring/predictor.py"} <= names
    assert "scoring/predictor.py" not in names


@pytest.mark.full
def test_an_index_takes_sdist_and_wheel(built: Path) -> None:
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    files = [str(file) for file in built.iterdir() if file.suffix in (".whl", ".gz")]
    assert len(files) == 2
    command = [str(uv), "--quiet", "tool", "run", "twine", "check", "--strict", *files]
    subprocess.run(command, check=True, timeout=PATIENCE * 60)


def test_packages_come_from_the_wheel_and_not_from_the_clone(installation: Installation) -> None:
    found = installation.run("python", "-c", "import mirrorspark; print(mirrorspark.__file__)")
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()).is_relative_to(installation.folder)


def test_spark_finds_the_data_source_of_an_installation_by_itself(installation: Installation) -> None:
    """T1: Spark 4 looks for top-level modules named ``pyspark_*`` that have a ``DefaultSource``."""
    script = (
        "import pkgutil; names = [module.name for module in pkgutil.iter_modules()]; "
        "print('pyspark_tfrecord' in names and 'pyspark_tfrecords' in names); "
        "import pyspark_tfrecord; print(pyspark_tfrecord.DefaultSource.name(), pyspark_tfrecord.__file__); "
        "import pyspark_tfrecords; print(pyspark_tfrecords.DefaultSource.name())"
    )
    found = installation.run("python", "-c", script)
    assert found.returncode == 0, found.stderr
    has_modules, named, alias = found.stdout.splitlines()
    assert has_modules == "True"
    assert alias == "tfrecords"
    assert named.startswith("tfrecord ")
    assert Path(named.removeprefix("tfrecord ")).is_relative_to(installation.folder)


def test_recipe_files_are_readable_outside_the_clone(installation: Installation) -> None:
    script = (
        "from importlib.resources import files\n"
        "for recipe in ('flights', 'movielens', 'movielens_items'):\n"
        "    names = sorted(file.name for file in files('mirrorspark.recipes').joinpath(recipe).iterdir())\n"
        "    print(recipe, any(n.endswith('.yaml') for n in names), any(n.endswith('.sql') for n in names))\n"
    )
    found = installation.run("python", "-c", script)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == ["flights True True", "movielens True True", "movielens_items True True"]


def test_the_ledger_of_fleets_has_its_migrations_outside_the_clone(installation: Installation) -> None:
    script = (
        "from mirrorspark.fleet.runs import ledger, tables\n"
        "with ledger.Ledger.open('ledger.db') as opened:\n"
        "    print(opened.rows(tables.ERRORS, 'run'))\n"
    )
    found = installation.run("python", "-c", script)
    assert found.returncode == 0, found.stderr
    assert found.stdout == "[]\n"


def test_site_packages_get_three_names_and_the_metadata(installation: Installation) -> None:
    (site_packages,) = installation.folder.glob("lib/python*/site-packages")
    names = {path.name for path in site_packages.iterdir() if path.suffix not in (".pth", ".dist-info")}
    assert names - {"__pycache__", "_virtualenv.py"} == TOP_LEVEL


@pytest.mark.full
def test_public_names_work_beside_packages_of_the_same_names(installation: Installation) -> None:
    script = (
        "import mirrorspark as ms\n"
        "names = [getattr(ms, name) for name in ms.__all__]\n"
        "print(len(names) == len(ms.__all__), ms.__version__, ms.train.__module__)\n"
        "import importlib.util; print(importlib.util.find_spec('training').origin)\n"
    )
    done = installation.run("python", "-c", script)
    assert done.returncode == 0, done.stderr
    names, theirs = done.stdout.splitlines()
    assert names == "True 0.1.0 mirrorspark.training.entry_points.train_dataset"
    assert Path(theirs) == installation.folder.parent / "elsewhere" / "training" / "__init__.py"


def test_a_task_goes_from_process_to_process_beside_packages_of_the_same_names(installation: Installation) -> None:
    make = (
        "import pyarrow as pa\n"
        "from pyspark import cloudpickle\n"
        "from mirrorspark.data_pipelines.spark.tfrecord_options import ReadOptions\n"
        "from mirrorspark.data_pipelines.spark.tfrecord_tasks import ReadTask\n"
        "task = ReadTask(pa.schema({'clicks': pa.int64()}), ReadOptions())\n"
    )
    pickled = installation.run("python", "-c", make + "print(cloudpickle.dumps(task).hex())")
    assert pickled.returncode == 0, pickled.stderr
    # As a Python worker of Spark does, which imports nothing of ours before.
    load = f"import pickle; read = pickle.loads(bytes.fromhex('{pickled.stdout.strip()}'))\n"
    done = installation.run("python", "-c", f"{load}{make}print(read == task, list(read([])))")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True []\n"


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["mirrorspark"], id="mirrorspark"),
        pytest.param(["python", "-m", "mirrorspark"], id="python -m mirrorspark", marks=pytest.mark.full),
    ],
)
def test_the_program_explains_itself_outside_the_clone(installation: Installation, command: list[str]) -> None:
    shown = installation.run(*command, "--help")
    assert shown.returncode == 0, shown.stderr
    for name in ("train", "score", "fleet", "lookup", "runs", "doctor", "sweep"):
        assert f"\n  {name} " in shown.stdout
    assert installation.run(*command, "--version").stdout == "mirrorspark 0.1.0\n"
    flags = installation.run(*command, "train", "--help")
    assert flags.returncode == 0, flags.stderr
    for flag in ("--workers", "--recipe", "--data", "--output", "--tracking-uri", "--master", "--epochs", "--dry-run"):
        assert f"\n  {flag}" in flags.stdout


@pytest.mark.full
def test_module_and_command_are_the_same_program(installation: Installation) -> None:
    command = installation.run("mirrorspark", "train", "--workers", "none")
    module = installation.run("python", "-m", "mirrorspark.training.run", "--workers", "none")
    assert command.returncode == module.returncode == 2
    assert command.stderr == module.stderr
    assert command.stderr.startswith("mirrorspark: workers 'none' is not a number of workers")


def test_spark_finds_the_data_source_of_this_environment_from_any_folder(tmp_path: Path) -> None:
    """T1: in an environment that `make setup` made, the installation is editable."""
    script = "import pkgutil; print('pyspark_tfrecord' in [module.name for module in pkgutil.iter_modules()])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"
