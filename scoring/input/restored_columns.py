"""Columns in the types that they had before pandas changed them for missing values."""

import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features import raw_columns


def restored_type(found: pa.DataType, known: pa.DataType) -> pa.DataType:
    """Return ``known`` for a type that pandas may give a column of that type where values are missing, else ``found``.

    Whole numbers and booleans become floats there, and whole numbers decimals.
    """
    if raw_columns.is_list(found) and raw_columns.is_list(known):
        return pa.list_(restored_type(found.value_type, known.value_type))
    if pa.types.is_integer(known):
        return pa.int64() if pa.types.is_floating(found) or pa.types.is_decimal(found) else found
    return known if pa.types.is_floating(found) and pa.types.is_boolean(known) else found


def restored_column(name: str, column: pa.Array, known: pa.DataType) -> pa.Array:
    """Return a column in the type of :func:`restored_type`, in which NaN is null.

    Raises:
        ColumnError: A value is none of that type, such as 2.5 among whole numbers.
    """
    wanted = restored_type(column.type, known)
    if wanted == column.type:
        return column
    if raw_columns.is_list(column.type):
        lists = column.cast(pa.list_(column.type.value_type))
        lengths, values = raw_columns.list_lengths(lists), restored_column(name, lists.flatten(), known.value_type)
        whole = raw_columns.lists_of(lengths, values)
        return pc.if_else(lists.is_valid(), whole, pa.scalar(None, whole.type)) if lists.null_count else whole
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if pa.types.is_boolean(wanted):
        is_right = pc.or_(pc.equal(column, 0.0), pc.equal(column, 1.0)).fill_null(True)
        wrong = column.filter(pc.invert(is_right)).to_pylist()
    else:
        try:
            return column.cast(wanted)
        except pa.ArrowInvalid:
            given = (value for value in column.to_pylist() if value is not None)
            wrong = [value for value in given if not abs(value) < 2**63 or value != int(value)]
    if wrong:
        raise raw_columns.ColumnError(
            f"column '{name}' has type {column.type} and the value {wrong[0]}; the model was trained with {known}: "
            f"give such values, and null or NaN for missing ones"
        )
    return column.cast(wanted)
