"""The table of a fleet: one row per model, whose terms, layers and trees are lists."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.scoring import ScoringError

LINKS = ("identity", "logit", "log")
"""Links of generalised linear models: the score is the inverse link of the linear predictor. The kernels know them by
their positions."""

ACTIVATIONS = ("linear", "relu", "tanh", "sigmoid", "elu", "softplus")

INTERCEPT = "(Intercept)"
"""Stands for the column of the term that is the intercept, as in R."""

MODEL_FIELDS = pa.schema(
    [
        ("model", pa.string()),
        ("group", pa.string()),
        ("link", pa.string()),
        ("intercept", pa.float64()),
        ("threshold", pa.float64()),
        ("cut_points", pa.list_(pa.float64())),
    ]
)

TERM_FIELDS = pa.schema(
    [
        ("column", pa.string()),
        ("coefficient", pa.float64()),
        ("clip_low", pa.float64()),
        ("clip_high", pa.float64()),
        ("log", pa.bool_()),
        ("category", pa.string()),
        ("at_least", pa.float64()),
        ("below", pa.float64()),
        ("missing", pa.float64()),
    ]
)

# The matrices of all layers in a row, each [outputs, inputs] and followed by its bias; sizes begin with the inputs.
NETWORK_FIELDS = pa.schema(
    [
        ("layer_sizes", pa.list_(pa.int32())),
        ("activations", pa.list_(pa.string())),
        ("weights", pa.list_(pa.float32())),
    ]
)

# The nodes of all trees of a model, each after its children. A split goes left where its feature, one of the model's
# terms, is below its value; a leaf has the feature -1 and its value, or null for a prediction of null.
TREE_FIELDS = pa.schema(
    [
        ("tree_roots", pa.list_(pa.int32())),
        ("node_features", pa.list_(pa.int32())),
        ("node_values", pa.list_(pa.float64())),
        ("node_lefts", pa.list_(pa.int32())),
        ("node_rights", pa.list_(pa.int32())),
        ("node_missing_left", pa.list_(pa.bool_())),
    ]
)
LEAF = -1

# The files of a model that is called by a backend of the scorer, and which of its outputs is the score. Its terms name
# the columns that it reads.
PACKAGE_FIELDS = pa.schema([("package", pa.large_binary()), ("package_output", pa.string())])

FLEET_SCHEMA = pa.schema(
    [
        *MODEL_FIELDS,
        *(pa.field(field.name, pa.list_(field.type)) for field in TERM_FIELDS),
        *NETWORK_FIELDS,
        *TREE_FIELDS,
        *PACKAGE_FIELDS,
    ]
)
OPTIONAL_TERM_FIELDS = tuple(name for name in TERM_FIELDS.names if name not in ("column", "coefficient"))

_EXAMPLES = 3


class FleetError(ScoringError):
    """Raised for models that cannot be in a fleet, and for a folder that holds none; the message names them."""


def some(names: Iterable[str]) -> str:
    """Return the first few of some names, and how many there are."""
    every = list(dict.fromkeys(names))
    first = ", ".join(repr(name) for name in every[:_EXAMPLES])
    return first if len(every) <= _EXAMPLES else f"{first} and {len(every) - _EXAMPLES:,} more"


def array(table: pa.Table, name: str) -> pa.Array:
    """Return a column as one array."""
    column = table.column(name).combine_chunks()
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def lengths_of(lists: pa.Array) -> np.ndarray:
    """Return int64 ``[models]``: the lengths of lists; a null counts as empty."""
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def numbers_of(values: pa.Array) -> np.ndarray:
    """Return float64 values, NaN for null."""
    return values.cast(pa.float64()).to_numpy(zero_copy_only=False)


def lists_of_nulls(lengths: np.ndarray, value_type: pa.DataType) -> pa.Array:
    """Return lists of these lengths whose elements are null."""
    return lists_from(lengths, pa.nulls(int(lengths.sum()), value_type))


def lists_from(lengths: np.ndarray, values: pa.Array) -> pa.Array:
    """Return consecutive ``values`` as lists of these lengths.

    Raises:
        FleetError: There are more values than a list array holds.
    """
    ends = np.cumsum(lengths)
    if len(ends) and ends[-1] > np.iinfo(np.int32).max:
        raise FleetError(f"the fleet has {ends[-1]:,} values, and at most 2,147,483,647 fit; divide it into several")
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]).astype(np.int32)), values)


def digests_of(table: pa.Table) -> tuple[str, ...]:
    """Return the SHA-256 of each model: of its row, independent of the rest of the table."""
    parts = [_bytes_by_model(array(table, field.name), field.type) for field in FLEET_SCHEMA]
    # A model without trees, or without a package, has the digest that it had before there were any.
    without_package = parts[: -len(PACKAGE_FIELDS)]
    plain = without_package[: -len(TREE_FIELDS)]
    has_trees = (lengths_of(array(table, "node_features")) > 0).tolist()
    is_packaged = array(table, "package").is_valid().to_pylist()
    digests = []
    for number in range(table.num_rows):
        digest = hashlib.sha256()
        for part in parts if is_packaged[number] else without_package if has_trees[number] else plain:
            value = part[number]
            # Its length first, so that no value can run into the next.
            digest.update(len(value).to_bytes(8, "little"))
            digest.update(value)
        digests.append(digest.hexdigest())
    return tuple(digests)


class _Pieces:
    """Bytes of numbers, a piece per model."""

    def __init__(self, values: np.ndarray, lengths: np.ndarray | None = None) -> None:
        self._bytes = np.ascontiguousarray(values).view(np.uint8).data
        ends = np.arange(1, len(values) + 1) if lengths is None else np.cumsum(lengths)
        self._ends = [0, *(ends * values.dtype.itemsize).tolist()]

    def __getitem__(self, number: int) -> memoryview:
        return self._bytes[self._ends[number] : self._ends[number + 1]]


class _Buffers:
    """Bytes of packages, which are not copied."""

    def __init__(self, values: pa.Array) -> None:
        self._values = values

    def __getitem__(self, number: int) -> memoryview:
        return memoryview(self._values[number].as_buffer() or b"")


def _bytes_by_model(values: pa.Array, type_: pa.DataType) -> "_Pieces | _Buffers | Sequence[bytes]":
    if pa.types.is_large_binary(type_):
        return _Buffers(values)
    if pa.types.is_string(type_):
        return [json.dumps(value).encode() for value in values.to_pylist()]
    if not pa.types.is_list(type_):
        return _Pieces(_canonical(values))
    flat, lengths = values.flatten(), lengths_of(values)
    if not pa.types.is_string(type_.value_type):
        return _Pieces(_canonical(flat), lengths)
    texts, ends = flat.to_pylist(), np.cumsum(lengths)
    return [
        json.dumps(texts[first:end]).encode()
        for first, end in zip((ends - lengths).tolist(), ends.tolist(), strict=True)
    ]


def _canonical(values: pa.Array) -> np.ndarray:
    """Return numbers whose bytes are equal where the values are: one kind of NaN, one zero."""
    if pa.types.is_boolean(values.type):
        values = pc.fill_null(values, False).cast(pa.uint8())
    found: Any = values.to_numpy(zero_copy_only=False)
    if found.dtype.kind == "f":
        found = found + found.dtype.type(0)  # -0.0 becomes 0.0
        found[np.isnan(found)] = np.nan
    return np.asarray(found)
