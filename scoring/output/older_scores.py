"""Check that appended scores have the columns of existing ones; Spark would read nulls where they differ."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.errors import PySparkException
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import ArrayType, DataType, MapType, StructField, StructType

from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.storage import StoragePath, listing


def check_same_columns(target: StoragePath, schema: pa.Schema) -> None:
    """Check that scores with the columns of ``schema`` can be appended to the scores in ``target``.

    Types are compared as Spark types, which ignore units of time, kinds of strings and nullability.

    Raises:
        ScoringError: The first existing file has other columns or types.
        ParquetError: That file is not Parquet.
    """
    if not target.exists():
        return
    older = next((file for file in listing.list_files(target) if file.path.name.endswith(".parquet")), None)
    if older is None:
        return
    # Scores are never written to partition folders, so these are ignored.
    there = _types(parquet_rows.ParquetFiles.of([replace(older, partition=())]).schema)
    here = _types(_as_read_back(schema))
    if differing := sorted(there.keys() ^ here.keys()):
        raise ScoringError(
            f"the scores in {target} have the columns {[*there]}, these would have {[*here]}: Spark would read null "
            f"where they differ ({', '.join(differing)}); score with the same keys, outputs, with_columns and "
            f"bad_rows, write to another folder, or use mode 'overwrite'"
        )
    other = [f"'{name}' is {type_} there and {here[name]} here" for name, type_ in there.items() if type_ != here[name]]
    if other:
        raise ScoringError(
            f"the scores in {target} have other types, so Spark could not read both as one table: {', '.join(other)}; "
            f"cast the keys, write to another folder, or use mode 'overwrite'"
        )


def _as_read_back(schema: pa.Schema) -> pa.Schema:
    """Return ``schema`` as it is read back from a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, schema, store_schema=False).close()
    return pq.read_schema(pa.BufferReader(sink.getvalue()))


def _types(schema: pa.Schema) -> dict[str, str]:
    return {field.name: _spark_type(field.type) for field in schema}


def _spark_type(arrow_type: pa.DataType) -> str:
    try:
        return _with_sorted_fields(from_arrow_type(arrow_type, prefer_timestamp_ntz=True)).simpleString()
    except PySparkException:  # for example unsigned integers, which Spark does not accept from Arrow
        return str(arrow_type)


def _with_sorted_fields(type_: DataType) -> DataType:
    """Return a type with the fields of structs sorted by name, because Spark matches them by name."""
    if isinstance(type_, StructType):
        fields = sorted(type_.fields, key=lambda field: field.name)
        return StructType([StructField(field.name, _with_sorted_fields(field.dataType)) for field in fields])
    if isinstance(type_, ArrayType):
        return ArrayType(_with_sorted_fields(type_.elementType))
    if isinstance(type_, MapType):
        return MapType(_with_sorted_fields(type_.keyType), _with_sorted_fields(type_.valueType))
    return type_
