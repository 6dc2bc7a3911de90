"""The source tables of a run, and their conversion to a dataset."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from mirrorspark.data_pipelines import (
    DatasetExistsError,
    check_columns,
    content_hash,
    convert,
    dataset_address,
    quoted,
    read_profile,
    tables,
)
from mirrorspark.data_pipelines.dataset import DatasetError, is_published
from mirrorspark.data_pipelines.features import labels, raw_columns
from mirrorspark.data_pipelines.quality import DatasetProfile, without_null_labels
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.scoring.embedding import Embedder
from mirrorspark.spark_session import on_running_session
from mirrorspark.storage import Location, lakes
from mirrorspark.training.configuration import SQL_FILE, ConfigError, RunConfig


@dataclass(frozen=True)
class SourceTables:
    """The source tables of a run and the dataset's folder, found without Spark.

    Attributes:
        files: The place of each table.
        identity: Distinguishes these sources from all others.
        reference: Profile of the former dataset that this one should resemble.
        dataset_path: Folder of the dataset, which may be yet to be written. None if the rows have to be read for it,
            because only Spark sees a table.
    """

    files: Mapping[str, Location]
    identity: Mapping[str, Any]
    reference: DatasetProfile | None
    dataset_path: Path | None

    @classmethod
    def find(cls, config: RunConfig) -> "SourceTables":
        """Return the sources of a run.

        Raises:
            ConfigError: The recipe brings no data and none is given, a table has no file in the folder that is, the
                recipe's data package is not installed, or there is no reference dataset.
            ScoringError: An encoder is missing.
            ModelNotFoundError, ModelStoreError: The URI of an encoder cannot be looked up.
        """
        files = source_files(config)
        with _as_bad_usage():
            identity: dict[str, Any] = {"tables": config.tables, "csv_null": config.csv_null}
            identity |= tables.source_identity(files, config.sql)
        if config.items:
            identity["items"] = config.items["sql"]
        if config.null_labels == "drop":
            identity["null_labels"] = config.null_labels
        identity |= Embedder(tracking_uri=config.tracking_uri).source(config.spec)
        with _as_bad_usage():
            reference = read_profile(config.reference_dataset) if config.reference_dataset else None
        if reference is not None:
            # The report of drift is part of the dataset, so another reference makes another dataset.
            document = json.dumps(reference.to_dict(), sort_keys=True)
            identity["reference"] = hashlib.sha256(document.encode()).hexdigest()[:16]
        return cls(
            files, identity, reference, _dataset_path(config, identity) if tables.is_identified(identity) else None
        )

    def converted(self) -> Dataset | None:
        """Return the dataset if an earlier run has converted it, else None; None if the rows have to be read for it."""
        path = self.dataset_path
        return Dataset.open(path) if path is not None and is_published(path) else None

    def table(self, spark: SparkSession, config: RunConfig) -> DataFrame:
        """Return the table that the recipe's query builds from the source tables.

        Raises:
            ConfigError: A table cannot be read, the query cannot be run, or a column is missing or has a wrong type.
        """
        return _table(spark, config, self.files)

    def items(self, spark: SparkSession, config: RunConfig) -> DataFrame | None:
        """Return the table of items, from the source tables that :meth:`table` has registered; None without items.

        Raises:
            ConfigError: The query cannot be run, or a column is missing or has a wrong type.
        """
        with _as_bad_usage():
            items = tables.query(spark, config.items["sql"], "the sql of items") if config.items else None
            if items is not None and config.spec.items is not None:
                check_columns(items, config.spec.items, what="the table of items")
            return items

    def dataset(self, table: DataFrame, config: RunConfig) -> tuple[Dataset, bool]:
        """Return the dataset and True if it existed already; convert ``table`` otherwise."""
        items = self.items(table.sparkSession, config)
        identity, path = self.identity, self.dataset_path
        if path is None:
            identity = {**identity, "rows": _content(table, items, config)}
            path = _dataset_path(config, identity)
        if is_published(path):
            return Dataset.open(path), True
        try:
            converted = convert(
                table,
                config.spec,
                path,
                source=identity,
                options=config.conversion,
                reference=self.reference,
                items=items,
                embedder=Embedder(tracking_uri=config.tracking_uri),
                progress=False,
            )
        except DatasetExistsError:  # An equal command has finished first.
            return Dataset.open(path), True
        return converted, False


@on_running_session
def recipe_table(spark: SparkSession, config: RunConfig) -> DataFrame:
    """Return the table that the recipe's query builds from its source tables.

    Raises:
        ConfigError: See :meth:`SourceTables.find`; or a table cannot be read, or the query cannot be run.
    """
    return _table(spark, config, source_files(config))


def source_files(config: RunConfig) -> dict[str, Location]:
    """Return the place of each source table.

    Raises:
        ConfigError: See :meth:`SourceTables.find`.
    """
    package = None
    with _as_bad_usage():
        if config.data is None and config.data_package is not None:
            package = tables.package_folder(config.data_package, config.data_package_folder)
        return tables.find_tables(package or config.data, config.tables)


def _dataset_path(config: RunConfig, identity: Mapping[str, Any]) -> Path:
    address = dataset_address(identity, config.spec, config.conversion)
    return Path(config.output).absolute() / "datasets" / f"{config.name}-{address}"


def _content(table: DataFrame, items: DataFrame | None, config: RunConfig) -> dict[str, str]:
    """Return hashes of the rows that a dataset is made of."""
    columns = (*config.spec.columns, config.conversion.split_column)
    present = [quoted(name) for name in dict.fromkeys(columns) if name in table.columns]  # convert names the others
    found = {"table": content_hash(table.select(*present))}
    return found if items is None else found | {"items": content_hash(items)}


def _table(spark: SparkSession, config: RunConfig, files: Mapping[str, Location]) -> DataFrame:
    unpacked = Path(config.output).absolute() / "sources"
    with _as_bad_usage():
        tables.register_tables(spark, files, config.tables, unpacked=unpacked, csv_null=config.csv_null)
        table = tables.query(spark, config.sql, SQL_FILE)
        check_columns(table, config.spec, config.conversion.split_column)
        return without_null_labels(table, config.spec.label) if config.null_labels == "drop" else table


@contextlib.contextmanager
def _as_bad_usage() -> Iterator[None]:
    """Make errors of the given data and of the recipe's query those of a wrong command."""
    try:
        yield
    except (
        tables.SourceError,
        lakes.LakeTableError,
        DatasetError,
        raw_columns.ColumnError,
        labels.LabelError,
    ) as error:
        raise ConfigError(str(error)) from error
