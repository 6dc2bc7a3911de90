"""The plan of a scoring call, which the driver resolves and checks once before a task starts."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from mirrorspark.data_pipelines.features import quoted, raw_columns, repeated_names
from mirrorspark.data_pipelines.spark import sent_schema_of, spark_schema_of
from mirrorspark.data_pipelines.tfrecord import arrow_schema
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input import Inputs, Reader
from mirrorspark.scoring.model import HOOKS_FILE
from mirrorspark.scoring.model.folder import ModelDescription, ModelDirectory
from mirrorspark.scoring.model.loading import Search
from mirrorspark.scoring.model.stored import PinnedModel, opened_model
from mirrorspark.scoring.output import form_of_labels
from mirrorspark.scoring.task import Counters, Scorer, ScoringOptions, ship
from mirrorspark.spark_session import require_running

_LOGGER = logging.getLogger(__name__)

ExtraColumns = Literal["ignore", "refuse"]
"""Treatment of columns that are neither keys nor inputs of the model."""


@dataclass(frozen=True)
class ScoringPlan:
    """Model, columns and options of a scoring call; built by :meth:`of` and immutable.

    Every entry point builds one. :meth:`table` checks the columns of rows that Spark reads; :meth:`check_names` and
    :meth:`check_types` check rows that tasks read.

    Attributes:
        keys: Columns that pass through unchanged.
        results: The columns after the keys: the scores, then the added columns.
        reader: Reader of a DataFrame of plain Parquet files.
    """

    pinned: PinnedModel
    directory: ModelDirectory
    inputs: Inputs
    keys: tuple[str, ...]
    options: ScoringOptions
    results: pa.Schema
    reader: Reader = "auto"

    def __post_init__(self) -> None:
        if self.reader not in get_args(Reader):
            raise ScoringError(f"reader '{self.reader}' is unknown; use {', '.join(get_args(Reader))}")

    @classmethod
    def of(
        cls,
        model: str | Path | PinnedModel,
        keys: str | Sequence[str],
        options: ScoringOptions,
        tracking_uri: str | None = None,
        reader: Reader = "auto",
        *,
        trust: bool = False,
    ) -> "ScoringPlan":
        """Pin the model, open its folder, ask for consent to its code, and derive the columns of its scores.

        Args:
            model: Its URI, or the result of :func:`scoring.model.stored.resolve`.
            keys: Columns that identify a row.
            options: Options of the call.
            tracking_uri: Address of the MLflow store; by default the one that MLflow is configured with.
            reader: Reader of the rows.
            trust: Whether Python code that the model brings may run. Tasks load exactly the model that is checked here.

        Raises:
            ModelNotFoundError: The URI does not lead to a model.
            UntrustedModelError: The model brings code that may not run.
            ScoringError: The model's outputs do not fit the form, or the reader is unknown.
        """
        pinned, directory = opened_model(model, tracking_uri, trust=trust)
        keys = (keys,) if isinstance(keys, str) else tuple(keys)
        return cls(pinned, directory, directory.inputs, keys, options, options.schema(directory), reader)

    @property
    def columns(self) -> tuple[str, ...]:
        """The keys and the columns that the model reads, each once."""
        return tuple(dict.fromkeys([*self.keys, *self.inputs.columns]))

    def with_named_labels(self) -> "ScoringPlan":
        """Return the plan with a column for each class of a model that was trained here, if they can be columns."""
        labels = self.directory.labels if isinstance(self.directory.description, ModelDescription) else {}
        if not labels:
            return self
        options = replace(self.options, outputs=form_of_labels(next(iter(labels.values()))))
        return replace(self, options=options, results=options.schema(self.directory))

    def check_names(self, names: Sequence[str], *, needs_keys: bool = True) -> None:
        """Check the names of a table's columns.

        Raises:
            ScoringError: A key is missing, or the table has or the result would have a column twice.
            ColumnError: An input is missing.
        """
        if needs_keys:
            check_keys(names, self.keys)
        if repeated := _repeated([*self.keys, *self.results.names]):
            raise ScoringError(f"the result would have the columns {repeated} twice; rename or leave out such keys")
        wanted = set(self.columns)
        if ambiguous := [name for name in _repeated(names) if name in wanted]:
            raise ScoringError(f"the table has the columns {ambiguous} twice; drop or rename one of each")
        if not wanted <= set(names):
            # The null type fits every input, so this raises the inputs' own message about the missing column.
            self.inputs.check(pa.schema([(name, pa.null()) for name in names]))

    def check_types(self, schema: pa.Schema) -> None:
        """Check the types of the model's columns as tasks will receive them.

        Raises:
            ColumnError: A column has a type that the model does not accept.
            ScoringError: The null policy does not fit.
        """
        self.inputs.check(schema)
        if self.options.nulls.values:
            self.options.nulls.check(pa.schema([schema.field(name) for name in self.inputs.columns]))

    def table(self, df: DataFrame, *, extra_columns: ExtraColumns = "ignore") -> DataFrame:
        """Check the columns of ``df`` and select the keys and the model's inputs.

        Raises:
            ScoringError: For a reason of :meth:`check_names` or :meth:`check_types`, or ``extra_columns`` refuses a
                column.
            ColumnError: For a reason of these methods.
        """
        require_running(df.sparkSession)
        found = SentColumns.of(df.schema)
        self.check_names(found.names)
        self.check_extra(found.names, extra_columns)
        self.check_types(found.schema(self.inputs.columns))
        return df.select(*(quoted(name) for name in self.columns))

    def check_extra(self, names: Sequence[str], extra_columns: ExtraColumns) -> None:
        """Raise a ``ScoringError`` for columns that are neither keys nor inputs, if these are refused."""
        own = self.columns
        extra = [name for name in names if name not in set(own)]
        if extra and extra_columns == "refuse":
            raise ScoringError(
                f"the table has the columns {extra}, which the model's spec does not allow it to see; select "
                f"{list(own)}"
            )

    def schema(self, table: DataFrame) -> StructType:
        """Return the columns of the scores of ``table``."""
        return scored_schema(table, self.keys, self.results)

    def log_hooks(self) -> None:
        """Log the hooks of the model that will run in the executors."""
        if hooks := self.directory.hooks:
            label, names = self.pinned.label, ", ".join(hooks)
            _LOGGER.info("model %s brings code that runs in the executors: %s of its %s", label, names, HOOKS_FILE)

    def scorer(self, spark: SparkSession, *, counters: Counters | None = None, search: Search | None = None) -> Scorer:
        """Ship the model to the executors and return the scorer of the tasks.

        Args:
            spark: The session of the tasks.
            counters: Collects the counters of the tasks.
            search: Index and limits of a search with a retrieval model.
        """
        self.log_hooks()
        return Scorer(ship(spark, self.pinned), self.options, counters, search)


def check_keys(names: Sequence[str], keys: Sequence[str]) -> None:
    """Check that a table has the key columns.

    Raises:
        ScoringError: A key is missing, or no key is given.
    """
    if not keys:
        raise ScoringError("keys is empty; name the columns that identify a row, or its score belongs to no row")
    missing = [key for key in keys if key not in names]
    if missing:
        raise ScoringError(
            f"key columns {missing} are missing; the table has {list(names)}{raw_columns.meant(missing[0], names)}"
        )


def _repeated(names: Sequence[str]) -> list[str]:
    # Few tables have any, and some have thousands of columns.
    return repeated_names(names) if len(set(names)) < len(names) else []


def scored_schema(table: DataFrame, keys: Sequence[str], results: pa.Schema) -> StructType:
    """Return the columns of the scores of ``table``: its keys, then ``results``."""
    return StructType([table.schema[name] for name in keys] + spark_schema_of(results).fields)


@dataclass(frozen=True)
class SentColumns:
    """The columns of a table as Spark sends them to tasks. Models are checked against them without more calls to Spark.

    Attributes:
        fields: Arrow field by column.
        unsupported: Spark's type by column, for types that no model accepts.
    """

    names: tuple[str, ...]
    fields: Mapping[str, pa.Field]
    unsupported: Mapping[str, str]

    @classmethod
    def of(cls, schema: StructType) -> "SentColumns":
        """Return the columns of a table with this schema."""
        fields: dict[str, pa.Field] = {}
        unsupported: dict[str, str] = {}
        for field in schema.fields:
            try:
                fields[field.name] = sent_schema_of(StructType([field])).field(0)
            except arrow_schema.SchemaError:
                unsupported[field.name] = field.dataType.simpleString()
        return cls(tuple(schema.names), fields, unsupported)

    def schema(self, names: Iterable[str]) -> pa.Schema:
        """Return some of the columns.

        Raises:
            ColumnError: One is missing, or has a type that no model accepts.
        """
        return pa.schema([self._field(name) for name in names])

    def _field(self, name: str) -> pa.Field:
        if name in self.unsupported:
            raise raw_columns.ColumnError(
                f"column '{name}' has type {self.unsupported[name]}, which no model can take; cast it"
            )
        if name not in self.fields:
            known = list(self.names)
            raise raw_columns.ColumnError(
                f"column '{name}' is missing; the table has {known}{raw_columns.meant(name, known)}"
            )
        return self.fields[name]
