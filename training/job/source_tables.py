"""The source tables of a run, and their conversion to a dataset."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from mirrorspark.data_pipelines import DatasetExistsError, convert, dataset_address, read_profile, tables
from mirrorspark.data_pipelines.dataset import is_published
from mirrorspark.data_pipelines.quality import DatasetProfile, without_null_labels
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.scoring.embedding import Embedder
from mirrorspark.training.configuration import SQL_FILE, ConfigError, RunConfig


@dataclass(frozen=True)
class SourceTables:
    """The source tables of a run and the dataset's folder, found without Spark.

    Attributes:
        files: The file of each table.
        identity: Distinguishes these sources from all others.
        reference: Profile of the former dataset that this one should resemble.
        dataset_path: Folder of the dataset, which may be yet to be written.
    """

    files: Mapping[str, Path]
    identity: Mapping[str, Any]
    reference: DatasetProfile | None
    dataset_path: Path

    @classmethod
    def find(cls, config: RunConfig) -> "SourceTables":
        """Return the sources of a run.

        Raises:
            ConfigError: The recipe brings no data and none is given, or a table has no file in the folder that is.
            SourceError: The recipe's data package is not installed, or a table has no file in it.
            ScoringError: An encoder is missing.
        """
        files = _source_files(config)
        identity: dict[str, Any] = {"tables": config.tables, "csv_null": config.csv_null}
        identity |= tables.source_identity(files, config.sql)
        if config.items:
            identity["items"] = config.items["sql"]
        if config.null_labels == "drop":
            identity["null_labels"] = config.null_labels
        identity |= Embedder().source(config.spec)
        reference = read_profile(config.reference_dataset) if config.reference_dataset else None
        if reference is not None:
            # The report of drift is part of the dataset, so another reference makes another dataset.
            document = json.dumps(reference.to_dict(), sort_keys=True)
            identity["reference"] = hashlib.sha256(document.encode()).hexdigest()[:16]
        address = dataset_address(identity, config.spec, config.conversion)
        path = Path(config.output).absolute() / "datasets" / f"{config.name}-{address}"
        return cls(files, identity, reference, path)

    def converted(self) -> Dataset | None:
        """Return the dataset if an earlier run has converted it, else None."""
        return Dataset.open(self.dataset_path) if is_published(self.dataset_path) else None

    def table(self, spark: SparkSession, config: RunConfig) -> DataFrame:
        """Return the table that the recipe's query builds from the source tables.

        Raises:
            SourceError: A table cannot be read, or the query cannot be run.
        """
        return _table(spark, config, self.files)

    def items(self, spark: SparkSession, config: RunConfig) -> DataFrame | None:
        """Return the table of items, from the source tables that :meth:`table` has registered; None without items.

        Raises:
            SourceError: The query cannot be run.
        """
        return tables.query(spark, config.items["sql"], "the sql of items") if config.items else None

    def dataset(self, table: DataFrame, config: RunConfig) -> tuple[Dataset, bool]:
        """Return the dataset and True if it existed already; convert ``table`` otherwise."""
        if (dataset := self.converted()) is not None:
            return dataset, True
        try:
            converted = convert(
                table,
                config.spec,
                self.dataset_path,
                source=self.identity,
                options=config.conversion,
                reference=self.reference,
                items=self.items(table.sparkSession, config),
                embedder=Embedder(),
                progress=False,
            )
        except DatasetExistsError:  # An equal command has finished first.
            return Dataset.open(self.dataset_path), True
        return converted, False


def recipe_table(spark: SparkSession, config: RunConfig) -> DataFrame:
    """Return the table that the recipe's query builds from its source tables.

    Raises:
        ConfigError: See :meth:`SourceTables.find`.
        SourceError: See :meth:`SourceTables.find`; or a table cannot be read, or the query cannot be run.
    """
    return _table(spark, config, _source_files(config))


def _source_files(config: RunConfig) -> dict[str, Path]:
    if config.data is not None:
        try:
            return tables.find_tables(Path(config.data), config.tables)
        except tables.SourceError as error:
            raise ConfigError(str(error)) from error
    if config.data_package is None:
        raise ConfigError(f"recipe '{config.name}' brings no data; give the folder with its tables as --data")
    return tables.find_tables(tables.package_folder(config.data_package, config.data_package_folder), config.tables)


def _table(spark: SparkSession, config: RunConfig, files: Mapping[str, Path]) -> DataFrame:
    unpacked = Path(config.output).absolute() / "sources"
    tables.register_tables(spark, files, config.tables, unpacked=unpacked, csv_null=config.csv_null)
    table = tables.query(spark, config.sql, SQL_FILE)
    return without_null_labels(table, config.spec.label) if config.null_labels == "drop" else table
