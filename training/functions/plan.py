"""What travels between driver and ranks that run somebody's own training function: plan, function, return value."""

import base64
import functools
import hashlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pyspark import cloudpickle

from mirrorspark.training.protocol.limits import Limits
from mirrorspark.training.protocol.plan import AttemptPlan

TrainFn = Callable[..., Any]
FunctionStrategy = Literal["multi_worker_mirrored", "ring", "own"]

# It passes through Spark's scheduler, to every task: enough for metrics and small weights.
MAX_RETURN_BYTES = 8 << 20


class TrainFnError(ValueError):
    """A training function that cannot travel to the workers; the message says why and what to do."""


class ReturnValueError(ValueError):
    """What a training function returned cannot come back; the training itself is finished."""


@dataclass(frozen=True)
class FunctionPlan(AttemptPlan):
    """One attempt to run a training function. It looks for its checkpoint itself, and knows its own batch.

    Attributes:
        strategy: The scope it runs in: TensorFlow's, ours, or none where it builds its own.
        start_limit_seconds: How long the ranks of our strategy try to meet.
    """

    strategy: FunctionStrategy = "multi_worker_mirrored"
    start_limit_seconds: float = Limits.start_seconds

    @property
    def entry(self) -> str:
        """Calls the function that travels beside the plan."""
        return "mirrorspark.training.functions.worker:train"


def pack_function(train_fn: TrainFn, kwargs: Mapping[str, Any]) -> bytes:
    """Return the function and its arguments as bytes.

    Raises:
        TrainFnError: They hold what cannot travel.
    """
    try:
        return bytes(cloudpickle.dumps((train_fn, dict(kwargs))))
    except Exception as error:  # pickling runs the code of whatever is in there
        raise TrainFnError(
            f"{name_of(train_fn)} cannot be sent to the workers ({_said(error)}); a function must not hold a Spark "
            f"session, an open file or a lock: make such things within it, or pass plain values as kwargs"
        ) from error


def unpack_function(payload: bytes | None) -> tuple[TrainFn, dict[str, Any]]:
    """Return what :func:`pack_function` was given.

    Raises:
        TrainFnError: It needs something that is not here.
    """
    try:
        train_fn, kwargs = pickle.loads(payload or b"")  # noqa: S301 - our own driver's, over our own channel
    except Exception as error:
        raise TrainFnError(
            f"the function cannot be loaded in a worker ({_said(error)}); install what it imports on the executors, or "
            f"ship its module with spark.sparkContext.addPyFile"
        ) from error
    return train_fn, kwargs


def pack_value(value: Any) -> str:
    """Return the function's return value as text.

    Raises:
        ReturnValueError: It cannot travel, or is too large.
    """
    kind = type(value).__name__
    try:
        pickled = cloudpickle.dumps(value)
    except Exception as error:
        raise ReturnValueError(
            f"what the function returned ({kind}) cannot be pickled ({_said(error)}); return numbers, arrays, plain "
            f"containers, or the path of a file that it wrote"
        ) from error
    if len(pickled) > MAX_RETURN_BYTES:
        raise ReturnValueError(
            f"what the function returned ({kind}) takes {len(pickled):,} bytes, more than {MAX_RETURN_BYTES:,}; write "
            f"it to a file and return the path"
        )
    return base64.b64encode(pickled).decode()


def unpack_value(text: str) -> Any:
    """Return what :func:`pack_value` was given.

    Raises:
        ReturnValueError: It needs something that is not here.
    """
    try:
        return pickle.loads(base64.b64decode(text))  # noqa: S301 - our own rank's, through Spark
    except Exception as error:
        raise ReturnValueError(
            f"what the function returned cannot be loaded on the driver ({_said(error)}); install here what its class "
            f"needs, or return plain values"
        ) from error


def name_of(train_fn: TrainFn) -> str:
    """Return what people call the function."""
    plain = train_fn.func if isinstance(train_fn, functools.partial) else train_fn
    return str(getattr(plain, "__name__", type(plain).__name__))


def digest_of(kwargs: Mapping[str, Any]) -> str:
    """Return twelve hex digits that two runs share whose functions get the same arguments."""
    return hashlib.sha256(cloudpickle.dumps(dict(kwargs))).hexdigest()[:12]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
