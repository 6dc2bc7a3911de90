"""The rows of a training of fleets: checked against the models, split, and converted with a vector of labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import BooleanType, DataType, NumericType, StringType

from mirrorspark.data_pipelines import (
    ConversionOptions,
    any_table,
    convert_once,
    hashed_on_the_way,
    memory_tables,
    quoted,
)
from mirrorspark.data_pipelines.features import FeatureSpec, raw_columns
from mirrorspark.data_pipelines.quality import SPLIT_COLUMN, default_split
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.fleet.columns import FleetError, some
from mirrorspark.fleet.training.declared import check_columns
from mirrorspark.fleet.training.plan import TARGETS
from mirrorspark.fleet.training.targets import TargetSums, check_targets, labels_of, measure_targets

_LABELS = "fleet_labels"
# Rarer ones would have too few rows to learn from.
_MOST_CATEGORIES = 100


@dataclass(frozen=True)
class FleetRows:
    """The checked rows.

    Attributes:
        table: The rows, with their split.
        features: The columns that models read, with the options of their features.
        targets: The targets, without repetition.
        places: int32 ``[models]``: the target of each model.
        of_models: By split, the sums of the models' targets.
        has_missing: Whether some row has a label of one target and none of another.
        content: Hash of the rows: keys, features, split and targets.
    """

    table: DataFrame
    keys: tuple[str, ...]
    features: Mapping[str, dict[str, Any]]
    targets: tuple[str, ...]
    places: np.ndarray
    of_models: Mapping[str, TargetSums]
    has_missing: bool
    content: str


def split_rows(
    table: Any,
    declared: pa.Table,
    columns: Sequence[str] | Mapping[str, Mapping[str, Any]] | None,
    keys: str | Sequence[str] | None,
    seed: int,
    spark: SparkSession,
) -> FleetRows:
    """Check table and models against each other, and split the rows; arguments and errors as of ``train_fleet``."""
    rows, keys = _with_keys(table, keys, spark)
    features = _features(rows, declared, columns, keys)
    check_columns(declared, list(features))
    rows = default_split(rows, keys, seed=seed)
    targets = declared["target"].unique()
    names = targets.to_pylist()
    read = dict.fromkeys((*keys, *features, SPLIT_COLUMN, *names))
    hashed, content = hashed_on_the_way(rows.select(*map(quoted, read)))
    sums = measure_targets(hashed, names)
    places = pc.index_in(declared["target"], value_set=targets).to_numpy()
    of_models = {split: of.at(places) for split, of in sums.items()}
    check_targets(of_models, declared["link"].to_pylist(), declared["model"].to_pylist())
    has_missing = any(bool((of.labels < of.rows).any()) for of in sums.values())
    return FleetRows(rows, keys, features, tuple(names), places, of_models, has_missing, content())


def _with_keys(table: Any, keys: str | Sequence[str] | None, spark: SparkSession) -> tuple[DataFrame, tuple[str, ...]]:
    """Return the table with columns that identify its rows, and their names."""
    if keys is None and memory_tables.is_in_memory(table):
        return any_table.read_table(spark, memory_tables.numbered(table)), (memory_tables.ROW_NUMBER,)
    rows = any_table.read_table(spark, table)
    if not keys:
        raise memory_tables.TableError(
            f"the rows of a stored table have no numbers; give keys=, columns that identify one, of {rows.columns[:20]}"
        )
    return rows, (keys,) if isinstance(keys, str) else tuple(keys)


def _features(
    rows: DataFrame,
    declared: pa.Table,
    columns: Sequence[str] | Mapping[str, Mapping[str, Any]] | None,
    keys: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Return the columns that models read, with the options of their features.

    Raises:
        FleetError: There is no such column, target or key, or it has a type that cannot be used.
    """
    types: dict[str, DataType] = {one.name: one.dataType for one in rows.schema}
    numbers = {name for name, kind in types.items() if isinstance(kind, NumericType | BooleanType)}
    targets = dict.fromkeys(declared["target"].to_pylist())
    if columns is None:
        usable = numbers - {*keys, *targets, SPLIT_COLUMN}
        columns = [name for name in types if name in usable]
    columns = (columns,) if isinstance(columns, str) else columns
    for what, names in (("column", columns), ("target", targets), ("key", keys)):
        if unknown := [name for name in names if name not in types]:
            hint = raw_columns.meant(str(unknown[0]), types)
            raise FleetError(
                f"the table has no column {some(map(str, unknown))} ({what}){hint}; it has {list(types)[:20]}"
            )
    if odd := [name for name in targets if name not in numbers]:
        raise FleetError(f"target {some(odd)} has type {types[odd[0]].simpleString()}; a target is a number or boolean")
    if not columns:
        raise FleetError("there is no column to learn from; name some as columns=")
    if not isinstance(columns, Mapping):
        return {name: _options(name, types[name]) for name in columns}
    for name, options in columns.items():
        kind = options.get("kind") if isinstance(options, Mapping) else None
        if kind not in ("numeric", "number", "categorical") or options.get("hash_buckets"):
            raise FleetError(
                f"column '{name}' has the options {options}; a fleet reads the kinds numeric and categorical"
            )
    return {name: dict(options) for name, options in columns.items()}


def _options(name: str, kind: DataType) -> dict[str, Any]:
    if isinstance(kind, NumericType | BooleanType):
        return {"kind": "numeric"}
    if isinstance(kind, StringType):
        return {"kind": "categorical", "max_size": _MOST_CATEGORIES}
    raise FleetError(f"column '{name}' has type {kind.simpleString()}; a fleet reads numbers and texts: cast it")


def converted(rows: FleetRows, folder: Path, name: str) -> Dataset:
    """Return the dataset of the rows that have a label, with all labels of a row as one vector."""
    spec = FeatureSpec.from_dict(
        {
            "features": {
                **rows.features,
                TARGETS: {"kind": "vector", "size": (1 + rows.has_missing) * len(rows.targets)},
            },
            # A dataset needs a label; this one is not learnt, because the vector has those of the targets.
            "label": {"name": _LABELS, "kind": "numeric"},
            "keys": list(rows.keys),
        }
    )
    kept = (*rows.keys, *rows.features, SPLIT_COLUMN)
    vector, count = _labels(rows)
    chosen = rows.table.select(*map(quoted, dict.fromkeys(kept)), vector.alias(TARGETS), count.alias(_LABELS))
    return convert_once(
        chosen.where(F.col(_LABELS) > 0),
        spec,
        folder,
        name,
        options=ConversionOptions(),
        source={"table": rows.content, "targets": list(rows.targets)},
    )


def _labels(rows: FleetRows) -> tuple[Column, Column]:
    """Return the vector of a row's labels, and their number."""
    labels, every = labels_of(rows.targets), float(len(rows.targets))
    if not rows.has_missing:
        # A row has all labels or none, so the first one is enough; a function for each would be computed twice.
        return labels.cast("array<float>"), F.when(labels_of(rows.targets[:1])[0].isNotNull(), every).otherwise(0.0)
    is_label = F.transform(labels, lambda label: F.when(label.isNotNull(), 1.0).otherwise(0.0))
    count = F.size(F.filter(labels, lambda label: label.isNotNull())).cast("double")
    return F.concat(labels, is_label).cast("array<float>"), count
