"""The mapping between Arrow types and the lists of tf.train.Feature.

* bool, signed integers, unsigned ones up to 32 bits, date (days) and timestamp (microseconds since the epoch, UTC where
  it has a zone): ``int64_list``;
* float16, float32, float64 and decimals: ``float_list``, which holds float32, so that float64 and decimals are rounded;
* string and binary: ``bytes_list``;
* a list of these: one feature of many values; a list of lists: a FeatureList of a SequenceExample;
* a Spark ML vector ``struct<type, size, indices, values>``: a dense one is a ``float_list`` under the column's name, a
  sparse one the three features ``<name>/indices``, ``<name>/values`` and ``<name>/size``, which
  ``tf.io.SparseFeature`` reads;
* null: the feature is missing; an empty list: a feature with an empty list.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from mirrorspark.clear_error import ClearError

INDICES_SUFFIX = "/indices"
VALUES_SUFFIX = "/values"
SIZE_SUFFIX = "/size"
ROW_LENGTHS_SUFFIX = "/row_lengths"

# The Arrow struct of a Spark ML vector: type 0 is sparse, 1 is dense.
_VECTOR_FIELDS = {"type": pa.int8(), "size": pa.int32(), "indices": pa.int32(), "values": pa.float64()}
_VIEWS = {"string_view": pa.large_string(), "binary_view": pa.large_binary()}


class RecordType(enum.StrEnum):
    """The message in a record's payload, with the values of the Spark connectors' option ``recordType``."""

    EXAMPLE = "Example"
    SEQUENCE_EXAMPLE = "SequenceExample"
    BYTE_ARRAY = "ByteArray"


class ListKind(enum.IntEnum):
    """The kind of list in a feature: the number of its field in the message ``Feature``."""

    BYTES = 1
    FLOAT = 2
    INT64 = 3

    @property
    def field_name(self) -> str:
        """The list's name in ``feature.proto``."""
        return f"{self.name.lower()}_list"


class SchemaError(ClearError, ValueError):
    """A schema that records cannot hold, or records without a common schema; the message names the column."""


class FeatureTypeError(ClearError, ValueError):
    """A record's feature that does not fit its column.

    Attributes:
        record: the record's number in the file, from 0.
        file: the file's name; empty if it is unknown.
        problem: the finding and the remedy.
        offset: where the record begins, in bytes from the start of the (uncompressed) file; None if unknown.
    """

    def __init__(self, feature: str, record: int, problem: str, *, file: str = "", offset: int | None = None) -> None:
        self.feature = feature
        self.record = record
        self.file = file
        self.problem = problem
        self.offset = offset
        where = "" if offset is None else f" at byte {offset}"
        super().__init__(f"{file or 'TFRecord data'}: feature '{feature}' of record {record}{where} {problem}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the parts: the message alone does not rebuild the error."""
        return _rebuild_feature_error, (self.feature, self.record, self.problem, self.file, self.offset)


def _rebuild_feature_error(feature: str, record: int, problem: str, file: str, offset: int | None) -> FeatureTypeError:
    return FeatureTypeError(feature, record, problem, file=file, offset=offset)


class ValueNotStorableError(ClearError, ValueError):
    """A value that a record cannot hold; the message names column, row and value."""


@dataclass(frozen=True)
class FeatureColumn:
    """One feature of a record, as a column of simple type.

    Attributes:
        feature: Its name in the record.
        kind: The kind of its list; None for a column that is always null.
        depth: 0 for one value, 1 for a list, 2 for a list of lists.
        type: The Arrow type of its values.
        fixed_lengths: Per level of lists, from the outside in, the required length; None for any.
        nullable: Whether a record may lack it.
    """

    feature: str
    kind: ListKind | None
    depth: int
    type: pa.DataType
    fixed_lengths: tuple[int | None, ...] = ()
    nullable: bool = True

    @property
    def stored_kind(self) -> ListKind:
        """The kind of a column that is stored.

        Raises:
            TypeError: It is always null, so no record has it.
        """
        if self.kind is None:
            raise TypeError(f"column '{self.feature}' of the null type is never stored")
        return self.kind

    @property
    def arrow_type(self) -> pa.DataType:
        """The type of the column: its values' type, wrapped in ``depth`` lists."""
        found = self.type
        for length in reversed(self.fixed_lengths):
            found = pa.list_(found) if length is None else pa.list_(found, length)
        return found


@dataclass(frozen=True)
class TableColumn:
    """One column of a table and the features that hold it: one, or the four of a vector.

    Attributes:
        field: The column's Arrow field.
        features: A simple column's one feature, or a vector's dense values, indices, values and size.
    """

    field: pa.Field
    features: tuple[FeatureColumn, ...]

    @property
    def is_vector(self) -> bool:
        """True for a Spark ML vector."""
        return len(self.features) > 1


def is_vector_type(type_: pa.DataType) -> bool:
    """Return whether this is the type of a Spark ML vector."""
    if not pa.types.is_struct(type_) or type_.num_fields != len(_VECTOR_FIELDS):
        return False
    for field, (name, expected) in zip(type_, _VECTOR_FIELDS.items(), strict=True):
        found = field.type.value_type if _is_list(field.type) else field.type
        if field.name != name or found != expected or _is_list(field.type) != (name in ("indices", "values")):
            return False
    return True


def list_kind(type_: pa.DataType) -> ListKind | None:
    """Return the kind of list that holds values of this type, or None if there is none."""
    types = pa.types
    if types.is_boolean(type_) or types.is_date(type_) or types.is_timestamp(type_):
        return ListKind.INT64
    if types.is_integer(type_) and type_ != pa.uint64():
        return ListKind.INT64
    if types.is_floating(type_) or types.is_decimal(type_):
        return ListKind.FLOAT
    if (
        types.is_string(type_)
        or types.is_large_string(type_)
        or types.is_binary(type_)
        or types.is_large_binary(type_)
        or types.is_fixed_size_binary(type_)
        or str(type_) in _VIEWS
    ):
        return ListKind.BYTES
    return None


def table_columns(schema: pa.Schema, record_type: RecordType) -> tuple[TableColumn, ...]:
    """Return the features that hold each column of ``schema``, in its order.

    Raises:
        SchemaError: A column's type has no mapping, a name is repeated, or a vector's features have the names of
            others.
    """
    if record_type is RecordType.BYTE_ARRAY:
        return (_byte_array_column(schema),)
    columns = tuple(
        TableColumn(field, _vector_features(field) if is_vector_type(field.type) else (_feature_column(field),))
        for field in schema
    )
    owners: dict[tuple[str, bool], str] = {}
    for column in columns:
        for feature in column.features:
            # Context and feature lists are two maps, so a name may be in both; the columns of a table may not share
            # one.
            place = feature.feature, False
            if place in owners:
                raise SchemaError(
                    f"columns '{owners[place]}' and '{column.field.name}' would both be stored as feature "
                    f"'{feature.feature}'; rename one of them"
                )
            owners[place] = column.field.name
        if record_type is RecordType.EXAMPLE and column.features[0].depth == 2:
            raise SchemaError(
                f"column '{column.field.name}' has type {column.field.type}; an Example holds no lists of lists: use "
                f"the record type {RecordType.SEQUENCE_EXAMPLE}"
            )
    return columns


def _byte_array_column(schema: pa.Schema) -> TableColumn:
    if len(schema) != 1 or list_kind(schema.field(0).type) is not ListKind.BYTES:
        raise SchemaError(
            f"the record type {RecordType.BYTE_ARRAY} takes a table of one binary column, the payloads; this one has "
            f"{', '.join(f'{field.name}: {field.type}' for field in schema) or 'no columns'}"
        )
    return TableColumn(schema.field(0), (_feature_column(schema.field(0)),))


def _feature_column(field: pa.Field) -> FeatureColumn:
    type_ = field.type
    lengths: list[int | None] = []
    while _is_list(type_) and len(lengths) < 2:
        lengths.append(type_.list_size if pa.types.is_fixed_size_list(type_) else None)
        type_ = type_.value_type
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    kind = list_kind(type_)
    if kind is None and not pa.types.is_null(type_):
        raise SchemaError(f"column '{field.name}' has type {field.type}, which no feature holds; {_advice(type_)}")
    return FeatureColumn(field.name, kind, len(lengths), type_, tuple(lengths), field.nullable)


def _advice(type_: pa.DataType) -> str:
    if type_ == pa.uint64():
        return "cast it to int64"
    if pa.types.is_map(type_):
        return "make two columns of it, lists of its keys and of its values"
    if pa.types.is_struct(type_):
        return "make each of its fields a column"
    if pa.types.is_time(type_) or pa.types.is_duration(type_):
        return "cast it to int64 and name the unit in the column's name"
    if _is_list(type_):
        return "lists nest two levels deep at most: flatten it"
    return "cast it to a number, a string or binary"


def _vector_features(field: pa.Field) -> tuple[FeatureColumn, ...]:
    name = field.name
    return (
        FeatureColumn(name, ListKind.FLOAT, 1, pa.float32(), (None,)),
        FeatureColumn(name + INDICES_SUFFIX, ListKind.INT64, 1, pa.int32(), (None,)),
        FeatureColumn(name + VALUES_SUFFIX, ListKind.FLOAT, 1, pa.float32(), (None,)),
        FeatureColumn(name + SIZE_SUFFIX, ListKind.INT64, 0, pa.int32()),
    )


def _is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


@dataclass(frozen=True)
class InferredFeature:
    """The content of records under one name.

    Attributes:
        kind: The kind of list; None if no record's feature has a kind.
        depth: 0 if no record has more than one value, 1 if some record has, 2 for a FeatureList.
        is_text: Whether every byte string is valid UTF-8.
        seen_in: A file and record with this kind, for messages.
    """

    kind: ListKind | None
    depth: int
    is_text: bool
    seen_in: str

    @property
    def arrow_type(self) -> pa.DataType:
        """The type of the column that holds it."""
        found = {
            None: pa.null(),
            ListKind.BYTES: pa.string() if self.is_text else pa.binary(),
            ListKind.FLOAT: pa.float32(),
            ListKind.INT64: pa.int64(),
        }[self.kind]
        for _ in range(self.depth if self.kind is not None else 0):
            found = pa.list_(found)
        return found


@dataclass(frozen=True)
class InferredSchema:
    """The content of the records seen so far; a plain value, so that tasks infer separately and the driver merges."""

    record_type: RecordType
    records: int = 0
    features: Mapping[str, InferredFeature] | None = None

    def merged(self, other: "InferredSchema") -> "InferredSchema":
        """Return the schema of both sets of records.

        Raises:
            SchemaError: A feature has different kinds in the two.
        """
        features = dict(self.features or {})
        for name, theirs in (other.features or {}).items():
            ours = features.get(name)
            features[name] = theirs if ours is None else _merged_feature(name, ours, theirs)
        return replace(self, records=self.records + other.records, features=features)

    @property
    def schema(self) -> pa.Schema:
        """The columns in the order of their names; a feature is a scalar if no record has more than one value."""
        if self.record_type is RecordType.BYTE_ARRAY:
            return pa.schema([("byteArray", pa.binary())])
        features = self.features or {}
        return pa.schema([(name, features[name].arrow_type) for name in sorted(features)])


def _merged_feature(name: str, ours: InferredFeature, theirs: InferredFeature) -> InferredFeature:
    if ours.kind is not None and theirs.kind is not None and ours.kind is not theirs.kind:
        raise SchemaError(
            f"feature '{name}' is of kind {ours.kind.field_name} in {ours.seen_in} and of kind "
            f"{theirs.kind.field_name} in {theirs.seen_in}; give a schema without it, or read the files separately"
        )
    if (ours.depth == 2) is not (theirs.depth == 2):
        listed, single = (ours, theirs) if ours.depth == 2 else (theirs, ours)
        raise SchemaError(
            f"feature '{name}' is a feature list in {listed.seen_in} and part of the context in {single.seen_in}; give "
            "a schema without it, or read the files separately"
        )
    first = ours if ours.kind is not None else theirs
    return replace(first, depth=max(ours.depth, theirs.depth), is_text=ours.is_text and theirs.is_text)
