"""Schema inference: the columns that records hold."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mirrorspark.data_pipelines.tfrecord.arrow_schema import (
    ROW_LENGTHS_SUFFIX,
    InferredFeature,
    InferredSchema,
    ListKind,
    RecordType,
    SchemaError,
)
from mirrorspark.data_pipelines.tfrecord.kernels import survey
from mirrorspark.data_pipelines.tfrecord.record_scan import RecordChunk
from mirrorspark.data_pipelines.tfrecord.row_decoder import RowDecoder, canonical_chunk
from mirrorspark.data_pipelines.tfrecord.table_blocks import (
    BESIDE_SUFFIXES,
    BLOCK_ROWS,
    INNER_ROW_LENGTHS_SUFFIX,
    is_table_block,
)

_FIRST_ROOM = 1024
_MOST_KEYS = 2**20
_KEY_BYTES = 64
_FEATURE_LISTS = 2


def infer(chunk: RecordChunk, record_type: RecordType = RecordType.EXAMPLE, *, name: str = "") -> InferredSchema:
    """Return the schema of the records of ``chunk``; :meth:`InferredSchema.merged` combines chunks and files.

    For blocks (:mod:`data_pipelines.tfrecord.table_blocks`), these are the columns of their rows.

    Args:
        chunk: Records, as :func:`data_pipelines.tfrecord.scan_records` yields them.
        record_type: Their type.
        name: The file's name, for errors.

    Raises:
        SchemaError: A feature has different kinds in different records, or there are more than a million names.
        MalformedExampleError: A payload is not a message of the record type.
    """
    if record_type is RecordType.BYTE_ARRAY or not len(chunk.starts):
        return InferredSchema(record_type, len(chunk.starts))
    features: dict[str, InferredFeature] = {}
    chunk, found = _survey(chunk, record_type, name)
    for feature, inferred in found:
        if feature in features:
            raise SchemaError(
                f"{name or 'TFRecord data'}: feature '{feature}' is in the context and a feature list too; give a "
                "schema with the one that is wanted"
            )
        features[feature] = inferred
    if record_type is RecordType.EXAMPLE and BLOCK_ROWS in features and is_table_block(_payload(chunk, 0)):
        features = _block_features(features)
    return InferredSchema(record_type, len(chunk.starts), features)


def _payload(chunk: RecordChunk, row: int) -> bytes:
    return chunk.content[chunk.starts[row] : chunk.stops[row]].tobytes()


def _survey(
    chunk: RecordChunk, record_type: RecordType, name: str
) -> tuple[RecordChunk, list[tuple[str, InferredFeature]]]:
    room = _FIRST_ROOM
    while True:
        is_sequence = record_type is RecordType.SEQUENCE_EXAMPLE
        count, keys, offsets, sections, first_rows, most_values, non_canonical = survey(
            chunk.content, chunk.starts, chunk.stops, is_sequence, room, room * _KEY_BYTES
        )
        if count < 0:
            room *= 4
            if room > _MOST_KEYS:
                raise SchemaError(
                    f"{name or 'TFRecord data'}: records have more than {_MOST_KEYS:,} names of features, or very "
                    "long ones; give a schema with those that are wanted"
                )
            continue
        if not non_canonical.any():
            break
        chunk = canonical_chunk(chunk, np.flatnonzero(non_canonical), record_type, name=name)
    names = [_name(keys[offsets[key] : offsets[key + 1]].tobytes(), name) for key in range(count)]
    texts = _text_features(chunk, record_type, names, sections, first_rows, name)
    return chunk, [
        (feature, _inferred(feature, first_rows[key], int(most_values[key]), int(sections[key]), texts, chunk, name))
        for key, feature in enumerate(names)
    ]


def _name(key: bytes, file: str) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise SchemaError(
            f"{file or 'TFRecord data'}: the name of a feature, {key[:40]!r}, is not UTF-8; check that these records "
            "are Examples"
        ) from error


def _inferred(
    feature: str,
    first_rows: npt.NDArray[np.int64],
    most_values: int,
    section: int,
    texts: frozenset[str],
    chunk: RecordChunk,
    name: str,
) -> InferredFeature:
    kinds = [kind for kind in ListKind if first_rows[kind] >= 0]
    places = [f"record {chunk.first_record + int(first_rows[kind])} of {name or 'TFRecord data'}" for kind in kinds]
    if len(kinds) > 1:
        raise SchemaError(
            f"feature '{feature}' is of kind {kinds[0].field_name} in {places[0]} and of kind {kinds[1].field_name} in "
            f"{places[1]}; give a schema without it, or read the files separately"
        )
    depth = _FEATURE_LISTS if section == _FEATURE_LISTS else int(most_values > 1)
    if not kinds:
        return InferredFeature(None, depth, True, f"{name or 'TFRecord data'}")
    return InferredFeature(kinds[0], depth, feature in texts or kinds[0] is not ListKind.BYTES, places[0])


def _text_features(
    chunk: RecordChunk,
    record_type: RecordType,
    names: list[str],
    sections: npt.NDArray[np.int64],
    first_rows: npt.NDArray[np.int64],
    name: str,
) -> frozenset[str]:
    """Return the features of byte strings that are all UTF-8."""
    depths = {
        feature: int(sections[key])
        for key, feature in enumerate(names)
        # The caller reports features of two kinds.
        if first_rows[key, ListKind.BYTES] >= 0 and (first_rows[key, [ListKind.FLOAT, ListKind.INT64]] < 0).all()
    }
    nested = {1: pa.list_(pa.binary()), 2: pa.list_(pa.list_(pa.binary()))}
    schema = pa.schema([(feature, nested[depth]) for feature, depth in depths.items()])
    batch = RowDecoder(schema, record_type, takes_blocks=True).decode(chunk, name=name)
    texts = []
    for feature, depth in depths.items():
        values = batch.column(feature)
        for _ in range(depth):
            values = values.flatten()
        try:
            values.cast(pa.string())
        except pa.ArrowInvalid:
            continue
        texts.append(feature)
    return frozenset(texts)


def _block_features(features: dict[str, InferredFeature]) -> dict[str, InferredFeature]:
    """Return the columns of the rows of blocks; the row lengths stored with a column give the depth of its lists."""
    beside = {feature + suffix for feature in features for suffix in BESIDE_SUFFIXES} | {BLOCK_ROWS}
    found = {}
    for feature, inferred in features.items():
        if feature in beside:
            continue
        depth = int(feature + ROW_LENGTHS_SUFFIX in features) + int(feature + INNER_ROW_LENGTHS_SUFFIX in features)
        found[feature] = InferredFeature(inferred.kind, depth, inferred.is_text, inferred.seen_in)
    return found
