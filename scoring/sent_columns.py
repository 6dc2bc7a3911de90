"""The columns of a table as Spark sends them to tasks, for a model to be checked against without asking Spark again."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa
from pyspark.sql.types import StructType

from data_pipelines.raw_columns import ColumnError, meant
from data_pipelines.spark_schema import sent_schema_of
from data_pipelines.tfrecord.arrow_schema import SchemaError


@dataclass(frozen=True)
class SentColumns:
    """The columns of a table.

    Attributes:
        names: All of them, in their order.
        fields: Per column what a task gets.
        unfit: Per column that no model can take the type that it has in Spark.
    """

    names: tuple[str, ...]
    fields: Mapping[str, pa.Field]
    unfit: Mapping[str, str]

    @classmethod
    def of(cls, schema: StructType) -> "SentColumns":
        """Return the columns of a table of this schema."""
        fields: dict[str, pa.Field] = {}
        unfit: dict[str, str] = {}
        for field in schema.fields:
            try:
                fields[field.name] = sent_schema_of(StructType([field])).field(0)
            except SchemaError:
                unfit[field.name] = field.dataType.simpleString()
        return cls(tuple(schema.names), fields, unfit)

    def schema(self, names: Iterable[str]) -> pa.Schema:
        """Return some of the columns.

        Raises:
            ColumnError: One is missing, or has a type that no model can take.
        """
        return pa.schema([self._field(name) for name in names])

    def _field(self, name: str) -> pa.Field:
        if name in self.unfit:
            raise ColumnError(f"column '{name}' has type {self.unfit[name]}, which no model can take; cast it")
        if name not in self.fields:
            known = list(self.names)
            raise ColumnError(f"column '{name}' is missing; the table has {known}{meant(name, known)}")
        return self.fields[name]
