"""Messages of Protocol Buffers that other programs define, from tables of their fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from google.protobuf import descriptor_pb2, message_factory, wrappers_pb2
from google.protobuf.descriptor_pool import DescriptorPool

Messages: TypeAlias = Mapping[str, Mapping[str, str]]
"""By message and field the type, behind ``*`` if repeated; a map from strings has the type of its values behind ``:``.

A type is a scalar, an enumeration, another message of the table, or a wrapper such as ``DoubleValue``. A field is a
name, or ``name=number`` where the number matters: in text it does not.
"""

_PACKAGE = "foreign"
_FIELD = descriptor_pb2.FieldDescriptorProto
_LABELS = (_FIELD.LABEL_OPTIONAL, _FIELD.LABEL_REPEATED)
_SCALARS: Mapping[str, Any] = {
    "string": _FIELD.TYPE_STRING,
    "bytes": _FIELD.TYPE_BYTES,
    "bool": _FIELD.TYPE_BOOL,
    "int32": _FIELD.TYPE_INT32,
    "uint32": _FIELD.TYPE_UINT32,
    "int64": _FIELD.TYPE_INT64,
    "double": _FIELD.TYPE_DOUBLE,
}


def message_class(name: str, messages: Messages, enumerations: Mapping[str, Sequence[str]] | None = None) -> Any:
    """Return the class of the message ``name``.

    Args:
        name: A message of the table.
        messages: The table, which needs only the fields that are used: others are refused in text.
        enumerations: By name of an enumeration its values, from 0.
    """
    enumerations = enumerations or {}
    # A pool of its own: the original may be loaded in this process, too.
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{name}.proto", package=_PACKAGE, syntax="proto3", dependency=[wrappers_pb2.DESCRIPTOR.name]
    )
    for enumeration, values in enumerations.items():
        added = file.enum_type.add(name=enumeration)
        for place, value in enumerate(values):
            added.value.add(name=value, number=place)
    for message, fields in messages.items():
        described = file.message_type.add(name=message)
        for position, (field, kind) in enumerate(fields.items(), 1):
            field_name, _, number = field.partition("=")
            _add_field(described, field_name, int(number or position), kind, enumerations)
    pool = DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


def _add_field(message: Any, name: str, number: int, kind: str, enumerations: Mapping[str, Sequence[str]]) -> None:
    field = message.field.add(name=name, number=number, label=_LABELS[kind[0] in "*:"])
    if kind.startswith(":"):
        entry = message.nested_type.add(name="".join(part.title() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string", enumerations)
        _add_field(entry, "value", 2, kind[1:], enumerations)
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, entry.name
        return
    kind = kind.removeprefix("*")
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        package = "google.protobuf" if hasattr(wrappers_pb2, kind) else _PACKAGE
        field.type = _FIELD.TYPE_ENUM if kind in enumerations else _FIELD.TYPE_MESSAGE
        field.type_name = f".{package}.{kind}"
