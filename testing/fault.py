"""A fault within a rank, and its text form in ``MIRRORSPARK_FAULTS``."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from mirrorspark.training.executor import FAULTS_VARIABLE

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Kind = Literal["kill", "stop", "raise", "no_memory", "hang", "freeze", "hang_input", "slow_input", "full_disk"]

# Default durations: long enough for any watchdog, and finite.
_SECONDS: dict[Kind, float] = {
    "hang": 600.0,
    "freeze": 600.0,
    "hang_input": 600.0,
    "slow_input": 0.1,
    "full_disk": 600.0,
}
_EVERY = "every"


@dataclass(frozen=True)
class Fault:
    """A fault within a rank; as text ``hang:rank=1,step=40``.

    Attributes:
        kind: ``kill`` and ``stop`` (signals to its own process), ``raise`` (an error of the user's code),
            ``no_memory`` (C++ asks for more than there is, and aborts the process), ``hang`` (in Python), ``freeze``
            (holding Python's lock, so that no other thread runs), ``hang_input`` and ``slow_input`` (the training
            data), ``full_disk`` (writes below ``path`` fail; Python's files only).
        rank: The rank; None for every rank.
        step: Optimizer steps before the fault; for faults of the input, batches of this process.
        attempt: The attempt; None for every attempt.
        seconds: Duration, for ``slow_input`` per batch; None for the default.
        path: Folder of ``full_disk``.
    """

    kind: Kind
    rank: int | None = None
    step: int = 1
    attempt: int | None = 1
    seconds: float | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"fault '{self.kind}' is unknown; use one of {list(get_args(Kind))}")
        if self.step < 0:
            raise ValueError(f"fault {self.kind}: step is {self.step}; use 0 or more")
        if self.seconds is not None and not self.seconds >= 0:
            raise ValueError(f"fault {self.kind}: seconds is {self.seconds}; use 0 or more")
        if (self.kind == "full_disk") != (self.path is not None):
            raise ValueError(f"fault {self.kind}: path is {self.path!r}; full_disk needs one, and no other kind does")
        if self.path is not None and set(self.path) & set(",;"):
            raise ValueError(f"fault {self.kind}: path {self.path!r} holds ',' or ';', which separate faults")

    def __str__(self) -> str:
        """Return the text that :func:`parse` reads."""
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        values = {name: value for name, value in vars(self).items() if name != "kind" and value != usual[name]}
        return f"{self.kind}:" + ",".join(f"{n}={_EVERY if v is None else v}" for n, v in values.items())

    @property
    def duration(self) -> float:
        """Duration in seconds; for ``slow_input`` the delay of a batch."""
        return _SECONDS.get(self.kind, 0.0) if self.seconds is None else self.seconds

    @property
    def is_of_input(self) -> bool:
        """True for a fault of the training data, False for one at a step."""
        return self.kind.endswith("_input")

    def applies(self, rank: int, attempt: int) -> bool:
        """Return True if the fault is for this rank and attempt."""
        return self.rank in (None, rank) and self.attempt in (None, attempt)


def parse(text: str) -> tuple[Fault, ...]:
    """Parse a text such as ``hang:rank=1,step=40;slow_input:seconds=0.5,attempt=every``.

    Raises:
        ValueError: The text cannot be parsed.
    """
    return tuple(_parse_one(part) for part in text.split(";") if part.strip())


_READERS: dict[str, Callable[[str], Any]] = {"rank": int, "step": int, "attempt": int, "seconds": float, "path": str}


def _parse_one(text: str) -> Fault:
    kind, _, rest = text.strip().partition(":")
    values: dict[str, Any] = {}
    for pair in filter(None, map(str.strip, rest.split(","))):
        name, _, value = pair.partition("=")
        if name not in _READERS:
            raise ValueError(f"fault '{text}': '{name}' is unknown; use some of {list(_READERS)}")
        try:
            values[name] = None if value == _EVERY and name in ("rank", "attempt") else _READERS[name](value)
        except ValueError as error:
            raise ValueError(f"fault '{text}': {name} '{value}' is not a number") from error
    return Fault(kind, **values)  # type: ignore[arg-type] # Fault checks the kind


@contextlib.contextmanager
def injected(spark: "SparkSession", *faults: Fault) -> Iterator[None]:
    """Inject these faults into the ranks of trainings that start within the block.

    Spark starts separate Python workers for them, so that no other job is affected.
    """
    from mirrorspark.spark_session import session_of  # PySpark, which no worker needs

    environment = session_of(spark).task_environment
    before = environment.get(FAULTS_VARIABLE)
    environment[FAULTS_VARIABLE] = ";".join(map(str, faults))
    try:
        yield
    finally:
        environment.pop(FAULTS_VARIABLE, None)
        if before is not None:
            environment[FAULTS_VARIABLE] = before
