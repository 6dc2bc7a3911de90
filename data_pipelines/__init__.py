"""Data pipelines: from Spark tables to TFRecord shards and on to training batches.

The same table and settings give the same shards, byte for byte. A dataset is published whole or not at all.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.data_pipelines import any_table, interactions, memory_tables, table_forms, tables
    from mirrorspark.data_pipelines.any_table import read_table
    from mirrorspark.data_pipelines.conversion import (
        EXAMPLE_FILE,
        ConversionOptions,
        DatasetExistsError,
        check_columns,
        convert,
        dataset_address,
        library_versions,
        read_profile,
    )
    from mirrorspark.data_pipelines.converted_once import (
        content_hash,
        convert_once,
        hashed_on_the_way,
        quoted,
    )
    from mirrorspark.data_pipelines.ingest import ingest_csv
    from mirrorspark.data_pipelines.kernels import compile_inner_kernel, compile_kernel
    from mirrorspark.data_pipelines.memory_tables import TableError
    from mirrorspark.data_pipelines.stored_tables import (
        KINDS,
        is_path,
        of_one_kind,
        path_for_spark,
        read_parquet_files,
        read_stored,
        suffix_of,
    )
    from mirrorspark.data_pipelines.tfrecords import (
        check_tfrecords,
        read_tfrecords,
        write_tfrecords,
        write_tfrecords_from_parquet,
    )
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "EXAMPLE_FILE",
    "KINDS",
    "ConversionOptions",
    "DatasetExistsError",
    "TableError",
    "any_table",
    "check_columns",
    "check_tfrecords",
    "compile_inner_kernel",
    "compile_kernel",
    "content_hash",
    "convert",
    "convert_once",
    "dataset_address",
    "hashed_on_the_way",
    "ingest_csv",
    "interactions",
    "is_path",
    "library_versions",
    "memory_tables",
    "of_one_kind",
    "path_for_spark",
    "quoted",
    "read_parquet_files",
    "read_profile",
    "read_stored",
    "read_table",
    "read_tfrecords",
    "suffix_of",
    "table_forms",
    "tables",
    "write_tfrecords",
    "write_tfrecords_from_parquet",
]
