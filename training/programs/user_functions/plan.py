"""The plan, function and return value that driver and ranks exchange to run a user's training function."""

import base64
import functools
import hashlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pyspark import cloudpickle

from mirrorspark.clear_error import ClearError
from mirrorspark.scoring.input import Column
from mirrorspark.training.protocol import AttemptPlan, PhaseLimits

TrainFn = Callable[..., Any]
FunctionStrategy = Literal["multi_worker_mirrored", "ring", "own"]

# The value passes through Spark's scheduler: enough for metrics and small weights.
MAX_RETURN_BYTES = 8 << 20


class TrainFnError(ClearError, ValueError):
    """A training function cannot be sent to the workers; the message has the reason and advice."""


class UnsupportedKerasError(ClearError, ValueError):
    """A training function fits a model of Keras 3 under a strategy that trains models of tf-keras alone."""


class ReturnValueError(ClearError, ValueError):
    """A training function's return value cannot be sent to the driver; the training itself is finished."""


@dataclass(frozen=True)
class FunctionPlan(AttemptPlan):
    """One attempt to run a training function, which finds its checkpoint itself and chooses its own batch size.

    Attributes:
        strategy: Scope of the function: TensorFlow's strategy, the ring strategy, or the function's own.
        start_limit_seconds: Time limit for connecting the ring strategy.
        model: Folder for a model that the function returns.
        model_columns: The columns that such a model reads; None for those that it names.
    """

    strategy: FunctionStrategy = "multi_worker_mirrored"
    start_limit_seconds: float = PhaseLimits.start_seconds
    model: str = ""
    model_columns: list[str | Column] | None = None

    @property
    def entry(self) -> str:
        """Entry point that calls the function in the payload."""
        return "mirrorspark.training.programs.user_functions.worker:train"

    @classmethod
    def _from_document(cls, document: dict[str, Any]) -> Self:
        columns = document["model_columns"]
        if columns is not None:
            columns = [one if isinstance(one, str) else Column(**one) for one in columns]
        return super()._from_document(document | {"model_columns": columns})


def pack_function(train_fn: TrainFn, kwargs: Mapping[str, Any]) -> bytes:
    """Return the function and its arguments as bytes.

    Raises:
        TrainFnError: They cannot be pickled.
    """
    try:
        return bytes(cloudpickle.dumps((train_fn, dict(kwargs))))
    except Exception as error:  # Pickling runs code of the pickled objects.
        raise TrainFnError(
            f"{function_name(train_fn)} cannot be sent to the workers ({_text(error)}); a function must not hold a "
            f"Spark session, an open file or a lock: make such things within it, or pass plain values as kwargs"
        ) from error


def unpack_function(payload: bytes | None) -> tuple[TrainFn, dict[str, Any]]:
    """Return the arguments of :func:`pack_function`.

    Raises:
        TrainFnError: A module that the function needs is missing here.
    """
    try:
        train_fn, kwargs = pickle.loads(payload or b"")  # noqa: S301 - from our own driver, over an authenticated channel
    except Exception as error:
        raise TrainFnError(
            f"the function cannot be loaded in a worker ({_text(error)}); install the packages that it imports on "
            f"the executors, or ship its module with spark.addArtifacts(file, pyfile=True)"
        ) from error
    return train_fn, kwargs


def pack_value(value: Any) -> str:
    """Return the function's return value as text.

    Raises:
        ReturnValueError: It cannot be pickled, or is too large.
    """
    kind = type(value).__name__
    try:
        pickled = cloudpickle.dumps(value)
    except Exception as error:
        raise ReturnValueError(
            f"the function's result ({kind}) cannot be pickled ({_text(error)}); return numbers, arrays, plain "
            f"containers, or the path of a file that it wrote"
        ) from error
    if len(pickled) > MAX_RETURN_BYTES:
        raise ReturnValueError(
            f"the function's result ({kind}) takes {len(pickled):,} bytes, more than {MAX_RETURN_BYTES:,}; write "
            f"it to a file and return the path"
        )
    return base64.b64encode(pickled).decode()


def unpack_value(text: str) -> Any:
    """Return the argument of :func:`pack_value`.

    Raises:
        ReturnValueError: A module that the value needs is missing here.
    """
    try:
        return pickle.loads(base64.b64decode(text))  # noqa: S301 - from our own rank, through Spark
    except Exception as error:
        raise ReturnValueError(
            f"the function's result cannot be loaded on the driver ({_text(error)}); install the packages of its class "
            f"here, or return plain values"
        ) from error


def function_name(train_fn: TrainFn) -> str:
    """Return the function's name."""
    plain = train_fn.func if isinstance(train_fn, functools.partial) else train_fn
    return str(getattr(plain, "__name__", type(plain).__name__))


def digest_arguments(kwargs: Mapping[str, Any]) -> str:
    """Return twelve hex digits that are equal for equal arguments."""
    return hashlib.sha256(cloudpickle.dumps(dict(kwargs))).hexdigest()[:12]


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
