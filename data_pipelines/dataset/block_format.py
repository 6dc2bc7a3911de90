"""The block layout: about a thousand examples in one record, each column an array.

Any reader of ``tf.train.Example`` can parse a block; the names of its features are:

* a feature of one value or one id per row under its own name;
* a feature of several ids under its own name, the ids of all rows, with ``<name>/row_lengths``;
* a vector under its own name, the numbers of all rows;
* a sparse feature as ``<name>/indices`` and ``<name>/values``, the entries of all rows, with ``<name>/row_lengths``;
* ``weight/<name>``, ``key/<name>`` and ``label/<name>``, a label of several classes with ``label/<name>/row_lengths``;
* ``block/rows``, one number: the block's rows, as in every block of this library;
* ``exclude/<name>`` and ``exclude/<name>/row_lengths``, ids in the candidate's vocabulary;
* ``held_back/<name>`` and ``held_back/<name>/row_lengths``, the same of a label that is a list of candidates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features import (
    Encoded,
    Encoder,
    FeatureSpec,
    RaggedIds,
    SparseRows,
    kinds,
    labels,
    raw_columns,
)
from mirrorspark.data_pipelines.tfrecord import arrow_schema, decode_example, encode_example, table_blocks

LABEL_PREFIX = "label/"
WEIGHT_PREFIX = "weight/"
KEY_PREFIX = "key/"
EXCLUDE_PREFIX = "exclude/"
HELD_BACK_PREFIX = "held_back/"

STORED_SUFFIXES: Mapping[kinds.Form, tuple[str, ...]] = {
    "value": ("",),
    "id": ("",),
    "ids": ("", arrow_schema.ROW_LENGTHS_SUFFIX),
    "sparse": (arrow_schema.INDICES_SUFFIX, arrow_schema.VALUES_SUFFIX, arrow_schema.ROW_LENGTHS_SUFFIX),
    "vector": ("",),
}
"""The suffixes of a feature's stored columns."""


@dataclass(frozen=True)
class Block:
    """Decoded rows.

    Attributes:
        features: Per feature float32 ``[rows]``, int64 ``[rows]``, int64 ``[rows, max_length]``, float32 ``[rows,
            size]`` or compressed sparse rows.
        label: As from :func:`data_pipelines.features.labels.encode_label`.
        weight: float32 ``[rows]``, ones if the spec has no weight column.
        keys: Per key int64 ``[rows]`` or an object array of strings; empty unless requested.
        excluded: int64 ``[rows, longest]``, ids of candidates not to recommend; None unless requested and in the spec.
        held_back: The ids of all candidates that each row holds back; None unless requested and the label has lists,
            of which ``features`` have the first candidate.
    """

    features: Mapping[str, np.ndarray | SparseRows]
    label: labels.EncodedLabel | None
    weight: np.ndarray
    keys: Mapping[str, np.ndarray]
    excluded: np.ndarray | None = None
    held_back: RaggedIds | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.weight)


def check_columns(table: pa.Table, spec: FeatureSpec) -> raw_columns.ColumnPlans:
    """Check that ``table`` has every column of ``spec`` in a readable type; return the plans of the features.

    It may be empty.

    Raises:
        ColumnError: A column is missing or has the wrong type.
        LabelError: The label has the wrong type.
    """
    plans = raw_columns.column_plans(table.schema, (*spec, *spec.input_features))
    labels.check_label(table, spec)
    if spec.weight is not None:
        _weights(table, spec.weight)
    for key in spec.keys:
        raw_columns.plain_column(table, key)
    return {
        **plans,
        **raw_columns.column_plans(table.schema, (feature for feature in spec.read_features if feature not in plans)),
    }


def encode_blocks(
    table: pa.Table, encoder: Encoder, spec: FeatureSpec, rows_per_block: int = table_blocks.ROWS_PER_BLOCK
) -> tuple[list[bytes], dict[str, Encoded]]:
    """Return the records with the rows of ``table``, at least one, and its encoded features.

    All rows are encoded at once and then cut into blocks, so the number of blocks does not change the transform's cost.

    Raises:
        ColumnError: A column is missing or has the wrong type, a key is null, or a weight is null or negative.
        LabelError: A label is null or invalid for its kind.
    """
    encoded = encoder.encode(table)
    columns: dict[str, Encoded | list[bytes]] = {**encoded}
    if spec.excluded is not None:
        (excluded,) = encoder.encode(table, (spec.excluded,)).values()
        columns[EXCLUDE_PREFIX + spec.excluded.name] = excluded
    if spec.held_back is not None:
        (held_back,) = encoder.encode(table, (spec.held_back,)).values()
        columns[HELD_BACK_PREFIX + spec.label.name] = held_back
    label = labels.encode_label(table, encoder.fitted)
    if label is not None:
        columns[f"{LABEL_PREFIX}{spec.label.stored}"] = label
    if spec.weight is not None:
        columns[WEIGHT_PREFIX + spec.weight] = _weights(table, spec.weight)
    for key in spec.keys:
        columns[KEY_PREFIX + key] = _key_values(raw_columns.plain_column(table, key), key)
    records = []
    for start in range(0, max(table.num_rows, 1), rows_per_block):
        stop = min(start + rows_per_block, table.num_rows)
        block: dict[str, np.ndarray | Sequence[bytes]] = {table_blocks.BLOCK_ROWS: np.array([stop - start], np.int64)}
        for name, column in columns.items():
            block |= _stored(name, _cut(column, start, stop))
        records.append(encode_example(block))
    return records, encoded


def _cut(column: Encoded | list[bytes], start: int, stop: int) -> Encoded | list[bytes]:
    return column.cut(start, stop) if isinstance(column, RaggedIds | SparseRows) else column[start:stop]


def _stored(name: str, column: Encoded | list[bytes]) -> dict[str, np.ndarray | Sequence[bytes]]:
    if isinstance(column, RaggedIds):
        return {name: column.values, name + arrow_schema.ROW_LENGTHS_SUFFIX: column.row_lengths}
    if isinstance(column, SparseRows):
        parts = (column.indices, column.values, column.row_lengths)
        return {name + suffix: part for suffix, part in zip(STORED_SUFFIXES["sparse"], parts, strict=True)}
    # A vector's numbers, row by row.
    return {name: column.ravel() if isinstance(column, np.ndarray) else column}


def decode_block(payload: bytes | memoryview, spec: FeatureSpec, *, keys: bool = False) -> Block:
    """Return the rows of one record; ``keys`` adds keys, exclusions and all held-back candidates of a row.

    Training needs none of them.
    """
    excluded = spec.excluded if keys else None
    held_back = _stored_held_back(spec) if keys else ()
    wanted = [column for feature in spec for column in _stored_names(feature)]
    wanted += _stored_label(spec)
    wanted += [WEIGHT_PREFIX + spec.weight] if spec.weight else []
    wanted += [KEY_PREFIX + key for key in spec.keys] if keys else []
    wanted += [EXCLUDE_PREFIX + column for column in _stored_names(excluded)] if excluded else []
    wanted += held_back
    columns = decode_example(payload, wanted)
    features = {feature.name: _feature_values(feature, columns, feature.name) for feature in spec}
    rows = _row_count(next(iter(features.values())))
    return Block(
        features=features,
        label=_label_values(spec, columns),
        weight=columns[WEIGHT_PREFIX + spec.weight] if spec.weight else np.ones(rows, np.float32),  # type: ignore[arg-type]
        keys={key: _key_array(columns[KEY_PREFIX + key]) for key in spec.keys} if keys else {},
        excluded=_feature_values(excluded, columns, EXCLUDE_PREFIX + excluded.name) if excluded else None,  # type: ignore[arg-type]
        held_back=RaggedIds(*(_int64s(columns[name]) for name in held_back)) if held_back else None,
    )


def decode_classes(payload: bytes | memoryview, spec: FeatureSpec) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the classes, int64, and the weights of the rows of one record, without their features."""
    weight = [WEIGHT_PREFIX + spec.weight] if spec.weight else []
    columns = decode_example(payload, [*_stored_label(spec), *weight])
    classes = np.asarray(_label_values(spec, columns)).astype(np.int64)
    return classes, np.asarray(columns[weight[0]]) if weight else np.ones(len(classes), np.float32)


def _weights(table: pa.Table, name: str) -> np.ndarray:
    column = raw_columns.plain_column(table, name)
    if not raw_columns.is_number(column.type):
        raise raw_columns.ColumnError(f"weight column '{name}' has type {column.type}; a weight is a number: cast it")
    values = _as_float32(column)
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        value = column[int(np.flatnonzero(wrong)[0])].as_py()
        raise raw_columns.ColumnError(
            f"weight column '{name}' has the value {value!r}; a weight is a finite number from 0 on"
        )
    return values


def _as_float32(column: pa.Array) -> np.ndarray:
    return column.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)


def _stored_names(feature: kinds.Feature) -> tuple[str, ...]:
    return tuple(feature.name + suffix for suffix in STORED_SUFFIXES[feature.form])


def _feature_values(feature: kinds.Feature, columns: Mapping[str, Any], stored: str) -> np.ndarray | SparseRows:
    parts = [columns[stored + suffix] for suffix in STORED_SUFFIXES[feature.form]]
    if feature.form == "sparse":
        indices, values, row_lengths = parts
        return SparseRows(_int64s(indices), np.asarray(values, np.float32), _int64s(row_lengths))
    if feature.form == "ids":
        values, row_lengths = parts
        return RaggedIds(_int64s(values), _int64s(row_lengths)).padded(feature.max_length)
    if isinstance(feature, kinds.VectorFeature):
        return np.asarray(parts[0], np.float32).reshape(-1, feature.size)
    return np.asarray(parts[0], np.float32 if feature.form == "value" else np.int64)


def _int64s(values: Any) -> np.ndarray:
    # A list without values is decoded as a list without a kind.
    return np.asarray(values, np.int64)


def _row_count(values: np.ndarray | SparseRows) -> int:
    return len(values.row_lengths if isinstance(values, SparseRows) else values)


def _stored_label(spec: FeatureSpec) -> tuple[str, ...]:
    """Return the names of the columns that hold the label."""
    if spec.label.stored is None:
        return ()
    name = LABEL_PREFIX + spec.label.stored
    return (name, name + arrow_schema.ROW_LENGTHS_SUFFIX) if spec.label.kind == "multi_label" else (name,)


def _stored_held_back(spec: FeatureSpec) -> tuple[str, ...]:
    """Return the names of the columns that hold the lists of a label of candidates."""
    if not spec.label.lists:
        return ()
    name = HELD_BACK_PREFIX + spec.label.name
    return name, name + arrow_schema.ROW_LENGTHS_SUFFIX


def _label_values(spec: FeatureSpec, columns: Mapping[str, Any]) -> labels.EncodedLabel | None:
    stored = [columns[name] for name in _stored_label(spec)]
    if not stored:
        return None
    if spec.label.kind == "multi_label":
        return RaggedIds(_int64s(stored[0]), _int64s(stored[1]))
    return np.asarray(stored[0], np.int64 if spec.label.form == "multi_class" else np.float32)


def _key_values(column: pa.Array, name: str) -> np.ndarray | list[bytes]:
    if column.null_count:
        raise raw_columns.ColumnError(
            f"key column '{name}' has a null; a key identifies its row: fill it or choose another key"
        )
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64()).to_numpy()
    return [value.encode() for value in pc.cast(column, pa.string()).to_pylist()]


def _key_array(values: np.ndarray | list[bytes]) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    return np.array([value.decode() for value in values], dtype=object)
