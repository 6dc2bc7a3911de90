"""The block layout: about a thousand examples in one record, each column an array.

Any reader of ``tf.train.Example`` can parse a block; the names of its features are:

* a numeric or categorical feature by its own name, one value per row;
* a multi-valued feature by its own name, the values of all rows, with ``<name>/row_lengths`` beside it;
* ``label/<name>``, ``weight/<name>`` and ``key/<name>``;
* ``exclude/<name>`` and ``exclude/<name>/row_lengths``, ids in the candidate's vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.examples import decode_example, encode_example
from data_pipelines.features import Feature, FeatureSpec, MultiValued, Numeric
from data_pipelines.transform import (
    ROW_LENGTHS_SUFFIX,
    ColumnError,
    Encoded,
    Encoder,
    RaggedIds,
    is_number,
    raw_column,
)

ROWS_PER_BLOCK = 1024
LABEL_PREFIX = "label/"
WEIGHT_PREFIX = "weight/"
KEY_PREFIX = "key/"
EXCLUDE_PREFIX = "exclude/"


class LabelError(ValueError):
    """A label that the model cannot learn; the message shows the value."""


@dataclass(frozen=True)
class Block:
    """Decoded rows.

    Attributes:
        features: Per feature float32 ``[rows]``, int64 ``[rows]`` or int64 ``[rows, max_length]``.
        label: float32 ``[rows]``, or None where the label is a feature.
        weight: float32 ``[rows]``, ones where the spec names no weight column.
        keys: Per key int64 ``[rows]`` or an object array of strings; empty unless asked for.
        excluded: int64 ``[rows, longest]``, ids of candidates not to recommend; None unless asked for and in the spec.
    """

    features: Mapping[str, np.ndarray]
    label: np.ndarray | None
    weight: np.ndarray
    keys: Mapping[str, np.ndarray]
    excluded: np.ndarray | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.weight)


def check_columns(table: pa.Table, spec: FeatureSpec) -> None:
    """Check that ``table`` has every column of ``spec`` in a type it can be read from; a table without rows will do.

    Raises:
        ColumnError: A column is missing or has the wrong type.
        LabelError: The label has the wrong type.
    """
    for feature in (*spec, *((spec.excluded,) if spec.excluded else ())):
        raw_column(table, feature)
    if spec.label.kind == "binary":
        binary_label(table, spec.label.name)
    if spec.weight is not None:
        _weights(table, spec.weight)
    for key in spec.keys:
        _column(table, key)


def encode_block(table: pa.Table, encoder: Encoder, spec: FeatureSpec) -> tuple[bytes, dict[str, Encoded]]:
    """Return the record that holds the rows of ``table``, and the encoded features for whoever counts them.

    Raises:
        ColumnError: A column is missing or has the wrong type, a key is null, or a weight is null or negative.
        LabelError: A label is null or neither 0 nor 1.
    """
    encoded = encoder.encode(table)
    columns: dict[str, np.ndarray | Sequence[bytes]] = {}
    for name, column in encoded.items():
        _store(columns, name, column)
    if spec.excluded is not None:
        for name, column in encoder.encode(table, (spec.excluded,)).items():
            _store(columns, EXCLUDE_PREFIX + name, column)
    if spec.label.kind == "binary":
        columns[LABEL_PREFIX + spec.label.name] = binary_label(table, spec.label.name)
    if spec.weight is not None:
        columns[WEIGHT_PREFIX + spec.weight] = _weights(table, spec.weight)
    for key in spec.keys:
        columns[KEY_PREFIX + key] = _key_values(_column(table, key), key)
    return encode_example(columns), encoded


def _store(columns: dict[str, np.ndarray | Sequence[bytes]], name: str, column: Encoded) -> None:
    if isinstance(column, RaggedIds):
        columns[name] = column.values
        columns[name + ROW_LENGTHS_SUFFIX] = column.row_lengths
    else:
        columns[name] = column


def decode_block(payload: bytes | memoryview, spec: FeatureSpec, *, keys: bool = False) -> Block:
    """Return the rows of one record; keys and exclusions, which training does not need, only with ``keys``."""
    label_name = None if spec.label.kind == "candidate" else LABEL_PREFIX + spec.label.name
    wanted = [column for feature in spec for column in _stored_names(feature)]
    wanted += [label_name] if label_name else []
    wanted += [WEIGHT_PREFIX + spec.weight] if spec.weight else []
    excluded = spec.excluded if keys else None
    wanted += [KEY_PREFIX + key for key in spec.keys] if keys else []
    wanted += [EXCLUDE_PREFIX + column for column in _stored_names(excluded)] if excluded else []
    columns = decode_example(payload, wanted)
    features = {feature.name: _feature_values(feature, columns, feature.name) for feature in spec}
    rows = len(next(iter(features.values())))
    return Block(
        features=features,
        label=columns[label_name] if label_name else None,  # type: ignore[arg-type]
        weight=columns[WEIGHT_PREFIX + spec.weight] if spec.weight else np.ones(rows, np.float32),  # type: ignore[arg-type]
        keys={key: _key_array(columns[KEY_PREFIX + key]) for key in spec.keys} if keys else {},
        excluded=_feature_values(excluded, columns, EXCLUDE_PREFIX + excluded.name) if excluded else None,
    )


def binary_label(table: pa.Table | pa.RecordBatch, name: str) -> np.ndarray:
    """Return the label column as float32 ``[rows]`` of zeros and ones.

    Raises:
        LabelError: A value is null or neither 0 nor 1.
    """
    column = _column(table, name)
    if not (is_number(column.type) or pa.types.is_null(column.type)):
        raise LabelError(f"label '{name}' has type {column.type}; a binary label is a number or boolean: cast it")
    values = _as_float32(column)
    wrong = ~np.isin(values, (0.0, 1.0))
    if wrong.any():
        value = column[int(np.flatnonzero(wrong)[0])].as_py()
        raise LabelError(
            f"label '{name}' has the value {value!r}; a binary label is 0 or 1: filter such rows out of the table"
        )
    return values


def _weights(table: pa.Table, name: str) -> np.ndarray:
    column = _column(table, name)
    if not is_number(column.type):
        raise ColumnError(f"weight column '{name}' has type {column.type}; a weight is a number: cast it")
    values = _as_float32(column)
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        value = column[int(np.flatnonzero(wrong)[0])].as_py()
        raise ColumnError(f"weight column '{name}' has the value {value!r}; a weight is a finite number from 0 on")
    return values


def _as_float32(column: pa.Array) -> np.ndarray:
    return column.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)


def _column(table: pa.Table | pa.RecordBatch, name: str) -> pa.Array:
    index = table.schema.get_field_index(name)
    if index < 0:
        raise ColumnError(f"column '{name}' is missing; the table has {table.schema.names}")
    column = table.column(index)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _stored_names(feature: Feature) -> tuple[str, ...]:
    if isinstance(feature, MultiValued):
        return feature.name, feature.name + ROW_LENGTHS_SUFFIX
    return (feature.name,)


def _feature_values(feature: Feature, columns: Mapping[str, np.ndarray | list[bytes]], stored: str) -> np.ndarray:
    values = np.asarray(columns[stored], np.float32 if isinstance(feature, Numeric) else np.int64)
    if isinstance(feature, MultiValued):
        lengths = np.asarray(columns[stored + ROW_LENGTHS_SUFFIX], np.int64)
        return RaggedIds(values, lengths).padded(feature.max_length)
    return values


def _key_values(column: pa.Array, name: str) -> np.ndarray | list[bytes]:
    if column.null_count:
        raise ColumnError(f"key column '{name}' has a null; a key names its row: fill it or choose another key")
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64()).to_numpy()
    return [value.encode() for value in pc.cast(column, pa.string()).to_pylist()]


def _key_array(values: np.ndarray | list[bytes]) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    return np.array([value.decode() for value in values], dtype=object)
