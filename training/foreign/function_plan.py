"""What travels between driver and ranks that run somebody's own training function: plan, function, return value."""

import base64
import dataclasses
import dis
import functools
import hashlib
import json
import pickle
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, Literal

from pyspark import cloudpickle

from training.channel.events import EventAddress

TrainFn = Callable[..., Any]
FunctionStrategy = Literal["multi_worker_mirrored", "ring", "own"]

# It passes through Spark's scheduler, to every task: enough for metrics and small weights.
MAX_RETURN_BYTES = 8 << 20


class TrainFnError(ValueError):
    """A training function that cannot travel to the workers; the message says why and what to do."""


class ReturnValueError(ValueError):
    """What a training function returned cannot come back; the training itself is finished."""


@dataclass(frozen=True)
class FunctionPlan:
    """One attempt to run a training function.

    Attributes:
        workers: Number of ranks.
        checkpoints: Folder or store that the function is told to use.
        strategy: The scope it runs in: TensorFlow's, ours, or none where it builds its own.
        start_limit_seconds: How long the ranks of our strategy try to meet.
        verbose: Whether TensorFlow's own log is let through.
        threads: TensorFlow threads of a rank; None for what its Spark task has.
        attempt: Counts from 1.
        resume_from: Newest whole checkpoint of ours, as the supervisor sees it; the function looks for itself.
        events: Where the driver listens.
        token: Secret by which the ranks know each other.
        global_batch_size: The supervisor's; the function knows its own.
        learning_rate_scale: Likewise.
        fence: Id of the fence that is up for this attempt (`callbacks.fence`); None where there is none.
    """

    workers: int
    checkpoints: str
    strategy: FunctionStrategy = "multi_worker_mirrored"
    start_limit_seconds: float = 300.0
    verbose: bool = False
    threads: int | None = None
    attempt: int = 1
    resume_from: str | None = None
    events: EventAddress = dataclasses.field(default_factory=lambda: EventAddress("", 0, ""))
    token: str = dataclasses.field(default_factory=lambda: secrets.token_hex(32), repr=False)
    global_batch_size: int = 0
    learning_rate_scale: float = 1.0
    fence: str | None = None

    @property
    def ranks(self) -> int:
        """Number of all ranks: workers, all of them."""
        return self.workers

    @property
    def dispensable_ranks(self) -> frozenset[int]:
        """The ranks without which a training goes on: none."""
        return frozenset()

    def to_json(self) -> str:
        """Return the plan as one line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "FunctionPlan":
        """Read what :meth:`to_json` wrote."""
        document = json.loads(text)
        return cls(**document | {"events": EventAddress(**document["events"])})


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


def fingerprint(train_fn: TrainFn, kwargs: Mapping[str, Any]) -> str:
    """Return twelve hex digits that stay the same as long as the function's code and its values do.

    What counts: its code, its arguments and their defaults, what it holds, the plain values (numbers, texts, and lists,
    tuples, sets and dictionaries of them) among its module's globals that it names, and the functions of its module
    that it names, with all that counts of them. A global that is another one each time, such as the time of its cell,
    makes each run a new one: pass it as an argument, or make it within the function.

    What does not count: where the code stands (file, line, notebook cell), classes, and what other modules hold.
    """
    return _fingerprint(train_fn, kwargs, frozenset())


def _fingerprint(train_fn: TrainFn, kwargs: Mapping[str, Any], within: frozenset[int]) -> str:
    """Return the fingerprint; of the functions ``within`` which it stands (by ``id``) nothing is said again."""
    plain = train_fn.func if isinstance(train_fn, functools.partial) else train_fn
    plain = getattr(plain, "__func__", plain)
    within |= {id(plain)}
    code = getattr(plain, "__code__", None)
    values = [kwargs, getattr(plain, "__defaults__", None), getattr(plain, "__kwdefaults__", None)]
    values += [cell.cell_contents for cell in getattr(plain, "__closure__", None) or () if _is_filled(cell)]
    values += [train_fn.args, train_fn.keywords] if isinstance(train_fn, functools.partial) else []
    digest = hashlib.sha256(repr(_plain_code(code)).encode() if code else cloudpickle.dumps(train_fn))
    digest.update(b"".join(_bytes_of(value, within) for value in values))
    for name in sorted(set(_globals_named(code))) if code else ():
        value = plain.__globals__.get(name)
        if isinstance(value, FunctionType) and value.__globals__ is plain.__globals__:
            digest.update(name.encode() + _bytes_of(value, within))
        elif _is_plain(value):
            digest.update(f"{name} {_ordered(value)!r}".encode())
    return digest.hexdigest()[:12]


def _bytes_of(value: Any, within: frozenset[int]) -> bytes:
    if not isinstance(value, FunctionType):
        return bytes(cloudpickle.dumps(value))
    # A function within the function: pickled, it would tell where it stands.
    return b"itself" if id(value) in within else _fingerprint(value, {}, within).encode()


def _globals_named(code: CodeType) -> Iterator[str]:
    """Yield the globals that a function's code reads, and that of the functions in it; attributes are no globals."""
    for instruction in dis.get_instructions(code):
        # Python's own, such as __file__, tell where the code stands.
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and not instruction.argval.startswith("__"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_named(constant)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return isinstance(value, dict) and all(_is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | complex | str | bytes)


def _ordered(value: Any) -> Any:
    """Return a plain value that looks the same in every process: of sets the order differs."""
    if isinstance(value, dict):
        return [(key, _ordered(part)) for key, part in value.items()]
    if isinstance(value, set | frozenset):
        return "set", sorted(map(repr, value))
    return [type(value).__name__, *map(_ordered, value)] if isinstance(value, list | tuple) else value


def _plain_code(code: CodeType) -> tuple[Any, ...]:
    constants = [_plain_code(one) if isinstance(one, CodeType) else one for one in code.co_consts]
    # In a frozenset (`x in {"a", "b"}`) strings stand in another order in every process.
    ordered = [sorted(map(repr, one)) if isinstance(one, frozenset) else one for one in constants]
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, ordered


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a function that refers to itself before it is complete
        return False


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
