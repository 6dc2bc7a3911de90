"""Columns of the tables of experiments: by their exact names, and with the types that are needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mirrorspark.lifecycle.experiments.definition import ExperimentError
from mirrorspark.storage import meant

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame


def column_of(name: str) -> Column:
    """Return the column of exactly this name, with any characters."""
    from mirrorspark.data_pipelines.features import quoted  # it imports Spark, which single units do without

    return quoted(name)


def require_column(frame: DataFrame, name: str, what: str) -> None:
    """Check that a table has a column; ``what`` follows its name in the message.

    Raises:
        ExperimentError: It is missing.
    """
    if name not in frame.columns:
        raise ExperimentError(
            f"there is no column '{name}' {what}; the table has {frame.columns}{meant(name, frame.columns)}"
        )


def check_columns(frame: DataFrame, columns: Mapping[str, str], what: str) -> None:
    """Check that a table has columns of some types, by Spark's names of these.

    Raises:
        ExperimentError: A column is missing, or has another type.
    """
    types = {field.name: field.dataType.typeName() for field in frame.schema}
    for name, type_ in columns.items():
        if name not in types:
            raise ExperimentError(
                f"the {what} lacks column '{name}' ({type_}); it has {list(types)}{meant(name, types)}"
            )
        if types[name] != type_:
            raise ExperimentError(f"column '{name}' of the {what} has the type {types[name]}; cast it to {type_}")
