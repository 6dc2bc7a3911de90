"""Loader of an exported model for ``mlflow.pyfunc``, copied into the model so that loading needs no Mirrorspark.

MLflow imports this file under its own name from the model's ``code`` folder. The model takes a DataFrame of raw
columns.
"""

import datetime
import hashlib
import json
import keyword
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

RAW_SIGNATURE = "serving_default"
_NO_TIME = -(2**63)  # sorts before every time
_INVALID_INDEX = -1


class RawColumnsModel:
    """A model whose ``predict`` calls the signature ``serving_default``."""

    def __init__(self, folder: Path) -> None:
        self._model = tf.saved_model.load(str(folder / "saved_model"))
        self._signature = self._model.signatures[RAW_SIGNATURE]
        self._specs = self._signature.structured_input_signature[1]
        document = json.loads((folder / "features" / "features.json").read_bytes())
        types: Mapping[str, str] = document.get("column_types", {})
        # The signature has plain names.
        self._types = {_plain_name(name): type_ for name, type_ in types.items()}
        features: Mapping[str, Mapping[str, Any]] = document["spec"]["features"]
        of_kind = {
            kind: {name: one for name, one in features.items() if one["kind"] == kind}
            for kind in ("date", "sequence", "sparse")
        }
        self._dates = frozenset(map(_plain_name, of_kind["date"]))
        self._times = frozenset(_plain_name(one["time"]) for one in of_kind["sequence"].values())
        # A vector in one column, and the two parts of it that the model takes.
        self._vectors = {
            name: (f"{name}_indices", f"{name}_values")
            for name, one in of_kind["sparse"].items()
            if one.get("indices") is None
        }
        self._names = {_plain_name(name): name for name in (*types, *features, *sum(self._vectors.values(), ()))}

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return one row of outputs per row of ``model_input``; null, NaN and "" are missing values."""
        columns = {str(name): model_input[name] for name in model_input.columns}
        for name, parts in self._vectors.items():
            if name in columns and not columns.keys() >= {*parts}:
                entries = [_entries(vector) for vector in columns[name]]
                columns |= {part: pd.Series([pair[place] for pair in entries]) for place, part in enumerate(parts)}
        columns = {_plain_name(name): column for name, column in columns.items()}
        if missing := sorted(self._names.get(name, name) for name in set(self._specs) - set(columns)):
            raise ValueError(
                f"the columns {missing} are missing; the table has {sorted(map(str, model_input.columns))}"
            )
        inputs = {name: self._read(name, columns[name], spec) for name, spec in self._specs.items()}
        outputs = self._signature(**{name: tf.constant(values) for name, values in inputs.items()})
        return pd.DataFrame(
            {name: _column(value.numpy()) for name, value in sorted(outputs.items())}, index=model_input.index
        )

    def _read(self, name: str, column: pd.Series, spec: tf.TensorSpec) -> np.ndarray:
        try:
            return self._raw(name, column, spec)
        except (TypeError, ValueError, OverflowError) as error:
            trained = f"; the model was trained with {self._types[name]}" if name in self._types else ""
            raise ValueError(f"column '{self._names.get(name, name)}' cannot be read: {error}{trained}") from error

    def _raw(self, name: str, column: pd.Series, spec: tf.TensorSpec) -> np.ndarray:
        if spec.shape.rank == 1 and spec.dtype == tf.float64:
            return _numbers(column)
        if spec.dtype == tf.string:
            of_value: Callable[[Any], Any] = _date if name in self._dates else _token_of(self._types.get(name, ""))
        elif spec.dtype == tf.int64 and name in self._times:
            of_value = _time
        else:
            of_value = spec.dtype.as_numpy_dtype
        missing: Any = {tf.string: "", tf.float64: np.nan, tf.int64: _INVALID_INDEX}[spec.dtype]
        missing = _NO_TIME if name in self._times else missing

        def read(value: Any) -> Any:
            return missing if _is_missing(value) else of_value(value)

        if spec.shape.rank == 1:
            return np.array([read(value) for value in column], dtype=object)
        # The value for a missing element also pads a shorter list: no token, NaN, or an invalid index.
        lists = [[] if _is_missing(value) else _list(value) for value in column]
        padded = np.full((len(lists), max(map(len, lists), default=0)), missing, dtype=object)
        for row, values in enumerate(lists):
            padded[row, : len(values)] = [read(value) for value in values]
        return padded if spec.dtype == tf.string else padded.astype(spec.dtype.as_numpy_dtype)


def _plain_name(name: str) -> str:
    """Return the name of an input of the signature, as ``plain_name`` of :mod:`data_pipelines.features.names` does."""
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,99}", name) and name not in ("self", *keyword.kwlist):
        return name
    readable = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:40]
    start = readable if readable[:1].isalpha() else f"column_{readable}".rstrip("_")
    return f"{start}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _numbers(column: pd.Series) -> np.ndarray:
    if pd.api.types.is_numeric_dtype(column.dtype):
        return np.asarray(column.to_numpy(dtype="float64", na_value=np.nan))
    return np.array([np.nan if _is_missing(value) else _number(value) for value in column], np.float64)


def _number(value: Any) -> float:
    if isinstance(value, str):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _token_of(trained: str) -> Callable[[Any], str | bytes]:
    """Return the function that writes a value as in training, given the Arrow type of the column or list there.

    pandas has whole numbers and booleans as floats where one of them is missing.
    """
    if "int" in trained:
        return lambda value: value if isinstance(value, str) else str(_whole(value))
    if "bool" in trained:
        return lambda value: value if isinstance(value, str) else _boolean(value)
    return _text if "string" in trained else _token


def _whole(value: Any) -> int:
    if isinstance(value, bool | np.bool_) or value != int(value):
        raise ValueError(f"{value!r} is not a whole number")
    return int(value)


def _boolean(value: Any) -> str:
    if value not in (0, 1):
        raise ValueError(f"{value!r} is not a boolean")
    return str(bool(value)).lower()


def _text(value: Any) -> str | bytes:
    if not isinstance(value, str | bytes | bytearray):
        raise TypeError(f"{value!r} is not a text")
    return _token(value)


def _list(value: Any) -> list[Any]:
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        raise TypeError(f"{value!r} is not a list")
    return list(value)


def _token(value: Any) -> str | bytes:
    if isinstance(value, bytes | bytearray):  # Spark's rows have the second
        return bytes(value)
    # Booleans become the tokens that Arrow and SQL write.
    return str(value).lower() if isinstance(value, bool | np.bool_) else str(value)


def _date(value: Any) -> str:
    if isinstance(value, np.datetime64):
        value = pd.Timestamp(value)
    is_date = isinstance(value, datetime.date | datetime.time)  # Timestamp and datetime are dates
    return str(value.isoformat()) if is_date else str(value)


def _time(value: Any) -> int:
    is_date = isinstance(value, np.datetime64 | datetime.date)
    return int(pd.Timestamp(value).as_unit("us").value) if is_date else int(value)


def _entries(vector: Any) -> tuple[list[int], list[float]]:
    """Return indices and values of a vector of Spark, as such or as its struct, or of a map, also as pairs."""
    if _is_missing(vector):
        return [], []
    if isinstance(vector, Mapping) and {"indices", "values"} <= set(vector):
        vector = (
            list(vector["values"])
            if vector["indices"] is None
            else zip(vector["indices"], vector["values"], strict=True)
        )
    elif hasattr(vector, "toArray"):
        vector = vector.toArray()
    if isinstance(vector, np.ndarray) and vector.dtype != object:
        vector = vector.tolist()
    if isinstance(vector, list) and not (vector and isinstance(vector[0], tuple | list | np.ndarray)):
        vector = [(place, value) for place, value in enumerate(vector) if value != 0]
    pairs = list(vector.items() if isinstance(vector, Mapping) else vector)
    return [int(index) for index, _ in pairs], [np.nan if value is None else float(value) for _, value in pairs]


def _is_missing(value: Any) -> bool:
    is_nan = isinstance(value, float | np.floating | Decimal) and value != value
    return value is None or value is pd.NA or value is pd.NaT or is_nan


def _column(values: np.ndarray) -> Any:
    if values.dtype == object:
        values = np.vectorize(lambda token: token.decode(), otypes=[object])(values)
    return list(values) if values.ndim > 1 else values


def _load_pyfunc(path: str) -> RawColumnsModel:
    return RawColumnsModel(Path(path))
