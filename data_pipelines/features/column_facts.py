"""Measurements of a table's columns, from which a feature spec is inferred: by Spark, or in this process by Arrow."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    DateType,
    FractionalType,
    IntegralType,
    MapType,
    NumericType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from mirrorspark.data_pipelines.features.date_formats import DATE_ORDERS, DATE_PATTERNS, DateOrder
from mirrorspark.data_pipelines.memory_tables import CATEGORIES

# Texts that are numbers with a currency, a percent sign, a unit or separators of thousands; plain ones may be codes.
AMOUNTS = (
    r"(?i)^\s*[-+(]?\s*(?:"
    r"(?:[$€£¥₹]|usd|eur|gbp|chf|jpy|cny|inr)\s*\d[\d., ']*"
    r"|\d[\d., ']*\s*(?:[$€£¥₹%]|usd|eur|gbp|chf|jpy|cny|inr|kg|mg|g|lbs?|oz|km|cm|mm|m|mi|ft|ml|l|h|hrs?|min|ms|s"
    r"|kwh|kw|mph|km/h|m²|m2|°c|°f)"
    r"|\d{1,3}(?:[, ']\d{3})+(?:\.\d+)?)\)?\s*$"
)

# This number of first values decides which orders of dates are looked for in all values.
_FIRST_VALUES = 100


@dataclass(frozen=True)
class ColumnFacts:
    """Measurements of a column.

    Attributes:
        rows: The number of rows with a value.
        distinct: The number of different values; Spark's is approximate.
        minimum: Least value for numbers; least index for maps.
        maximum: Greatest value for numbers; greatest index for maps.
        skewness: Third standardised moment, for numbers.
        elements: 95th percentile of the number of elements for arrays, or of words for strings.
        size: Length of the vectors, for vectors; for arrays of fractions, the number of elements that all have in
            common.
        empty: The number of rows with an empty text, for strings: missing values.
        dates: By order of year, month and day, the number of rows whose text is a date in it; orders of none are left
            out.
        order: The values of an ordered categorical as text, the lowest first.
        amounts: The number of rows whose text is a number with a currency or a unit (:data:`AMOUNTS`), for strings.
    """

    name: str
    type: DataType
    rows: int
    distinct: int = 0
    minimum: float | None = None
    maximum: float | None = None
    skewness: float | None = None
    elements: float | None = None
    size: int | None = None
    empty: int = 0
    dates: Mapping[DateOrder, int] = dataclass_field(default_factory=dict)
    order: tuple[str, ...] = ()
    amounts: int = 0


def column_facts(df: DataFrame) -> dict[str, ColumnFacts]:
    """Measure all columns of ``df`` in one pass, and read one more row per column of vectors."""
    measures = {field.name: _measures(field.dataType, quoted(field.name)) for field in df.schema}
    flat = [
        measure.alias(f"{position} {what}")
        for position, named in enumerate(measures.values())
        for what, measure in named.items()
    ]
    row = df.agg(*flat).first()
    assert row is not None  # noqa: S101 - an aggregate has one row
    facts = {}
    for position, field in enumerate(df.schema):
        found = {what: row[f"{position} {what}"] for what in measures[field.name] if what not in DATE_ORDERS}
        dates = {order: row[f"{position} {order}"] for order in DATE_ORDERS if order in measures[field.name]}
        if isinstance(field.dataType, VectorUDT):
            vector = df.where(quoted(field.name).isNotNull()).select(quoted(field.name)).first()
            found["size"] = vector[0].size if vector else None
        facts[field.name] = ColumnFacts(
            field.name,
            field.dataType,
            **found,
            dates={order: rows for order, rows in dates.items() if rows},
            order=_order_of(field),
        )
    return facts


def _order_of(field: StructField) -> tuple[str, ...]:
    return tuple(field.metadata.get(CATEGORIES, ()))


def _measures(kind: DataType, column: Column) -> Mapping[str, Column]:
    """Return a column's measurements by the names of the fields of :class:`ColumnFacts`."""
    measures = {"rows": F.count(column)}
    if isinstance(kind, NumericType):
        number = F.when(~F.isnan(column.cast("double")), column.cast("double"))
        measures |= {"minimum": F.min(number), "maximum": F.max(number), "skewness": F.skewness(number)}
    if isinstance(kind, NumericType | StringType | BooleanType | DateType | TimestampType | TimestampNTZType):
        measures["distinct"] = F.approx_count_distinct(column)
    if isinstance(kind, StringType):
        measures["elements"] = F.percentile_approx(F.size(F.split(F.trim(column), r"\s+")), 0.95)
        measures["empty"] = F.count_if(column == "")
        measures["amounts"] = F.count_if(column.rlike(AMOUNTS))
        measures |= {order: F.count_if(column.rlike(found.expression)) for order, found in DATE_PATTERNS.items()}
    if isinstance(kind, ArrayType):
        measures["elements"] = F.percentile_approx(F.when(column.isNotNull(), F.size(column)), 0.95)
    if isinstance(kind, ArrayType) and isinstance(kind.elementType, FractionalType):
        # An empty list is a missing vector, like null.
        size = F.when(F.size(column) > 0, F.size(column))
        measures["size"] = F.when(F.min(size) == F.max(size), F.max(size))
    if isinstance(kind, MapType) and isinstance(kind.keyType, IntegralType):
        keys = F.map_keys(column)
        measures |= {"minimum": F.min(F.array_min(keys)), "maximum": F.max(F.array_max(keys))}
    return measures


def arrow_facts(rows: pa.Table, schema: StructType) -> dict[str, ColumnFacts]:
    """Measure the columns of ``schema`` in a table in memory, as :func:`column_facts` does.

    Args:
        rows: The table.
        schema: The columns with the types that they have in Spark.
    """
    return {field.name: _arrow_facts(field, rows[field.name]) for field in schema}


def _arrow_facts(field: StructField, column: pa.ChunkedArray) -> ColumnFacts:
    name, kind = field.name, field.dataType
    values = column.drop_null()  # in its chunks: a single array cannot hold texts of gigabytes
    found: dict[str, Any] = {}
    if isinstance(kind, NumericType):
        numbers = values.cast(pa.float64(), safe=False).to_numpy()
        found |= _moments(numbers[~np.isnan(numbers)])
    if isinstance(kind, NumericType | StringType | BooleanType | DateType | TimestampType | TimestampNTZType):
        found["distinct"] = pc.count_distinct(values).as_py()
    if isinstance(kind, StringType):
        # Java's white space; that of Arrow's expressions lacks the vertical tab.
        gaps = pc.count_substring_regex(pc.utf8_trim(values, " "), r"[ \t\n\x0b\f\r]+")
        found["elements"] = _percentile(pc.add(gaps, 1), 0.95)
        found["empty"] = pc.sum(pc.equal(values, "")).as_py() or 0
        found["dates"] = _dates(values)
        found["amounts"] = pc.sum(pc.match_substring_regex(values, AMOUNTS)).as_py() or 0
    if isinstance(kind, ArrayType):
        lengths = pc.list_value_length(values)
        found["elements"] = _percentile(lengths, 0.95)
        if isinstance(kind.elementType, FractionalType):
            sizes = pc.unique(lengths.filter(pc.greater(lengths, 0)))
            found["size"] = sizes[0].as_py() if len(sizes) == 1 else None
    if isinstance(kind, MapType) and isinstance(kind.keyType, IntegralType):
        ends = pc.min_max(pc.struct_field(pc.list_flatten(values.cast(_as_list(values.type))), [0]))
        found |= {"minimum": ends["min"].as_py(), "maximum": ends["max"].as_py()}
    return ColumnFacts(name, kind, len(values), order=_order_of(field), **found)


def _dates(texts: pa.ChunkedArray) -> dict[DateOrder, int]:
    first = texts.filter(pc.not_equal(texts, "")).slice(0, _FIRST_VALUES)
    likely = [order for order in DATE_ORDERS if _rows_of_dates(first, order)]
    return {order: _rows_of_dates(texts, order) for order in likely}


def _rows_of_dates(texts: pa.ChunkedArray, order: DateOrder) -> int:
    return pc.sum(pc.match_substring_regex(texts, DATE_PATTERNS[order].expression)).as_py() or 0


def _as_list(kind: pa.MapType) -> pa.ListType:
    return pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)]))


def _moments(numbers: np.ndarray) -> dict[str, float | None]:
    """Return least and greatest of the numbers, and their skewness; None where Spark has null."""
    if not len(numbers):
        return {"minimum": None, "maximum": None, "skewness": None}
    with np.errstate(invalid="ignore", over="ignore"):  # infinite numbers have no skewness
        apart = numbers - numbers.mean()
        variance = (apart**2).mean()
        skewness = float((apart**3).mean() / variance**1.5) if variance else None
    return {"minimum": float(numbers.min()), "maximum": float(numbers.max()), "skewness": skewness}


def _percentile(values: pa.ChunkedArray, share: float) -> float | None:
    """Return the least value that a share of the values does not exceed, as Spark's ``percentile_approx`` does."""
    ordered = np.sort(values.to_numpy())
    return ordered[math.ceil(share * len(ordered)) - 1].item() if len(ordered) else None


def quoted(name: str) -> Column:
    """Return a column by its name, which may have any characters."""
    return F.col(f"`{name.replace('`', '``')}`")
