"""The classification of a worker's error by cause, and its event for the driver."""

import errno
import socket
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mirrorspark
from mirrorspark.callbacks.checkpoints import CheckpointDamagedError, checkpoint_store, fencing
from mirrorspark.callbacks.collectives import WeightsDifferError
from mirrorspark.clear_error import ClearError
from mirrorspark.storage import StoreUnreachableError, out_of_memory, without_credentials
from mirrorspark.training.protocol.outcomes import Phase
from mirrorspark.training.protocol.ring import RingChecksumError, RingConnectError, RingError

# Longest message of an error; the traceback may be longer.
MESSAGE_LENGTH = 4000
_TRACEBACK_LENGTH = 8000

MORE_MEMORY = (
    "give the workers' machines more memory, start fewer workers on each, or set a smaller --global-batch-size or a "
    "larger --accumulate"
)


class EntryError(ClearError, ImportError):
    """The function that trains, or the class of its plan, cannot be imported here."""


def describe(error: BaseException, phase: Phase = "training") -> dict[str, Any]:
    """Return the error as an event.

    Args:
        error: The error that ended the training.
        phase: Phase in which it was raised.

    Returns:
        ``cause`` is one of :data:`training.protocol.outcomes.Cause`: ``peer`` if the error shows another rank's end,
        ``start`` if the worker never began to train (a taken port, an unreachable rank, an import), ``store`` if the
        store of the files failed, ``machine`` if memory, threads, file descriptors or the network failed, ``user`` if
        it comes from the model, the data or the configuration, and would recur, and otherwise ``unknown``. Secrets are
        removed from message and traceback. If the error has the step in which it began, the event has ``epoch`` and
        ``step_in_epoch``.
    """
    return {
        "event": "error",
        "is_from_tensorflow": _is_from_tensorflow(error),
        "cause": _cause(error, phase),
        "type": type(error).__name__,
        "message": _message(error),
        "traceback": without_credentials("".join(traceback.format_exception(error)))[-_TRACEBACK_LENGTH:],
        **{name: number for name in _WHERE_IT_BEGAN if isinstance(number := getattr(error, name, None), int)},
    }


def _message(error: BaseException) -> str:
    """Return the message of an error; for lack of memory, where the message may be empty, with a remedy."""
    # Secrets are removed before the texts are cut, since half a secret would not be found.
    text = without_credentials(str(error))
    # TensorFlow reports lack of memory after lines about the graph.
    reports = [line for line in text.splitlines() if out_of_memory.is_reported_in(line)]
    if isinstance(error, MemoryError) or (reports and (isinstance(error, OSError) or _is_from_tensorflow(error))):
        return f"{(reports or [text or 'memory has run out'])[0].strip()[:MESSAGE_LENGTH]}; {MORE_MEMORY}"
    return text[:MESSAGE_LENGTH]


# Attributes of errors that are noticed some steps after they began.
_WHERE_IT_BEGAN = ("epoch", "step_in_epoch")

_STARTING: frozenset[Phase] = frozenset({"starting", "connecting"})

# Classes and messages of the errors of the other ranks' collectives after a rank has ended.
_PEER_CLASSES = ("UnavailableError", "AbortedError", "CancelledError", "DeadlineExceededError")
_PEER_MESSAGES = (
    "RingError",  # Raised by our ring within an operation of TensorFlow, which passes on only its name and text.
    "Socket closed",
    "Connection reset",
    "Collective ops is aborted",
    "coordination service",
    "heartbeat",
)

# A port that was free when the runner distributed the cluster's addresses may be taken when it is bound.
_PORT_MESSAGES = ("Could not start gRPC server", "Address already in use")

_STORE_MESSAGES = ("No space left on device", "Stale file handle", "Input/output error")

_MACHINE_MESSAGES = (
    "Too many open files",
    "Cannot allocate memory",
    "Resource temporarily unavailable",
    "Network is unreachable",
    "No route to host",
    "Cannot assign requested address",
    "No buffer space available",
    "can't start new thread",
    "Temporary failure in name resolution",
    "RingChecksumError",  # Raised by our ring within an operation of TensorFlow.
)

# Errors of a disk that is full, broken, remounted read-only or gone.
_STORE_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.ENODEV, errno.ENXIO, errno.ENOTCONN}
)

# Errors of a machine whose limits are reached, or whose network is down. Another process may be the reason.
_MACHINE_ERRORS = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EAGAIN,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EADDRNOTAVAIL,
        errno.ENOBUFS,
    }
)

# Errors that the same code raises again on the same data, whichever library notices them.
_RECURRING = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    RecursionError,
    NotImplementedError,
    SyntaxError,
    TypeError,
    ValueError,
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
# TensorFlow's other errors name the fault of the operation, its inputs or its files.
_UNKNOWN_TENSORFLOW_CLASSES = ("DataLossError", "InternalError", "ResourceExhaustedError", "UnknownError")

# Folders of code that is not the user's own: installed packages, and this one, whose parts are links in a clone.
_PACKAGE = Path(mirrorspark.__file__).parent
_LIBRARIES = (
    *(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *(part.resolve() for part in (_PACKAGE, *_PACKAGE.iterdir()) if part.is_dir()),
)


def _cause(error: BaseException, phase: Phase) -> str:
    """Return the cause of the error, or of the errors that it was raised from."""
    causes = (_own_cause(one, phase) for one in _chain(error))
    known = next((cause for cause in causes if cause is not None), None)
    return known or ("user" if any(_is_known_to_recur(one) for one in _chain(error)) else "unknown")


def _is_known_to_recur(error: BaseException) -> bool:
    """Return True if the user's own code raised the error, or its class shows a fault of code or data."""
    if _is_from_tensorflow(error):
        # An exception of a Python function within the graph arrives with its traceback.
        is_python = "Traceback (most recent call last)" in str(error)
        return is_python or type(error).__name__ not in _UNKNOWN_TENSORFLOW_CLASSES
    if isinstance(error, _RECURRING) or type(error).__module__.split(".")[0] == "mirrorspark":
        return True
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return True
    raised_in = frames[-1].filename
    return not (raised_in.startswith("<frozen") or any(Path(raised_in).resolve().is_relative_to(f) for f in _LIBRARIES))


def _own_cause(error: BaseException, phase: Phase) -> str | None:
    match error:
        case RingConnectError() | EntryError():
            return "start"
        # If a checkpoint is damaged, the driver finds an older one that is whole.
        case checkpoint_store.CheckpointStoreError() | StoreUnreachableError() | CheckpointDamagedError():
            return "store"
        case fencing.StaleAttemptError():  # A later attempt has taken over.
            return "peer"
        case RingChecksumError() | WeightsDifferError():
            return "machine"
        case RingError():
            return "start" if phase in _STARTING else "peer"
        case OSError(errno=errno.EADDRINUSE):
            return "start"
        case OSError(errno=number) if number in _STORE_ERRORS:
            return "store"
        case OSError(errno=number) if number in _MACHINE_ERRORS:
            return "machine"
        case socket.gaierror(errno=socket.EAI_AGAIN):  # Its numbers are not those of other errors.
            return "machine"
        case MemoryError():  # The machine's memory may be short, or a single array far too large.
            return "unknown"
        case RuntimeError() if "can't start new thread" in str(error):
            return "machine"
        case ConnectionError() | TimeoutError() if phase in _STARTING:
            return "start"
    if not _is_from_tensorflow(error):
        return None
    text = str(error)
    if any(message in text for message in _STORE_MESSAGES):
        return "store"
    if any(message in text for message in _PORT_MESSAGES) or "RingConnectError" in text:
        return "start"
    if any(message in text for message in _MACHINE_MESSAGES):
        return "machine"
    if type(error).__name__ in _PEER_CLASSES or any(message in text for message in _PEER_MESSAGES):
        return "start" if phase in _STARTING else "peer"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and those that it was raised from, but not those that it merely followed in an ``except``."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__


def _is_from_tensorflow(error: BaseException) -> bool:
    if "tensorflow" not in sys.modules:  # Failed before TensorFlow was imported, or because it is missing.
        return False
    from tensorflow import errors

    return isinstance(error, errors.OpError)
