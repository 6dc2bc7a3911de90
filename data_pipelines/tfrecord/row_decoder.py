"""Reading of the row layout: one row of a table per record, into Arrow's buffers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mirrorspark.data_pipelines.tfrecord.arrow_schema import (
    FeatureColumn,
    FeatureTypeError,
    ListKind,
    RecordType,
    table_columns,
)
from mirrorspark.data_pipelines.tfrecord.examples import (
    MalformedExampleError,
    Strings,
    canonical_example,
    decode_example,
    is_example_list,
)
from mirrorspark.data_pipelines.tfrecord.kernels import row_decode, row_lists, wire_read
from mirrorspark.data_pipelines.tfrecord.record_scan import RecordChunk
from mirrorspark.data_pipelines.tfrecord.sequence_codec import canonical_sequence_example
from mirrorspark.data_pipelines.tfrecord.stored_columns import (
    StoredColumn,
    ValueMismatchError,
    kind_problem,
    restored_array,
    restored_column,
)
from mirrorspark.data_pipelines.tfrecord.table_blocks import BLOCK_ROWS

_CONTEXT, _FEATURE_LISTS = 1, 2
# A feature that rows never have: a record with it is a block.
_BLOCK_MARK = FeatureColumn(BLOCK_ROWS, ListKind.INT64, 0, pa.int64())
_BLOCK_AMONG_ROWS = (
    f"it has the feature '{BLOCK_ROWS}', so it is a block of rows where records of one row each are read; write the "
    "file again in one layout"
)


class RowDecoder:
    """Decoder of records into batches of one schema; it skips other features unread."""

    def __init__(
        self, schema: pa.Schema, record_type: RecordType = RecordType.EXAMPLE, *, takes_blocks: bool = False
    ) -> None:
        """Plan the columns to read.

        Args:
            schema: The table's columns.
            record_type: The message in each record.
            takes_blocks: Read a block of rows as one row of lists, as
                tf.train.Example defines it; otherwise it is an error.

        Raises:
            SchemaError: The schema does not map to records of this type.
        """
        self._schema = schema
        self._record_type = record_type
        self._columns = table_columns(schema, record_type)
        features = [feature for column in self._columns for feature in column.features if feature.kind is not None]
        self._refuses_blocks = record_type is RecordType.EXAMPLE and not (takes_blocks or BLOCK_ROWS in schema.names)
        # The kernel reads scalar numbers on the way and locates the other features.
        marks = [_BLOCK_MARK] if self._refuses_blocks else []
        self._features = tuple(sorted(marks + features, key=lambda feature: not _is_scalar_number(feature)))
        self._keys = _Keys.of(self._features)

    def decode(self, chunk: RecordChunk, *, name: str = "") -> pa.RecordBatch:
        """Return the rows of ``chunk``, with null where a record lacks a feature or a scalar column's list is empty.

        Args:
            chunk: Records, as :func:`data_pipelines.tfrecord.scan_records` yields them.
            name: The file's name, for errors.

        Raises:
            FeatureTypeError: A feature does not fit its column: another kind, several values for a scalar
                column, a length other than the fixed one, a value beyond the column's type, not UTF-8, or missing in a
                column that takes no nulls.
            MalformedExampleError: A payload is not a message of the record type, or is a block of rows.
        """
        if self._record_type is RecordType.BYTE_ARRAY:
            strings = Strings(*row_lists.gather_strings(chunk.content, np.stack([chunk.starts, chunk.stops], 1)))
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
        """Return the rows of the intact records, and the number of malformed ones.

        Args:
            chunk: Records, as :func:`data_pipelines.tfrecord.scan_records` yields them.
            name: The file's name, for errors.

        Raises:
            FeatureTypeError: As in :meth:`decode`: a schema that does not fit the records is not damage.
        """
        try:
            return self.decode(chunk, name=name), 0
        except MalformedExampleError:
            # Rare enough to check all records of the chunk one by one.
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
        except _NonCanonicalListError:
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

    def _locate(self, chunk: RecordChunk, name: str, is_non_canonical: npt.NDArray[np.bool_]) -> "_Located":
        is_sequence = self._record_type is RecordType.SEQUENCE_EXAMPLE
        found = _Located(chunk.content, *self._keys.locate(chunk, is_sequence))
        non_canonical = np.flatnonzero(is_non_canonical | (found.non_canonical != 0))
        if len(non_canonical):
            canonical = canonical_chunk(chunk, non_canonical, self._record_type, self._features, name=name)
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
    """Return the records of a chunk with some of them rewritten one by one, read as protobuf reads them.

    Args:
        chunk: The records.
        rows: The records to rewrite: those that the kernels report as non-canonical.
        record_type: Their type.
        features: The features to keep; None for all.
        name: The file's name, for errors.

    Raises:
        MalformedExampleError: One of ``rows`` is not a message of the record type.
    """
    payloads = [_canonical(chunk, int(row), record_type, features, name) for row in rows]
    sizes = np.array([len(payload) for payload in payloads], np.int64)
    starts, stops = chunk.starts.copy(), chunk.stops.copy()
    stops[rows] = chunk.content.size + np.cumsum(sizes)
    starts[rows] = stops[rows] - sizes
    content = np.concatenate([chunk.content, np.frombuffer(b"".join(payloads), np.uint8)])
    # No offset: the records' places no longer match those in the file.
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
    """Return the error with the place of its record."""
    return MalformedExampleError(
        error.problem,
        error.offset,
        file=name,
        record=chunk.first_record + row,
        message=f"tf.train.{record_type}",
        record_offset=chunk.record_offset(row),
    )


class _NonCanonicalListError(Exception):
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
        return row_decode.locate(
            chunk.content, chunk.starts, chunk.stops, is_sequence, self.content, self.offsets, self.sections,
            self.scalar_kinds, len(self.scalar_kinds), self.lists,
        )  # fmt: skip


@dataclass(frozen=True)
class _Located:
    """The result of :func:`data_pipelines.tfrecord.kernels.row_decode.locate` for the records in ``content``."""

    content: npt.NDArray[np.uint8]
    found: npt.NDArray[np.uint8]
    values: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]
    non_canonical: npt.NDArray[np.uint8]


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
    """Return uint8 ``[rows]``, 1 for rows with the feature, or None if all rows have it.

    Raises:
        ValueMismatchError: A row has the feature in another form.
    """
    has = found == feature.kind
    if has.all():
        return None
    wrong = np.flatnonzero(
        ~has & (found != wire_read.ABSENT) & (found != wire_read.NO_KIND) & (found != wire_read.EMPTY)
    )
    if len(wrong):
        raise ValueMismatchError(int(wrong[0]), _mismatch(feature, int(found[wrong[0]])))
    return has.view(np.uint8)


def _mismatch(feature: FeatureColumn, found: int) -> str:
    if found == wire_read.SEVERAL:
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
        raise ValueMismatchError(int(several[0]), _mismatch(feature, wire_read.SEVERAL))
    if (counts == 1).all():
        return StoredColumn(feature, values, valid=valid)
    # A row without a string gets an empty one.
    strings = StoredColumn(feature, values).strings
    return StoredColumn(feature, Strings(strings.content, strings.offsets[offsets]), valid=(counts == 1).view(np.uint8))


def _stored_lists(
    feature: FeatureColumn,
    found: npt.NDArray[np.uint8],
    bounds: npt.NDArray[np.int64],
    content: npt.NDArray[np.uint8],
) -> StoredColumn:
    rows, inner_bounds, kinds, non_canonical = row_lists.split_feature_lists(content, bounds)
    if non_canonical >= 0:
        raise _NonCanonicalListError
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
    offsets, non_canonical = row_lists.count_values(content, kind, bounds)
    if non_canonical < 0:
        if kind is ListKind.BYTES:
            return Strings(*row_lists.read_strings(content, bounds, offsets)), offsets
        if kind is ListKind.FLOAT:
            return row_lists.read_floats(content, bounds, offsets).view(np.float32), offsets
        values, non_canonical = row_lists.read_int64s(content, bounds, offsets)
        if non_canonical < 0:
            return values, offsets
    raise _NonCanonicalListError
