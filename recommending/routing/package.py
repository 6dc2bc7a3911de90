"""Packaging of a router and its models as one folder, which scores like any model."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from mirrorspark.models import catalog, classical
from mirrorspark.models.index import is_ranked_list
from mirrorspark.recommending.reranking import arrow_items, check_item_columns
from mirrorspark.recommending.routing.blend import VectorFusion
from mirrorspark.recommending.routing.folder import (
    ITEMS_FILE,
    MADE_FILE,
    ROUTER,
    ROUTER_FILE,
    inputs_of,
    model_folder,
    stages_of,
)
from mirrorspark.recommending.routing.routed import MODEL, REASON, RoutedInputs
from mirrorspark.recommending.routing.router import Router
from mirrorspark.scoring.model import POSTPROCESS, PREPROCESS
from mirrorspark.scoring.model.folder import (
    ModelDescription,
    ModelDirectory,
    ModelDirectoryError,
    PackagedDescription,
    check_new,
    copied_hooks,
    exported_with,
    new_model_folder,
)
from mirrorspark.scoring.model.loading import versions_here
from mirrorspark.scoring.model.stored import PinnedModel, pinned_model, remember_consent
from mirrorspark.spark_session import naming_lost_session

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

_NUMBERS = ("float", "double")
_BLENDED = (*_NUMBERS, "array<float>", "array<double>")


@naming_lost_session
def package_router(
    router: Router,
    folder: str | Path,
    *,
    models: Mapping[str, str | Path | PinnedModel],
    items: "DataFrame | pa.Table | pd.DataFrame | None" = None,
    hooks: str | Path | None = None,
    makes: Mapping[str, Sequence[str]] | None = None,
    tracking_uri: str | None = None,
) -> Path:
    """Copy the models into ``folder`` with the router that chooses between them.

    The folder can be used like an exported model: :func:`scoring.score` and all other entry points take it, its
    digest is over all it contains, and MLflow stores it as artifacts of a run. Its outputs are those of the models,
    which all but ranking models have to have the same, and for each row the name of the ``model`` that answered with
    the ``reason``.

    Args:
        router: The rules.
        folder: The new folder.
        models: By name, the URI of a model or the result of :func:`scoring.model.stored.resolve`.
        items: Attributes of the candidates of cascades, a row each; the columns that they read are copied.
        hooks: A Python file, which is copied into the folder and run wherever the router scores. Its function
            ``preprocess`` gets the rows with the columns that the router and its models read, a
            ``pyarrow.RecordBatch``, and returns as many before a model is chosen; it may change columns, and add those
            of ``makes``. ``postprocess`` gets the outputs of all rows, a dict of arrays, and returns it with the
            same names: lists cut or re-ordered by a rule of the user's own, for example.
        makes: Columns that ``preprocess`` adds, each with those that it reads for it: ``{"tags": ["title"]}``. The
            table to score needs ``title``, and not ``tags``.
        tracking_uri: Address of the MLflow store.

    Returns:
        The folder.

    Raises:
        ModelNotFoundError: A URI leads to no model.
        HookError: The hooks cannot be run.
        ModelDirectoryError: ``folder`` is not empty, a model is missing or is not used, the models' outputs differ or
            cannot be blended or ranked by, or ``items`` is missing or not used.
        ColumnError: A column of ``items`` is missing, or has a type or a value that cannot be used.
        ScoringError: A rule names a category that no item has.
    """
    target = Path(folder)
    check_new(target)
    if set(models) != set(router.models):
        raise ModelDirectoryError(
            f"the router names the models {sorted(router.models)}, and models has {sorted(models)}; give those"
        )
    pinned = {name: pinned_model(model, tracking_uri) for name, model in models.items()}
    found = {name: ModelDirectory.open(one.path) for name, one in pinned.items()}
    outputs = _outputs({name: found[name] for name in router.answering}, router)
    _check_vectors(found, router)
    attributes = _attributes(found, router, items)
    versions: dict[str, str] = {}
    for one in pinned.values():
        versions |= exported_with(one.path).compared
    labels = found[router.answering[0]].labels
    with new_model_folder(target) as whole:
        for name, one in pinned.items():
            shutil.copytree(one.path, model_folder(whole / ROUTER, tuple(router.models), name))
        router.save(whole / ROUTER / ROUTER_FILE)
        if attributes is not None:
            pq.write_table(attributes, whole / ROUTER / ITEMS_FILE)
        hook_names = _hook_names(hooks, whole)
        if makes:
            _check_made(makes, hook_names, _inputs(found, router, attributes).read)
            (whole / ROUTER / MADE_FILE).write_text(json.dumps({name: [*of] for name, of in makes.items()}))
        if hook_names:
            versions |= versions_here((), has_hooks=True)
        names = {output: output for output in outputs}
        description = PackagedDescription(
            ROUTER, ROUTER, None, outputs, names, hooks=hook_names, labels=dict(labels), versions=versions
        )
        description.save(whole)
    remember_consent(target, description)
    return target


def _hook_names(source: str | Path | None, folder: Path) -> tuple[str, ...]:
    """Copy a file of hooks, and return the names of those that it has."""
    if source is None:
        return ()
    hooks = copied_hooks(source, folder)
    if not (names := tuple(name for name in (PREPROCESS, POSTPROCESS) if hooks.has(name))):
        raise ModelDirectoryError(
            f"the file of hooks has neither {PREPROCESS} nor {POSTPROCESS}; define one, or leave the file out"
        )
    return names


def _check_made(made: Mapping[str, Sequence[str]], hooks: Sequence[str], read: Sequence[str]) -> None:
    """Check that the hooks can make columns, and that a model or the router reads each of these."""
    if PREPROCESS not in hooks:
        raise ModelDirectoryError(
            f"makes has the columns {list(made)}, and there is no hook {PREPROCESS} that makes them; define it in the "
            f"file of hooks"
        )
    for name, sources in made.items():
        if isinstance(sources, str):
            raise ModelDirectoryError(f"makes has '{sources}' for '{name}'; give a list of columns: ['{sources}']")
        if both := sorted(set(made) & set(sources)):
            raise ModelDirectoryError(
                f"makes has '{name}' from {both}, which are made themselves; name the columns of the table instead"
            )
    if unknown := sorted(set(made) - set(read)):
        raise ModelDirectoryError(
            f"makes has the columns {unknown}, which neither the router nor its models read; they read {list(read)}"
        )


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
        raise ModelDirectoryError(f"the outputs {other} are not floating-point numbers, so they cannot be blended")
    return outputs | {MODEL: "string", REASON: "string"}


def _check_vectors(found: Mapping[str, ModelDirectory], router: Router) -> None:
    """Check that the models of blends have vectors, if the blends use vectors."""
    if router.fusion not in get_args(VectorFusion):
        return
    for blend, weights in router.blends.items():
        for name in weights:
            of = found[name].description
            if (
                not isinstance(of, ModelDescription)
                or of.task != "retrieval"
                or of.architecture in (*classical.SUMS_OVER_HISTORY, catalog.BLEND)
            ):
                raise ModelDirectoryError(
                    f"fusion '{router.fusion}' goes by vectors, and '{name}' of the blend '{blend}' has none; blend "
                    f"retrieval models that were trained here, but no blend and none of "
                    f"{', '.join(classical.SUMS_OVER_HISTORY)}"
                )


def _check_cascades(found: Mapping[str, ModelDirectory], router: Router, *, has_items: bool) -> None:
    """Check that the models fit their stages, and that there are items if and only if a cascade may read them."""
    listed = dict(found[router.answering[0]].description.outputs)
    for name, cascade in router.cascades.items():
        if not is_ranked_list(listed):
            raise ModelDirectoryError(
                f"the cascade '{name}' needs models that list candidates, and those of the router give {listed}; give "
                f"retrieval models"
            )
        outputs = {} if cascade.rank is None else dict(found[cascade.rank].description.outputs)
        if cascade.rank is not None and outputs.get(cascade.output) not in _NUMBERS:
            raise ModelDirectoryError(
                f"'{cascade.output}' is not a number of '{cascade.rank}', which gives {outputs}; name by output of the "
                f"cascade '{name}' one that is"
            )
        if cascade.rerank and not has_items:
            raise ModelDirectoryError(f"the cascade '{name}' re-ranks by attributes of the items; give items")
    if has_items and not router.cascades:
        raise ModelDirectoryError("items are given, and the router has no cascade that reads them; leave them out")


def _attributes(
    found: Mapping[str, ModelDirectory], router: Router, items: "DataFrame | pa.Table | pd.DataFrame | None"
) -> pa.Table | None:
    """Return the columns of the items that cascades read, after a check of the cascades; None without a table."""
    _check_cascades(found, router, has_items=items is not None)
    rankers, table = {name: found[name].inputs for name in router.ranking}, None
    if items is not None:
        rules = [(cascade.key, cascade.rules(cascade.k)) for cascade in router.cascades.values()]
        needed = [name for key, of in rules for name in ([key] if of is None else of.item_columns(key))]
        wanted = dict.fromkeys([*needed, *(name for one in rankers.values() for name in one.columns)])
        table = arrow_items(items, wanted).replace_schema_metadata(None)
        kept = [name for name in wanted if name in needed or name in table.column_names]
        check_item_columns(table, kept)
        table = table.select(kept).combine_chunks()
    stages_of(router, rankers, table)  # Raises where the items do not fit.
    inputs = _inputs(found, router, table)
    # The columns of rows may have any type so far.
    inputs.check(pa.schema([(name, pa.null()) for name in inputs.columns]))
    return table


def _inputs(found: Mapping[str, ModelDirectory], router: Router, items: pa.Table | None) -> RoutedInputs:
    columns = pa.schema([]) if items is None else items.schema
    return inputs_of(router, {name: one.inputs for name, one in found.items()}, columns)
