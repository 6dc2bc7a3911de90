"""Types of columns by Spark's names: each is the same to Spark, Arrow and NumPy."""

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql.pandas.types import from_arrow_type

from mirrorspark.scoring.input.column_types import (
    ARROW_TYPES,
    COLUMN_TYPES,
    ELEMENT_TYPES,
    array_of,
    element_name,
    is_array,
)


@pytest.mark.parametrize("name", [*ARROW_TYPES, "binary"])
def test_a_name_is_what_spark_calls_the_type_of_arrow(name: str) -> None:
    arrow = ARROW_TYPES[name] if name in ARROW_TYPES else ELEMENT_TYPES[name].arrow
    assert from_arrow_type(arrow).simpleString() == name


def test_arrays_are_of_every_element_but_bytes() -> None:
    arrays = [array_of(name) for name in ELEMENT_TYPES if name != "binary"]
    assert [name for name in COLUMN_TYPES if is_array(name)] == arrays
    assert {element_name(name) for name in COLUMN_TYPES} == set(ELEMENT_TYPES)
    assert element_name(array_of("double")) == element_name("double") == "double"


def test_a_value_takes_the_bytes_that_numpy_takes_for_it() -> None:
    """S8: a text is a pointer."""
    assert {name: element.size_bytes for name, element in ELEMENT_TYPES.items()} == {
        "boolean": 1,
        "int": 4,
        "bigint": 8,
        "float": 4,
        "double": 8,
        "string": 8,
        "binary": 8,
    }
    assert ELEMENT_TYPES["float"].numpy is np.float32
    assert ELEMENT_TYPES["string"].numpy is np.object_


@pytest.mark.parametrize(
    ("name", "fitting", "others"),
    [
        ("boolean", [pa.bool_()], [pa.int8()]),
        ("int", [pa.int8(), pa.uint64(), pa.bool_()], [pa.float32(), pa.string()]),
        ("float", [pa.float64(), pa.int64(), pa.decimal128(9, 2)], [pa.string()]),
        ("string", [pa.large_string()], [pa.binary(), pa.int64()]),
        ("binary", [pa.large_binary(), pa.binary(4)], [pa.string()]),
    ],
)
def test_a_cast_loses_only_precision(name: str, fitting: list[pa.DataType], others: list[pa.DataType]) -> None:
    assert [ELEMENT_TYPES[name].fits(arrow) for arrow in fitting] == [True] * len(fitting)
    assert [ELEMENT_TYPES[name].fits(arrow) for arrow in others] == [False] * len(others)
