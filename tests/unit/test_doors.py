"""Packages are entered by their doors: the exports of each ``__init__``."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "src" / "mirrorspark"
DOORS = sorted(
    file
    for top in ROOT.iterdir()
    if top.is_dir() and top.name not in ("recipes", "__pycache__")
    for file in top.rglob("__init__.py")
)


def _door(file: Path) -> str:
    return ".".join(("mirrorspark", *file.parent.relative_to(ROOT).parts))


def _exports(file: Path) -> dict[str, str]:
    """Return the exported names with their modules, as the door's block for type checkers has them."""
    return {
        entry.asname or entry.name: str(node.module)
        for block in ast.parse(file.read_text()).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for entry in node.names
    }


@pytest.mark.parametrize("file", DOORS, ids=_door)
def test_a_door_lists_its_names_and_hides_none_behind_a_module(file: Path) -> None:
    exports, tree = _exports(file), ast.parse(file.read_text())
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert [sorted(names) for names in listed] == ([sorted(exports)] if exports else [])
    # Python binds an imported module to its name in the package, over a function of the same name.
    modules = {entry.stem for entry in file.parent.iterdir()}
    assert not [name for name, home in exports.items() if name in modules and home != _door(file)]


@pytest.mark.parametrize("file", DOORS, ids=_door)
def test_a_door_says_in_three_lines_what_its_package_promises(file: Path) -> None:
    documentation = ast.get_docstring(ast.parse(file.read_text()))
    assert documentation is not None
    assert len([line for line in documentation.splitlines() if line]) <= 3


@pytest.mark.process
def test_opening_every_door_loads_nothing_heavy() -> None:
    program = (
        f"import importlib, sys\nfor door in {[_door(file) for file in DOORS]!r}: importlib.import_module(door)\n"
        "print({'tensorflow', 'pyspark', 'pandas', 'numpy', 'pyarrow', 'mlflow', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


@pytest.mark.process
def test_lazy_names_work_from_a_zip_file_and_refuse_others(tmp_path: Path) -> None:
    archive = tmp_path / "shipped.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("shop/prices.py", "CENTS = 100\n")
        content.writestr("shop/goods.py", "import sys\nLOADED = 'shop.prices' in sys.modules\n")
        content.writestr(
            "shop/__init__.py",
            "from typing import TYPE_CHECKING\nfrom mirrorspark.lazy import lazy_exports\n"
            "if TYPE_CHECKING:\n    from shop import goods\n    from shop.prices import CENTS\n"
            "else:\n    __getattr__, __dir__ = lazy_exports(__name__)\n",
        )
    program = (
        f"import sys; sys.path.insert(0, {str(archive)!r}); import shop\n"
        "print(shop.goods.LOADED, shop.CENTS, {'goods', 'CENTS'} <= set(dir(shop)))\n"
        "try: shop.cents\nexcept AttributeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["False 100 True", "module 'shop' has no attribute 'cents'"]
