"""``import mirrorspark as ms``: every public name, lazily, and none that a module of the same name could hide."""

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import mirrorspark as ms
from mirrorspark import SUBJECTS

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
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
