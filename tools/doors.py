"""A contract for the import linter: packages are entered by their doors (``setup.cfg`` configures it)."""

import ast
from functools import cache
from pathlib import Path
from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class DoorsContract(Contract):
    """Refuses an import of a package's module from outside the package, unless its ``__init__`` exports the module.

    A package's own sub-packages may import its modules.

    Options:
        packages: Packages whose modules, and those of their sub-packages, import each other by doors.
        folder: Where their source is.
    """

    type_name = "doors"

    packages = fields.ListField(subfield=fields.StringField())
    folder = fields.StringField()

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Find the deep imports among all direct ones."""
        source = Path(str(self.folder))
        roots: list[str] = self.packages  # type: ignore[assignment]
        deep = []
        for imported in sorted(graph.modules):
            package, _, name = imported.rpartition(".")
            if not _is_in(package, *roots):
                continue
            strangers = [
                importer
                for importer in sorted(graph.find_modules_that_directly_import(imported))
                if _is_in(importer, *roots) and not _is_in(importer, package)
            ]
            is_package = (source / Path(*imported.split("."))).is_dir()
            if is_package or not strangers or name in _exports(source / Path(*package.split("."))):
                continue
            for importer in strangers:
                details = graph.get_import_details(importer=importer, imported=imported)
                deep.append((importer, imported, [detail["line_number"] for detail in details]))
        return ContractCheck(kept=not deep, metadata={"deep": deep})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print each deep import, and the package to import from."""
        deep: list[tuple[str, str, list[int]]] = check.metadata["deep"]
        for importer, imported, lines in deep:
            places = ", ".join(f"l.{line}" for line in lines)
            door = imported.rpartition(".")[0]
            output.print_error(f"{importer} ({places}) imports {imported}; import from {door}", bold=False)


def _is_in(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@cache
def _exports(package: Path) -> frozenset[str]:
    """Return the names in a package's ``__all__``."""
    tree: Any = ast.parse((package / "__init__.py").read_text())
    lists = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
    )
    return frozenset(name for names in lists for name in names)
