"""Conversion of a table that is addressed by its content: the same rows are converted once."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyspark.sql import Column, DataFrame, Observation
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import ArrayType, DataType, MapType, StructType

from mirrorspark.data_pipelines.conversion import (
    ConversionOptions,
    DatasetExistsError,
    Embedder,
    convert,
    dataset_address,
)
from mirrorspark.data_pipelines.dataset import is_published
from mirrorspark.data_pipelines.features import FeatureSpec
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.data_pipelines.sources import MemorySource


def convert_once(
    table: DataFrame | MemorySource,
    spec: FeatureSpec,
    folder: Path,
    name: str,
    *,
    options: ConversionOptions,
    embedder: Embedder | None = None,
    source: Mapping[str, Any] | None = None,
    items: DataFrame | None = None,
) -> Dataset:
    """Return the dataset of these rows; convert them unless that was done before.

    The dataset's directory is named by a hash of the rows, of the spec and of the options. Without ``source``, the rows
    are therefore read twice.

    Args:
        table: The table; it needs the spec's columns and ``options.split_column``.
        spec: The feature specification.
        folder: Folder of the datasets.
        name: Beginning of the directory's name.
        options: Options of the conversion.
        embedder: See :func:`data_pipelines.convert`.
        source: JSON values that determine the rows of the table, if they are cheaper to read than the rows to hash.
        items: See :func:`data_pipelines.convert`; its rows are hashed, too.

    Raises:
        Exception: See :func:`data_pipelines.convert`.
    """
    columns = (*spec.columns, options.split_column)
    if source is None:
        is_here = isinstance(table, MemorySource)
        source = {"table": content_hash(table.select(*(columns if is_here else map(quoted, columns))))}
    source = dict(source) | (embedder.source(spec) if embedder is not None else {})
    if items is not None and spec.items is not None:
        source |= {"items": content_hash(items.select(*map(quoted, spec.items.columns)))}
    path = folder / f"{name}-{dataset_address(source, spec, options)}"
    if not is_published(path):
        try:
            return convert(
                *(table, spec, path),
                source=source,
                options=options,
                items=items,
                embedder=embedder,
                progress=False,
            )
        except DatasetExistsError:  # An equal conversion has finished first.
            pass
    return Dataset.open(path)


def content_hash(table: DataFrame | MemorySource) -> str:
    """Return a hash of all rows of a table in 32 hex digits, independent of their order and partitions."""
    if isinstance(table, MemorySource):
        return _digest(table.schema, table.content_sums())
    row = table.agg(*_sums(table.schema)).first()
    assert row is not None  # noqa: S101 - an aggregate has a row
    return _digest(table.schema, row)


def hashed_on_the_way(table: DataFrame) -> tuple[DataFrame, Callable[[], str]]:
    """Return a table that is hashed as tasks read it, and a function for its :func:`content_hash` afterwards."""
    seen = Observation()
    sums = [column.alias(f"sum_{number}") for number, column in enumerate(_sums(table.schema))]
    return table.observe(seen, *sums), lambda: _digest(table.schema, list(seen.get.values()))


def _sums(schema: StructType) -> list[Column]:
    """Return the number of rows, and two sums of their hashes."""
    # Of 64-bit hashes as decimals: whole numbers, so the order of the summands does not matter.
    return [F.count(F.lit(1)), *(F.sum(one.cast("decimal(20,0)")) for one in _row_hashes(schema))]


def _digest(schema: StructType, sums: Sequence[Any]) -> str:
    columns = ",".join(f"{field.name} {field.dataType.simpleString()}" for field in schema)
    text = f"{columns} {sums[0]} {sums[1]} {sums[2]}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _row_hashes(schema: StructType) -> list[Column]:
    """Return two hashes of a row."""
    seeds = (1, 2)
    if not any(isinstance(field.dataType, ArrayType | MapType | StructType) for field in schema):
        # One text: an expression per column is some calls into the JVM, a second for 300 columns.
        names = [quoted(field.name) for field in schema]
        text = ", ".join(f"isnull({name}), {name}" for name in names)
        return [F.expr(f"xxhash64({seed}, {text})") for seed in seeds]
    columns = [part for field in schema for part in _hashed(F.col(quoted(field.name)), field.dataType)]
    return [F.xxhash64(F.lit(seed), *columns) for seed in seeds]


def _hashed(column: Column, kind: DataType) -> list[Column]:
    """Return the columns to hash for a column, so that different values of its type hash differently.

    Spark's hash skips nulls, and gives two adjacent lists and their concatenation the same value.
    """
    if isinstance(kind, MapType):  # Spark hashes no maps, since their entries have no order.
        entry = StructType().add("key", kind.keyType).add("value", kind.valueType)
        return _hashed(F.sort_array(F.map_entries(column)), ArrayType(entry))
    if isinstance(kind, StructType):
        parts = [part for field in kind for part in _hashed(column.getField(field.name), field.dataType)]
        return [column.isNull(), *parts]
    if isinstance(kind, ArrayType):
        items = F.transform(column, lambda item: F.xxhash64(*_hashed(item, kind.elementType)))
        return [column.isNull(), F.size(column), items]
    return [column.isNull(), column]


def quoted(name: str) -> str:
    """Return a column's name as Spark's expressions take it, with any characters."""
    return f"`{name.replace('`', '``')}`"
