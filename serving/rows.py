"""The rows of a request of TensorFlow Serving's REST API: instances, columns and examples, as JSON has them."""

import base64
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mirrorspark.serving.errors import RequestError
from mirrorspark.serving.fields import Field
from mirrorspark.storage import meant

SIGNATURE = "serving_default"
MOST_PROBLEMS = 5
"""Problems that a message lists; of more it says how many."""

MOST_VALUES = 131_072
"""Numbers, texts, lists and objects of a request's JSON, or cells of its CSV, unless the server has another limit."""

MOST_LEVELS = 32
"""Levels of lists and objects in a request; the deepest that a model reads are lists of vectors in columns."""

_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,19}")
# The largest float has 309.
_DIGITS = 310
_CHARACTERS = 60
_MOST_NAMES = 100
_ABSENT = object()


@dataclass(frozen=True)
class Rows:
    """The rows of a request.

    Attributes:
        columns: The values of each row by column.
        count: Number of rows.
        place: The request's name for its rows, for messages.
    """

    columns: Mapping[str, Sequence[Any]]
    count: int
    place: str

    def name(self, row: int) -> str:
        """Return the name of a row in messages."""
        return f"{self.place}[{row}]"


def document_of(body: bytes, most_values: int = MOST_VALUES) -> dict[str, Any]:
    """Return the JSON object in ``body``.

    Python's parser lets no other thread run except where it calls a function of Python, here for each number. So what
    it makes is counted before.

    Args:
        body: JSON in UTF-8.
        most_values: Most numbers, texts, lists and objects in it.

    Raises:
        RequestError: It is none, or has too many values (413) or levels of lists and objects.
    """
    check_size(body, most_values)
    try:
        document = json.loads(body.decode("utf-8-sig"), parse_int=_whole_number, parse_float=_number)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON in UTF-8: {error}") from None
    if not isinstance(document, dict):
        raise RequestError(400, f"the body is {_kind(document)}, not a JSON object")
    return document


def _whole_number(text: str) -> int:
    if len(text) > _DIGITS:  # reading it takes the square of its length
        raise ValueError(f"it has a number of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    return float(text)


def check_size(body: bytes, most_values: int) -> None:
    """Check how many values JSON has, and how deeply its lists and objects are nested.

    Raises:
        RequestError: They are too many (413), or too deep.
    """
    lists = body.count(b"[") + body.count(b"{")
    # Most requests need no second look; brackets that are counted here may be in texts, too.
    if lists <= MOST_LEVELS and lists + body.count(b",") < most_values:
        return
    found = np.frombuffer(body.replace(b"\\\\", b"__").replace(b'\\"', b"__"), np.uint8)
    is_outside = np.bitwise_xor.accumulate(found == ord('"')) == 0
    folded = found | 0x20  # both kinds of brackets become one
    is_open = is_outside & (folded == ord("{"))
    check_values(int(np.count_nonzero(is_open | (is_outside & (found == ord(","))))) + 1, most_values)
    brackets = np.flatnonzero(is_open | (is_outside & (folded == ord("}"))))
    levels = np.cumsum(np.where(is_open[brackets], 1, -1))
    if len(levels) and levels.max() > MOST_LEVELS:
        raise RequestError(400, f"the body has lists or objects on {levels.max()} levels; {MOST_LEVELS} may be")


def check_values(count: int, most: int) -> None:
    """Check the number of values of a request.

    Raises:
        RequestError: They are too many; the status is 413.
    """
    if count > most:
        raise RequestError(
            413, f"the request has {count} values, at most {most} may be (--max-values); send fewer rows at a time"
        )


def check_vectors(columns: Mapping[str, Sequence[Any]], most_values: int) -> None:
    """Check the number of entries of all sparse vectors, which came as texts.

    Raises:
        RequestError: They are too many; the status is 413.
    """
    vectors = (one for values in columns.values() for one in values if isinstance(one, dict))
    check_values(sum(map(len, vectors)), most_values)


def predicted_rows(document: Mapping[str, Any], columns: Sequence[str]) -> Rows:
    """Return the rows of a ``:predict`` request, which has ``instances`` (rows) or ``inputs`` (columns).

    Args:
        document: The request.
        columns: The columns that the model reads.

    Raises:
        RequestError: The request has neither or both, or they are not what the model reads.
    """
    check_signature(document)
    if ("instances" in document) == ("inputs" in document):
        raise RequestError(400, "give either 'instances', a list of rows, or 'inputs', an object of columns")
    if "instances" in document:
        return _of_instances(_listed(document, "instances"), columns)
    inputs = document["inputs"]
    if isinstance(inputs, list) and len(columns) == 1:
        inputs = {columns[0]: inputs}
    if not isinstance(inputs, dict):
        raise RequestError(400, f"'inputs' is {_kind(inputs)}, not an object with the columns {list(columns)}")
    return of_columns(inputs, columns, "inputs")


def example_rows(document: Mapping[str, Any], columns: Sequence[str]) -> Rows:
    """Return the rows of a ``:classify`` or ``:regress`` request: ``examples``, and a ``context`` that all share.

    Raises:
        RequestError: They are not what the model reads.
    """
    check_signature(document)
    context = document.get("context", {})
    if not isinstance(context, dict):
        raise RequestError(400, f"'context' is {_kind(context)}, not an object of columns")
    examples = _listed(document, "examples")
    rows = [{**context, **row} if isinstance(row, dict) else row for row in examples]
    return _of_objects(rows, columns, "examples")


def record_rows(document: Mapping[str, Any], place: str, columns: Sequence[str]) -> Rows:
    """Return the rows that are a list of objects at ``place`` in a request.

    Raises:
        RequestError: They are not what the model reads.
    """
    return _of_objects(_listed(document, place), columns, place)


def check_signature(document: Mapping[str, Any]) -> None:
    """Check that a request asks for the only signature.

    Raises:
        RequestError: It asks for another one.
    """
    name = document.get("signature_name", SIGNATURE)
    if name not in ("", SIGNATURE):
        raise RequestError(400, f"signature_name {shown(name)} is unknown; leave it out, or give {SIGNATURE!r}")


def of_columns(given: Mapping[str, Any], columns: Sequence[str], place: str) -> Rows:
    """Return rows from lists of values by column; further columns are ignored.

    Raises:
        RequestError: A column is missing or no list, or the columns have different lengths.
    """
    if missing := [name for name in columns if name not in given]:
        raise RequestError(400, lacking(f"'{place}'", missing, given, columns))
    for name in columns:
        if not isinstance(given[name], list):
            raise RequestError(400, f"column '{name}' of '{place}' is {_kind(given[name])}, not a list of values")
    lengths = {name: len(given[name]) for name in columns}
    if len(set(lengths.values())) > 1:
        raise RequestError(400, f"the columns of '{place}' have different numbers of rows: {lengths}")
    count = next(iter(lengths.values()), 0)
    return Rows({name: _column(name, given[name], place) for name in columns}, count, place)


def bytes_of(text: Any) -> bytes:
    """Return the bytes that ``text`` has in base64.

    Raises:
        RequestError: It is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError) as error:
        raise RequestError(400, f"{shown(text)} is not base64: {error}") from None


def vector_of(text: Any) -> dict[str, Any]:
    """Return the indices and values of the sparse vector that ``text`` has as a JSON object.

    Raises:
        RequestError: It is none.
    """
    if not isinstance(text, str) or text.count("[") + text.count("{") > MOST_LEVELS:  # it is one object of numbers
        raise RequestError(400, f"{shown(text)} is not a JSON object of indices and values")
    try:
        vector = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"{shown(text)} is not a JSON object of indices and values: {error}") from None
    if not isinstance(vector, dict):
        raise RequestError(400, f"{shown(text)} is not a JSON object of indices and values")
    return vector


def with_texts(rows: Rows, fields: Sequence[Field]) -> Rows:
    """Return rows in which columns of texts have no bytes: TensorFlow Serving's clients may send texts as base64.

    Raises:
        RequestError: The bytes are not UTF-8.
    """
    texts = {one.name for one in fields if one.is_text}
    columns = {
        name: [_text(name, value, rows.name(row)) for row, value in enumerate(values)]
        for name, values in rows.columns.items()
        if name in texts and any(isinstance(one, bytes | list) for one in values)
    }
    return Rows({**rows.columns, **columns}, rows.count, rows.place) if columns else rows


def _text(name: str, value: Any, row: str) -> Any:
    if isinstance(value, list):
        return [_text(name, one, row) for one in value] if any(isinstance(one, bytes) for one in value) else value
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise RequestError(400, f"{row}: column '{name}' has bytes that are not text in UTF-8") from None


def problems_text(problems: Sequence[str]) -> str:
    """Return one text of several problems."""
    shown = "; ".join(problems[:MOST_PROBLEMS])
    left = len(problems) - MOST_PROBLEMS
    return f"{shown}; and {left} more" if left > 0 else shown


def shown(value: Any) -> str:
    """Return a value for a message, cut to some characters."""
    if isinstance(value, str | bytes | list):
        value = value[: _CHARACTERS + 1]
    text = repr(value)
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}…"


def _of_instances(instances: list[Any], columns: Sequence[str]) -> Rows:
    if len(columns) == 1 and not any(isinstance(one, dict) and columns[0] in one for one in instances):
        return Rows({columns[0]: _column(columns[0], instances, "instances")}, len(instances), "instances")
    return _of_objects(instances, columns, "instances")


def _of_objects(rows: list[Any], columns: Sequence[str], place: str) -> Rows:
    problems = [
        f"{place}[{number}] is {_kind(row)}, not an object of columns"
        for number, row in enumerate(rows)
        if not isinstance(row, dict)
    ]
    if not problems:
        found = {name: [row.get(name, _ABSENT) for row in rows] for name in columns}
        without = sorted({number for values in found.values() for number, one in enumerate(values) if one is _ABSENT})
        # Hints take time, and a message has no more of them.
        problems = [f"{place}[{number}] {_lacks(rows[number], columns)}" for number in without[:MOST_PROBLEMS]]
        problems += [""] * (len(without) - MOST_PROBLEMS)
    if problems:
        raise RequestError(400, problems_text(problems))
    return Rows({name: _column(name, values, place) for name, values in found.items()}, len(rows), place)


def _listed(document: Mapping[str, Any], name: str) -> list[Any]:
    rows = document.get(name)
    if not isinstance(rows, list) or not rows:
        raise RequestError(400, f"'{name}' is {_kind(rows)}, not a list with a row or more")
    return rows


def _column(name: str, values: Sequence[Any], place: str) -> list[Any]:
    """Return the values of a column as the model reads them."""
    found = []
    for row, value in enumerate(values):
        try:
            found.append(_value(value))
        except RequestError as error:
            raise RequestError(400, f"{place}[{row}]: column '{name}': {error}") from None
    return found


def _value(value: Any) -> Any:
    """Return a value of JSON as the model reads it: bytes of ``{"b64": …}``, and whole numbers as keys of a vector."""
    if isinstance(value, list):
        return [_value(one) for one in value] if any(isinstance(one, dict) for one in value) else value
    if not isinstance(value, dict):
        return value
    if value.keys() == {"b64"}:
        return bytes_of(value["b64"])
    return {int(key) if _WHOLE_NUMBER.fullmatch(key) else key: one for key, one in value.items()}


def _lacks(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Return the words for a row without some of the columns; others that it has may be misspelt."""
    others = [name for name in row if name not in columns]
    unread = f"; the model does not read {_named(others)}" if others else ""
    missing = [name for name in columns if name not in row]
    return f"lacks {_named(missing, _near(row, columns))}: give null where a value is not known{unread}"


def lacking(what: str, missing: Sequence[str], given: Iterable[str], columns: Sequence[str]) -> str:
    """Return the message about ``what`` a request lacks; other columns that are given may be misspelt."""
    return f"{what} lacks {_named(missing, _near(given, columns))}; the model reads {list(columns)}"


def _near(given: Iterable[str], columns: Sequence[str]) -> list[str]:
    """Return the names that may be misspelt, as many as are compared within a millisecond or two."""
    known = frozenset(columns)
    return [name for name in itertools.islice(given, _MOST_NAMES) if name not in known and len(name) <= _CHARACTERS]


def _named(names: Sequence[str], near: Sequence[str] = ()) -> str:
    listed = ", ".join(f"{shown(name)}{meant(name, near)}" for name in names[:MOST_PROBLEMS])
    left = len(names) - MOST_PROBLEMS
    return f"the column{'s' if len(names) > 1 else ''} {listed}{f' and {left} more' if left > 0 else ''}"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "missing or null"}
    if isinstance(value, list) and not value:
        return "an empty list"
    return names.get(type(value), "a number")
