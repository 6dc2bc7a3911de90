"""Encoding and decoding of tf.train.Example: one message whose features are columns.

The messages, from TensorFlow ``core/example/example.proto`` and ``feature.proto``::

    Example   { Features features = 1; }
    Features  { map<string, Feature> feature = 1; }    # each entry is a message { string key = 1; Feature value = 2; }
    Feature   { oneof kind { BytesList bytes_list = 1; FloatList float_list = 2; Int64List int64_list = 3; } }
    BytesList { repeated bytes value = 1; }    FloatList { repeated float value = 1; }    Int64List likewise

Source of the encoding: https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.tfrecord.kernels import examples, row_lists, wire_read


@dataclass(frozen=True)
class Strings:
    """Concatenated byte strings.

    Attributes:
        content: uint8 ``[bytes]``.
        offsets: int64 ``[strings + 1]``: where each string begins and the last one ends; the first is 0.
    """

    content: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1


Column = npt.NDArray[Any] | Sequence[bytes] | Strings
"""The values of one feature: float32 ``[n]``, int64 ``[n]``, or ``n`` byte strings."""

_LARGEST_MESSAGE_BYTES = 2**31 - 1

_ONE_BYTE_VARINTS = [bytes([value]) for value in range(128)]
_KIND_TAGS = {wire_read.BYTES: b"\x0a", wire_read.FLOATS: b"\x12", wire_read.INT64S: b"\x1a"}


class MalformedExampleError(ClearError, ValueError):
    """Bytes that are not the message they should be.

    Attributes:
        offset: the byte of the payload where decoding stopped.
        file: the file's name; empty if it is unknown.
        record: the record's number in the file, from 0; None if it is unknown.
        message: the type of message that they should be.
        record_offset: where the record begins, in bytes from the start of the (uncompressed) file; None if unknown.
    """

    def __init__(
        self,
        problem: str,
        offset: int,
        *,
        file: str = "",
        record: int | None = None,
        message: str = "tf.train.Example",
        record_offset: int | None = None,
    ) -> None:
        self.problem = problem
        self.offset = offset
        self.file = file
        self.record = record
        self.message = message
        self.record_offset = record_offset
        place = "" if record_offset is None else f" at byte {record_offset}"
        where = f"{file or 'TFRecord data'}: record {record}{place} is " if record is not None else ""
        super().__init__(
            f"{where}not a {message}: {problem}, at byte {offset} of the payload; check that these records are "
            f"{message.rpartition('.')[2]}s, and write the file again if they should be"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the parts: the message alone does not rebuild the error."""
        return _rebuild_error, (
            self.problem,
            self.offset,
            self.file,
            self.record,
            self.message,
            self.record_offset,
        )


def _rebuild_error(
    problem: str, offset: int, file: str, record: int | None, message: str, record_offset: int | None
) -> MalformedExampleError:
    return MalformedExampleError(
        problem, offset, file=file, record=record, message=message, record_offset=record_offset
    )


def encode_example(columns: Mapping[str, Column]) -> bytes:
    """Return ``columns`` as one serialized tf.train.Example, keys in sorted order: equal columns give equal bytes.

    Args:
        columns: by feature name, a float32 array ``[n]`` (becomes a ``float_list``), an int64 array ``[n]`` (an
            ``int64_list``), or :class:`Strings` or a sequence or object array of ``n`` bytes (a ``bytes_list``).
            Lengths may differ.

    Raises:
        TypeError: a column is of another type; the message names it.
        ValueError: an array is not one-dimensional, or the message would pass protobuf's limit of 2 GiB.
    """
    parts: list[bytes | npt.NDArray[Any]] = []
    total = 0
    for name in sorted(columns):
        kind, body = _encode_list(name, columns[name])
        body_bytes = body.nbytes
        key = name.encode()
        # Built from the inside out: the packed field (byte strings carry their own tags), list, feature, map entry.
        packed = b"\x0a" + varint(body_bytes) if body_bytes and kind != wire_read.BYTES else b""
        list_bytes = len(packed) + body_bytes
        feature = _KIND_TAGS[kind] + varint(list_bytes) + packed
        feature_bytes = len(feature) + body_bytes
        entry = b"\x0a" + varint(len(key)) + key + b"\x12" + varint(feature_bytes) + feature
        entry_bytes = len(entry) + body_bytes
        head = b"\x0a" + varint(entry_bytes) + entry
        parts += (head, body)
        total += len(head) + body_bytes
    if total > _LARGEST_MESSAGE_BYTES - 6:
        raise ValueError(f"an Example of {total} bytes passes protobuf's limit of 2 GiB; put fewer rows in one record")
    parts[:0] = (b"\x0a", varint(total))
    # ``join`` takes any contiguous memory, including arrays.
    return b"".join(cast(list[bytes], parts))


def decode_example(
    payload: bytes | memoryview, columns: Collection[str] | None = None
) -> dict[str, npt.NDArray[Any] | list[bytes]]:
    """Return the features of one serialized tf.train.Example.

    Reads the output of any writer: packed and unpacked lists, fields in any order or in pieces, unknown fields
    (skipped). If a name is repeated the last one counts, as in protobuf.

    Args:
        payload: the serialized message.
        columns: the names to decode; None for all. Other lists are skipped unread.

    Returns:
        By feature name, float32 ``[n]``, int64 ``[n]`` or a list of ``n`` bytes; an empty list for a feature without a
        kind. Names that the message lacks are left out. Nothing refers to ``payload``; the arrays of one type share one
        piece of memory.

    Raises:
        MalformedExampleError: ``payload`` is not a tf.train.Example.
    """
    decoded, _ = _decode(payload, columns)
    return decoded


def decode_example_arrays(
    payload: bytes | memoryview, columns: Collection[str] | None = None
) -> dict[str, npt.NDArray[Any] | Strings]:
    """Return the features as :func:`decode_example` does, with byte strings as :class:`Strings`.

    Features without a kind are left out.

    Raises:
        MalformedExampleError: ``payload`` is not a tf.train.Example.
    """
    content, bounds, decoded, kinds = _decode_numbers(payload, columns)
    return {
        name: Strings(*row_lists.gather_strings(content, bounds[values])) if isinstance(values, slice) else values
        for name, values in decoded.items()
        if kinds[name] != wire_read.NO_KIND
    }


def canonical_example(payload: bytes | memoryview, columns: Collection[str] | None = None) -> bytes:
    """Rewrite an Example of any writer as :func:`encode_example` writes it, without features that have no kind.

    Args:
        payload: the serialized message.
        columns: the names of the features to keep; None for all.

    Raises:
        MalformedExampleError: ``payload`` is not a tf.train.Example.
    """
    decoded, kinds = _decode(payload, columns)
    return encode_example({name: column for name, column in decoded.items() if kinds[name] != wire_read.NO_KIND})


def is_example_list(payload: bytes | memoryview) -> bool:
    """Return whether a message is an ExampleListWithContext, TensorFlow Ranking's message of several Examples.

    Such a message also parses as an Example, whose feature names are other Examples' features, without values; no
    writer of Examples produces that.
    """
    if isinstance(payload, memoryview):
        payload = payload.cast("B")
    content = np.frombuffer(payload, np.uint8)
    problem, _, index = examples.index_example(content)
    if problem or not len(index) or (index[:, examples.KIND] != wire_read.NO_KIND).any():
        return False
    # The name is a map entry with a value of its own: ELWC { Example { Features { entry { key, value } } } }.
    start, stop = (int(bound) for bound in index[0, [examples.KEY_START, examples.KEY_STOP]])
    inner = b"\x0a" + varint(stop - start) + bytes(payload[start:stop])
    problem, _, index = examples.index_example(np.frombuffer(b"\x0a" + varint(len(inner)) + inner, np.uint8))
    return not problem and len(index) == 1 and int(index[0, examples.KIND]) != wire_read.NO_KIND


def _decode(
    payload: bytes | memoryview, columns: Collection[str] | None
) -> tuple[dict[str, npt.NDArray[Any] | list[bytes]], dict[str, int]]:
    """Return the features of an Example and their kinds."""
    content, bounds, decoded, kinds = _decode_numbers(payload, columns)
    return {
        name: _slices(content.data, bounds[values]) if isinstance(values, slice) else values
        for name, values in decoded.items()
    }, kinds


def _decode_numbers(
    payload: bytes | memoryview, columns: Collection[str] | None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], dict[str, npt.NDArray[Any] | slice], dict[str, int]]:
    """Return the payload's bytes, the spans of all byte strings, the features of an Example, and their kinds.

    A feature of byte strings is a slice of the spans.
    """
    if isinstance(payload, memoryview):
        payload = payload.cast("B")
    content = np.frombuffer(payload, np.uint8)
    problem, offset, index = examples.index_example(content)
    if problem:
        raise MalformedExampleError(wire_read.PROBLEMS[problem], offset)
    rows_by_name = _rows_by_name(payload, index, columns)
    wanted = [row for rows in rows_by_name.values() for row in rows]
    problem, offset, floats, int64s, bounds, counts = examples.decode_lists(content, index[wanted])
    if problem:
        raise MalformedExampleError(wire_read.PROBLEMS[problem], offset)

    decoded: dict[str, npt.NDArray[Any] | slice] = {}
    kind_by_name: dict[str, int] = {}
    stops = {wire_read.NO_KIND: 0, wire_read.BYTES: 0, wire_read.FLOATS: 0, wire_read.INT64S: 0}
    position = 0
    kinds = index[:, examples.KIND].tolist()
    counts_of_rows = counts.tolist()
    for name, rows in rows_by_name.items():
        kind = kinds[rows[0]]
        kind_by_name[name] = kind
        start = stops[kind]
        stop = start + sum(counts_of_rows[position : position + len(rows)])
        stops[kind] = stop
        position += len(rows)
        if kind == wire_read.FLOATS:
            decoded[name] = floats[start:stop]
        elif kind == wire_read.INT64S:
            decoded[name] = int64s[start:stop]
        else:
            decoded[name] = slice(start, stop)
    return content, bounds, decoded, kind_by_name


def _encode_list(name: str, column: Column) -> tuple[int, npt.NDArray[Any]]:
    """Return the kind of a column and its encoded values: contiguous, without the packed field's head."""
    if isinstance(column, Strings):
        return wire_read.BYTES, examples.encode_byte_strings(column.content, np.diff(column.offsets))
    if isinstance(column, np.ndarray) and column.dtype != object:
        if column.dtype not in (np.float32, np.int64):
            raise TypeError(
                f"column {name!r} has dtype {column.dtype}; convert it to float32 or int64, or give a list of bytes"
            )
        if column.ndim != 1:
            raise ValueError(f"column {name!r} has shape {list(column.shape)}; flatten it to one dimension")
        if not (column.flags.c_contiguous and column.flags.aligned):
            column = column.copy()
        if column.dtype == np.float32:
            return wire_read.FLOATS, column
        return wire_read.INT64S, examples.encode_varints(column)
    if isinstance(column, np.ndarray) and column.ndim != 1:
        raise ValueError(f"column {name!r} has shape {list(column.shape)}; flatten it to one dimension")
    # Without this, bytes and str would be taken for sequences of their elements.
    if isinstance(column, bytes | bytearray | memoryview | str) or not isinstance(column, Sequence | np.ndarray):
        raise TypeError(f"column {name!r} is a {type(column).__name__}; give an array, or a list of bytes")
    if strangers := {kind for kind in set(map(type, column)) if not issubclass(kind, bytes)}:
        found = ", ".join(sorted(kind.__name__ for kind in strangers))
        raise TypeError(f"column {name!r} holds {found} among its values; encode each value to bytes")
    lengths = np.fromiter(map(len, column), np.int64, len(column))
    return wire_read.BYTES, examples.encode_byte_strings(np.frombuffer(b"".join(column), np.uint8), lengths)


def varint(value: int) -> bytes:
    """Return a non-negative number as a varint: seven bits per byte, lowest first."""
    if value < 128:
        return _ONE_BYTE_VARINTS[value]
    groups = bytearray()
    while value >= 128:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _rows_by_name(
    payload: bytes | memoryview, index: npt.NDArray[np.int64], columns: Collection[str] | None
) -> dict[str, list[int]]:
    """Return, by feature name, the rows of ``index`` that make up its list: those of the name's last map entry."""
    wanted = None if columns is None else frozenset(columns)
    rows_by_name: dict[str, list[int]] = {}
    rows: list[int] = []
    previous = -1
    for row, (entry, start, stop) in enumerate(index[:, : examples.KEY_STOP + 1].tolist()):
        if entry == previous:
            rows.append(row)
            continue
        previous = entry
        rows = [row]
        try:
            name = str(payload[start:stop], "utf-8")
        except UnicodeDecodeError as error:
            raise MalformedExampleError("the name of a feature is not UTF-8", start) from error
        if wanted is None or name in wanted:
            rows_by_name[name] = rows
    return rows_by_name


def _slices(payload: bytes | memoryview, bounds: npt.NDArray[np.int64]) -> list[bytes]:
    """Return ``payload[start:stop]`` for each row of ``bounds`` ``[n, 2]``."""
    if not len(bounds):
        return []
    # One copy of the bytes that contain them all, because slicing bytes is twice as slicing a memoryview.
    first = int(bounds[0, 0])
    joined = bytes(payload[first : int(bounds[-1, 1])])
    return [joined[start:stop] for start, stop in (bounds - first).tolist()]
