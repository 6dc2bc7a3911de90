"""``import mirrorspark as ms``: every public name, lazily, and none that a module of the same name could hide."""

import ast
import inspect
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from pyspark.sql import DataFrame, SparkSession

import mirrorspark as ms
from mirrorspark import SUBJECTS
from mirrorspark.spark_session.stopped import StoppedSessionError
from tests.conftest import PATIENCE

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = [name for names in SUBJECTS.values() for name in names]


@pytest.mark.process  # TensorFlow asks `uname` when it is imported
def test_every_public_name_is_there() -> None:
    assert [name for name in NAMES if not hasattr(ms, name)] == []


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((REPOSITORY / "src" / "mirrorspark" / "__init__.py").read_text())
    [block] = (node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    seen = [str(entry.asname) for node in block.body if isinstance(node, ast.ImportFrom) for entry in node.names]
    assert sorted(seen) == sorted(NAMES)


def test_dir_and_all_list_every_name_once() -> None:
    assert dir(ms) == sorted(ms.__all__)
    assert set(ms.__all__) == {*NAMES, "__version__"}
    assert len(ms.__all__) == len(set(ms.__all__))


def test_the_version_is_that_of_the_installation() -> None:
    assert ms.__version__ == version("mirrorspark")


@pytest.mark.process  # TensorFlow asks `uname` when it is imported
def test_every_function_with_a_session_or_a_table_of_spark_refuses_a_stopped_one() -> None:
    """These others look at a session after files and settings, or need none for a table in memory."""
    others = {"convert", "fit", "package_router", "recommend", "run_train_fn", "score", "train", "train_fleet"}
    session = Mock(spec=SparkSession, sparkContext=SimpleNamespace(_jsc=None))
    stopped = {SparkSession: session, DataFrame: Mock(spec=DataFrame, sparkSession=session)}
    missed = []
    for name, function in inspect.getmembers(ms, inspect.isfunction):
        parameters = inspect.signature(function).parameters
        hints = {each: str(parameter.annotation) for each, parameter in parameters.items()}
        for kind, value in stopped.items():
            of_kind = [each for each, hint in hints.items() if kind.__name__ in hint]
            if not of_kind or name in others:
                continue
            required = [
                each for each in parameters.values() if each.default is each.empty and each.kind <= each.KEYWORD_ONLY
            ]
            given = {each.name: Mock() for each in required} | {of_kind[0]: value}
            try:
                function(**given)
            except StoppedSessionError:
                continue
            except Exception as error:
                missed.append((name, of_kind[0], repr(error)))
            else:
                missed.append((name, of_kind[0], "no error"))
    assert not missed, "\n".join(map(str, missed))


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'mirrorspark' has no attribute 'trian'"):
        getattr(ms, "trian")  # noqa: B009 - mypy would refuse the attribute
    with pytest.raises(ImportError, match="cannot import name 'trian'"):
        exec("from mirrorspark import trian")  # noqa: S102


@pytest.mark.process
def test_importing_it_loads_nothing_heavy() -> None:
    program = (
        "import sys, mirrorspark as ms; dir(ms); ms.__version__\n"
        "loaded = {'tensorflow', 'pyspark', 'pandas', 'numpy', 'pyarrow', 'mlflow', 'matplotlib'} & set(sys.modules)\n"
        "ours = [name for name in sys.modules if name.startswith('mirrorspark.') and name != 'mirrorspark.lazy']\n"
        "sys.exit(f'{loaded} {ours}' if loaded or ours else 0)"
    )
    run_child(program)


@pytest.mark.process
def test_verbs_stay_functions_whatever_modules_are_imported() -> None:
    program = (
        "import inspect\n"
        "import mirrorspark as ms, mirrorspark.data_pipelines.conversion\n"
        "import mirrorspark.training.entry_points.train_dataset\n"
        "import mirrorspark.recommending.recommendations, mirrorspark.serving.precomputed.precomputation\n"
        "import mirrorspark.scoring.parity\n"
        "for name in ('train', 'convert', 'recommend', 'precompute', 'parity', 'score'):\n"
        "    assert inspect.isfunction(getattr(ms, name)), name\n"
        "from mirrorspark import train\n"
        "assert inspect.isfunction(train)\n"
    )
    run_child(program)


def test_no_public_name_is_that_of_a_module_in_the_package() -> None:
    modules = {path.stem for path in (REPOSITORY / "src" / "mirrorspark").iterdir()}
    assert modules & set(ms.__all__) == set()


def run_child(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE * 90, check=False
    )
    assert done.returncode == 0, done.stderr
