"""The folder of a router: its rules, a folder for each of its models, and the items of its cascades."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from mirrorspark.recommending.routing.routed import RoutedInputs, RoutedModel
from mirrorspark.recommending.routing.router import Router
from mirrorspark.recommending.routing.stages import StageInputs, Stages
from mirrorspark.scoring.input import Inputs
from mirrorspark.scoring.model import Hooks
from mirrorspark.scoring.model.folder import ModelDirectory, ModelDirectoryError, PackagedDescription

if TYPE_CHECKING:
    from mirrorspark.scoring.model.loading import LoadedModel

ROUTER, ROUTER_FILE, ITEMS_FILE, MADE_FILE = "router", "router.json", "items.parquet", "made.json"
"""Folder and backend of a router, the file with its rules, and, if there are any, those with the items of its cascades
and with the columns that its hook makes.
"""


def model_folder(folder: Path, names: Sequence[str], name: str) -> Path:
    """Return the folder of a model; it is numbered, because names may have any character."""
    return folder / "models" / f"{list(names).index(name):02d}"


def is_router(directory: ModelDirectory) -> bool:
    """Return whether a model is a router of models."""
    description = directory.description
    return isinstance(description, PackagedDescription) and description.backend == ROUTER


class _RouterKind:
    """Routers, as the registry of composites has them (:mod:`scoring.model.loading.composites`)."""

    def members(self, folder: Path) -> dict[str, Path]:
        """Return the folders of the models by name."""
        return read_router(folder)[1]

    def inputs(self, folder: Path) -> RoutedInputs:
        """Return the columns that a router and its models read."""
        return routed_inputs(folder)

    def load(
        self,
        folder: Path,
        description: PackagedDescription,
        load_member: Callable[[Path], "LoadedModel"],
        hooks: Hooks | None,
        threads: int | None,
    ) -> RoutedModel:
        """Load a router and its models."""
        router, folders = read_router(folder)
        members = {name: load_member(path) for name, path in folders.items()}
        return RoutedModel(
            *(router, members, description.outputs, description.labels, threads, read_stages(folder), hooks),
            tuple(read_made(folder)),
        )


COMPOSITE = _RouterKind()


def read_router(folder: Path) -> tuple[Router, dict[str, Path]]:
    """Return the rules, and the folders of the models by name."""
    path = folder / ROUTER_FILE
    try:
        router = Router.of(json.loads(path.read_text(encoding="utf-8")), path)
    except (OSError, ValueError) as error:
        raise ModelDirectoryError(f"{path} is missing or damaged ({error}); package the router again") from error
    return router, {name: model_folder(folder, router.models, name) for name in router.models}


def routed_inputs(folder: Path) -> RoutedInputs:
    """Return the columns that a router and its models read."""
    router, folders = read_router(folder)
    path = folder / ITEMS_FILE
    items = pq.read_schema(path) if path.is_file() else pa.schema([])
    models = {name: ModelDirectory.open(path).inputs for name, path in folders.items()}
    return inputs_of(router, models, items, read_made(folder))


def read_made(folder: Path) -> dict[str, list[str]]:
    """Return the columns that the router's hook makes, each with those that it reads for it."""
    path = folder / MADE_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def inputs_of(
    router: Router, models: Mapping[str, Inputs], items: pa.Schema, made: Mapping[str, Sequence[str]] | None = None
) -> RoutedInputs:
    """Return the columns of rows that a router and its models read.

    Args:
        router: The rules.
        models: The inputs of each model.
        items: The columns of the items.
        made: The columns that the router's hook makes, each with those that it reads for it.
    """
    stages = [
        StageInputs.of(cascade, None if cascade.rank is None else models[cascade.rank], items)
        for cascade in router.cascades.values()
    ]
    return RoutedInputs(router, (*(models[name] for name in router.answering), *stages), made or {})


def read_stages(folder: Path) -> dict[str, Stages]:
    """Return the stages of the cascades of a router by their names."""
    router, folders = read_router(folder)
    path = folder / ITEMS_FILE
    items = pq.read_table(path) if router.cascades and path.is_file() else None
    return stages_of(router, {name: ModelDirectory.open(folders[name]).inputs for name in router.ranking}, items)


def stages_of(router: Router, rankers: Mapping[str, Inputs], items: pa.Table | None) -> dict[str, Stages]:
    """Return the stages of the cascades of a router by their names.

    Args:
        router: The rules.
        rankers: The inputs of each ranking model.
        items: Attributes of the candidates; None without any.

    Raises:
        ColumnError: A column of the items is missing, or has a type or a value that cannot be used.
        ScoringError: A rule names a category that no item has.
    """
    return {
        name: Stages(cascade, None if cascade.rank is None else rankers[cascade.rank], items)
        for name, cascade in router.cascades.items()
    }
