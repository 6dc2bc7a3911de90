"""What a training tells MLflow beside its metrics (parameters, tags, artifacts), in a form that a file can keep."""

import base64
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

# What one log_batch request may carry (MLflow REST API, "Request Limits").
_ENTRIES_PER_REQUEST = 100

# Statuses of HTTP with which a server says that this very request is wrong; any other error may be gone later.
_REFUSALS = (400, 404, 409)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LogParams:
    """Parameters. A run that goes on keeps those it has: MLflow does not change them."""

    params: Mapping[str, str]

    def send(self, client: Any, run_id: str) -> None:
        """Log those that the run does not have."""
        from mlflow.entities import Param

        known = client.get_run(run_id).data.params
        new = [Param(name, value) for name, value in self.params.items() if name not in known]
        for start in range(0, len(new), _ENTRIES_PER_REQUEST):
            client.log_batch(run_id, params=new[start : start + _ENTRIES_PER_REQUEST])

    def __str__(self) -> str:
        """Name the call in a message."""
        return "the parameters"


@dataclass(frozen=True)
class SetTags:
    """Tags; a new value replaces the old one."""

    tags: Mapping[str, str]

    def send(self, client: Any, run_id: str) -> None:
        """Set them."""
        from mlflow.entities import RunTag

        tags = [RunTag(name, value) for name, value in self.tags.items()]
        for start in range(0, len(tags), _ENTRIES_PER_REQUEST):
            client.log_batch(run_id, tags=tags[start : start + _ENTRIES_PER_REQUEST])

    def __str__(self) -> str:
        """Name the call in a message."""
        return "the tags"


@dataclass(frozen=True)
class LogArtifact:
    """A file: its path among the run's artifacts, and its content in base64, which JSON can hold."""

    name: str
    base64: str

    @classmethod
    def of(cls, name: str, content: bytes) -> "LogArtifact":
        """Wrap the content."""
        return cls(name, base64.b64encode(content).decode("ascii"))

    def send(self, client: Any, run_id: str) -> None:
        """Upload it; it replaces one of that name."""
        name = PurePosixPath(self.name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name.name
            path.write_bytes(base64.b64decode(self.base64))
            client.log_artifact(run_id, str(path), str(name.parent) if name.parent.name else None)

    def __str__(self) -> str:
        """Name the call in a message."""
        return self.name


@dataclass(frozen=True)
class LogFolder:
    """A folder that is too large to keep twice: where it lies, and its path among the run's artifacts."""

    name: str
    path: str

    def send(self, client: Any, run_id: str) -> None:
        """Upload what is in it now."""
        if Path(self.path).is_dir():
            client.log_artifacts(run_id, self.path, self.name)
        else:
            logger.warning("artifact %s is left out: folder %s is gone", self.name, self.path)

    def __str__(self) -> str:
        """Name the call in a message."""
        return self.name


@dataclass(frozen=True)
class SetAlias:
    """A name for a version of a registered model."""

    model: str
    alias: str
    version: str

    def send(self, client: Any, run_id: str) -> None:
        """Set it, unless a newer version got it while this call waited."""
        now = client.get_registered_model(self.model).aliases.get(self.alias)
        if now is None or int(now) <= int(self.version):
            client.set_registered_model_alias(self.model, self.alias, self.version)

    def __str__(self) -> str:
        """Name the call in a message."""
        return f"alias {self.alias} of '{self.model}'"


@dataclass(frozen=True)
class SetStatus:
    """How the run ended: ``FINISHED`` or ``FAILED``."""

    status: str

    def send(self, client: Any, run_id: str) -> None:
        """End the run."""
        client.set_terminated(run_id, self.status)

    def __str__(self) -> str:
        """Name the call in a message."""
        return f"status {self.status}"


RunCall = LogParams | SetTags | LogArtifact | LogFolder | SetAlias | SetStatus

_KINDS: dict[str, type[RunCall]] = {
    "params": LogParams,
    "tags": SetTags,
    "artifact": LogArtifact,
    "folder": LogFolder,
    "alias": SetAlias,
    "status": SetStatus,
}


def to_line(call: RunCall) -> dict[str, Any]:
    """Return the call as a JSON object."""
    kind = next(name for name, of in _KINDS.items() if of is type(call))
    return {"call": kind, **asdict(call)}


def from_line(line: Mapping[str, Any]) -> RunCall:
    """Return the call that ``to_line`` made into a JSON object.

    Raises:
        KeyError: There is no such kind of call.
        TypeError: It does not have the fields of its kind.
    """
    return _KINDS[line["call"]](**{name: value for name, value in line.items() if name != "call"})


def with_call(calls: tuple[RunCall, ...], call: RunCall) -> tuple[RunCall, ...]:
    """Return the waiting calls and one more; it takes the place of an artifact or status that it replaces."""

    def is_replaced(waiting: RunCall) -> bool:
        if isinstance(call, LogArtifact):
            return isinstance(waiting, LogArtifact) and waiting.name == call.name
        return isinstance(call, SetStatus) and isinstance(waiting, SetStatus)

    return (*(waiting for waiting in calls if not is_replaced(waiting)), call)


def is_refusal(error: Exception) -> bool:
    """Whether the server says that the request is wrong, so that sending it again is of no use.

    A server that is away, overloaded or wants another token may take the same request later.
    """
    status = getattr(error, "get_http_status_code", None)
    return status is not None and status() in _REFUSALS
