"""Rows without a label: counted, and left out where that is asked for."""

import logging
from typing import overload

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import ArrayType, DoubleType, FloatType, StringType

from mirrorspark.data_pipelines.features import candidate_lists, kinds, quoted, raw_columns
from mirrorspark.data_pipelines.sources import MemorySource

_LOGGER = logging.getLogger(__name__)
# In labels of these forms an empty text counts as missing.
_OF_TEXTS = ("multi_class", "candidate")


@overload
def without_null_labels(table: DataFrame, label: kinds.Label) -> DataFrame: ...


@overload
def without_null_labels(table: MemorySource, label: kinds.Label) -> MemorySource: ...


def without_null_labels(table: DataFrame | MemorySource, label: kinds.Label) -> DataFrame | MemorySource:
    """Return the rows that have a label; a warning says how many have none.

    NaN is none, of labels that name a class or a candidate an empty text, and of lists of candidates one without any.
    """
    if label.name not in table.columns:
        return table  # The check of all columns says it better.
    kept: DataFrame | MemorySource
    if isinstance(table, MemorySource):
        is_there = _is_there(table.column(label.name), label)
        nulls, kept = len(is_there) - is_there.true_count, table.filter(is_there)
    else:
        has_label = _has_label(table, label)
        nulls, kept = table.where(~has_label).count(), table.where(has_label)
    if not nulls:
        return table
    _LOGGER.warning("label %s: %s rows have no value; they are left out", label.name, f"{nulls:,}")
    return kept


def _is_there(column: pa.Array, label: kinds.Label) -> pa.BooleanArray:
    """Return whether each value is a label."""
    if pa.types.is_floating(column.type):
        return pc.is_valid(pc.if_else(pc.is_nan(column), None, column))
    if raw_columns.is_list(column.type) and label.kind == "candidate":
        return pa.array(candidate_lists.candidate_counts(column) > 0)
    if pa.types.is_string(column.type) and label.form in _OF_TEXTS:
        return pc.not_equal(column, "").fill_null(False)
    return pc.is_valid(column)


def _has_label(df: DataFrame, label: kinds.Label) -> Column:
    column, kind = quoted(label.name), df.schema[label.name].dataType
    if isinstance(kind, DoubleType | FloatType):
        return column.isNotNull() & ~F.isnan(column)
    if isinstance(kind, ArrayType) and label.kind == "candidate":
        is_text = isinstance(kind.elementType, StringType)
        has_any = F.exists(column, lambda one: one.isNotNull() & (one != "" if is_text else F.lit(True)))
        return F.coalesce(has_any, F.lit(False))
    if isinstance(kind, StringType) and label.form in _OF_TEXTS:
        return column.isNotNull() & (column != "")
    return column.isNotNull()
