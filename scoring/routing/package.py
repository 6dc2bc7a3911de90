"""Packaging of a router and its models as one folder, which scores like any model."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mirrorspark.models.index.ranked_lists import is_ranked_list
from mirrorspark.scoring.model.directory import ModelDirectory, ModelDirectoryError, PinnedModel, exported_with
from mirrorspark.scoring.model.packaged import PackagedDescription
from mirrorspark.scoring.model.uri import pinned_model
from mirrorspark.scoring.routing.folder import ROUTER, ROUTER_FILE, model_folder
from mirrorspark.scoring.routing.routed import MODEL, REASON
from mirrorspark.scoring.routing.router import Router

_BLENDED = ("float", "double", "array<float>", "array<double>")


def package_router(
    router: Router,
    folder: str | Path,
    *,
    models: Mapping[str, str | Path | PinnedModel],
    tracking_uri: str | None = None,
) -> Path:
    """Copy the models into ``folder`` with the router that chooses between them.

    The folder can be used like an exported model: :func:`scoring.batch.score` and all other entry points take it, its
    digest is over all it contains, and MLflow stores it as artifacts of a run. Its outputs are those of the models,
    which all have to have the same, and for each row the name of the ``model`` that answered with the ``reason``.

    Args:
        router: The rules.
        folder: The new folder.
        models: By name, the URI of a model or the result of :func:`scoring.model.uri.resolve`.
        tracking_uri: Address of the MLflow store.

    Returns:
        The folder.

    Raises:
        ModelNotFoundError: A URI leads to no model.
        ModelDirectoryError: ``folder`` is not empty, a model is missing or is not used, or the models' outputs differ
            or cannot be blended.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelDirectoryError(f"{target} exists already; give a new folder")
    if set(models) != set(router.models):
        raise ModelDirectoryError(
            f"the router names the models {sorted(router.models)}, and models has {sorted(models)}; give those"
        )
    pinned = {name: pinned_model(model, tracking_uri) for name, model in models.items()}
    found = {name: ModelDirectory.open(one.path) for name, one in pinned.items()}
    outputs = _outputs(found, router)
    versions: dict[str, str] = {}
    for one in pinned.values():
        versions |= exported_with(one.path).compared
    labels = next(iter(found.values())).labels
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        whole = Path(scratch) / target.name
        for name, one in pinned.items():
            shutil.copytree(one.path, model_folder(whole / ROUTER, tuple(router.models), name))
        router.save(whole / ROUTER / ROUTER_FILE)
        names = {output: output for output in outputs}
        PackagedDescription(ROUTER, ROUTER, None, outputs, names, labels=dict(labels), versions=versions).save(whole)
        whole.rename(target)
    return target


def _outputs(found: Mapping[str, ModelDirectory], router: Router) -> dict[str, str]:
    """Return the outputs that all models have, with those of the router."""
    of_each = {name: dict(directory.description.outputs) for name, directory in found.items()}
    first, outputs = next(iter(of_each.items()))
    for name, own in of_each.items():
        if own != outputs or found[name].labels != found[first].labels:
            raise ModelDirectoryError(
                f"the model '{first}' has the outputs {outputs}, and '{name}' has {own}, or other labels; give models "
                f"with the same (package_model(..., outputs=...) renames)"
            )
    if clash := [name for name in (MODEL, REASON) if name in outputs]:
        raise ModelDirectoryError(f"the models have the outputs {clash}, which the router adds; rename them")
    numbers = {} if is_ranked_list(outputs) else outputs
    if router.blends and (other := [name for name, type_ in numbers.items() if type_ not in _BLENDED]):
        raise ModelDirectoryError(f"the outputs {other} are no floating-point numbers, so they cannot be blended")
    return outputs | {MODEL: "string", REASON: "string"}
