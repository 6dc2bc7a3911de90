"""The arithmetic of numeric features, written once for NumPy and TensorFlow, which then agree to the last bit.

It uses only operations whose result IEEE 754 defines: comparison, choice, + - * / and the split of a float into
mantissa and exponent. ``log1p`` is not one of them: the two libraries differ in its last bits. No two constants meet in
a chain, because TensorFlow's optimiser would fold them into one.

TensorFlow flushes denormal numbers to zero and NumPy does not. Results that would be denormal are therefore zero by
definition, and scalings small enough to give a denormal number weight are not applied.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mirrorspark.data_pipelines.features.kinds import Numeric

LEAST_FLOAT32 = float(np.finfo(np.float32).tiny)
LEAST_FLOAT64 = float(np.finfo(np.float64).tiny)
# A denormal float64 divided by this is still far below the least float32; subtracted from it, it changes no bit.
_LEAST_SCALING = 1e-200
_LARGEST_FLOAT64 = float(np.finfo(np.float64).max)

_EXPONENT_BIAS = 1023
_MANTISSA_BITS = 52
_MANTISSA_MASK = (1 << _MANTISSA_BITS) - 1
_ONE_BITS = _EXPONENT_BIAS << _MANTISSA_BITS
_SQRT_2 = 2.0**0.5

# FreeBSD's msun, e_log.c: ln 2 in two parts, and a polynomial in ((m - 1) / (m + 1))**2 for log(m).
_LN_2_HIGH = 6.93147180369123816490e-01
_LN_2_LOW = 1.90821492927058770002e-10
_LOG_POLYNOMIAL = (
    6.666666666666735130e-01,
    3.999999999940941908e-01,
    2.857142874366239149e-01,
    2.222219843214978396e-01,
    1.818357216161805012e-01,
    1.531383769920937332e-01,
    1.479819860511658591e-01,
)


@dataclass(frozen=True)
class Arithmetic:
    """The operations of one library.

    Attributes:
        where: ``where(condition, yes, no)``; ``yes`` and ``no`` may be numbers.
        is_nan: Boolean of the same shape.
        magnitude: Absolute value.
        as_integers: The bits of float64 as int64.
        as_floats: The bits of int64 as float64.
        exponent_bits: An int64 shifted right by the 52 bits of the mantissa, as float64.
        mantissa_bits: An int64 with all but the 52 bits of the mantissa cleared.
        to_float32: The nearest float32.
    """

    where: Callable[[Any, Any, Any], Any]
    is_nan: Callable[[Any], Any]
    magnitude: Callable[[Any], Any]
    as_integers: Callable[[Any], Any]
    as_floats: Callable[[Any], Any]
    exponent_bits: Callable[[Any], Any]
    mantissa_bits: Callable[[Any], Any]
    to_float32: Callable[[Any], Any]


NUMPY = Arithmetic(
    where=np.where,
    is_nan=np.isnan,
    magnitude=np.abs,
    as_integers=lambda values: values.view(np.int64),
    as_floats=lambda values: values.view(np.float64),
    exponent_bits=lambda bits: (bits >> _MANTISSA_BITS).astype(np.float64),
    mantissa_bits=lambda bits: bits & _MANTISSA_MASK,
    to_float32=lambda values: values.astype(np.float32),
)


def tensorflow() -> Arithmetic:
    """Return TensorFlow's operations; imports it."""
    import tensorflow as tf

    return Arithmetic(
        where=lambda condition, yes, no: tf.where(condition, _float64(tf, yes), _float64(tf, no)),
        is_nan=tf.math.is_nan,
        magnitude=tf.abs,
        as_integers=lambda values: tf.bitcast(values, tf.int64),
        as_floats=lambda values: tf.bitcast(values, tf.float64),
        exponent_bits=lambda bits: tf.cast(
            tf.bitwise.right_shift(bits, tf.constant(_MANTISSA_BITS, tf.int64)), tf.float64
        ),
        mantissa_bits=lambda bits: tf.bitwise.bitwise_and(bits, tf.constant(_MANTISSA_MASK, tf.int64)),
        to_float32=lambda values: tf.cast(values, tf.float32),
    )


def measured(values: Any, feature: Numeric, library: Arithmetic) -> Any:
    """Return float64 ``values``, clipped, and as logarithms if the feature asks for them; NaN stays NaN."""
    # A range that is learnt is applied by :func:`standardised`.
    low, high = feature.clip if isinstance(feature.clip, tuple) else (None, None)
    if low is not None:
        values = library.where(values < low, float(low), values)
    if high is not None:
        values = library.where(values > high, float(high), values)
    return signed_log(values, library) if feature.log else values


def standardised(
    values: Any,
    missing: float,
    offset: float,
    divisor: float,
    library: Arithmetic,
    bounds: tuple[float, float] | None = None,
) -> Any:
    """Return ``(values - offset) / divisor`` as float32, with ``missing`` in place of NaN, within ``bounds`` if given.

    It is computed in float64 and rounded once. A result that would be a denormal float32 is zero.
    """
    if bounds is not None:
        values = library.where(values < bounds[0], bounds[0], values)
        values = library.where(values > bounds[1], bounds[1], values)
    filled = library.where(library.is_nan(values), missing, values)
    scaled = (filled - _scaling(offset)) / (_scaling(divisor) or 1.0)
    return library.to_float32(without_denormals(scaled, library, LEAST_FLOAT32))


def without_denormals(values: Any, library: Arithmetic, least: float = LEAST_FLOAT64) -> Any:
    """Return ``values``, with zero for those nearer to zero than ``least``."""
    return library.where(library.magnitude(values) < least, 0.0, values)


def signed_log(values: Any, library: Arithmetic) -> Any:
    """Return ``sign(x) * log(1 + |x|)`` of float64 ``values``, within two units in the last place; NaN stays NaN."""
    size = library.magnitude(values)
    bits = library.as_integers(1.0 + size)
    mantissa = library.as_floats(library.mantissa_bits(bits) + _ONE_BITS)
    exponent = library.exponent_bits(bits) - float(_EXPONENT_BIAS)
    is_upper = mantissa > _SQRT_2
    exponent = library.where(is_upper, exponent + 1.0, exponent)
    mantissa = library.where(is_upper, mantissa * 0.5, mantissa)
    # Below the first power of two, the sum above has lost bits that the number itself has.
    fraction = library.where(exponent < 0.5, size, mantissa - 1.0)
    ratio = fraction / (2.0 + fraction)
    square = ratio * ratio
    rest = _LOG_POLYNOMIAL[-1] * square
    for coefficient in _LOG_POLYNOMIAL[-2::-1]:
        rest = square * (coefficient + rest)
    logarithm = exponent * _LN_2_HIGH - ((ratio * (fraction - rest) - exponent * _LN_2_LOW) - fraction)
    # Infinity and NaN have no mantissa; NaN fails every comparison.
    logarithm = library.where(size <= _LARGEST_FLOAT64, logarithm, size)
    return library.where(values < 0.0, -logarithm, logarithm)


def _scaling(constant: float) -> float:
    return 0.0 if abs(constant) < _LEAST_SCALING else constant


def _float64(tf: Any, value: Any) -> Any:
    return tf.constant(value, tf.float64) if isinstance(value, float) else value
