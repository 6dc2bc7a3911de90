"""Digest and packages of a function or class, both found from its code, and from the code and values that it uses."""

import dis
import functools
import hashlib
import inspect
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

_OURS = ("mirrorspark", "pyspark_tfrecord", "pyspark_tfrecords")
_PLAIN = str | bytes | int | float | complex | bool | None
# Members of a class that do not define its behaviour, or whose value differs between processes.
_INCIDENTAL = frozenset(
    {"__module__", "__doc__", "__firstlineno__", "__static_attributes__", "__dict__", "__weakref__"}
)


def code_digest(value: Any) -> str:
    """Return sixteen hex digits for a function, a class, an object, or a list of such.

    They are the same in another process. They change with the source of the user's code and with the values
    that it refers to; of an installed module's functions and classes only the names count.
    """
    return hashlib.sha256(_text(value).encode()).hexdigest()[:16]


def used_packages(value: Any) -> set[str]:
    """Return the packages that the user's code imports, or of which it uses functions, classes or objects.

    ``tf.keras`` is ``tf_keras``, as in the workers. A module that is imported within a function is not followed.
    """
    found: set[str] = set()
    seen: dict[int, Any] = {}
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, FunctionType) and is_sent(value.__module__):
            found |= set(_imported(value.__code__))
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        found.add(str(name).partition(".")[0])
        left += _name_and_parts(value)[1]
    return found


def _imported(code: CodeType) -> Iterator[str]:
    """Yield the packages that code imports, also within inner functions."""
    for entry in dis.get_instructions(code):
        if entry.opname == "IMPORT_NAME":
            path = entry.argval.split(".")
            yield "tf_keras" if path[:2] == ["tensorflow", "keras"] else path[0]
        elif entry.opname in ("IMPORT_FROM", "LOAD_ATTR") and entry.argval == "keras":
            yield "tf_keras"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _imported(constant)


def is_sent(module: str | None) -> bool:
    """Return whether definitions are sent by value: their module is the notebook, not installed, or unknown.

    ``exec`` with globals of its own makes functions whose module is unknown, None.
    """
    if module in (None, "__main__"):
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    if module.split(".")[0] in _OURS or file is None:
        return False
    return not file.startswith(_installed())


@functools.cache
def _installed() -> tuple[str, ...]:
    """Return the folders of Python's and of installed packages' modules."""
    return tuple(f"{path}{os.sep}" for path in sysconfig.get_paths().values())


def _text(value: Any) -> str:
    return "\n".join(_described(value, {}))


def _described(value: Any, seen: dict[int, tuple[int, Any]]) -> Iterator[str]:
    """Yield texts for a value and for all that it refers to, in the order of their first use.

    Args:
        value: The value.
        seen: The number of each value that was described, by its id. It holds the values, since the id of one that is
            gone may be another's.
    """
    if isinstance(value, _PLAIN):
        yield repr(value)
        return
    if id(value) in seen:
        yield f"again {seen[id(value)][0]}"
        return
    seen[id(value)] = len(seen), value
    name, parts = _name_and_parts(value)
    yield name
    for part in parts:
        yield from _described(part, seen)


def _name_and_parts(value: Any) -> tuple[str, list[Any]]:
    """Return a text for the value itself, and the values that it consists of or refers to."""
    if isinstance(value, functools.partial):
        return "partial", [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return "method", [value.__func__, value.__self__]
    if isinstance(value, FunctionType | type) and is_sent(value.__module__):
        return _source(value), _members(value) if isinstance(value, type) else _used(value)
    if isinstance(value, FunctionType | type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}.{value.__qualname__}", []
    if isinstance(value, ModuleType):
        return f"module {value.__name__}", []
    if isinstance(value, set | frozenset):  # in another order in each process
        return f"set of {len(value)}", sorted(map(_text, value))
    if isinstance(value, Mapping):
        return f"mapping of {len(value)}", [part for item in value.items() for part in item]
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {len(value)}", list(value)
    contents = vars(value) if hasattr(value, "__dict__") else _pickled(value)
    return "object", [type(value), contents]


def _pickled(value: Any) -> bytes | None:
    """Return the pickled value, for example of an array; None if it cannot be pickled, for example a lock."""
    try:
        pickled: bytes = cloudpickle.dumps(value)
    except Exception:  # whatever the class raises: only its name counts then
        return None
    return pickled


def _members(value: type) -> list[Any]:
    """Return the bases of a class, and its members with their names."""
    found: list[Any] = list(value.__bases__)
    for name, member in vars(value).items():
        if name in _INCIDENTAL or isinstance(member, GetSetDescriptorType | MemberDescriptorType):
            continue
        if isinstance(member, property):
            member = [member.fget, member.fset, member.fdel]
        found += [name, getattr(member, "__func__", member)]
    return found


def _used(function: FunctionType) -> list[Any]:
    """Return the values that a function refers to: globals, captured variables, defaults."""
    captured = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    named = [function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__]
    attributes = _attributes(function.__code__)
    reached = [found for value in named for found in _reached(value, attributes, [])]
    return [*reached, *captured, function.__defaults__, function.__kwdefaults__]


def _reached(value: Any, attributes: list[str], modules: list[ModuleType]) -> Iterator[Any]:
    """Yield the value; for a module that is sent, its members that a function with these attributes may use."""
    if not (isinstance(value, ModuleType) and is_sent(value.__name__)):
        yield value
    elif value not in modules:
        for name in attributes:
            if name in vars(value):
                yield from _reached(vars(value)[name], attributes, [*modules, value])


def _names(code: CodeType) -> list[str]:
    """Return the global names that code loads, also within inner functions."""
    loads = (entry for entry in dis.get_instructions(code) if entry.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    inner = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in _names(constant)]
    return list(dict.fromkeys([*(entry.argval for entry in loads), *inner]))


def _attributes(code: CodeType) -> list[str]:
    inner = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in _attributes(constant)]
    return list(dict.fromkeys([*code.co_names, *inner]))


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # not assigned yet
        return False


def _source(value: FunctionType | type) -> str:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):  # Typed into an interpreter; Python finds no source of a notebook's class either.
        return _compiled(value.__code__) if isinstance(value, FunctionType) else f"class {value.__qualname__}"


def _compiled(code: CodeType) -> str:
    constants = [_compiled(entry) if isinstance(entry, CodeType) else _text(entry) for entry in code.co_consts]
    return repr((code.co_code, code.co_names, constants))
