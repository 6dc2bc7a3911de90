"""The TFRecord codec: bytes <-> records <-> Arrow columns, independent of Spark and of storage.

Checksums reveal damaged records. TensorFlow reads the records that this codec writes.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.data_pipelines.tfrecord import arrow_schema, table_blocks
    from mirrorspark.data_pipelines.tfrecord.checksums import crc32c, masked_crc32c_of_span
    from mirrorspark.data_pipelines.tfrecord.codecs import CODEC_SUFFIX, CodecError, compressed, open_records
    from mirrorspark.data_pipelines.tfrecord.examples import MalformedExampleError, decode_example, encode_example
    from mirrorspark.data_pipelines.tfrecord.record_scan import RecordChunk, RecordScan, scan_records
    from mirrorspark.data_pipelines.tfrecord.records import (
        FOOTER_BYTES,
        HEADER_BYTES,
        RECORD_OVERHEAD_BYTES,
        BinaryWriter,
        DamagedRecordError,
        RecordWriter,
        read_record_at,
    )
    from mirrorspark.data_pipelines.tfrecord.row_decoder import RowDecoder
    from mirrorspark.data_pipelines.tfrecord.row_encoder import RowEncoder
    from mirrorspark.data_pipelines.tfrecord.schema_inference import infer
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "CODEC_SUFFIX",
    "FOOTER_BYTES",
    "HEADER_BYTES",
    "RECORD_OVERHEAD_BYTES",
    "BinaryWriter",
    "CodecError",
    "DamagedRecordError",
    "MalformedExampleError",
    "RecordChunk",
    "RecordScan",
    "RecordWriter",
    "RowDecoder",
    "RowEncoder",
    "arrow_schema",
    "compressed",
    "crc32c",
    "decode_example",
    "encode_example",
    "infer",
    "masked_crc32c_of_span",
    "open_records",
    "read_record_at",
    "scan_records",
    "table_blocks",
]
