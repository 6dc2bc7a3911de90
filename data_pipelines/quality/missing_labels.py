"""Rows without a label: counted, and left out where that is asked for."""

import logging

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import DoubleType, FloatType, StringType

from mirrorspark.data_pipelines.features import kinds, quoted

_LOGGER = logging.getLogger(__name__)


def without_null_labels(df: DataFrame, label: kinds.Label) -> DataFrame:
    """Return the rows that have a label; a warning says how many have none.

    NaN is none, and of labels that name a class or a candidate an empty text.
    """
    if label.name not in df.columns:
        return df  # The check of all columns says it better.
    has_label = _has_label(df, label)
    nulls = df.where(~has_label).count()
    if not nulls:
        return df
    _LOGGER.warning("label %s: %s rows have no value; they are left out", label.name, f"{nulls:,}")
    return df.where(has_label)


def _has_label(df: DataFrame, label: kinds.Label) -> Column:
    column, kind = quoted(label.name), df.schema[label.name].dataType
    if isinstance(kind, DoubleType | FloatType):
        return column.isNotNull() & ~F.isnan(column)
    if isinstance(kind, StringType) and label.form in ("multi_class", "candidate"):
        return column.isNotNull() & (column != "")
    return column.isNotNull()
