"""Score a DataFrame by several models: the value of a column picks the model of each row."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, get_args

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.types import BooleanType, DateType, IntegralType, StringType, StructType

from data_pipelines.fitted import FeatureMismatchError
from data_pipelines.raw_columns import ColumnError
from data_pipelines.spark_schema import sent_schema_of
from scoring.bad_rows import BadRows
from scoring.batch import column_named, scored_schema
from scoring.call import ScoringCall
from scoring.checks import ScoringError, check_keys
from scoring.counters import Counters
from scoring.forms import AS_COLUMNS, Form
from scoring.group_task import GroupTask, Unknown
from scoring.loaded_model import DEFAULT_BATCH_SIZE
from scoring.model_directory import ModelDirectoryError
from scoring.model_uri import ModelNotFoundError, PinnedModel, pinned_model
from scoring.null_policy import NullPolicy, NullRule
from scoring.scorer import OtherVersions, Scorer, Settings
from scoring.sent_columns import SentColumns
from scoring.shipping import map_batches, ship_all

_LOGGER = logging.getLogger(__name__)

_GROUP_TYPES = (BooleanType, DateType, IntegralType, StringType)
_NAMED_IN_MESSAGE = 3

_Model: TypeAlias = str | Path | PinnedModel


def score_by_group(
    df: DataFrame,
    models: Mapping[Any, str | Path | PinnedModel],
    *,
    group: str,
    keys: str | Sequence[str],
    unknown: Unknown = "fail",
    colocate: bool = True,
    tracking_uri: str | None = None,
    outputs: Form | str = AS_COLUMNS,
    batch_size: int = DEFAULT_BATCH_SIZE,
    with_version: bool = True,
    nulls: Mapping[str, NullRule] | None = None,
    bad_rows: BadRows = "fail",
    other_versions: OtherVersions = "refuse",
    counters: Counters | None = None,
) -> DataFrame:
    """Return group and keys of every row of ``df`` with the outputs of its group's model, and that model's version.

    Each URI is resolved once, now. Models may read different columns: Python gets all that any of them reads. They may
    have different labels, in a form of the scores that has the same columns for all.

    Args:
        df: The table, with the group, the keys and the raw columns of all models.
        models: Per value of the group the URI of its model, or what :func:`scoring.model_uri.resolve` made of it.
        group: Column that picks the model, of strings, whole numbers, booleans or dates. It is a key, the first one
            unless ``keys`` names it.
        keys: Columns that name a row; they pass through unchanged.
        unknown: What becomes of a row whose group has no model, or is null. ``fail``: the job fails, and names the row
            by its keys. ``null``: its scores and version are null, and with ``bad_rows="mark"`` the column ``error``
            says why.
        colocate: Bring the rows of a group together, so that a Python worker loads few models: partitions are ranges of
            group and keys, up to ``spark.sql.shuffle.partitions`` of them. A large group has several of them, small
            ones share one. Spark computes the table once more for it, to find the ranges. With False, and for a stream
            in any case, partitions stay as they are, and rows in their order.
        tracking_uri: MLflow store of the URIs; by default the one that MLflow is set to.
        outputs: The form of the scores, as for :func:`scoring.batch.score`.
        batch_size: Rows per call of a model, unless it takes a number of its own.
        with_version: Add the column ``model_version``.
        nulls: As there; it holds for the models that read the column.
        bad_rows: As there.
        other_versions: As there.
        counters: Collects what the tasks say of themselves.

    Raises:
        ModelNotFoundError: A URI leads to no model.
        ScoringError: There is no model, the group is missing or cannot hold a value that has one, the models give
            different columns, or as :func:`scoring.batch.score` raises it.
        ColumnError: A column is missing, or has a type that a model cannot take, as there.
    """
    settings = Settings.of(outputs, batch_size, with_version, nulls, bad_rows, other_versions)
    if unknown not in get_args(Unknown):
        raise ScoringError(f"unknown '{unknown}' says nothing of groups without a model; use fail or null")
    own_keys = (keys,) if isinstance(keys, str) else tuple(keys)
    by_value = _by_value(df, group, models)
    check_keys(df.columns, own_keys)
    all_keys = own_keys if group in own_keys else (group, *own_keys)
    pinned = _pinned_models(by_value, group, tracking_uri)
    found, read = _checked_models(pinned, SentColumns.of(df.schema), group, all_keys, settings)
    table = df.select(*(column_named(name) for name in dict.fromkeys([*all_keys, *read])))
    _LOGGER.info("%d models by '%s' read the columns %s", len(found), group, table.columns)
    shipped = ship_all(df.sparkSession, [one.pinned for one in found])
    task = GroupTask(
        group=group,
        keys=all_keys,
        scorers=tuple(Scorer(model, one.settings, counters) for model, one in zip(shipped, found, strict=True)),
        routes={value: place for place, one in enumerate(found) for value in one.values},
        added=found[0].added,
        unknown=unknown,
    )
    # A stream has no end, after which its ranges could be told.
    rows = _colocated(table, group, all_keys) if colocate and not df.isStreaming else table
    return map_batches(rows, task, scored_schema(table, all_keys, task.added))


def _by_value(df: DataFrame, group: str, models: Mapping[Any, _Model]) -> Mapping[Any, _Model]:
    """Return ``models`` by the values that the column holds.

    Raises:
        ScoringError: There are none, the column is missing, or it cannot hold a value.
    """
    if not models:
        raise ScoringError(f"models is empty; give a model for each value of the column '{group}'")
    if group not in df.columns:
        raise ScoringError(f"the group column '{group}' is missing; the table has {df.columns}")
    field = df.schema[group]
    if not isinstance(field.dataType, _GROUP_TYPES):
        raise ScoringError(
            f"the group column '{group}' has type {field.dataType.simpleString()}, which picks no model; cast it to "
            f"string, bigint, boolean or date"
        )
    (sent,) = sent_schema_of(StructType([field]))
    return {_held(value, sent): model for value, model in models.items()}


def _held(value: Any, column: pa.Field) -> Any:
    """Return ``value`` as the column holds it.

    Raises:
        ScoringError: It cannot.
    """
    if value is None:
        raise ScoringError(
            f"models has one for a null in '{column.name}', which is no group; leave it out, and replace such nulls in "
            f"the query (coalesce)"
        )
    try:
        held = pa.scalar(value, column.type).as_py()
    except (pa.ArrowException, OverflowError, TypeError) as error:
        raise _not_held(value, column) from error
    # Arrow takes a number for a date, and bytes for a text.
    if held != value:
        raise _not_held(value, column)
    return held


def _not_held(value: Any, column: pa.Field) -> ScoringError:
    return ScoringError(
        f"models has one for {value!r}, which the column '{column.name}' of type {column.type} cannot hold; give "
        f"values of that type"
    )


@contextmanager
def _naming_the_group(group: str, value: Any) -> Iterator[None]:
    """Have an error say which group's model it is about."""
    try:
        yield
    except (ColumnError, FeatureMismatchError, ModelDirectoryError, ModelNotFoundError, ScoringError) as error:
        raise type(error)(f"the model of {group}={value!r}: {error}") from error


def _pinned_models(
    by_value: Mapping[Any, _Model], group: str, tracking_uri: str | None
) -> Mapping[PinnedModel, Sequence[Any]]:
    """Pin the models, each URI once, and return the groups that each is for.

    Raises:
        ModelNotFoundError: A URI leads to no model.
    """
    pinned: dict[_Model, PinnedModel] = {}
    values: dict[PinnedModel, list[Any]] = {}
    for value, model in by_value.items():
        if model not in pinned:
            with _naming_the_group(group, value):
                pinned[model] = pinned_model(model, tracking_uri)
        values.setdefault(pinned[model], []).append(value)
    return values


@dataclass(frozen=True)
class _GroupModel:
    """What is kept of a model that has been checked.

    Attributes:
        group: The column that picks it.
        values: The groups that it is for.
        pinned: It.
        settings: How to call it, with what the null policy says of the columns that it reads.
        added: The columns behind the keys.
    """

    group: str
    values: Sequence[Any]
    pinned: PinnedModel
    settings: Settings
    added: pa.Schema

    def __str__(self) -> str:
        return f"{self.group}={self.values[0]!r} ({self.pinned.label})"


def _checked_models(
    values: Mapping[PinnedModel, Sequence[Any]],
    table: SentColumns,
    group: str,
    keys: tuple[str, ...],
    settings: Settings,
) -> tuple[Sequence[_GroupModel], Sequence[str]]:
    """Check the models, and return what is kept of each, and the columns that any of them reads.

    Spark is asked nothing, and one model's folder is open at a time: thousands of models have more vocabularies than a
    process may map into memory (65,530 files, where Linux is left as it is).

    Raises:
        ScoringError: A model's outputs cannot take the form or give other columns than the first model's, a column
            would stand in the result twice, or the null policy does not fit.
        ColumnError: An input is missing, or has a type that its model cannot take.
    """
    found: list[_GroupModel] = []
    read: dict[str, None] = {}
    for pinned, its_values in values.items():
        with _naming_the_group(group, its_values[0]):
            call = ScoringCall(pinned, keys, settings)
            columns = call.directory.inputs.columns
            own = _own_settings(settings, columns)
            _check(call, own.nulls, table)
            one = _GroupModel(group, its_values, pinned, own, call.added)
        first = found[0] if found else one
        _check_same_columns(first, one)
        # Each of thousands of schemas may have a column for each of thousands of labels: one is kept.
        found.append(replace(one, added=first.added))
        read |= dict.fromkeys(columns)
    if stray := sorted(set(settings.nulls.values).difference(read)):
        raise ScoringError(f"the null policy names {stray}, which no model reads; they read {sorted(read)}")
    return found, list(read)


def _own_settings(settings: Settings, columns: Sequence[str]) -> Settings:
    """Return ``settings`` with what the null policy says of some columns."""
    policy, read = settings.nulls.values, set(columns)
    own = {name: rule for name, rule in policy.items() if name in read}
    # What models share is pickled once.
    return settings if len(own) == len(policy) else replace(settings, nulls=NullPolicy(own))


def _check(call: ScoringCall, nulls: NullPolicy, table: SentColumns) -> None:
    """Check that a model can score the table.

    Raises:
        ScoringError: Its outputs cannot take the form, a column would stand in the result twice, or the null policy
            does not fit.
        ColumnError: An input is missing, or has a type that the model cannot take.
    """
    call.check_names(table.names)
    inputs = call.directory.inputs
    sent = table.schema(inputs.columns)
    inputs.check(sent)
    nulls.check(sent)
    call.log_hooks()


def _check_same_columns(first: _GroupModel, other: _GroupModel) -> None:
    """Check that the scores of two models fit into one table.

    Raises:
        ScoringError: They have different columns.
    """
    if other.added.equals(first.added):
        return
    columns, others = _types(first.added), _types(other.added)
    if others != columns:
        raise ScoringError(
            f"in the form {other.settings.outputs} the models of {first} and {other} give different columns: "
            f"only the former {_beyond(columns, others)}, only the latter {_beyond(others, columns)}; use "
            f"TopK, AtLeast or Long, which have the same columns for all labels, or models of equal outputs"
        )


def _types(schema: pa.Schema) -> Mapping[str, str]:
    return {field.name: str(field.type) for field in schema}


def _beyond(columns: Mapping[str, str], others: Mapping[str, str]) -> str:
    """Return what ``columns`` has and ``others`` has not, the first few by name."""
    found = [f"{name} ({type_})" for name, type_ in columns.items() if others.get(name) != type_]
    more = f" and {len(found) - _NAMED_IN_MESSAGE} more" if len(found) > _NAMED_IN_MESSAGE else ""
    return f"{', '.join(found[:_NAMED_IN_MESSAGE]) or 'none'}{more}"


def _colocated(table: DataFrame, group: str, keys: Sequence[str]) -> DataFrame:
    """Return ``table`` in partitions that are ranges of group and keys, group after group in each."""
    by_group = column_named(group)
    others = [column_named(key) for key in keys if key != group]
    return table.repartitionByRange(by_group, *others).sortWithinPartitions(by_group)
