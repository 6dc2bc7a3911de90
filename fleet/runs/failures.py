"""Models that fail: found one by one, and replaced by models of the same name without outputs."""

import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.fleet.checks import BadModelsError, check_models, check_names
from mirrorspark.fleet.coefficients import table_of_coefficients
from mirrorspark.fleet.columns import FLEET_SCHEMA, FleetError, array, digests_of, lengths_of
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.folder import LIST_FILE
from mirrorspark.fleet.packages import packages_of
from mirrorspark.fleet.registry import is_registered
from mirrorspark.fleet.scorer import bytes_of_models, check_type
from mirrorspark.scoring.model.folder import ModelDirectoryError
from mirrorspark.storage import without_credentials

NOT_OF_A_MODEL = (OSError, FleetError)
"""Errors of files, stores, and of the folder of a whole fleet."""

_MOST_CHARACTERS = 10_000


@dataclass(frozen=True)
class ModelFailure:
    """The failure of a model, which has no outputs.

    Attributes:
        model: Its name; empty for a failure that concerns all models.
        stage: ``load``, ``check`` (its coefficients), ``columns`` (those of the input), ``score``, or ``write`` for a
            failure of all.
        error: Name of the exception's class.
        partition: The task that failed first, if one did.
    """

    model: str
    stage: str
    error: str
    message: str
    traceback: str = ""
    partition: int | None = None

    @classmethod
    def of(cls, model: str, stage: str, error: BaseException, partition: int | None = None) -> "ModelFailure":
        """Return the failure by an exception."""
        lines = "".join(traceback.format_exception(error))
        message = str(error) or type(error).__name__  # Python's own MemoryError has no message
        return cls(model, stage, type(error).__name__, _stored(message), _stored(lines), partition)


def _stored(text: str) -> str:
    """Return a text as every database takes it, without secrets; of a long one the end."""
    return without_credentials(text.replace("\0", "").encode(errors="replace").decode())[-_MOST_CHARACTERS:]


@dataclass(frozen=True)
class CheckedFleet:
    """A fleet in which models that cannot be scored have been replaced.

    Attributes:
        fleet: All models in their order; those that failed give null outputs.
        digests: By model, of what was given; empty for a model that could not be read.
        failures: One per model that failed.
    """

    fleet: Fleet
    digests: Mapping[str, str]
    failures: tuple[ModelFailure, ...]

    @classmethod
    def of(cls, given: Fleet | str | Path | Mapping[str, Fleet | str | Path]) -> "CheckedFleet":
        """Read a fleet, or models by name, and check every model.

        Raises:
            FleetError: Two models have one name, there is none, or the one file of all cannot be read.
            OSError: It cannot be read.
        """
        if isinstance(given, Mapping):
            table, unread = _models_by_name(given)
        else:
            table, unread = _table_of(given), []
        names = table["model"].to_pylist()
        if not names:
            raise FleetError("a fleet needs at least one model")
        check_names(names)
        failures = [*unread, *_bad_models(table, {one.model for one in unread})]
        sound = without_outputs(table, {one.model for one in failures})
        unreadable = {one.model for one in unread}
        digests = {
            name: "" if name in unreadable else digest for name, digest in zip(names, digests_of(table), strict=True)
        }
        return cls(Fleet(sound, digests_of(sound)), digests, tuple(failures))

    def against(self, columns: pa.Schema) -> "CheckedFleet":
        """Return the fleet in which models that cannot read their columns in the input are replaced, too."""
        found = [
            ModelFailure(model, "columns", raw_columns.ColumnError.__name__, message)
            for model, message in _unreadable(self.fleet, columns).items()
        ]
        return self._without(found)

    def within(self, model_bytes: int | None) -> "CheckedFleet":
        """Return the fleet in which models that would take more memory are replaced, too; None for no limit."""
        if model_bytes is None:
            return self
        sizes = zip(self.fleet.names, bytes_of_models(self.fleet).tolist(), strict=True)
        message = "it takes about {:,} bytes of memory, and model_bytes allows {:,}; make it smaller, or raise that"
        return self._without(
            [
                ModelFailure(name, "check", "ModelMemoryError", message.format(size, model_bytes))
                for name, size in sizes
                if size > model_bytes and name not in {one.model for one in self.failures}
            ]
        )

    def _without(self, found: Sequence[ModelFailure]) -> "CheckedFleet":
        table = without_outputs(self.fleet.table, {one.model for one in found})
        return CheckedFleet(Fleet(table, digests_of(table)), self.digests, (*self.failures, *found))


def without_outputs(table: pa.Table, models: Collection[str]) -> pa.Table:
    """Return a fleet's table in which some models have the outputs that they had, but null for every row."""
    places = np.flatnonzero(pc.is_in(array(table, "model"), pa.array(list(models), pa.string())).to_numpy(False))
    if not len(places):
        return table
    empty: dict[str, Any] = {field.name: [] for field in FLEET_SCHEMA if pa.types.is_list(field.type)}
    rows = [
        # A score that is not a number is null, as where a model misses a value.
        empty
        | {"model": row["model"], "group": row["group"] or "", "link": "identity", "intercept": np.nan}
        | {"threshold": None if row["threshold"] is None else 0.0, "cut_points": [0.0] if row["cut_points"] else []}
        for row in table.take(pa.array(places)).to_pylist()
    ]
    order = np.arange(table.num_rows)
    order[places] = table.num_rows + np.arange(len(places))
    return pa.concat_tables([table, pa.Table.from_pylist(rows, schema=FLEET_SCHEMA)]).take(pa.array(order))


def failing(models: Sequence[str], score: Callable[[Sequence[str]], Any]) -> dict[str, Exception]:
    """Return the models for which ``score`` raises, by halving, with their errors.

    Args:
        models: Names of models.
        score: Scores some of them.

    Raises:
        OSError: A file or store failed, which is not a model's fault; like the other errors of ``NOT_OF_A_MODEL``.
    """
    try:
        score(models)
    except NOT_OF_A_MODEL:
        raise
    except Exception as error:
        if len(models) == 1:
            return {models[0]: error}
        middle = len(models) // 2
        return failing(models[:middle], score) | failing(models[middle:], score)
    return {}


def _models_by_name(given: Mapping[str, Fleet | str | Path]) -> tuple[pa.Table, list[ModelFailure]]:
    tables: dict[str, pa.Table] = {}
    failures = []
    for name, source in given.items():
        try:
            tables[name] = _table_of(source)
            if tables[name].num_rows != 1:
                raise FleetError(f"{source} has {tables[name].num_rows:,} models; give each name the file of one model")
        except (OSError, ValueError) as error:
            failures.append(ModelFailure.of(name, "load", error))
            tables[name] = FLEET_SCHEMA.empty_table()
    read = pa.concat_tables([FLEET_SCHEMA.empty_table(), *tables.values()])
    # The outputs of a model that cannot be read are unknown, so that it gets all that others have.
    has_threshold = read["threshold"].null_count < read.num_rows
    unknown: dict[str, Any] = {"threshold": 0.0 if has_threshold else None}
    unknown["cut_points"] = [0.0] if lengths_of(array(read, "cut_points")).any() else []
    for name in (failure.model for failure in failures):
        tables[name] = without_outputs(pa.Table.from_pylist([unknown | {"model": name}], schema=FLEET_SCHEMA), [name])
    named = [table.set_column(0, FLEET_SCHEMA.field("model"), pa.array([name])) for name, table in tables.items()]
    return pa.concat_tables([FLEET_SCHEMA.empty_table(), *named]), failures


def _table_of(source: Fleet | str | Path) -> pa.Table:
    if isinstance(source, Fleet):
        return source.table
    if not isinstance(source, str | Path):
        raise FleetError(
            f"the fleet is a {type(source).__name__}; give a Fleet, its folder, models:/name/version, a file of "
            f"coefficients, or these by the names of models"
        )
    is_fleet = is_registered(source) or (Path(source) / LIST_FILE).exists()
    return Fleet.load(source).table if is_fleet else table_of_coefficients(source)


def _bad_models(table: pa.Table, known: Collection[str]) -> list[ModelFailure]:
    """Return the models that cannot be computed, other than those that are known to have failed."""
    failures: list[ModelFailure] = []
    bad = set(known)
    # Each check names all models that it refuses, and the later checks rely on the earlier ones.
    while (left := table.filter(pc.invert(pc.is_in(table["model"], pa.array(list(bad), pa.string()))))).num_rows:
        try:
            check_models(left)
        except BadModelsError as error:
            bad |= set(error.models)
            failures += [ModelFailure(name, "check", FleetError.__name__, error.problem) for name in error.models]
        else:
            break
    return failures


def _unreadable(fleet: Fleet, columns: pa.Schema) -> dict[str, str]:
    """Return the models that read a column that is missing or of another type, and which one, or cannot be opened."""
    lists, types = array(fleet.table, "column"), {field.name: field.type for field in columns}
    owners = np.repeat(np.arange(len(fleet)), lengths_of(lists))
    names = lists.flatten().dictionary_encode()
    categories = array(fleet.table, "category").flatten().dictionary_encode()
    codes = pc.fill_null(categories.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
    pairs = names.indices.to_numpy(zero_copy_only=False).astype(np.int64) * (len(categories.dictionary) + 1) + codes
    _, first, of_terms = np.unique(pairs, return_index=True, return_inverse=True)
    found: dict[str, str] = {}
    # Their libraries say which types they take.
    packaged = {model.name: model for model in packages_of(fleet)}
    for pair, place in enumerate(first.tolist()):
        if problem := _problem(names[place].as_py(), categories[place].as_py(), types):
            for owner in np.unique(owners[of_terms == pair]).tolist():
                if fleet.names[owner] not in packaged:
                    found.setdefault(fleet.names[owner], problem)
    for name, model in packaged.items():
        try:
            model.check(columns)
        except (raw_columns.ColumnError, ModelDirectoryError) as error:
            found[name] = str(error)
    return found


def _problem(column: str, category: str | None, types: Mapping[str, pa.DataType]) -> str | None:
    if column not in types:
        return f"the input has no column '{column}', which the model reads; add it"
    try:
        check_type(column, None if category is None else [category], types[column], lambda: "the model")
    except raw_columns.ColumnError as error:
        return str(error)
    return None
