"""One table from files whose schemas differ: columns go by name, and have the widest type of all files."""

import logging
from collections.abc import Iterable, Mapping
from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql.types import (
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegralType,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.features import quoted
from mirrorspark.storage import StoragePath

_LOGGER = logging.getLogger(__name__)

_WHOLE = ("tinyint", "smallint", "int", "bigint")


class SchemasError(ClearError, ValueError):
    """Files of one table have a column in types that contradict; the message names them and the remedy."""


def with_folder_types(schema: StructType, folders: StructType) -> StructType:
    """Return a schema with the columns of partition folders in the types of ``folders``.

    Spark infers them from the folders of the files that it reads together, which may not be all files of a table.
    """
    kinds = {one.name: one for one in folders}
    return StructType([kinds.get(one.name, one) for one in schema])


def warn_of_folders(base: StoragePath | None, names: Iterable[str], folders: StructType) -> None:
    """Warn of columns that both the files below ``base`` and their folders have: Spark reads those of the folders."""
    if both := sorted(set(names) & set(folders.names)):
        _LOGGER.warning(
            "the files in %s have the columns %s, as their folders have: the values of the folders are read",
            base,
            ", ".join(both),
        )


def as_one(frames: Mapping[StoragePath, DataFrame]) -> DataFrame:
    """Return the rows of all ``frames``, each by an example file; a column that a frame lacks is null there.

    Raises:
        SchemasError: A column has types that are not read as one.
    """
    if len(frames) == 1:
        return next(iter(frames.values()))
    names = list(dict.fromkeys(name for frame in frames.values() for name in frame.columns))
    kinds = {name: _common_type(name, frames) for name in names}
    cast = [
        frame.select(*[quoted(name).cast(kinds[name]).alias(name) for name in frame.columns])
        for frame in frames.values()
    ]
    return reduce(lambda all_, one: all_.unionByName(one, allowMissingColumns=True), cast)


def _common_type(name: str, frames: Mapping[StoragePath, DataFrame]) -> DataType:
    """Return the narrowest type that holds a column's values of all files."""
    found = {path: frame.schema[name].dataType for path, frame in frames.items() if name in frame.columns}
    kinds = list(found.values())
    kind: DataType | None = kinds[0]
    for other in kinds[1:]:
        kind = kind and _wider(kind, other)
    if kind is None:
        types = "; ".join(f"{one.simpleString()} in {path}" for path, one in found.items())
        raise SchemasError(f"column '{name}' has types that are not read as one ({types}); write files of one schema")
    return kind


def _wider(left: DataType, right: DataType) -> DataType | None:
    if left == right:
        return left
    floating = (FloatType, DoubleType)
    numeric = (IntegralType, DecimalType, *floating)
    if isinstance(left, IntegralType) and isinstance(right, IntegralType):
        return max(left, right, key=lambda one: _WHOLE.index(one.simpleString()))
    if isinstance(left, numeric) and isinstance(right, numeric):
        if isinstance(left, floating) or isinstance(right, floating):
            return DoubleType()
        places = [_places(left), _places(right)]
        whole, scale = max(one[0] for one in places), max(one[1] for one in places)
        return DecimalType(whole + scale, scale) if whole + scale <= 38 else DoubleType()
    days = [one for one in (left, right) if isinstance(one, TimestampType | TimestampNTZType)]
    if len(days) == 1 and isinstance(left, DateType | type(days[0])) and isinstance(right, DateType | type(days[0])):
        return days[0]
    return None


def _places(kind: DataType) -> tuple[int, int]:
    """Return the digits before and after the point."""
    if isinstance(kind, DecimalType):
        return kind.precision - kind.scale, kind.scale
    return (3, 5, 10, 19)[_WHOLE.index(kind.simpleString())], 0
