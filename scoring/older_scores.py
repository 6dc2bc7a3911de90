"""Scores that are added to older ones have their columns: Spark reads both as one table, and what differs as nulls."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.errors import PySparkException
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import ArrayType, DataType, MapType, StructField, StructType

from data_pipelines.file_listing import list_files
from data_pipelines.parquet_rows import ParquetFiles
from data_pipelines.storage import StoragePath
from scoring.checks import ScoringError


def check_same_columns(target: StoragePath, schema: pa.Schema) -> None:
    """Check that scores with the columns of ``schema`` can be added to those in the folder ``target``.

    Types are compared as Spark knows them: units of time, kinds of texts and nullability are no differences to it.

    Raises:
        ScoringError: Those have other columns, or types; the first file of them tells.
        ParquetError: That file is not Parquet.
    """
    if not target.exists():
        return
    older = next((file for file in list_files(target) if file.path.name.endswith(".parquet")), None)
    if older is None:
        return
    # Without partition folders: scores are never written to any.
    there = _types(ParquetFiles.of([replace(older, partition=())]).schema)
    here = _types(_as_read_back(schema))
    if stray := sorted(there.keys() ^ here.keys()):
        raise ScoringError(
            f"the scores in {target} have the columns {[*there]}, these would have {[*here]}: Spark would read null "
            f"where they differ ({', '.join(stray)}); score with the same keys, outputs, with_version and bad_rows, "
            f"write to another folder, or use mode 'overwrite'"
        )
    other = [f"'{name}' is {type_} there and {here[name]} here" for name, type_ in there.items() if type_ != here[name]]
    if other:
        raise ScoringError(
            f"the scores in {target} have other types, so Spark could not read both as one table: {', '.join(other)}; "
            f"cast the keys, write to another folder, or use mode 'overwrite'"
        )


def _as_read_back(schema: pa.Schema) -> pa.Schema:
    """Return the types that a Parquet file keeps of ``schema``."""
    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, schema, store_schema=False).close()
    return pq.read_schema(pa.BufferReader(sink.getvalue()))


def _types(schema: pa.Schema) -> dict[str, str]:
    return {field.name: _in_spark(field.type) for field in schema}


def _in_spark(arrow_type: pa.DataType) -> str:
    try:
        return _in_order(from_arrow_type(arrow_type, prefer_timestamp_ntz=True)).simpleString()
    except PySparkException:  # such as of unsigned numbers, which Spark does not take from Arrow
        return str(arrow_type)


def _in_order(type_: DataType) -> DataType:
    """Return a type whose structs have their fields by name: Spark finds them by it."""
    if isinstance(type_, StructType):
        fields = sorted(type_.fields, key=lambda field: field.name)
        return StructType([StructField(field.name, _in_order(field.dataType)) for field in fields])
    if isinstance(type_, ArrayType):
        return ArrayType(_in_order(type_.elementType))
    if isinstance(type_, MapType):
        return MapType(_in_order(type_.keyType), _in_order(type_.valueType))
    return type_
