"""Scoring of a DataFrame by several models. The value of a column selects the model of each row."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, get_args

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import BooleanType, DateType, IntegralType, StringType, StructType

from mirrorspark.data_pipelines import any_table, memory_tables, table_forms
from mirrorspark.data_pipelines.features import FeatureMismatchError, quoted, raw_columns
from mirrorspark.data_pipelines.spark import map_batches, sent_schema_of
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input import NullPolicy, NullRule
from mirrorspark.scoring.memory import keys_among_columns, scored_by_tasks, session_to_score
from mirrorspark.scoring.model.folder import ModelDirectoryError
from mirrorspark.scoring.model.loading import DEFAULT_BATCH_SIZE
from mirrorspark.scoring.model.stored import ModelNotFoundError, PinnedModel, pinned_model
from mirrorspark.scoring.output import AS_COLUMNS, DEFAULT_COLUMNS, BadRows, Form
from mirrorspark.scoring.plan import ScoringPlan, SentColumns, check_keys, scored_schema
from mirrorspark.scoring.task import Counters, GroupTask, OtherVersions, Scorer, ScoringOptions, Unknown, ship_all
from mirrorspark.spark_session import on_running_session
from mirrorspark.storage import meant

_LOGGER = logging.getLogger(__name__)

_GROUP_TYPES = (BooleanType, DateType, IntegralType, StringType)
_NAMED_IN_MESSAGE = 3

_Model: TypeAlias = str | Path | PinnedModel


@on_running_session
def score_by_group(  # noqa: D417 - the others are those of score
    table: Any,
    models: Mapping[Any, str | Path | PinnedModel],
    *,
    group: str,
    keys: str | Sequence[str] = (),
    unknown: Unknown = "fail",
    colocate: bool = True,
    tracking_uri: str | None = None,
    outputs: Form | str = AS_COLUMNS,
    batch_size: int = DEFAULT_BATCH_SIZE,
    with_columns: str | Sequence[str] = DEFAULT_COLUMNS,
    nulls: Mapping[str, NullRule] | None = None,
    bad_rows: BadRows = "fail",
    other_versions: OtherVersions = "refuse",
    trust: bool = False,
    counters: Counters | None = None,
    spark: SparkSession | None = None,
) -> Any:
    """Return, for every row of a table, its group and keys with the outputs and the version of its group's model.

    This call resolves each URI once. Models may read different columns; tasks get the union of them. Models may have
    different labels if the form of the scores has the same columns for all.

    Args:
        table: The table, with the group, the keys and the raw columns of all models, in a form that
            :func:`scoring.score` takes. Spark scores it, also if it is in memory.
        models: By value of the group, the URI of its model or the result of :func:`scoring.model.stored.resolve`.
        group: Column that selects the model: strings, integers, booleans or dates. It becomes the first key unless
            ``keys`` names it.
        keys: Columns that identify a row; they pass through unchanged. A table in memory needs none.
        unknown: Treatment of a row whose group is null or has no model. ``fail``: the job fails and names the row by
            its keys. ``null``: its scores and version are null, and with ``bad_rows="mark"`` the column ``error`` gives
            the reason.
        colocate: Bring the rows of a group together, so that a Python worker loads few models. Partitions are then
            ranges of group and keys, at most ``spark.sql.shuffle.partitions`` of them: a large group has several
            partitions, small groups share one. Spark computes the table one more time to find the ranges. With False,
            and always for a stream, partitions and the order of rows stay as they are.
        nulls: See :func:`scoring.score`; a rule applies to the models that read its column.

    The other arguments are those of :func:`scoring.score`, as is the form of the result.

    Raises:
        ModelNotFoundError: A URI leads to no model.
        ScoringError: ``models`` is empty, the group column is missing or its type cannot hold a value of ``models``,
            the models' outputs have different columns, or for a reason of :func:`scoring.score`.
        ColumnError: A column is missing, or has a type that a model does not accept.
    """
    options = ScoringOptions.of(outputs, batch_size, with_columns, nulls, bad_rows, other_versions)
    if unknown not in get_args(Unknown):
        raise ScoringError(f"unknown '{unknown}' is not a rule for groups without a model; use fail or null")
    own_keys = (keys,) if isinstance(keys, str) else tuple(keys)

    def by_tasks(df: DataFrame, keys: Sequence[str]) -> DataFrame:
        by_value = _by_value(df, group, models)
        check_keys(df.columns, keys)
        pinned = _pinned_models(by_value, group, tracking_uri)
        return _scored_frame(
            df, pinned, group, keys, options, unknown=unknown, colocate=colocate, trust=trust, counters=counters
        )

    if hasattr(table, "sparkSession"):
        return by_tasks(table, own_keys)
    return _scored_table(table, group, own_keys, by_tasks, spark)


def _scored_frame(
    df: DataFrame,
    pinned: Mapping[PinnedModel, Sequence[Any]],
    group: str,
    keys: Sequence[str],
    options: ScoringOptions,
    *,
    unknown: Unknown,
    colocate: bool,
    trust: bool,
    counters: Counters | None,
) -> DataFrame:
    all_keys = _with_group(group, keys)
    found, read = _checked_models(pinned, SentColumns.of(df.schema), group, all_keys, options, trust=trust)
    sent = df.select(*(quoted(name) for name in dict.fromkeys([*all_keys, *read])))
    _LOGGER.info("%d models by '%s' read the columns %s", len(found), group, sent.columns)
    shipped = ship_all(df.sparkSession, [one.pinned for one in found])
    task = GroupTask(
        group=group,
        keys=all_keys,
        scorers=tuple(Scorer(model, one.options, counters) for model, one in zip(shipped, found, strict=True)),
        routes={value: place for place, one in enumerate(found) for value in one.values},
        results=found[0].results,
        unknown=unknown,
    )
    # The ranges of a stream are unknown because it does not end.
    rows = _colocated(sent, group, all_keys) if colocate and not df.isStreaming else sent
    return map_batches(rows, task, scored_schema(sent, all_keys, task.results))


def _scored_table(
    table: Any,
    group: str,
    keys: Sequence[str],
    by_tasks: Callable[[DataFrame, Sequence[str]], DataFrame],
    spark: SparkSession | None,
) -> Any:
    """Return the scores of a path, a name or a table in memory, of the latter in its form, order and index."""
    if not memory_tables.is_in_memory(table):
        return by_tasks(any_table.read_table(session_to_score(spark), table), keys)
    rows = memory_tables.in_arrow(table)
    if group not in rows.column_names:
        raise _no_group(group, rows.column_names)
    own_keys = keys_among_columns(keys, rows.column_names, table_forms.index_names(table))
    all_keys = _with_group(group, own_keys)
    scored, places = scored_by_tasks(rows, (), lambda df, number: by_tasks(df, (*all_keys, number)), spark)
    return table_forms.with_columns(table_forms.selected(table, all_keys), scored.drop_columns(list(all_keys)), places)


def _with_group(group: str, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(keys) if group in keys else (group, *keys)


def _no_group(group: str, columns: Sequence[str]) -> ScoringError:
    return ScoringError(f"the group column '{group}' is missing; the table has {list(columns)}{meant(group, columns)}")


def _by_value(df: DataFrame, group: str, models: Mapping[Any, _Model]) -> Mapping[Any, _Model]:
    """Return ``models`` keyed by the values in the type of the column.

    Raises:
        ScoringError: ``models`` is empty, the column is missing, or it cannot hold a value.
    """
    if not models:
        raise ScoringError(f"models is empty; give a model for each value of the column '{group}'")
    if group not in df.columns:
        raise _no_group(group, df.columns)
    field = df.schema[group]
    if not isinstance(field.dataType, _GROUP_TYPES):
        raise ScoringError(
            f"the group column '{group}' has type {field.dataType.simpleString()}, which cannot select a "
            f"model; cast it to string, bigint, boolean or date"
        )
    (sent,) = sent_schema_of(StructType([field]))
    return {_column_value(value, sent): model for value, model in models.items()}


def _column_value(value: Any, column: pa.Field) -> Any:
    """Return ``value`` in the type of the column.

    Raises:
        ScoringError: The column cannot hold it.
    """
    if value is None:
        raise ScoringError(
            f"models has one for a null in '{column.name}', which is not a group; leave it out, and replace such nulls "
            f"in the query (coalesce)"
        )
    try:
        converted = pa.scalar(value, column.type).as_py()
    except (pa.ArrowException, OverflowError, TypeError) as error:
        raise _value_error(value, column) from error
    # Arrow accepts a number as a date, and bytes as a string.
    if converted != value:
        raise _value_error(value, column)
    return converted


def _value_error(value: Any, column: pa.Field) -> ScoringError:
    return ScoringError(
        f"models has one for {value!r}, which the column '{column.name}' of type {column.type} cannot hold; give "
        f"values of that type"
    )


@contextmanager
def _naming_the_group(group: str, value: Any) -> Iterator[None]:
    """Prefix errors with the group whose model they concern."""
    try:
        yield
    except (
        raw_columns.ColumnError,
        FeatureMismatchError,
        ModelDirectoryError,
        ModelNotFoundError,
        ScoringError,
    ) as error:
        raise type(error)(f"the model of {group}={value!r}: {error}") from error


def _pinned_models(
    by_value: Mapping[Any, _Model], group: str, tracking_uri: str | None
) -> Mapping[PinnedModel, Sequence[Any]]:
    """Pin each URI once, and return the groups of each model.

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
    """A checked model of some groups.

    Attributes:
        values: The groups that use the model.
        options: Options whose null policy is limited to the columns that the model reads.
        results: The columns after the keys: the scores, then the added columns.
    """

    group: str
    values: Sequence[Any]
    pinned: PinnedModel
    options: ScoringOptions
    results: pa.Schema

    def __str__(self) -> str:
        return f"{self.group}={self.values[0]!r} ({self.pinned.label})"


def _checked_models(
    values: Mapping[PinnedModel, Sequence[Any]],
    table: SentColumns,
    group: str,
    keys: tuple[str, ...],
    options: ScoringOptions,
    *,
    trust: bool,
) -> tuple[Sequence[_GroupModel], Sequence[str]]:
    """Check the models; return them with the columns that any of them reads.

    Spark is not called, and only one model folder is open at a time: thousands of models have more vocabularies than a
    process may map into memory (65,530 files by default on Linux).

    Raises:
        ScoringError: A model's outputs do not fit the form or have other columns than the first model's, the result
            would have a column twice, or the null policy does not fit.
        ColumnError: An input is missing, or has a type that its model does not accept.
    """
    found: list[_GroupModel] = []
    read: dict[str, None] = {}
    for pinned, its_values in values.items():
        with _naming_the_group(group, its_values[0]):
            plan = ScoringPlan.of(pinned, keys, options, trust=trust)
            columns = plan.inputs.columns
            own = _own_options(options, columns)
            plan = replace(plan, options=own)
            plan.check_names(table.names)
            plan.check_types(table.schema(columns))
            plan.log_hooks()
            one = _GroupModel(group, its_values, pinned, own, plan.results)
        first = found[0] if found else one
        _check_same_columns(first, one)
        # One schema is shared: each of thousands may have a column for each of thousands of labels.
        found.append(replace(one, results=first.results))
        read |= dict.fromkeys(columns)
    if unknown := sorted(set(options.nulls.values).difference(read)):
        raise ScoringError(f"the null policy names {unknown}, which no model reads; they read {sorted(read)}")
    return found, list(read)


def _own_options(options: ScoringOptions, columns: Sequence[str]) -> ScoringOptions:
    """Return ``options`` with the null policy limited to ``columns``."""
    policy, read = options.nulls.values, set(columns)
    own = {name: rule for name, rule in policy.items() if name in read}
    # A shared object is pickled only once.
    return options if len(own) == len(policy) else replace(options, nulls=NullPolicy(own))


def _check_same_columns(first: _GroupModel, other: _GroupModel) -> None:
    """Check that the scores of two models fit into one table.

    Raises:
        ScoringError: They have different columns.
    """
    if other.results.equals(first.results):
        return
    columns, others = _types(first.results), _types(other.results)
    if others != columns:
        raise ScoringError(
            f"in the form {other.options.outputs} the models of {first} and {other} give different columns: "
            f"only the former {_difference(columns, others)}, only the latter {_difference(others, columns)}; use "
            f"TopK, AtLeast or Long, which have the same columns for all labels, or models of equal outputs"
        )


def _types(schema: pa.Schema) -> Mapping[str, str]:
    return {field.name: str(field.type) for field in schema}


def _difference(columns: Mapping[str, str], others: Mapping[str, str]) -> str:
    """Return the first few columns, with their types, that ``columns`` has and ``others`` lacks."""
    found = [f"{name} ({type_})" for name, type_ in columns.items() if others.get(name) != type_]
    more = f" and {len(found) - _NAMED_IN_MESSAGE} more" if len(found) > _NAMED_IN_MESSAGE else ""
    return f"{', '.join(found[:_NAMED_IN_MESSAGE]) or 'none'}{more}"


def _colocated(table: DataFrame, group: str, keys: Sequence[str]) -> DataFrame:
    """Return ``table`` partitioned by ranges of group and keys, each partition sorted by group."""
    by_group = quoted(group)
    others = [quoted(key) for key in keys if key != group]
    return table.repartitionByRange(by_group, *others).sortWithinPartitions(by_group)
