"""Arrow types map to lists of features (T1)."""

import pickle

import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.tfrecord.arrow_schema import (
    FeatureTypeError,
    ListKind,
    RecordType,
    SchemaError,
    is_vector_type,
    list_kind,
    table_columns,
)


@pytest.mark.parametrize(
    ("type_", "kind"),
    [
        (pa.bool_(), ListKind.INT64),
        (pa.int8(), ListKind.INT64),
        (pa.uint32(), ListKind.INT64),
        (pa.uint64(), None),
        (pa.date32(), ListKind.INT64),
        (pa.timestamp("us", "UTC"), ListKind.INT64),
        (pa.float16(), ListKind.FLOAT),
        (pa.float64(), ListKind.FLOAT),
        (pa.decimal128(10, 2), ListKind.FLOAT),
        (pa.string(), ListKind.BYTES),
        (pa.large_binary(), ListKind.BYTES),
        (pa.string_view(), ListKind.BYTES),
        (pa.binary(4), ListKind.BYTES),
        (pa.duration("us"), None),
    ],
)
def test_each_type_has_the_documented_kind(type_: pa.DataType, kind: ListKind | None) -> None:
    assert list_kind(type_) is kind
    assert ListKind.INT64.field_name == "int64_list"


@pytest.mark.parametrize(
    ("type_", "advice"),
    [
        (pa.uint64(), "cast it to int64"),
        (pa.map_(pa.string(), pa.int64()), "make two columns of it"),
        (pa.struct([("a", pa.int64())]), "make each of its fields a column"),
        (pa.time64("us"), "cast it to int64 and name the unit"),
        (pa.duration("us"), "cast it to int64 and name the unit"),
        (pa.list_(pa.list_(pa.list_(pa.int64()))), "lists nest two levels deep at most: flatten it"),
        (pa.list_(pa.struct([("a", pa.int64())])), "make each of its fields a column"),
    ],
)
def test_a_type_that_no_feature_holds_is_refused_with_advice(type_: pa.DataType, advice: str) -> None:
    with pytest.raises(SchemaError, match=f"column 'x' has type .*, which no feature holds; {advice}"):
        table_columns(pa.schema([("x", type_)]), RecordType.SEQUENCE_EXAMPLE)


def test_lists_of_lists_need_a_sequence_example() -> None:
    schema = pa.schema([("x", pa.list_(pa.list_(pa.int64())))])
    with pytest.raises(SchemaError, match="an Example holds no lists of lists: use the record type SequenceExample"):
        table_columns(schema, RecordType.EXAMPLE)
    assert table_columns(schema, RecordType.SEQUENCE_EXAMPLE)[0].features[0].depth == 2


def test_a_vector_takes_four_names_that_no_other_column_may_have() -> None:
    vector = pa.struct(
        [
            ("type", pa.int8()),
            ("size", pa.int32()),
            ("indices", pa.list_(pa.int32())),
            ("values", pa.list_(pa.float64())),
        ]
    )
    assert is_vector_type(vector)
    assert not is_vector_type(pa.struct([("type", pa.int8())]))
    (column,) = table_columns(pa.schema([("v", vector)]), RecordType.EXAMPLE)
    assert [feature.feature for feature in column.features] == ["v", "v/indices", "v/values", "v/size"]
    with pytest.raises(SchemaError, match="columns 'v' and 'v/size' would both be stored as feature 'v/size'"):
        table_columns(pa.schema([("v", vector), ("v/size", pa.int64())]), RecordType.EXAMPLE)


def test_double_names_are_refused() -> None:
    schema = pa.schema([("x", pa.int64()), ("x", pa.string())])
    with pytest.raises(SchemaError, match="columns 'x' and 'x' would both be stored as feature 'x'; rename one"):
        table_columns(schema, RecordType.EXAMPLE)


@pytest.mark.parametrize("fields", [[], [("a", pa.int64())], [("a", pa.binary()), ("b", pa.binary())]])
def test_payloads_are_one_binary_column(fields: list[tuple[str, pa.DataType]]) -> None:
    with pytest.raises(SchemaError, match="the record type ByteArray takes a table of one binary column"):
        table_columns(pa.schema(fields), RecordType.BYTE_ARRAY)


def test_feature_errors_survive_pickle() -> None:
    error = FeatureTypeError("x", 7, "is wrong", file="part-1")
    assert str(pickle.loads(pickle.dumps(error))) == "part-1: feature 'x' of record 7 is wrong"  # noqa: S301
    assert str(FeatureTypeError("x", 7, "is wrong")).startswith("TFRecord data: ")
