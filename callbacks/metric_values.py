"""Metric values as Keras hands them out (floats, NumPy scalars, tensors) turned into plain floats."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def as_float(value: Any) -> float | None:
    """Return a scalar metric as a float, or None when the value holds no number or more than one.

    Args:
        value: A Python number, a NumPy scalar or one-element array, or an eager tensor.
    """
    # An eager tensor's numpy() is the sync with the device; asking once here keeps it to one per value.
    array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    # bfloat16 is of kind "V" for NumPy, and still a number.
    is_number = array.dtype.kind in "biuf" or array.dtype.name == "bfloat16"
    if array.size != 1 or not is_number:
        return None
    return float(array.reshape(()).astype(np.float64))


def scalar_metrics(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the logs that are single numbers, as floats, in the order given; others are left out."""
    floats = {name: as_float(value) for name, value in (logs or {}).items()}
    return {name: value for name, value in floats.items() if value is not None}
