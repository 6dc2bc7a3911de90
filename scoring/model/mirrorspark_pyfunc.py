"""Loader of an exported model for ``mlflow.pyfunc``, copied into the model so that loading needs no Mirrorspark.

MLflow imports this file under its own name from the model's ``code`` folder. The model takes a DataFrame of raw
columns.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

RAW_SIGNATURE = "serving_default"


class RawColumnsModel:
    """A model whose ``predict`` calls the signature ``serving_default``."""

    def __init__(self, folder: Path) -> None:
        self._model = tf.saved_model.load(str(folder / "saved_model"))
        self._signature = self._model.signatures[RAW_SIGNATURE]
        self._specs = self._signature.structured_input_signature[1]

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return one row of outputs per row of ``model_input``; null, NaN and "" are missing values."""
        outputs = self._signature(
            **{name: tf.constant(_raw(model_input[name], spec)) for name, spec in self._specs.items()}
        )
        return pd.DataFrame(
            {name: _column(value.numpy()) for name, value in sorted(outputs.items())}, index=model_input.index
        )


def _raw(column: pd.Series, spec: tf.TensorSpec) -> np.ndarray:
    if spec.shape.rank == 1 and spec.dtype == tf.float64:
        return column.astype("float64").to_numpy()
    if spec.shape.rank == 1:
        return np.array([_token(value) for value in column], dtype=object)
    # The value for a missing element or the padding of a shorter list: no token, NaN, or an invalid index.
    missing: Any = {tf.string: "", tf.float64: np.nan, tf.int64: -1}[spec.dtype]
    lists = [[] if value is None or np.isscalar(value) else list(value) for value in column]
    width = max((len(values) for values in lists), default=0)
    padded = np.full((len(lists), width), missing, dtype=object)
    for row, values in enumerate(lists):
        padded[row, : len(values)] = [missing if _is_missing(value) else value for value in values]
    return (
        np.vectorize(_token, otypes=[object])(padded)
        if spec.dtype == tf.string
        else padded.astype(spec.dtype.as_numpy_dtype)
    )


def _token(value: Any) -> str | bytes:
    if _is_missing(value):
        return ""
    if isinstance(value, bytes | bytearray):  # Spark's rows have the second
        return bytes(value)
    # Booleans become the tokens that Arrow and SQL write.
    return str(value).lower() if isinstance(value, bool | np.bool_) else str(value)


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and bool(np.isnan(value)))


def _column(values: np.ndarray) -> Any:
    if values.dtype == object:
        values = np.vectorize(lambda token: token.decode(), otypes=[object])(values)
    return list(values) if values.ndim > 1 else values


def _load_pyfunc(path: str) -> RawColumnsModel:
    return RawColumnsModel(Path(path))
