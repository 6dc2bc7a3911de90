"""The inputs and outputs of a model as the two protocols name their types."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from mirrorspark.data_pipelines.features import kinds
from mirrorspark.scoring.input import column_types
from mirrorspark.scoring.model.folder import ModelDescription, ModelDirectory

DataType: TypeAlias = str

SPARSE_VECTOR = "map<bigint,double>"
"""Indices and values of a sparse vector in one column: an object in JSON, and such a text where a value is a text."""

# By element: the name in the Open Inference Protocol, and in TensorFlow Serving.
_NAMES: Mapping[str, tuple[DataType, str]] = {
    "boolean": ("BOOL", "DT_BOOL"),
    "int": ("INT32", "DT_INT32"),
    "bigint": ("INT64", "DT_INT64"),
    "float": ("FP32", "DT_FLOAT"),
    "double": ("FP64", "DT_DOUBLE"),
    "string": ("BYTES", "DT_STRING"),
    "binary": ("BYTES", "DT_STRING"),
    SPARSE_VECTOR: ("BYTES", "DT_STRING"),
}
# Elements by Arrow's names of types at training. The times of a sequence are sent as whole numbers in the unit of the
# training, a date as its text.
_ELEMENTS = (
    (re.compile(r"bool"), "boolean"),
    (re.compile(r"u?int(8|16)|int32"), "int"),
    (re.compile(r"u?int(32|64)|timestamp.*|date.*"), "bigint"),
    (re.compile(r"halffloat|float"), "float"),
    (re.compile(r"double|decimal.*"), "double"),
    (re.compile(r"(large_)?binary"), "binary"),
)
_DATE = re.compile(r"(timestamp|date).*")
_LIST = re.compile(r"(?:large_)?list<\w+: (.+?)(?: not null)?>")
_OF_FORM: Mapping[kinds.RawForm, str] = {
    "number": "double",
    "token": "string",
    "tokens": "array<string>",
    "date": "string",
    "times": "array<bigint>",
    "indices": "array<bigint>",
    "values": "array<double>",
    "bytes": "binary",
}


@dataclass(frozen=True)
class Field:
    """An input or an output.

    Attributes:
        type: Spark's name of its type, such as ``array<float>``.
        may_be_bytes: Whether it is called a string, and may be read as bytes by one of several models.
    """

    name: str
    type: str
    may_be_bytes: bool = False

    @property
    def datatype(self) -> DataType:
        """Its type in the Open Inference Protocol."""
        return _NAMES[column_types.element_name(self.type)][0]

    @property
    def tensorflow_type(self) -> str:
        """Its type in TensorFlow Serving."""
        return _NAMES[column_types.element_name(self.type)][1]

    @property
    def is_text(self) -> bool:
        """True if its values, or those of its lists, are texts."""
        return column_types.element_name(self.type) == "string" and not self.may_be_bytes

    @property
    def shape(self) -> list[int]:
        """``[rows]``, or ``[rows, elements]`` of lists; -1 is any number."""
        return [-1, -1] if column_types.is_array(self.type) else [-1]


def input_fields(directory: ModelDirectory) -> tuple[Field, ...]:
    """Return the columns that a model reads, in its order."""
    description = directory.description
    if isinstance(description, ModelDescription):
        if description.columns:
            return tuple(Field(name, _input_type(type_)) for name, type_ in description.columns.items())
        scored, trained = directory.scored_features, directory.features.column_types
        forms = {name: _OF_FORM[form] for one in scored for name, form in one.raw.items()}
        vectors = {
            one.name: SPARSE_VECTOR for one in scored if isinstance(one, kinds.Sparse) and one.columns == (one.name,)
        }
        types = forms | {name: _input_type(type_) for name, type_ in trained.items()} | vectors
        return tuple(Field(name, types[name]) for name in directory.inputs.columns)
    if description.inputs is not None:
        return tuple(Field(column.name, column.type) for column in description.inputs.given)
    # The models of a router may read a column in several ways.
    return tuple(Field(name, "string", may_be_bytes=True) for name in directory.inputs.columns)


def _input_type(arrow: str) -> str:
    return "string" if _DATE.fullmatch(arrow) else spark_type(arrow)


def output_fields(directory: ModelDirectory) -> tuple[Field, ...]:
    """Return the outputs of a model, in its order."""
    return tuple(Field(name, type_) for name, type_ in directory.description.outputs.items())


def spark_type(arrow: str) -> str:
    """Return Spark's name for a type that Arrow calls ``arrow``; other types are strings."""
    if in_list := _LIST.fullmatch(arrow):
        return f"array<{spark_type(in_list[1])}>"
    return next((element for pattern, element in _ELEMENTS if pattern.fullmatch(arrow)), "string")
