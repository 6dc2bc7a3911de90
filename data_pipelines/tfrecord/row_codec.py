"""The row layout: one record per row of a table, written from and read into Arrow's buffers by row_encode_kernels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipelines.tfrecord import row_decode_kernels, row_encode_kernels
from data_pipelines.tfrecord.arrow_schema import (
    FeatureColumn,
    FeatureTypeError,
    ListKind,
    RecordType,
    SchemaError,
    ValueNotStorableError,
    table_columns,
)
from data_pipelines.tfrecord.examples import (
    MalformedExampleError,
    Strings,
    canonical_example,
    decode_example,
    is_example_list,
    varint,
)
from data_pipelines.tfrecord.records import RecordChunk
from data_pipelines.tfrecord.sequence_codec import canonical_sequence_example
from data_pipelines.tfrecord.stored_columns import (
    StoredColumn,
    ValueMismatchError,
    kind_problem,
    restored_array,
    restored_column,
    stored_columns,
)
from data_pipelines.tfrecord.table_blocks import BLOCK_ROWS

_CONTEXT, _FEATURE_LISTS = 1, 2
# A feature that no row has: a record with it is a block.
_BLOCK_MARK = FeatureColumn(BLOCK_ROWS, ListKind.INT64, 0, pa.int64())
_BLOCK_AMONG_ROWS = (
    f"it has the feature '{BLOCK_ROWS}', so it is a block of rows where records of one row each are read; write the "
    "file again in one layout"
)


@dataclass(frozen=True)
class EncodedRecords:
    """Records as they lie in a file.

    Attributes:
        content: uint8 ``[bytes]``: the records, framed with both checksums.
        offsets: int64 ``[rows + 1]``: where each record begins, and where the last one ends.
    """

    content: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]


class RowEncoder:
    """Turns the rows of batches of one schema into records.

    The bytes equal those of TensorFlow's deterministic serialization: features in the order of their names.
    """

    def __init__(self, schema: pa.Schema, record_type: RecordType = RecordType.EXAMPLE) -> None:
        """Plan the records of a table.

        Args:
            schema: The table's columns.
            record_type: What each row becomes.

        Raises:
            SchemaError: The schema does not map to records of this type.
        """
        self._schema = schema
        self._record_type = record_type
        self._columns = table_columns(schema, record_type)
        if record_type is RecordType.EXAMPLE and BLOCK_ROWS in schema.names:
            raise SchemaError(f"column '{BLOCK_ROWS}' has a name that tells blocks of rows from rows; rename it")

    def encode(self, batch: pa.RecordBatch | pa.Table) -> EncodedRecords:
        """Return the records of the rows of ``batch``.

        Raises:
            SchemaError: Its columns are not those of the schema.
            ValueNotStorableError: A value that a record cannot hold: a null in a list, a number beyond float32, a null
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
        # A FeatureList is in a map of its own; keys compare by their bytes, as in C++.
        stored.sort(key=lambda column: (column.feature.depth == 2, column.feature.feature.encode()))
        return _encoded_rows(stored, batch.num_rows, self._record_type)


class RowDecoder:
    """Turns records into batches of one schema; other features that records hold are passed over unread."""

    def __init__(
        self, schema: pa.Schema, record_type: RecordType = RecordType.EXAMPLE, *, takes_blocks: bool = False
    ) -> None:
        """Plan the columns to read.

        Args:
            schema: The table's columns.
            record_type: What the records are.
            takes_blocks: Whether a block of rows is one row of lists, as the letter of tf.train.Example has it, and not
                an error.

        Raises:
            SchemaError: The schema does not map to records of this type.
        """
        self._schema = schema
        self._record_type = record_type
        self._columns = table_columns(schema, record_type)
        features = [feature for column in self._columns for feature in column.features if feature.kind is not None]
        self._refuses_blocks = record_type is RecordType.EXAMPLE and not (takes_blocks or BLOCK_ROWS in schema.names)
        # The kernel reads scalar numbers on the way, and for the others says where they lie.
        marks = [_BLOCK_MARK] if self._refuses_blocks else []
        self._features = tuple(sorted(marks + features, key=lambda feature: not _is_scalar_number(feature)))
        self._keys = _Keys.of(self._features)

    def decode(self, chunk: RecordChunk, *, name: str = "") -> pa.RecordBatch:
        """Return the rows of ``chunk``: nulls where a record lacks a feature, or a scalar column's list is empty.

        Args:
            chunk: Records, as :func:`data_pipelines.tfrecord.records.scan_records` yields them.
            name: What errors call the file.

        Raises:
            FeatureTypeError: A feature is not what its column asks for: of another kind, of several values for a scalar
                column or of another number than a fixed length, beyond the column's type, not UTF-8, or missing where
                the column takes no nulls.
            MalformedExampleError: A payload is not a message of the record type, or is a block of rows.
        """
        if self._record_type is RecordType.BYTE_ARRAY:
            strings = Strings(*row_decode_kernels.read_payloads(chunk.content, chunk.starts, chunk.stops))
            arrays = {self._features[0].feature: restored_array(StoredColumn(self._features[0], strings))}
        else:
            arrays = self._arrays(chunk, name)
        rows = len(chunk.starts)
        return pa.RecordBatch.from_arrays(
            [
                restored_column(
                    column,
                    [
                        pa.nulls(rows, feature.arrow_type) if feature.kind is None else arrays[feature.feature]
                        for feature in column.features
                    ],
                )
                for column in self._columns
            ],
            schema=self._schema,
        )

    def decode_intact(self, chunk: RecordChunk, *, name: str = "") -> tuple[pa.RecordBatch, int]:
        """Return what :meth:`decode` does, less the records that it calls malformed, and how many those are.

        Args:
            chunk: Records, as :func:`data_pipelines.tfrecord.records.scan_records` yields them.
            name: What errors call the file.

        Raises:
            FeatureTypeError: As :meth:`decode`: a schema that does not fit the records is no damage.
        """
        try:
            return self.decode(chunk, name=name), 0
        except MalformedExampleError:
            # Rare enough to look at all records of the chunk one by one.
            intact = [row for row in range(len(chunk.starts)) if self._is_row(chunk, row)]
        runs = np.split(intact, np.flatnonzero(np.diff(intact) > 1) + 1) if intact else []
        batches = [self.decode(chunk.part(int(run[0]), int(run[-1]) + 1), name=name) for run in runs]
        batch = pa.concat_batches(batches) if batches else pa.RecordBatch.from_pylist([], self._schema)
        return batch, len(chunk.starts) - len(intact)

    def _is_row(self, chunk: RecordChunk, row: int) -> bool:
        try:
            message = _canonical(chunk, row, self._record_type, self._features, "")
        except MalformedExampleError:
            return False
        return not (self._refuses_blocks and BLOCK_ROWS in decode_example(message, (BLOCK_ROWS,)))

    def _arrays(self, chunk: RecordChunk, name: str) -> dict[str, pa.Array]:
        rows = len(chunk.starts)
        try:
            return self._restored(self._locate(chunk, name, np.zeros(rows, bool)), chunk, name)
        except _OddListError:
            # Rare enough to read all records of the chunk one by one.
            return self._restored(self._locate(chunk, name, np.ones(rows, bool)), chunk, name)

    def _restored(self, located: "_Located", chunk: RecordChunk, name: str) -> dict[str, pa.Array]:
        arrays = {}
        for position, feature in enumerate(self._features):
            if feature is _BLOCK_MARK:
                continue
            try:
                arrays[feature.feature] = restored_array(_stored(feature, position, located))
            except ValueMismatchError as error:
                raise FeatureTypeError(
                    feature.feature,
                    chunk.first_record + error.row,
                    error.problem,
                    file=name,
                    offset=chunk.record_offset(error.row),
                ) from error
        return arrays

    def _locate(self, chunk: RecordChunk, name: str, is_odd: npt.NDArray[np.bool_]) -> "_Located":
        is_sequence = self._record_type is RecordType.SEQUENCE_EXAMPLE
        found = _Located(chunk.content, *self._keys.locate(chunk, is_sequence))
        odd = np.flatnonzero(is_odd | (found.odd != 0))
        if len(odd):
            canonical = canonical_chunk(chunk, odd, self._record_type, self._features, name=name)
            found = _Located(canonical.content, *self._keys.locate(canonical, is_sequence))
        if self._refuses_blocks and found.found[0].any():
            row = int(np.flatnonzero(found.found[0])[0])
            raise _placed(MalformedExampleError(_BLOCK_AMONG_ROWS, 0), chunk, row, self._record_type, name)
        return found


def canonical_chunk(
    chunk: RecordChunk,
    rows: npt.NDArray[np.int64],
    record_type: RecordType,
    features: Sequence[FeatureColumn] | None = None,
    *,
    name: str = "",
) -> RecordChunk:
    """Return the records of a chunk, some of them read one by one as protobuf reads them and written anew.

    Args:
        chunk: The records.
        rows: Which to write anew: those that the kernels call odd.
        record_type: What they are.
        features: Those to keep; None for all.
        name: What errors call the file.

    Raises:
        MalformedExampleError: One of ``rows`` is not a message of the record type.
    """
    payloads = [_canonical(chunk, int(row), record_type, features, name) for row in rows]
    sizes = np.array([len(payload) for payload in payloads], np.int64)
    starts, stops = chunk.starts.copy(), chunk.stops.copy()
    stops[rows] = chunk.content.size + np.cumsum(sizes)
    starts[rows] = stops[rows] - sizes
    content = np.concatenate([chunk.content, np.frombuffer(b"".join(payloads), np.uint8)])
    # Where records lie now says no more where they are in the file.
    return RecordChunk(content, starts, stops, chunk.first_record)


def _canonical(
    chunk: RecordChunk, row: int, record_type: RecordType, features: Sequence[FeatureColumn] | None, name: str
) -> bytes:
    payload = chunk.content[chunk.starts[row] : chunk.stops[row]].tobytes()
    names = None if features is None else [feature.feature for feature in features if feature.depth < 2]
    lists = None if features is None else [feature.feature for feature in features if feature.depth == 2]
    if is_example_list(payload):
        problem = "it is an ExampleListWithContext, which is not read here"
        raise _placed(MalformedExampleError(problem, 0), chunk, row, record_type, name)
    try:
        if record_type is RecordType.EXAMPLE:
            return canonical_example(payload, names)
        return canonical_sequence_example(payload, names, lists)
    except MalformedExampleError as error:
        raise _placed(error, chunk, row, record_type, name) from error


def _placed(
    error: MalformedExampleError, chunk: RecordChunk, row: int, record_type: RecordType, name: str
) -> MalformedExampleError:
    """Return the error with the place of the record it is about."""
    return MalformedExampleError(
        error.problem,
        error.offset,
        file=name,
        record=chunk.first_record + row,
        message=f"tf.train.{record_type}",
        record_offset=chunk.record_offset(row),
    )


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _framed_payloads(column: StoredColumn) -> EncodedRecords:
    if column.valid is not None:
        row = int(np.flatnonzero(column.valid == 0)[0])
        raise ValueNotStorableError(
            f"column '{column.feature.feature}' is null in row {row}; a record has a payload: filter such rows out"
        )
    strings = column.strings
    return EncodedRecords(*row_encode_kernels.frame_payloads(_with_slack([strings.content]), strings.offsets))


def _encoded_rows(stored: Sequence[StoredColumn], rows: int, record_type: RecordType) -> EncodedRecords:
    flat = _Flat()
    for column in stored:
        flat.add(column)
    content, offsets = row_encode_kernels.encode_rows(
        rows,
        sum(column.feature.depth < 2 for column in stored),
        record_type is RecordType.SEQUENCE_EXAMPLE,
        np.array(flat.plan, np.int64).reshape(-1, row_encode_kernels.PLAN_COLUMNS),
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
    """The columns of a batch laid end to end, one array per kind, as the kernel takes them."""

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
        """Lay out one column after those before."""
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
            # One more than there are strings: where the last one ends.
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
    """Return how every map entry of a feature begins: the key, and the tag of the value; of a float all up to it."""
    key = feature.feature.encode()
    head = b"\x0a" + varint(len(key)) + key + b"\x12"
    if feature.depth or feature.kind is not ListKind.FLOAT:
        return head
    # Feature { float_list { packed, 4 bytes } } is of 8 bytes, and its size of one.
    return b"\x0a" + varint(len(head) + 9) + head + b"\x08\x12\x06\x0a\x04"


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _stacked(parts: Sequence[npt.NDArray[Any]], columns: int, dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.stack(parts) if parts else np.empty((0, columns), dtype)


def _with_slack(parts: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    return np.concatenate([*parts, np.zeros(row_encode_kernels.SLACK_BYTES, np.uint8)])


class _OddListError(Exception):
    """A list that kernels do not read: in pieces, with unknown fields, or damaged."""


def _is_scalar_number(feature: FeatureColumn) -> bool:
    return feature.depth == 0 and feature.kind is not ListKind.BYTES


@dataclass(frozen=True)
class _Keys:
    """The names of the features as the kernel takes them."""

    content: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    sections: npt.NDArray[np.int64]
    scalar_kinds: npt.NDArray[np.int64]
    lists: int

    @classmethod
    def of(cls, features: Sequence[FeatureColumn]) -> "_Keys":
        names = [feature.feature.encode() for feature in features]
        scalar_kinds = [int(feature.kind or 0) for feature in features if _is_scalar_number(feature)]
        return cls(
            np.frombuffer(b"".join(names), np.uint8),
            np.cumsum([0, *map(len, names)]).astype(np.int64),
            np.array([_FEATURE_LISTS if feature.depth == 2 else _CONTEXT for feature in features], np.int64),
            np.array(scalar_kinds, np.int64),
            len(features) - len(scalar_kinds),
        )

    def locate(
        self, chunk: RecordChunk, is_sequence: bool
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """Run the kernel over the records of a chunk."""
        return row_decode_kernels.locate(
            chunk.content, chunk.starts, chunk.stops, is_sequence, self.content, self.offsets, self.sections,
            self.scalar_kinds, len(self.scalar_kinds), self.lists,
        )  # fmt: skip


@dataclass(frozen=True)
class _Located:
    """What :func:`data_pipelines.tfrecord.row_decode_kernels.locate` says of the records in ``content``."""

    content: npt.NDArray[np.uint8]
    found: npt.NDArray[np.uint8]
    values: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]
    odd: npt.NDArray[np.uint8]


def _stored(feature: FeatureColumn, position: int, located: _Located) -> StoredColumn:
    found = located.found[position]
    scalars = len(located.values)
    if position >= scalars:
        bounds = located.bounds[position - scalars]
        if feature.depth == 2:
            return _stored_lists(feature, found, bounds, located.content)
        return _stored_list(feature, found, bounds, located.content)
    valid = _checked(feature, found)
    values = located.values[position]
    if feature.kind is ListKind.FLOAT:
        values = values.astype(np.uint32).view(np.float32)
    return StoredColumn(feature, values, valid=valid)


def _checked(feature: FeatureColumn, found: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8] | None:
    """Return which rows have the feature, or None if all do.

    Raises:
        ValueMismatchError: A row has it in another form.
    """
    has = found == feature.kind
    if has.all():
        return None
    wrong = np.flatnonzero(
        ~has
        & (found != row_decode_kernels.ABSENT)
        & (found != row_decode_kernels.NO_KIND)
        & (found != row_decode_kernels.EMPTY)
    )
    if len(wrong):
        raise ValueMismatchError(int(wrong[0]), _mismatch(feature, int(found[wrong[0]])))
    return has.view(np.uint8)


def _mismatch(feature: FeatureColumn, found: int) -> str:
    if found == row_decode_kernels.SEVERAL:
        return f"has several values, but its column of type {feature.arrow_type} takes one; ask for a list"
    return kind_problem(feature, ListKind(found))


def _stored_list(
    feature: FeatureColumn,
    found: npt.NDArray[np.uint8],
    bounds: npt.NDArray[np.int64],
    content: npt.NDArray[np.uint8],
) -> StoredColumn:
    valid = _checked(feature, found)
    values, offsets = _read_lists(feature, bounds, content)
    if feature.depth:
        return StoredColumn(feature, values, (offsets,), valid)
    counts = np.diff(offsets)
    if len(several := np.flatnonzero(counts > 1)):
        raise ValueMismatchError(int(several[0]), _mismatch(feature, row_decode_kernels.SEVERAL))
    if (counts == 1).all():
        return StoredColumn(feature, values, valid=valid)
    # A row without a string takes one of no bytes.
    strings = StoredColumn(feature, values).strings
    return StoredColumn(feature, Strings(strings.content, strings.offsets[offsets]), valid=(counts == 1).view(np.uint8))


def _stored_lists(
    feature: FeatureColumn,
    found: npt.NDArray[np.uint8],
    bounds: npt.NDArray[np.int64],
    content: npt.NDArray[np.uint8],
) -> StoredColumn:
    rows, inner_bounds, kinds, odd = row_decode_kernels.split_feature_lists(content, bounds)
    if odd >= 0:
        raise _OddListError
    inner_valid = None
    if not (kinds == feature.kind).all():
        try:
            inner_valid = _checked(feature, kinds)
        except ValueMismatchError as error:
            row = int(np.searchsorted(rows, error.row, side="right")) - 1
            raise ValueMismatchError(row, error.problem) from error
    values, offsets = _read_lists(feature, inner_bounds, content)
    valid = None if found.all() else found
    return StoredColumn(feature, values, (rows, offsets), valid, inner_valid)


def _read_lists(
    feature: FeatureColumn, bounds: npt.NDArray[np.int64], content: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.int64] | npt.NDArray[np.float32] | Strings, npt.NDArray[np.int64]]:
    """Return the values of all lists, and where those of each begin and the last one's end ``[lists + 1]``."""
    kind = feature.stored_kind
    offsets, odd = row_decode_kernels.count_values(content, kind, bounds)
    if odd < 0:
        if kind is ListKind.BYTES:
            return Strings(*row_decode_kernels.read_strings(content, bounds, offsets)), offsets
        if kind is ListKind.FLOAT:
            return row_decode_kernels.read_floats(content, bounds, offsets).view(np.float32), offsets
        values, odd = row_decode_kernels.read_int64s(content, bounds, offsets)
        if odd < 0:
            return values, offsets
    raise _OddListError
