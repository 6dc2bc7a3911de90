"""The inputs of a recommender for ``fit``: interactions, with or without a table of items, become rows and a spec."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import ArrayType, DataType, DateType, IntegralType, StringType, TimestampNTZType, TimestampType

from mirrorspark.data_pipelines import any_table, content_hash, interactions, memory_tables, table_forms
from mirrorspark.data_pipelines.features import (
    USER_NAME,
    FeatureSpec,
    infer_items,
    item_rows,
    kinds,
    quoted,
    raw_columns,
)
from mirrorspark.data_pipelines.quality import SPLIT_COLUMN
from mirrorspark.data_pipelines.spark import collected
from mirrorspark.spark_session import versions

_LOGGER = logging.getLogger(__name__)

_TIME_NAME = re.compile(r"(time_?stamp|date_?time|time|date|ts)|.*_(at|time|date|on)", re.IGNORECASE)
_NAMED_IN_MESSAGE = 3

Label = str | Mapping[str, Any]


@dataclass(frozen=True)
class RecommenderInput:
    """The tables and the spec that a recommender is trained on.

    Attributes:
        given: The table of interactions, in Spark.
        rows: A row per user and item with the history, and with its split; see :func:`interactions.interaction_rows`.
        items: The table of items, if there is one.
        source: JSON values that determine the rows.
        form: The table as it was given, without rows if it was in memory.
    """

    given: DataFrame
    columns: interactions.InteractionColumns
    rows: DataFrame
    spec: FeatureSpec
    items: DataFrame | None
    source: Mapping[str, Any]
    form: Any

    def in_words(self) -> str:
        """Return the inferred columns in words."""
        of, items = self.columns, self.spec.items
        order = f"in the order of '{of.time}'" if of.time else "in no order"
        if interactions.has_lists(self.given, of):
            order = f"{order} and of their lists" if of.time else "in the order of their lists"
        words = f"users '{of.user}', items '{of.item}'"
        if items is None:
            return f"{words}, {order}"
        features = len(items.query_features)
        return f"{words} with {features} feature{'' if features == 1 else 's'}, {order}"


def check_items(table: Any, items: Any, label: Label) -> None:
    """Check the columns of tables in memory, which needs no session; ``items`` may be None.

    Raises:
        FeatureSpecError: The label is not a candidate, or not the key of the items.
    """
    if not isinstance(label, str) and label.get("kind", "candidate") != "candidate":
        given, verb = ("items", "go") if items is not None else ("user", "goes")
        raise kinds.FeatureSpecError(
            f"{given} {verb} with a label of kind candidate, not {label['kind']}; leave {given} out, or the kind"
        )
    for given, what in ((items, "items"), (table, "the table")):
        if table_forms.is_table(given):
            _require_key(table_forms.column_names(given), _item_of(label), what)


def has_interactions(table: Any, label: Label, exclude: Sequence[str] = ()) -> bool:
    """Return whether a table, in memory or of Spark, has the interactions of users with the items of ``label``.

    It has if the label is said to be of kind candidate, one column is named like a user, and no other column has lists,
    which may be histories already. Columns to ``exclude`` are none of these.
    """
    if isinstance(label, str) or label.get("kind") != "candidate":
        return False
    if memory_tables.is_in_memory(table):
        schema = memory_tables.in_arrow(table).schema
        lists = [field.name for field in schema if raw_columns.is_list(field.type)]
    else:
        schema = table.schema
        lists = [field.name for field in schema if isinstance(field.dataType, ArrayType)]
    not_others = {_item_of(label), *exclude}
    return set(lists) <= not_others and len(_users(name for name in schema.names if name not in not_others)) == 1


def recommender_input(
    table: Any,
    label: Label,
    items: Any,
    *,
    user: str | None,
    time: str | None,
    exclude: Sequence[str],
    spark: SparkSession,
    learns_histories: bool = False,
) -> RecommenderInput:
    """Infer the columns and the features of interactions and items.

    Args:
        table: The interactions, a row per user and item, or with lists of items.
        label: The column of the item, or its name and rating.
        items: The items, a row each; its key has the name of the label. None if nothing but their ids is known.
        user: The column of the user; by default the one that is named like it.
        time: The column that orders the interactions; by default the one that is named like it or has times.
        exclude: Columns of the items that are not features; without items, columns of the table that are not read.
        spark: The session.
        learns_histories: Whether the model learns every item of a history: where interactions have an order and no
            rating, rows for training are then as few as have each item once.

    Raises:
        FeatureSpecError: A column is missing or cannot be inferred, keys differ in type or have none in common.
        ColumnError: An item has several rows or no key.
    """
    in_memory = memory_tables.in_arrow(table) if memory_tables.is_in_memory(table) else None
    df = any_table.read_table(spark, table if in_memory is None else in_memory)
    if items is None:
        _require_columns(exclude, df.columns, "the table does not have; it has")
        df = df.drop(*exclude)
    columns = _columns(df, label, user, time)
    item_table, of_items = (None, None) if items is None else _items(df, columns.item, items, exclude, in_memory)
    kept = [*columns.kept, *([columns.time] if columns.time else ())]
    kept += [SPLIT_COLUMN] if SPLIT_COLUMN in df.columns else []
    others = [name for name in df.columns if name not in kept]
    if others:
        # Nobody has said that these are interactions.
        level = logging.WARNING if items is None and user is None else logging.INFO
        why = "they may be known only after the user has chosen the item; give a spec for a model that reads them"
        _LOGGER.log(level, "columns %s are not features: %s", others, why)
    rows = df.select(*map(quoted, kept))
    is_ordered = columns.time is not None or interactions.has_lists(df, columns)
    in_windows = learns_histories and is_ordered and columns.rating is None
    source = {"interactions": content_hash(rows), "columns": vars(columns), "history": interactions.HISTORY_ITEMS}
    return RecommenderInput(
        given=df,
        columns=columns,
        rows=interactions.interaction_rows(df, columns, in_windows=in_windows),
        spec=_spec(columns, of_items, in_windows),
        items=item_table,
        form=table_forms.selected(table, []) if table_forms.is_table(table) else None,
        source=source | {"in_windows": in_windows},
    )


def _items(
    df: DataFrame, item: str, items: Any, exclude: Sequence[str], in_memory: pa.Table | None
) -> tuple[DataFrame, FeatureSpec]:
    """Return the table of items, and the features that are inferred from it."""
    catalogue = memory_tables.in_arrow(items) if memory_tables.is_in_memory(items) else None
    item_table = any_table.read_table(df.sparkSession, items if catalogue is None else catalogue)
    catalogue = collected(item_table) if catalogue is None else catalogue
    _require_key(item_table.columns, item, "items")
    _require_same_type(interactions.item_type(df, item), item_table.schema[item].dataType, item)
    _require_columns(exclude, item_table.columns, "items do not have; they have")
    of_items = infer_items(catalogue, item, exclude)
    _require_overlap(_met(df, item, in_memory), item_rows.item_keys(of_items, catalogue))
    return item_table, of_items


def _require_columns(exclude: Sequence[str], names: Sequence[str], who: str) -> None:
    if unknown := [name for name in exclude if name not in names]:
        raise kinds.FeatureSpecError(f"exclude names {unknown}, which {who} {list(names)}")


def _item_of(label: Label) -> str:
    return label if isinstance(label, str) else str(label["name"])


def _require_key(names: Sequence[str], key: str, what: str) -> None:
    if key not in names:
        hint = raw_columns.meant(key, [name for name in names if isinstance(name, str)])
        more = "; its key must have the name of the label" if what == "items" else ""
        raise kinds.FeatureSpecError(f"{what} has no column '{key}', only {list(names)}{hint}{more}")


def _columns(df: DataFrame, label: Label, user: str | None, time: str | None) -> interactions.InteractionColumns:
    item, rating = _item_of(label), None if isinstance(label, str) else label.get("rating")
    for argument, name in (("label", item), ("user", user), ("time", time), ("rating of the label", rating)):
        if name is not None and name not in df.columns:
            raise kinds.FeatureSpecError(
                f"{argument}: the table has no column '{name}', only {df.columns}{raw_columns.meant(name, df.columns)}"
            )
    others = [name for name in df.columns if name not in (item, rating, SPLIT_COLUMN)]
    users = [user] if user else _users(others)
    if len(users) != 1:
        found = f"the columns {users} could be" if users else f"no column of {others} is named like"
        raise kinds.FeatureSpecError(f"{found} the user of an interaction, such as user_id; give it: user=…")
    has_lists = isinstance(df.schema[item].dataType, ArrayType)
    if has_lists and rating:
        raise kinds.FeatureSpecError(
            f"label '{item}' is a list of items, but the rating '{rating}' is one of a row; leave the rating out, or "
            f"give the table a row per user and item"
        )
    times = [time] if time else [name for name in others if name not in users and _is_time(df, name)]
    if lists := [name for name in times if isinstance(df.schema[name].dataType, ArrayType)]:
        raise kinds.FeatureSpecError(
            f"the columns {lists} have a list of times; a row has one: leave them out, as lists of items are in their "
            f"order, or give the table a row per user and item"
        )
    if len(times) > 1:
        raise kinds.FeatureSpecError(
            f"the columns {times} could be the time of an interaction, which orders those of a user; give it: time=…"
        )
    if not times and not has_lists:
        _LOGGER.warning(
            "no column has the time of an interaction: a hash orders those of a user; give time=… if one has"
        )
    if taken := [name for name in (users[0], item, rating) if name in interactions.DERIVED]:
        raise kinds.FeatureSpecError(f"the columns {taken} have names that fit adds; rename them")
    return interactions.InteractionColumns(users[0], item, times[0] if times else None, rating)


def _users(names: Iterable[str]) -> list[str]:
    """Return the names of columns that are named like a user."""
    return [name for name in names if USER_NAME.fullmatch(name) or USER_NAME.fullmatch(_snake(name))]


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)


def _is_time(df: DataFrame, name: str) -> bool:
    is_moment = isinstance(df.schema[name].dataType, TimestampType | TimestampNTZType | DateType)
    return is_moment or bool(_TIME_NAME.fullmatch(_snake(name)))


def _require_same_type(of_rows: DataType, of_items: DataType, name: str) -> None:
    words = [_type_in_words(kind) for kind in (of_rows, of_items)]
    for kind, word, what in ((of_rows, words[0], "the table"), (of_items, words[1], "items")):
        if not word:
            raise kinds.FeatureSpecError(
                f"'{name}' of {what} has the type {kind.simpleString()}; items are texts or whole numbers (in pandas "
                f"missing values make fractions of them: astype('Int64'))"
            )
    if words[0] != words[1]:
        python = "str" if words[0] == "texts" else "int"
        raise kinds.FeatureSpecError(
            f"'{name}' holds {words[0]} in the table and {words[1]} in items, so that no item would be found (7 is not "
            f"07); make both texts or both whole numbers, for example items['{name}'].astype({python})"
        )


def _type_in_words(kind: DataType) -> str:
    return "texts" if isinstance(kind, StringType) else "whole numbers" if isinstance(kind, IntegralType) else ""


def _met(df: DataFrame, item: str, in_memory: pa.Table | None) -> pa.Array:
    """Return the tokens of the items that users met, each once."""
    found = versions.arrow_table(df.select(quoted(item)).distinct()) if in_memory is None else in_memory
    tokens = pc.list_flatten(found[item]) if raw_columns.is_list(found[item].type) else found[item]
    return pc.unique(tokens.drop_null().cast(pa.string()))


def _require_overlap(met: pa.Array, keys: pa.StringArray) -> None:
    """Check that items that users met are among the items; warn of those that are not."""
    absent = met.filter(pc.invert(pc.is_in(met, value_set=keys)))
    examples = sorted(absent.to_pylist())[:_NAMED_IN_MESSAGE]
    if len(absent) == len(met):
        raise kinds.FeatureSpecError(
            f"none of the {len(met):,} items of the table is among the {len(keys):,} of items: the table has "
            f"{examples}, items have {sorted(keys.to_pylist())[:_NAMED_IN_MESSAGE]}; give tables that belong together"
        )
    if len(absent):
        _LOGGER.warning(
            "%d of %d items of the table are not in items and have no features: %s", len(absent), len(met), examples
        )


def _spec(columns: interactions.InteractionColumns, of_items: FeatureSpec | None, history_items: bool) -> FeatureSpec:
    item, length = columns.item, interactions.HISTORY_ITEMS
    history = kinds.MultiValued(interactions.HISTORY, max_length=length, truncate="head", vocabulary_of=item)
    return FeatureSpec(
        features=(kinds.Categorical(item), kinds.Categorical(columns.user), history),
        label=kinds.Label(item, "candidate", rating=columns.rating, history_items=history_items),
        keys=(interactions.INTERACTION_KEY,),
        exclude=interactions.SEEN,
        items=of_items,
        user=columns.user,
    )
