"""The rows of a call of ``fit`` and their specification: those of a table, or of interactions for a recommender."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines import any_table, memory_tables
from mirrorspark.data_pipelines.features import FeatureSpec, encoded_spec, infer_spec, kinds, numbers_in_order, quoted
from mirrorspark.data_pipelines.quality import SPLIT_COLUMN
from mirrorspark.data_pipelines.sources import MemorySource, why_not_here
from mirrorspark.spark_session import SessionAhead, on_running_session
from mirrorspark.storage import meant
from mirrorspark.training.configuration import learns_histories
from mirrorspark.training.entry_points import fit_items

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Columns:
    """The arguments of ``fit`` about the columns."""

    label: str | Mapping[str, Any]
    keys: Sequence[str]
    time: str | None
    exclude: Sequence[str]
    user: str | None


@dataclass(frozen=True)
class TableToLearn:
    """The rows of a call of ``fit``, and what they mean.

    Attributes:
        items: The table of items, if one was given.
        interactions: The columns and rows inferred for a recommender; None for a table of rows.
    """

    rows: DataFrame | MemorySource
    spec: FeatureSpec
    items: DataFrame | None = None
    interactions: fit_items.RecommenderInput | None = None


def table_to_learn(
    table: Any,
    asked: Columns,
    spec: FeatureSpec | None,
    items: Any,
    session: SessionAhead,
    model: Any,
) -> TableToLearn:
    """Return the rows and their spec; the items with what was inferred for a recommender."""
    if not memory_tables.is_in_memory(table):
        table = any_table.read_table(session.get(), table)
    if not is_of_interactions(table, asked, spec, items, model):
        of_items = None if items is None else any_table.read_table(session.get(), items)
        return TableToLearn(*_of_a_table(table, asked, spec, session), of_items)
    found = fit_items.recommender_input(
        *(table, asked.label, items),
        user=asked.user,
        time=asked.time,
        exclude=asked.exclude,
        spark=session.get(),
        learns_histories=learns_histories(model),
    )
    return TableToLearn(found.rows, found.spec, found.items, found)


def is_of_interactions(table: Any, asked: Columns, spec: FeatureSpec | None, items: Any, model: Any) -> bool:
    """Return whether the rows of a table, in memory or of Spark, are interactions for a recommender."""
    if spec is not None:
        return False
    if items is not None or asked.user is not None:
        return True
    # A model of one's own, and rows with keys, may have other inputs than the history of a user.
    return not (callable(model) or asked.keys) and fit_items.has_interactions(table, asked.label, asked.exclude)


def _of_a_table(
    table: Any, asked: Columns, spec: FeatureSpec | None, session: SessionAhead
) -> tuple[DataFrame | MemorySource, FeatureSpec]:
    """Return the table with the columns that the spec names, where its rows are converted, and the spec."""
    if spec is not None and (name := name_of(asked.label)) != spec.label.name:
        raise kinds.FeatureSpecError(
            f"label '{name}' is not that of the spec, '{spec.label.name}'{meant(name, [spec.label.name])}; "
            f"give one of them"
        )
    if not memory_tables.is_in_memory(table):
        df = any_table.read_table(session.get(), table)
        return df, spec or _inferred_spec(df, asked)
    rows = memory_tables.in_arrow(table)
    # The number of a row, in case that no column is a key.
    is_numbered = (
        not asked.keys and memory_tables.ROW_NUMBER not in rows.column_names if spec is None else _is_number(spec.keys)
    )
    rows = memory_tables.numbered(rows) if is_numbered else rows
    source = any_table.in_memory(rows)
    if spec is None:
        last_key = memory_tables.ROW_NUMBER if is_numbered else None
        spec = _inferred_spec(source, asked, last_key)
        if is_numbered and not _is_number(spec.keys):
            source = source.select(*(name for name in source.columns if name != memory_tables.ROW_NUMBER))
    if (why_not := _why_not_here(source, spec, asked.time)) is None:
        return source, spec
    _LOGGER.info("Spark converts the table: %s", why_not)
    return any_table.read_table(session.get(), rows).select(*map(quoted, source.columns)), spec


def _why_not_here(source: MemorySource, spec: FeatureSpec, time: str | None) -> str | None:
    """Return the reason why Spark converts a table in memory; None if this process does."""
    if spec.embedded:
        return "it has texts or images to embed"
    return "its items are another table" if spec.items is not None else why_not_here(source, spec.keys, time)


def _is_number(keys: Sequence[str]) -> bool:
    return tuple(keys) == (memory_tables.ROW_NUMBER,)


def _inferred_spec(df: DataFrame | MemorySource, asked: Columns, last_key: str | None = None) -> FeatureSpec:
    if unknown := [name for name in asked.exclude if name not in df.columns]:
        # A column that gives the label away would stay a feature.
        known = [name for name in df.columns if name != last_key]
        raise kinds.FeatureSpecError(
            f"exclude: the table has no column '{unknown[0]}'; it has {known}{meant(unknown[0], known)}"
        )
    if asked.keys:
        _require_unique(df, asked.keys)
    left_out = (*asked.exclude, *([asked.time] if asked.time else ()))
    return default_spec(df, asked.label, keys=asked.keys, exclude=left_out, last_key=last_key, encodings=False)


@on_running_session
def default_spec(
    df: DataFrame | MemorySource,
    label: str | Mapping[str, Any],
    *,
    keys: Sequence[str] = (),
    exclude: Sequence[str] = (),
    last_key: str | None = None,
    encodings: bool = True,
) -> FeatureSpec:
    """Return the spec that is inferred from a table; see :func:`data_pipelines.features.infer_spec`.

    Args:
        df: The table.
        label: The column to learn, or its name and kind; the kind is inferred unless given.
        keys: Columns that identify a row.
        exclude: Columns that are not features.
        last_key: The key if no other column identifies the rows.
        encodings: Add what a sample shows about the label: few whole numbers whose order counts are numbers, and there
            are means of the label by columns of many values, and by columns together, where they help.

    Raises:
        FeatureSpecError: As ``infer_spec`` says.
    """
    left_out = (SPLIT_COLUMN, *exclude)
    spec = infer_spec(df, label=name_of(label), keys=keys, exclude=left_out, last_key=last_key, encodings=False)
    if isinstance(label, Mapping) and set(label) != {"name"}:
        spec = _with_label(df, spec, label)
    return encoded_spec(df, spec) if encodings else spec


def _with_label(df: DataFrame | MemorySource, spec: FeatureSpec, label: Mapping[str, Any]) -> FeatureSpec:
    """Return a spec with the label that a caller describes."""
    known = {}
    if label.get("kind") == "ordinal" and "classes" not in label:
        # The order of the table's own categories, and of numbers, need not be said.
        known = {"classes": spec.label.order or numbers_in_order(df, spec.label.name)}
    found = spec.to_dict() | {"label": known | dict(label)}
    if label.get("kind") == "multi_class" and spec.label.order:
        _LOGGER.warning(
            "label %s: its values have an order, which the kind multi_class does not learn; the kind ordinal does",
            spec.label.name,
        )
    if label.get("kind") == "candidate":  # the candidates are a feature, too: that of their tower
        found["features"][spec.label.name] = {"kind": "categorical"}
    return FeatureSpec.from_dict(found)


def name_of(label: str | Mapping[str, Any]) -> str:
    """Return the name of the label's column; empty if it is not said."""
    return label if isinstance(label, str) else str(label.get("name", ""))


def _require_unique(df: DataFrame | MemorySource, keys: Sequence[str]) -> None:
    """Check that the keys identify the rows; a column that is missing is named later."""
    if not set(keys) <= set(df.columns):
        return
    if isinstance(df, MemorySource):
        counts: Any = df.rows.num_rows, df.rows.group_by(list(keys)).aggregate([]).num_rows
    else:
        counts = df.agg(F.count(F.lit(1)), F.count_distinct(F.struct(*map(quoted, keys)))).first()
    if counts[1] < counts[0]:
        raise kinds.FeatureSpecError(
            f"keys {list(keys)} do not identify the rows: {counts[0]:,} rows have {counts[1]:,} different ones; give "
            f"more columns, or leave keys out"
        )
