"""Writing of the row layout: one framed record per row of a table, from Arrow's buffers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mirrorspark.data_pipelines.tfrecord.arrow_schema import (
    FeatureColumn,
    ListKind,
    RecordType,
    SchemaError,
    ValueNotStorableError,
    table_columns,
)
from mirrorspark.data_pipelines.tfrecord.examples import (
    Strings,
    varint,
)
from mirrorspark.data_pipelines.tfrecord.kernels import SLACK_BYTES, row_encode
from mirrorspark.data_pipelines.tfrecord.stored_columns import (
    StoredColumn,
    stored_columns,
)
from mirrorspark.data_pipelines.tfrecord.table_blocks import BLOCK_ROWS


@dataclass(frozen=True)
class EncodedRecords:
    """Records in the bytes of a file.

    Attributes:
        content: uint8 ``[bytes]``: the framed records with both checksums.
        offsets: int64 ``[rows + 1]``: where each record begins and the last one ends.
    """

    content: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]


class RowEncoder:
    """Encoder of rows of one schema as records.

    The bytes equal those of TensorFlow's deterministic serialization: features in the order of their names.
    """

    def __init__(self, schema: pa.Schema, record_type: RecordType = RecordType.EXAMPLE) -> None:
        """Plan the records of a table.

        Args:
            schema: The table's columns.
            record_type: The message to write for each row.

        Raises:
            SchemaError: The schema does not map to records of this type.
        """
        self._schema = schema
        self._record_type = record_type
        self._columns = table_columns(schema, record_type)
        if record_type is RecordType.EXAMPLE and BLOCK_ROWS in schema.names:
            raise SchemaError(f"column '{BLOCK_ROWS}' has a name that is reserved for blocks of rows; rename it")

    def encode(self, batch: pa.RecordBatch | pa.Table) -> EncodedRecords:
        """Return the records of the rows of ``batch``.

        Raises:
            SchemaError: Its columns are not those of the schema.
            ValueNotStorableError: A record cannot hold a value: a null in a list, a number beyond float32, a null
                payload, or more than 2 GiB in one row.
        """
        if not batch.schema.equals(self._schema):
            raise SchemaError(
                f"a batch has the columns {_described(batch.schema)}; this encoder was made for "
                f"{_described(self._schema)}"
            )
        stored = stored_columns(batch, self._columns)
        if self._record_type is RecordType.BYTE_ARRAY:
            return _framed_payloads(stored[0])
        # FeatureLists have a map of their own; keys compare by their bytes, as in C++.
        stored.sort(key=lambda column: (column.feature.depth == 2, column.feature.feature.encode()))
        return _encoded_rows(stored, batch.num_rows, self._record_type)


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _framed_payloads(column: StoredColumn) -> EncodedRecords:
    if column.valid is not None:
        row = int(np.flatnonzero(column.valid == 0)[0])
        raise ValueNotStorableError(
            f"column '{column.feature.feature}' is null in row {row}; a record has a payload: filter such rows out"
        )
    strings = column.strings
    return EncodedRecords(*row_encode.frame_payloads(_with_slack([strings.content]), strings.offsets))


def _encoded_rows(stored: Sequence[StoredColumn], rows: int, record_type: RecordType) -> EncodedRecords:
    flat = _Flat()
    for column in stored:
        flat.add(column)
    content, offsets = row_encode.encode_rows(
        rows,
        sum(column.feature.depth < 2 for column in stored),
        record_type is RecordType.SEQUENCE_EXAMPLE,
        np.array(flat.plan, np.int64).reshape(-1, row_encode.PLAN_COLUMNS),
        _with_slack([np.frombuffer(b"".join(flat.heads), np.uint8)]),
        _stacked(flat.valid, rows, np.uint8),
        _stacked(flat.row_offsets, rows + 1, np.int64),
        _joined(flat.inner_offsets, np.int64),
        _joined(flat.inner_valid, np.uint8),
        _joined(flat.int64s, np.int64),
        _joined(flat.floats, np.float32).view(np.uint32),
        _with_slack(flat.strings),
        _joined(flat.string_offsets, np.int64),
    )
    if len(offsets) != rows + 1:
        raise ValueNotStorableError(f"row {offsets[0]} passes protobuf's limit of 2 GiB; put less into one row")
    return EncodedRecords(content, offsets)


class _Flat:
    """The columns of a batch concatenated, one array per kind, as the kernel takes them."""

    def __init__(self) -> None:
        self.plan: list[tuple[int, ...]] = []
        self.heads: list[bytes] = []
        self.valid: list[npt.NDArray[np.uint8]] = []
        self.row_offsets: list[npt.NDArray[np.int64]] = []
        self.inner_offsets: list[npt.NDArray[np.int64]] = []
        self.inner_valid: list[npt.NDArray[np.uint8]] = []
        self.int64s: list[npt.NDArray[np.int64]] = []
        self.floats: list[npt.NDArray[np.float32]] = []
        self.strings: list[npt.NDArray[np.uint8]] = []
        self.string_offsets: list[npt.NDArray[np.int64]] = []
        self._head_bytes = 0
        self._inner_lists = 0
        self._string_bytes = 0
        self._values = dict.fromkeys(ListKind, 0)

    def add(self, column: StoredColumn) -> None:
        """Append one column."""
        feature = column.feature
        kind = feature.stored_kind
        first = self._values[kind]
        self._add_values(kind, column)
        if feature.depth == 1:
            self.row_offsets.append(column.offsets[0] + first)
        elif feature.depth == 2:
            self.row_offsets.append(column.offsets[0] + self._inner_lists)
            self._add_inner_lists(column, first)
        valid = -1
        if column.valid is not None:
            valid = len(self.valid)
            self.valid.append(column.valid)
        head = _head(feature)
        head_stop = self._head_bytes + len(head)
        self.plan.append((kind, feature.depth, first, len(self.row_offsets) - 1, valid, self._head_bytes, head_stop))
        self.heads.append(head)
        self._head_bytes = head_stop

    def _add_values(self, kind: ListKind, column: StoredColumn) -> None:
        values = column.values
        if isinstance(values, Strings):
            self.strings.append(values.content)
            self.string_offsets.append(values.offsets + self._string_bytes)
            self._string_bytes += len(values.content)
            # The offsets have one more entry than there are strings: the end of the last one.
            self._values[kind] += len(values.offsets)
            return
        (self.int64s if kind is ListKind.INT64 else self.floats).append(values)
        self._values[kind] += len(values)

    def _add_inner_lists(self, column: StoredColumn, first: int) -> None:
        offsets = column.offsets[1]
        valid = np.ones(len(offsets), np.uint8)
        if column.inner_valid is not None:
            valid[:-1] = column.inner_valid
        self.inner_offsets.append(offsets + first)
        self.inner_valid.append(valid)
        self._inner_lists += len(offsets)


def _head(feature: FeatureColumn) -> bytes:
    """Return the first bytes of a feature's map entries: key and value tag, or for floats all but the value."""
    key = feature.feature.encode()
    head = b"\x0a" + varint(len(key)) + key + b"\x12"
    if feature.depth or feature.kind is not ListKind.FLOAT:
        return head
    # Feature { float_list { packed, 4 bytes } } takes 8 bytes, and its size one.
    return b"\x0a" + varint(len(head) + 9) + head + b"\x08\x12\x06\x0a\x04"


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _stacked(parts: Sequence[npt.NDArray[Any]], columns: int, dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.stack(parts) if parts else np.empty((0, columns), dtype)


def _with_slack(parts: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    return np.concatenate([*parts, np.zeros(SLACK_BYTES, np.uint8)])
