"""Backend for linear models, computed by NumPy: ``outputs = inverse link(inputs @ coefficients + intercept)``.

These are generalised linear models (McCullagh and Nelder, *Generalized Linear Models*, 1989, chapter 2). ``link`` maps
the mean of the outcome to the linear predictor, so the model's output is the inverse link.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mirrorspark.scoring.backends.protocol import ArrayType, Signature, UnsupportedModelError, thread_count
from mirrorspark.storage import read_text

INPUT, OUTPUT = "features", "score"
FIELDS = ("coefficients", "intercept", "link")


def _identity(values: np.ndarray) -> np.ndarray:
    return values


def _logistic(values: np.ndarray) -> np.ndarray:
    # Only negative values are exponentiated, so that nothing overflows.
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1.0, small) / (1.0 + small)


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


_INVERSE_LINKS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": _identity,
    "logit": _logistic,
    "log": np.exp,
    "softmax": _softmax,
}


class LinearBackend:
    """Coefficients by the names of their columns, in a JSON file.

    ::

        {"coefficients": {"distance": 0.25, "hour": -1.0}, "intercept": 0.5, "link": "logit"}

    The default intercept is 0 and the default link ``identity``. With several outputs, such as classes of ``softmax``,
    each coefficient and the intercept are lists with one number per output.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """Read the coefficients.

        Args:
            path: The file.
            threads: Reported number of NumPy's threads, which the process limits; None means one per core.

        Raises:
            UnsupportedModelError: The file does not hold a linear model.
        """
        self.threads = thread_count(threads)
        document = _document(path)
        coefficients = document["coefficients"]
        try:
            self._coefficients = np.array(list(coefficients.values()), np.float64)
            self._intercept = np.array(document.get("intercept", 0.0), np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise UnsupportedModelError(
                f"{path}: coefficients and intercept must be numbers, or lists of one number per output ({error})"
            ) from error
        link = document.get("link", "identity")
        _check(path, self._coefficients, self._intercept, link)
        self._inverse_link = _INVERSE_LINKS[link]
        width = 1 if self._coefficients.ndim == 1 else self._coefficients.shape[1]
        self.signature = Signature(
            (ArrayType(INPUT, "double", (None, len(coefficients))),),
            (ArrayType(OUTPUT, "double", (None, width)),),
            tuple(coefficients),
        )

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the means that the model predicts: ``[rows]``, or ``[rows, outputs]``."""
        linear = inputs[INPUT] @ self._coefficients + self._intercept
        return dict.fromkeys(outputs, self._inverse_link(linear))


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UnsupportedModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise UnsupportedModelError(f"{path} must be a JSON object of {list(FIELDS)}")
    if unknown := sorted(set(document) - set(FIELDS)):
        raise UnsupportedModelError(f"{path} has {unknown}, which no linear model has; give {list(FIELDS)}")
    if not isinstance(document.get("coefficients"), dict) or not document["coefficients"]:
        raise UnsupportedModelError(f"{path}: coefficients must be an object of one coefficient per column")
    return document


def _check(path: Path, coefficients: np.ndarray, intercept: np.ndarray, link: str) -> None:
    if not isinstance(link, str) or link not in _INVERSE_LINKS:
        raise UnsupportedModelError(f"{path}: link '{link}' is unknown; use one of {sorted(_INVERSE_LINKS)}")
    if intercept.shape not in ((), coefficients.shape[1:]) or coefficients.ndim > 2:
        raise UnsupportedModelError(
            f"{path}: intercept has the shape {intercept.shape}, every coefficient {coefficients.shape[1:]}; give each "
            f"one number, or one number per output"
        )
    if link == "softmax" and coefficients.ndim == 1:
        raise UnsupportedModelError(f"{path}: softmax is of several outputs; give every coefficient one per class")
