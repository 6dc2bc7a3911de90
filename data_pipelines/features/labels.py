"""Labels of rows: reading, checking, and the numbering of classes."""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import FIRST_VOCABULARY_ID, OUT_OF_VOCABULARY_ID, Categorical, LabelForm
from mirrorspark.data_pipelines.features.raw_columns import (
    ColumnError,
    is_number,
    numeric_values,
    plain_column,
    raw_column,
)
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import RaggedIds, token_ids

EncodedLabel = np.ndarray | RaggedIds

_SHOWN_CLASSES = 10


class LabelError(ClearError, ValueError):
    """A label that the model cannot learn; the message shows the value."""


def encode_label(table: pa.Table | pa.RecordBatch, fitted: FittedFeatures) -> EncodedLabel | None:
    """Return the label of every row, or None if the label is a feature (kind ``candidate``) without a rating.

    ``binary``: float32 ``[rows]`` of zeros and ones. ``numeric`` and a rating: float32 ``[rows]``. ``multi_class`` and
    ``ordinal``: int64 ``[rows]``, classes from 0. ``multi_label``:
    :class:`data_pipelines.features.RaggedIds` of classes from 0; tokens that no training row has are left
    out, because no model can learn them.

    Raises:
        LabelError: A label is null or not a class.
        ColumnError: The column is missing.
    """
    return _ENCODERS[fitted.spec.label.form](table, fitted)


def check_label(table: pa.Table | pa.RecordBatch, spec: FeatureSpec) -> None:
    """Check that the label's column can be read; the table may be empty.

    Raises:
        LabelError: The label has the wrong type.
        ColumnError: The column is missing.
    """
    if spec.label.kind == "binary":
        binary_label(table, spec.label.name, spec.label.positive)
    elif spec.label.number is not None:
        number_label(table, spec.label.number)
    elif spec.label.form in ("multi_class", "multi_label"):
        _classes_column(table, spec)


def binary_label(table: pa.Table | pa.RecordBatch, name: str, positive: str | None = None) -> np.ndarray:
    """Return the label column as float32 ``[rows]`` of zeros and ones.

    Args:
        table: The rows.
        name: The label's column.
        positive: The value that counts as 1, as text; by default the column holds zeros and ones. Of numbers, it is the
            same number however it is written: Spark's text of 1 is ``1.0`` for a double, Arrow's ``1``.

    Raises:
        LabelError: A value is null, or without ``positive`` neither 0 nor 1.
    """
    column = plain_column(table, name)
    if positive is not None:
        if column.null_count:
            raise LabelError(
                f"label '{name}' has a null; filter such rows out of the table, or set null_labels to drop "
                f"(--null-labels drop)"
            )
        return _equals(column, positive).cast(pa.float32()).to_numpy(zero_copy_only=False)
    if not (is_number(column.type) or pa.types.is_null(column.type)):
        raise LabelError(
            f"label '{name}' has type {column.type}; a binary label is a number or boolean: cast it, or say which "
            f"value is positive: {{name: {name}, positive: …}}; of more than two values, the kind is multi_class"
        )
    values = column.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    wrong = ~np.isin(values, (0.0, 1.0))
    if wrong.any():
        value = column[int(np.flatnonzero(wrong)[0])].as_py()
        raise LabelError(
            f"label '{name}' has the value {value!r}; a binary label is 0 or 1: filter such rows out of the table"
        )
    return values


def _equals(column: pa.Array, text: str) -> pa.Array:
    """Return whether each value is the one that a text stands for, as booleans."""
    kind = column.type
    if not is_number(kind) or pa.types.is_boolean(kind):
        return pc.equal(column.cast(pa.string()), text)
    try:
        # As decimals, whole numbers above 2^53 stay apart.
        number = pa.scalar(float(text) if pa.types.is_floating(kind) else Decimal(text))
        return pc.equal(column, number.cast(kind))
    except (ArithmeticError, TypeError, ValueError):  # No number, an infinite one, or none of this type.
        return pa.array(np.zeros(len(column), bool))


def number_label(table: pa.Table | pa.RecordBatch, name: str) -> np.ndarray:
    """Return the label column as float32 ``[rows]``.

    Raises:
        LabelError: The column has no numbers, or a value is null, NaN or infinite.
    """
    column = plain_column(table, name)
    if not (is_number(column.type) or pa.types.is_null(column.type)):
        raise LabelError(f"label '{name}' has type {column.type}; a label of kind numeric is a number: cast it")
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        values = numeric_values(column).astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise LabelError(
            f"label '{name}' has the value {column[int(wrong[0])].as_py()!r}, which is not a finite number: filter "
            f"such rows out of the table"
        )
    return values


def _binary(table: pa.Table | pa.RecordBatch, fitted: FittedFeatures) -> np.ndarray:
    return binary_label(table, fitted.spec.label.name, fitted.spec.label.positive)


def _number(table: pa.Table | pa.RecordBatch, fitted: FittedFeatures) -> np.ndarray | None:
    name = fitted.spec.label.number
    return None if name is None else number_label(table, name)


def _multi_class(table: pa.Table | pa.RecordBatch, fitted: FittedFeatures) -> np.ndarray:
    column = _classes_column(table, fitted.spec)
    classes = _classes(column, fitted)
    unknown, label = np.flatnonzero(classes < 0), fitted.spec.label
    if not len(unknown):
        return classes
    found = f"label '{label.name}' has the value {column[int(unknown[0])].as_py()!r}, which"
    if label.order is not None:
        raise LabelError(
            f"{found} is not one of its classes {list(label.order[:_SHOWN_CLASSES])}"
            f"{' and more' if len(label.order) > _SHOWN_CLASSES else ''}; filter such rows out of the table, or add it "
            f"to the label's classes, at its place in their order"
        )
    raise LabelError(
        f"{found} no training row has; filter such rows out of the table, or move some of them into the training rows"
    )


def _multi_label(table: pa.Table | pa.RecordBatch, fitted: FittedFeatures) -> RaggedIds:
    column = _classes_column(table, fitted.spec)
    name = fitted.spec.label.name
    if column.null_count:
        raise LabelError(f"label '{name}' has a null; give a row without any class an empty list, or filter it out")
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    classes = _classes(column.flatten(), fitted)
    is_known = classes >= 0
    rows = np.repeat(np.arange(len(lengths)), lengths)[is_known]
    return RaggedIds(classes[is_known], np.bincount(rows, minlength=len(lengths)).astype(np.int64))


_ENCODERS: Mapping[LabelForm, Callable[[Any, FittedFeatures], EncodedLabel | None]] = {
    "binary": _binary,
    "candidate": _number,
    "multi_class": _multi_class,
    "multi_label": _multi_label,
    "numeric": _number,
}


def _classes_column(table: pa.Table | pa.RecordBatch, spec: FeatureSpec) -> pa.Array:
    """Return the column as class numbers, tokens, or lists of them.

    Raises:
        LabelError: It has another type.
    """
    name = spec.label.name
    tokens = spec.label_tokens if spec.label.order is None else Categorical(name)
    if tokens is not None:
        try:
            return raw_column(table, tokens)
        except ColumnError as error:
            raise LabelError(f"label '{name}' of kind {spec.label.kind}: {error}") from error
    column = plain_column(table, name)
    if pa.types.is_null(column.type):
        return column.cast(pa.int64() if spec.label.kind == "multi_class" else pa.list_(pa.int64()))
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    number = column.type.value_type if is_list else column.type
    if is_list != (spec.label.kind == "multi_label") or not (pa.types.is_integer(number) or pa.types.is_null(number)):
        wanted = "an array of whole numbers" if spec.label.kind == "multi_label" else "a whole number"
        raise LabelError(
            f"label '{name}' has type {column.type}; with {spec.label.classes} classes it is {wanted}: cast it, or "
            f"leave classes out to learn them from tokens"
        )
    return column.cast(pa.list_(pa.int64()) if is_list else pa.int64())


def _classes(values: pa.Array, fitted: FittedFeatures) -> np.ndarray:
    """Return int64 ``[values]``: classes from 0, or -1 for a token that is not a class.

    Raises:
        LabelError: A value is null or not a class number.
    """
    label, tokens = fitted.spec.label, fitted.spec.label_tokens
    is_void = values.is_null()
    if tokens is not None or label.order is not None:
        is_void = pc.or_(is_void, pc.equal(pc.binary_length(values), 0).fill_null(True))
    if pc.any(is_void).as_py():
        raise LabelError(
            f"label '{label.name}' has a null or empty value; it names no class: filter such rows out of the table, or "
            f"set null_labels to drop (--null-labels drop)"
        )
    if label.order is not None:
        return pc.index_in(values, pa.array(label.order, pa.string())).fill_null(-1).to_numpy().astype(np.int64)
    if tokens is not None:
        ids = token_ids(fitted, tokens, values)
        return np.where(ids == OUT_OF_VOCABULARY_ID, -1, ids - FIRST_VOCABULARY_ID)
    classes = values.to_numpy(zero_copy_only=False).astype(np.int64)
    wrong = np.flatnonzero((classes < 0) | (classes >= fitted.classes))
    if len(wrong):
        raise LabelError(
            f"label '{label.name}' has the value {int(classes[wrong[0]])}; its {fitted.classes} classes are 0 to "
            f"{fitted.classes - 1}: correct the column or the spec"
        )
    return classes
