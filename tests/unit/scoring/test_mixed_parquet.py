"""S16: Parquet files of several schemas are one table where Spark reads their columns in one type."""

from pathlib import Path

import pytest
from pyspark.sql.types import (
    ArrayType,
    ByteType,
    DataType,
    DateType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    ShortType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input.spark_tables import schema_of_all, without_overlaps


def schemas(*files: dict[str, DataType]) -> dict[str, StructType]:
    return {
        f"{number}.parquet": StructType([StructField(name, type_) for name, type_ in columns.items()])
        for number, columns in enumerate(files)
    }


@pytest.mark.parametrize(
    ("types", "wide"),
    [
        ((IntegerType(), LongType()), LongType()),
        ((LongType(), IntegerType()), LongType()),
        ((FloatType(), DoubleType()), DoubleType()),
        ((IntegerType(), DoubleType(), FloatType()), DoubleType()),
        ((ShortType(), IntegerType(), ByteType()), IntegerType()),
        ((ArrayType(StringType()), ArrayType(StringType())), ArrayType(StringType())),
    ],
)
def test_numbers_take_the_widest_type_of_all_files(types: tuple[DataType, ...], wide: DataType) -> None:
    found = schema_of_all(schemas(*({"id": StringType(), "x": type_} for type_ in types)), ["id", "x"])
    assert [(field.name, field.dataType) for field in found] == [("id", StringType()), ("x", wide)]


def test_a_column_that_a_file_lacks_is_one_of_the_others_and_what_is_not_asked_for_does_not_count() -> None:
    files = schemas({"id": StringType(), "other": LongType()}, {"other": StringType(), "x": DoubleType()})
    assert schema_of_all(files, ["id", "x", "nowhere"]).names == ["id", "x"]


@pytest.mark.parametrize(
    "types",
    [
        (IntegerType(), StringType()),
        (LongType(), DoubleType()),
        (IntegerType(), FloatType()),
        (DateType(), TimestampType()),
    ],
)
def test_types_that_spark_does_not_read_as_one_are_named_with_their_files(types: tuple[DataType, DataType]) -> None:
    first, second = (type_.simpleString() for type_ in types)
    message = rf"column 'x' has types that Spark .*\({first} in 0.parquet; {second} in 1.parquet\); write files of one"
    with pytest.raises(ScoringError, match=message):
        schema_of_all(schemas(*({"x": type_} for type_ in types)), ["x"])


def test_locations_that_others_hold_are_left_out(tmp_path: Path) -> None:
    """Spark reads a file as it is named, and the tasks once."""
    for name in ("a/1.parquet", "a/2.parquet", "b/3.parquet", "b/4.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    a, b = tmp_path / "a", tmp_path / "b"

    assert without_overlaps([a / "1.parquet", a, b, a]) == [a, b]
    assert without_overlaps([f"{tmp_path}/*", b]) == [f"{tmp_path}/*"]
    assert without_overlaps([a / "1.parquet", b / "3.parquet"]) == [a / "1.parquet", b / "3.parquet"]
    with pytest.raises(ScoringError, match=r"\.parquet is named twice, by .* name every file once"):
        without_overlaps([f"{tmp_path}/*/[13].parquet", f"{tmp_path}/*/[14].parquet"])
