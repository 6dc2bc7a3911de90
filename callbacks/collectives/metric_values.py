"""Conversion of Keras' metric values (floats, NumPy scalars, tensors) to plain floats.

This is a module of its own because its neighbours import TensorFlow, which the metric buffer does without.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


def as_float(value: Any) -> float | None:
    """Return a scalar metric as a float, or None if the value is not a single number.

    Args:
        value: A Python number, a NumPy scalar or one-element array, or an eager tensor.
    """
    # An eager tensor's numpy() waits for the device, so it is called only once per value.
    array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    # NumPy gives bfloat16 the kind "V".
    is_number = array.dtype.kind in "biuf" or array.dtype.name == "bfloat16"
    if array.size != 1 or not is_number:
        return None
    return float(array.reshape(()).astype(np.float64))


def scalar_metrics(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the logs that are single numbers, as floats, in their order; others are left out."""
    floats = {name: as_float(value) for name, value in (logs or {}).items()}
    return {name: value for name, value in floats.items() if value is not None}
