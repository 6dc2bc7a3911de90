"""The folder of a router: its rules and a folder for each of its models."""

import json
from collections.abc import Sequence
from pathlib import Path

from mirrorspark.scoring.model.directory import ModelDirectory, ModelDirectoryError
from mirrorspark.scoring.model.packaged import PackagedDescription
from mirrorspark.scoring.routing.routed import RoutedInputs
from mirrorspark.scoring.routing.router import Router

ROUTER, ROUTER_FILE = "router", "router.json"
"""Folder and backend of a router, and the file with its rules."""


def model_folder(folder: Path, names: Sequence[str], name: str) -> Path:
    """Return the folder of a model; it is numbered, because names may have any character."""
    return folder / "models" / f"{list(names).index(name):02d}"


def is_router(directory: ModelDirectory) -> bool:
    """Return whether a model is a router of models."""
    description = directory.description
    return isinstance(description, PackagedDescription) and description.backend == ROUTER


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
    return RoutedInputs(router, tuple(ModelDirectory.open(path).inputs for path in folders.values()))
