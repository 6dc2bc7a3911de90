"""A new catalogue for a trained retrieval model: another table of items, new indexes, and no training."""

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines import any_table, library_versions
from mirrorspark.data_pipelines.features import FeatureSpec, FittedFeatures, item_rows, kinds, raw_columns
from mirrorspark.data_pipelines.spark import task_bar
from mirrorspark.distributions import library_version
from mirrorspark.models import catalog, classical
from mirrorspark.recommending.item_index.build import RefreshError, build, build_plan
from mirrorspark.recommending.item_index.embed_items import embedded_items
from mirrorspark.recommending.item_index.register import register
from mirrorspark.scoring.embedding import ENCODERS_FOLDER
from mirrorspark.scoring.input import FeatureInputs
from mirrorspark.scoring.model import SAMPLE_FILE, TOWERS_FOLDER, Catalogue, utc_text
from mirrorspark.scoring.model.folder import (
    FEATURES_FOLDER,
    ModelDescription,
    ModelDirectory,
    exported_with,
    new_model_folder,
)
from mirrorspark.scoring.model.stored import PinnedModel, pinned_model
from mirrorspark.spark_session import on_running_session

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class RefreshedIndex:
    """A model with a new catalogue.

    Attributes:
        catalogue: Its catalogue, compared with the one before.
        recalls: The share of the exact best candidates that each index finds.
        embedded: Number of items for which the candidate tower computed a vector.
        model_uri: ``models:/<name>/<version>`` where it was registered, else empty.
    """

    folder: Path
    catalogue: Catalogue
    recalls: Mapping[str, float]
    embedded: int
    model_uri: str = ""


@on_running_session
def refresh_index(
    model: str | Path | PinnedModel,
    items: Any,
    folder: str | Path,
    *,
    changes_only: bool = False,
    removed: Iterable[str | int] = (),
    least_recall: float = 0.8,
    registered_model: str | None = None,
    alias: str | None = None,
    tracking_uri: str | None = None,
    threads: int | None = None,
    verbose: bool = False,
) -> RefreshedIndex:
    """Write ``model`` with a new catalogue into ``folder``: it recommends ``items`` and, by default, nothing else.

    Nothing is trained. New items get their vectors from their features, changed ones new vectors, and items that are
    gone are never recommended again, while histories with them mean the same as before. All indexes are built anew.
    ``folder`` is a model like any other, which appears when it is whole, and can be refreshed again.

    Args:
        model: URI or folder of a retrieval model that was trained with items, or the result of
            :func:`scoring.model.stored.resolve`.
        items: The whole table of items, with the columns of the training: a Spark, pandas or Polars DataFrame, or a
            PyArrow table. This process holds it in memory.
        folder: The new folder.
        changes_only: ``items`` has only the items that are new or changed, or is None; all others of the model stay,
            and keep their vectors to the bit. The result is that of the whole table up to rounding.
        removed: With ``changes_only``, the keys of removed items.
        least_recall: Share of the exact best candidates that every index has to find for sample queries of the
            training; otherwise nothing is written.
        registered_model: Name in the MLflow registry that the result becomes a new version of.
        alias: Alias that moves to this version when everything else is done. A lookup of it returns the old version or
            the new one; jobs that run keep theirs.
        tracking_uri: Address of the MLflow store.
        threads: TensorFlow threads; by default one per core.
        verbose: Show the output of the process that builds the indexes.

    Raises:
        ModelNotFoundError: The URI leads to no model.
        RefreshError: The model has no item tower, ``folder`` exists, fewer items are left than the model recommends
            per row, an index finds too few of the best, or an option is invalid.
        TableError: ``items`` is not a table, or lacks a column.
        ColumnError: A column has another type than in training, a key is null or repeated, or a removed one is no
            item of the model or among the changed ones.
    """
    target = Path(folder)
    gone = _removed(items, removed, changes_only=changes_only)
    _check_options(target, least_recall, registered_model, alias)
    pinned = pinned_model(model, tracking_uri)
    cores = threads or len(os.sched_getaffinity(0))

    def build_indexes(whole: Path, k: int, kept: np.ndarray | None) -> Mapping[str, float]:
        with build_plan(whole, k, cores, pinned.path, kept) as plan, task_bar.work_bar("refresh") as on_progress:
            return build(plan, verbose=verbose, on_progress=on_progress)

    embed = partial(embedded_items, pinned.path, threads=cores, verbose=verbose)
    refreshed = write_refreshed(pinned, items, target, least_recall, build_indexes, embed, gone)
    if registered_model is None:
        return refreshed
    return replace(refreshed, model_uri=register(target, pinned, registered_model, alias, tracking_uri))


def write_refreshed(
    pinned: PinnedModel,
    items: Any,
    target: Path,
    least_recall: float,
    build_indexes: Callable[[Path, int, np.ndarray | None], Mapping[str, float]],
    embed: Callable[[FeatureSpec, pa.Table], pa.Table] = lambda spec, items: items,
    removed: frozenset[str] | None = None,
) -> RefreshedIndex:
    """Write the model with new ``items`` into the folder ``target``, whole or not at all.

    Args:
        pinned: The model.
        items: The table.
        target: The new folder.
        least_recall: As in :func:`refresh_index`.
        build_indexes: Writes the SavedModel into a folder that has all else, for a number of candidates per query, and
            returns the recalls of the indexes. It also gets
            :attr:`data_pipelines.features.item_rows.ComparedItems.kept`, or None to embed all items.
        embed: Returns a table with embedded columns, for the spec of the items.
        removed: Keys of removed items, if ``items`` has only those that are new or changed, or is None; None
            where it is the whole table.
    """
    directory = ModelDirectory.open(pinned.path)
    before = catalogue_of(directory)
    own = directory.features.items
    assert own is not None  # noqa: S101 - the model has a catalogue
    table = None if items is None else embed(own.features.spec, _items(items, own.features))
    given = None
    if removed is not None:
        spec = own.features.spec
        given = pa.array([], pa.string()) if table is None else item_rows.item_keys(spec, table)
        table = item_rows.with_changes(own, table, removed)
    fitted = item_rows.with_catalogue(directory.features, table, before.trained)
    assert fitted.items is not None  # noqa: S101 - as its model has
    compared = item_rows.compared_items(own, fitted.items, given)
    catalogue = _compared(directory.features, fitted, compared.changed, before, pinned)
    kept = None if removed is None else compared.kept
    embedded = catalogue.candidates if kept is None else compared.unknown
    with new_model_folder(target) as whole:
        shutil.copytree(pinned.path / TOWERS_FOLDER, whole / TOWERS_FOLDER)
        shutil.copyfile(pinned.path / SAMPLE_FILE, whole / SAMPLE_FILE)
        if (pinned.path / ENCODERS_FOLDER).is_dir():
            shutil.copytree(pinned.path / ENCODERS_FOLDER, whole / ENCODERS_FOLDER)
        fitted.save(whole / FEATURES_FOLDER)
        recalls = build_indexes(whole, catalogue.top_k, kept)
        _check_recalls(recalls, least_recall)
        _described(directory, fitted, catalogue, recalls, whole).save(whole)
    _LOGGER.info(
        "%s has %d candidates, %d of them new and %d changed, %d removed; %d were embedded; recalls %s",
        *(target, catalogue.candidates, catalogue.new, catalogue.changed, catalogue.removed, embedded, recalls),
    )
    return RefreshedIndex(target, catalogue, recalls, embedded)


def _removed(items: Any, removed: Iterable[str | int], *, changes_only: bool) -> frozenset[str] | None:
    """Return the keys of removed items; None if ``items`` is the whole table."""
    if isinstance(removed, str):
        raise RefreshError(f"removed is {removed!r}, one text; give a list of keys")
    gone = frozenset(map(str, removed))
    if not changes_only:
        if gone:
            raise RefreshError(
                "removed needs changes_only=True; a whole table shows by itself which items were removed"
            )
        if items is None:
            raise RefreshError("items is None; give the table of items, or changes_only=True and the removed ones")
        return None
    if items is None and not gone:
        raise RefreshError("nothing is to change: there is no table of new or changed items, and removed is empty")
    return gone


def _check_options(target: Path, least_recall: float, registered_model: str | None, alias: str | None) -> None:
    if target.exists():
        raise RefreshError(f"{target} exists already; give a new folder")
    if not 0 <= least_recall <= 1:
        raise RefreshError(f"least_recall {least_recall} is not a share; use a number from 0 to 1")
    if alias is not None and registered_model is None:
        raise RefreshError(f"the alias '{alias}' belongs to no model; name it as registered_model")


def catalogue_of(directory: ModelDirectory) -> Catalogue:
    """Return the catalogue of a model that can be refreshed.

    Raises:
        RefreshError: It cannot.
    """
    description = directory.description
    found = Catalogue.of_description(description.catalogue) if isinstance(description, ModelDescription) else None
    if found is None:
        if isinstance(description, ModelDescription) and (
            description.architecture in classical.RECOMMENDERS or description.architecture == catalog.BLEND
        ):
            raise RefreshError(
                f"the model in {directory.path} cannot take new items: it is {description.architecture}, which was "
                f"better than the network on the validation rows; train again with register='model' for the network"
            )
        raise RefreshError(
            f"the model in {directory.path} cannot take new items: it was not trained with a table of items, or an "
            f"earlier version of mirrorspark exported it; train one with items"
        )
    return found


def _items(items: Any, own: FittedFeatures) -> pa.Table:
    """Return the columns of the items, whose types are those of the training."""
    inputs = FeatureInputs(own.spec.features, own.column_types)
    table = any_table.as_arrow(items, inputs.columns, "the table of items")
    inputs.check(table.schema)
    return table


def _compared(
    before: FittedFeatures, after: FittedFeatures, changed: int, catalogue: Catalogue, source: PinnedModel
) -> Catalogue:
    """Return the catalogue of ``after``, compared with that of ``before``.

    Raises:
        RefreshError: Fewer items are left than the model recommends per row.
    """
    assert after.items is not None  # noqa: S101 - as it has
    candidates = after.items.rows.num_rows
    if candidates < catalogue.top_k:
        raise RefreshError(
            f"the new catalogue has {candidates} items, and the model recommends {catalogue.top_k} candidates per row; "
            f"give the whole table, or only the changes with changes_only=True"
        )
    was_candidate = np.arange(before.id_count(before.spec.candidate)) >= kinds.FIRST_VOCABULARY_ID
    if catalogue.refreshed_from:  # the candidates of a training may lack an item
        was_candidate[item_rows.ids_without_item(before)] = False
    keys = raw_columns.raw_column(after.items.rows, after.items.features.spec.candidate)
    stayed = int(was_candidate[before.vocabulary(before.spec.candidate).ids(keys)].sum())
    return replace(
        catalogue,
        digest=after.items.digest,
        date=utc_text(datetime.now(UTC)),
        candidates=candidates,
        new=candidates - stayed,
        removed=int(was_candidate.sum()) - stayed,
        changed=changed,
        refreshed_from=source.digest,
        trained_model=catalogue.trained_model or source.uri,
    )


def _check_recalls(recalls: Mapping[str, float], least: float) -> None:
    low = {name: round(found, 3) for name, found in recalls.items() if found < least}
    if low:
        raise RefreshError(
            f"the indexes {low} find fewer of the exact best candidates than least_recall {least}; check the features "
            f"of the items, or give a lower one"
        )


def _described(
    directory: ModelDirectory,
    fitted: FittedFeatures,
    catalogue: Catalogue,
    recalls: Mapping[str, float],
    folder: Path,
) -> ModelDescription:
    """Return the description of the model in ``folder``, which has all other files."""
    before = directory.description
    assert isinstance(before, ModelDescription)  # noqa: S101 - it has a catalogue
    return replace(
        before,
        features_hash=fitted.hash,
        indexes=recalls,
        # The weights come from the vectors of the training's encoders, whatever has embedded the new items.
        versions={
            **exported_with(directory.path).encoders,
            **library_versions(),
            "tensorflow": library_version("tensorflow"),
        },
        catalogue=asdict(catalogue),
    ).with_columns(fitted, folder)
