"""Assignment of units to variants by a salted hash: the same in Python, on Arrow arrays and in Spark SQL.

The bucket of a unit is the number that the first 15 hexadecimal digits of SHA-256 of ``salt:unit`` make, modulo the
number of buckets. A unit is its text in UTF-8: the integer 7 and the text ``7`` are one unit, and the empty text is a
unit like any other. Three hashes decide, each with a salt of its own: who is held out, which part of the layer a unit
belongs to, and its variant.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mirrorspark.lifecycle.experiments.allocation import BUCKETS
from mirrorspark.lifecycle.experiments.columns import column_of, require_column
from mirrorspark.lifecycle.experiments.definition import HOLDOUT, Experiment, ExperimentError
from mirrorspark.spark_session import on_running_session

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

# 60 bits: the number fits a signed integer of 64 bits, which is what Spark has.
_DIGITS = 15
# Numbers in the tables of variants by bucket.
_NONE, _HELD_OUT = -1, -2


def bucket_of(salt: str, unit: str | int) -> int:
    """Return the bucket of a unit, from 0 to below ``BUCKETS``.

    Raises:
        ExperimentError: The unit is null, neither a text nor an integer, or a text that UTF-8 cannot hold.
    """
    return _hashed(salt, _text_of(unit))


def sign_unit(unit: str | int, key: str) -> str:
    """Return a unit with its signature, as the header of a request has it where a server checks it.

    Whoever knows the key may name units, such as a gateway that knows its users; a client may only repeat its own. The
    signature is HMAC-SHA256 over the unit's text in UTF-8, in hexadecimal digits after a dot.

    Raises:
        ExperimentError: The unit is null, neither a text nor an integer, or a text that UTF-8 cannot hold.
    """
    text = _text_of(unit)
    return f"{text}.{_signature(text, key)}"


def signed_unit(text: str, key: str) -> str | None:
    """Return the unit that :func:`sign_unit` has signed with ``key``; None if this signature is not there."""
    unit, _, signature = text.rpartition(".")
    is_signed = hmac.compare_digest(signature.encode(errors="replace"), _signature(unit, key).encode())
    return unit if is_signed else None


def _signature(unit: str, key: str) -> str:
    return hmac.new(key.encode(), unit.encode(errors="replace"), hashlib.sha256).hexdigest()


def assign(unit: str | int, experiment: Experiment) -> str | None:
    """Return the variant of a unit; ``holdout`` if it is held out, None if another part of the layer has it.

    Raises:
        ExperimentError: The unit is null, neither a text nor an integer, or a text that UTF-8 cannot hold.
    """
    text = _text_of(unit)
    number = _numbers([text], experiment)[0]
    return _names(experiment)[number]


def assign_array(units: pa.Array | pa.ChunkedArray, experiment: Experiment) -> pa.Array:
    """Return the variant of each unit as :func:`assign` does, strings ``[units]``; a null unit has none.

    Distinct units are hashed once.

    Args:
        units: Texts or integers, also dictionary-encoded.
        experiment: The experiment.

    Raises:
        ExperimentError: The array has another type.
    """
    array = units.combine_chunks() if isinstance(units, pa.ChunkedArray) else units
    type_ = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    is_text = pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)
    if not (is_text or pa.types.is_integer(type_) or pa.types.is_null(type_)):
        raise ExperimentError(f"units have the type {type_}; pass texts or integers, or cast them")
    encoded = array.cast(type_).cast(pa.string()).dictionary_encode()
    numbers = _numbers(encoded.dictionary.to_pylist(), experiment)
    names = pa.array([_names(experiment)[number] for number in numbers], pa.string())
    return names.take(encoded.indices)


def variant_column(unit: Column, experiment: Experiment) -> Column:
    """Return the variant of each unit as :func:`assign` does, as an SQL expression without a Python function.

    Args:
        unit: Column of texts or integers; a null has no variant. :func:`assign_units` checks the type, too.
        experiment: The experiment.
    """
    from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

    text = unit.cast("string")
    variant = F.when(unit.isNotNull(), _by_bucket(_bucket_column(experiment.salt, text), experiment))
    if experiment.layer:
        part = experiment.part_buckets
        # Counted from the start of the part, one comparison is enough, and so is one hash.
        place = F.pmod(_bucket_column(experiment.layer_salt, text) - part.start, F.lit(BUCKETS))
        variant = F.when(place < len(part), variant)
    if experiment.holdout:
        is_held_out = _bucket_column(experiment.holdout_salt, text) < experiment.held_out_buckets
        variant = F.when(is_held_out, HOLDOUT).otherwise(variant)
    return variant


@on_running_session
def assign_units(frame: DataFrame, experiment: Experiment, *, unit: str, column: str = "variant") -> DataFrame:
    """Return a DataFrame with one more column, the variant of each row's unit (:func:`assign`).

    Args:
        frame: Rows with units.
        experiment: The experiment.
        unit: Column of texts or integers.
        column: Name of the new column; a null unit, or one that belongs to another part of the layer, has a null.

    Raises:
        ExperimentError: There is no column of units, it has another type, or the new name is in use.
    """
    require_column(frame, unit, "of units")
    if column in frame.columns:
        raise ExperimentError(f"the table has a column '{column}' already; choose another name for the variant")
    kind = frame.schema[unit].dataType.typeName()
    if kind not in ("string", "char", "varchar", "byte", "short", "integer", "long"):
        raise ExperimentError(f"column '{unit}' of units has the type {kind}; pass texts or integers, or cast them")
    return frame.withColumn(column, variant_column(column_of(unit), experiment))


def _text_of(unit: Any) -> str:
    if isinstance(unit, np.integer):
        unit = int(unit)
    if not isinstance(unit, str | int) or isinstance(unit, bool):
        raise ExperimentError(f"a unit is {unit!r}; pass a text or an integer")
    return str(unit)


def _hashed(salt: str, text: str) -> int:
    try:
        digest = hashlib.sha256(f"{salt}:{text}".encode()).hexdigest()
    except UnicodeEncodeError as error:
        raise ExperimentError(
            f"the unit {text!r} cannot be written in UTF-8 ({error.reason}); correct the text"
        ) from error
    return int(digest[:_DIGITS], 16) % BUCKETS


def _buckets(salt: str, texts: Iterable[str]) -> NDArray[np.int64]:
    return np.fromiter((_hashed(salt, text) for text in texts), np.int64)


def _numbers(texts: list[str], experiment: Experiment) -> NDArray[np.int64]:
    """Return the number of each text's variant, int64 ``[texts]``; or the mark of a held-out unit."""
    numbers = experiment.variant_numbers[_buckets(experiment.salt, texts)]
    if experiment.layer:
        layer, part = _buckets(experiment.layer_salt, texts), experiment.part_buckets
        numbers[(layer < part.start) | (layer >= part.stop)] = _NONE
    if experiment.holdout:
        numbers[_buckets(experiment.holdout_salt, texts) < experiment.held_out_buckets] = _HELD_OUT
    return numbers


def _names(experiment: Experiment) -> dict[int, str | None]:
    return {_NONE: None, _HELD_OUT: HOLDOUT, **dict(enumerate(experiment.variants))}


def _bucket_column(salt: str, text: Column) -> Column:
    from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

    digest = F.sha2(F.concat(F.lit(f"{salt}:"), text), 256)
    return F.pmod(F.conv(F.substring(digest, 1, _DIGITS), 16, 10).cast("bigint"), F.lit(BUCKETS))


def _by_bucket(bucket: Column, experiment: Experiment) -> Column:
    from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

    ranges = sorted((last, name) for name, of in experiment.allocation.items() for _, last in of)

    def named(number: Column) -> Column:
        upper = F.lit(ranges[-1][1])
        return reduce(lambda above, one: F.when(number < one[0], one[1]).otherwise(above), ranges[-2::-1], upper)

    # A lambda's argument is computed once. In a chain of conditions alone, Spark may hash anew for each of them.
    return F.get(F.transform(F.array(bucket), named), F.lit(0))
