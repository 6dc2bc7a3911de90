"""The requests for a run's points, parameters, tags, artifacts, alias and status in MLflow."""

import base64
import logging
import posixpath
import re
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from mirrorspark.storage import without_credentials

# Limits of one log_batch request (MLflow REST API, "Request Limits").
METRICS_PER_REQUEST = 1000
_ENTRIES_PER_REQUEST = 100

# Identifies the run of a training among runs of the same name, so that a lost answer does not lead to a second run.
RUN_TAG = "mirrorspark.run"

# MLflow's own tags.
NOTE_TAG = "mlflow.note.content"
PARENT_TAG = "mlflow.parentRunId"

# HTTP statuses for requests that are themselves wrong; any other error may be temporary.
_REFUSALS = (400, 404, 409)

_FORBIDDEN_IN_NAME = re.compile(r"[^A-Za-z0-9_\-. /:]")
_NAME_LENGTH = 250

# The system's form of an error, and Python's form of a nested one: ConnectionResetError(104, 'Reset by peer').
_SYSTEM_ERROR = re.compile(r"(?:\[Errno -?\d+\] |\w*Error\(\d+, '|RemoteDisconnected\(')([^'\")\n]+)")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    name: str
    value: float
    step: int
    timestamp_ms: int


@dataclass(frozen=True)
class Target:
    """The run that points and calls belong to.

    Attributes:
        run_id: The run; None if it has not been started yet.
        tracking_uri: Server or store, without user name and password.
        experiment: Name of the experiment for a run that has not been started.
        run_name: Name for a run that has not been started; with it a second start finds the run of the first.
        experiment_id: Id of the experiment, which takes precedence over the name.
        parent_id: The run that a run which has not been started becomes a child of.
        title: Name in MLflow's pages for a run that has not been started; by default the name above.
        joins_parent: Whether the parent itself is the run, unless it has a training already; its status is then left to
            its owner.
    """

    run_id: str | None
    tracking_uri: str
    experiment: str
    run_name: str | None = None
    experiment_id: str | None = None
    parent_id: str | None = None
    joins_parent: bool = False
    title: str | None = None

    def is_same_run(self, other: "Target") -> bool:
        """Return whether values stored for this target belong to the other one's run."""
        if self.run_id is None:
            return self.run_name is not None and self.run_name == other.run_name
        return self.run_id == other.run_id or (other.run_id is None and self.run_name == other.run_name is not None)


def metric_name(name: str) -> str:
    """Return ``name`` as MLflow accepts it: characters it refuses (such as ``@``) become ``_``.

    Names are adapted beforehand, because one refused name would block every metric in the same request.
    """
    name = _FORBIDDEN_IN_NAME.sub("_", name)[:_NAME_LENGTH]
    if name in ("", ".", "..") or name.startswith(("/", "../")) or posixpath.normpath(name) != name:
        name = name.replace("/", "_").replace("..", "__").strip(".") or "_"
    return name


@dataclass(frozen=True)
class RunCall(ABC):
    """A request other than one for points; it can be repeated.

    Texts are cleaned before the call is made; names and paths stay as they are.

    Attributes:
        label: Its name in a message, with its fields in braces.
        is_lasting: Whether it changes nothing if the last call of its label was equal.
    """

    label: ClassVar[str]
    is_lasting: ClassVar[bool] = False

    @abstractmethod
    def send(self, client: Any, run_id: str) -> None:
        """Send the request."""

    def __str__(self) -> str:
        """Return the label."""
        return self.label.format(**vars(self))


@dataclass(frozen=True)
class LogParams(RunCall):
    """Parameters. A resumed run keeps its existing ones, because MLflow does not change them."""

    label = "the parameters"
    is_lasting = True

    params: Mapping[str, str]

    def send(self, client: Any, run_id: str) -> None:
        """Log the parameters that the run does not have."""
        from mlflow.entities import Param

        known = client.get_run(run_id).data.params
        new = [Param(name, value) for name, value in self.params.items() if name not in known]
        for start in range(0, len(new), _ENTRIES_PER_REQUEST):
            client.log_batch(run_id, params=new[start : start + _ENTRIES_PER_REQUEST])


@dataclass(frozen=True)
class SetTags(RunCall):
    """Tags; a new value replaces the old one."""

    label = "the tags"

    tags: Mapping[str, str]

    def send(self, client: Any, run_id: str) -> None:
        """Set the tags."""
        from mlflow.entities import RunTag

        tags = [RunTag(name, value) for name, value in self.tags.items()]
        for start in range(0, len(tags), _ENTRIES_PER_REQUEST):
            client.log_batch(run_id, tags=tags[start : start + _ENTRIES_PER_REQUEST])


@dataclass(frozen=True)
class LogArtifact(RunCall):
    """A small artifact: its path among the run's artifacts, and its content, compressed and in base64 for JSON."""

    label = "{name}"
    is_lasting = True

    name: str
    content: str

    @classmethod
    def of(cls, name: str, content: bytes) -> "LogArtifact":
        """Encode the content."""
        return cls(name, base64.b64encode(zlib.compress(content)).decode("ascii"))

    def send(self, client: Any, run_id: str) -> None:
        """Upload the file, replacing one of that name."""
        name = PurePosixPath(self.name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name.name
            path.write_bytes(zlib.decompress(base64.b64decode(self.content)))
            client.log_artifact(run_id, str(path), str(name.parent) if name.parent.name else None)


@dataclass(frozen=True)
class LogFile(RunCall):
    """A file of the run: its path among the run's artifacts, and its local path, which ends with the same name."""

    label = "{name}"

    name: str
    path: str

    def send(self, client: Any, run_id: str) -> None:
        """Upload the file's current content, replacing an artifact of that name."""
        if Path(self.path).is_file():
            folder = PurePosixPath(self.name).parent
            client.log_artifact(run_id, self.path, str(folder) if folder.name else None)
        else:
            logger.warning("artifact %s is left out: file %s is missing", self.name, self.path)


@dataclass(frozen=True)
class LogFolder(RunCall):
    """A folder of the run: its path among the run's artifacts, and its local path."""

    label = "{name}"

    name: str
    path: str

    def send(self, client: Any, run_id: str) -> None:
        """Upload the folder's current content."""
        if Path(self.path).is_dir():
            client.log_artifacts(run_id, self.path, self.name)
        else:
            logger.warning("artifact %s is left out: folder %s is missing", self.name, self.path)


@dataclass(frozen=True)
class LogInput(RunCall):
    """The dataset that a run learns from; ``source``, ``schema`` and ``profile`` are JSON texts as MLflow has them."""

    label = "dataset {name}"
    is_lasting = True

    name: str
    digest: str
    source: str
    schema: str
    profile: str

    def send(self, client: Any, run_id: str) -> None:
        """Record it as the training's input; a repetition changes nothing."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(self.name, self.digest, "local", self.source, schema=self.schema, profile=self.profile)
        client.log_inputs(run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


@dataclass(frozen=True)
class LogModelMetrics(RunCall):
    """Metrics of a logged model, by which MLflow's page of models compares them; the run has the same points."""

    label = "the metrics of the model"

    model_id: str
    metrics: Mapping[str, float]
    step: int
    timestamp_ms: int

    def send(self, client: Any, run_id: str) -> None:
        """Log the metrics."""
        from mlflow.entities import Metric

        of_model = {"model_id": self.model_id, "run_id": run_id}
        points = [
            Metric(metric_name(name), value, self.timestamp_ms, self.step, **of_model)
            for name, value in self.metrics.items()
        ]
        for start in range(0, len(points), METRICS_PER_REQUEST):
            client.log_batch(run_id, metrics=points[start : start + METRICS_PER_REQUEST])


@dataclass(frozen=True)
class DescribeModel(RunCall):
    """The description of a registered version, in Markdown, and of the logged model that it was made from.

    Attributes:
        model_id: The logged model; None if the version was made from files.
    """

    label = "the description of version {version} of '{model}'"

    model: str
    version: str
    model_id: str | None
    text: str

    def send(self, client: Any, run_id: str) -> None:
        """Set the descriptions."""
        client.update_model_version(self.model, self.version, self.text)
        if self.model_id is not None:
            client.set_logged_model_tags(self.model_id, {NOTE_TAG: self.text})


@dataclass(frozen=True)
class SetAlias(RunCall):
    """A name for a version of a registered model."""

    label = "alias {alias} of '{model}'"

    model: str
    alias: str
    version: str

    def send(self, client: Any, run_id: str) -> None:
        """Set the alias, unless a newer version got it while this call waited."""
        now = client.get_registered_model(self.model).aliases.get(self.alias)
        if now is None or int(now) <= int(self.version):
            client.set_registered_model_alias(self.model, self.alias, self.version)


@dataclass(frozen=True)
class SetStatus(RunCall):
    """The status of a run: ``RUNNING``, ``FINISHED`` or ``FAILED``; the latter two also end it."""

    label = "status {status}"

    status: str

    def send(self, client: Any, run_id: str) -> None:
        """Set the status."""
        if self.status == "RUNNING":
            client.update_run(run_id, status=self.status)
        else:
            client.set_terminated(run_id, self.status)


def to_line(call: RunCall) -> dict[str, Any]:
    """Return the call as a JSON object."""
    return {"call": type(call).__name__, **asdict(call)}


def from_line(line: Mapping[str, Any]) -> RunCall:
    """Return the call for a JSON object of ``to_line``, which may also be an event.

    Raises:
        KeyError: There is no such kind of call.
        TypeError: The object does not have the fields of its kind.
    """
    kinds = {kind.__name__: kind for kind in RunCall.__subclasses__()}
    return kinds[line["call"]](**{name: value for name, value in line.items() if name not in ("call", "event")})


def with_call(calls: tuple[RunCall, ...], call: RunCall) -> tuple[RunCall, ...]:
    """Return the waiting calls with one more, without an earlier artifact or status that it replaces."""

    def is_replaced(waiting: RunCall) -> bool:
        if isinstance(call, LogArtifact | LogFile):
            return isinstance(waiting, LogArtifact | LogFile) and waiting.name == call.name
        return isinstance(call, SetStatus) and isinstance(waiting, SetStatus)

    return (*(waiting for waiting in calls if not is_replaced(waiting)), call)


def start_run(client: Any, target: Target) -> str:
    """Start the run of a target, or find the one that was started before; return its id."""
    from mlflow.tracking.context.registry import resolve_tags

    if target.parent_id is not None and (target.joins_parent or target.experiment_id is None):
        target = _with_parent(client, target)
        if target.run_id is not None:
            return target.run_id
    experiment_id = target.experiment_id or experiment_of(client, target.experiment)
    # The user, the source and what else MLflow gives to every run that it starts itself.
    tags = resolve_tags() | ({PARENT_TAG: target.parent_id} if target.parent_id else {})
    if target.run_name is None:
        return str(client.create_run(experiment_id, tags=tags).info.run_id)
    name = target.run_name.replace("'", "")
    found = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{name}'", max_results=1)
    if found:
        run_id = str(found[0].info.run_id)
        client.update_run(run_id, status="RUNNING")
        return run_id
    run = client.create_run(experiment_id, run_name=target.title or target.run_name, tags=tags | {RUN_TAG: name})
    return str(run.info.run_id)


def _with_parent(client: Any, target: Target) -> Target:
    """Return the target with its parent's experiment, and with the parent as its run if it joins that."""
    parent_id = str(target.parent_id)
    try:
        parent = client.get_run(parent_id)
    except Exception as error:  # clients raise errors of many classes
        if not _is_refusal(error):
            raise
        logger.warning("MLflow's run %s is not there, so another one begins (%s)", parent_id, first_line(error))
        return replace(target, parent_id=None, joins_parent=False)
    target = replace(target, experiment_id=str(parent.info.experiment_id))
    tags, metrics = parent.data.tags, parent.data.metrics
    # Two curves of one name cannot be told apart; Keras logs a loss, too.
    has_training = tags.get(RUN_TAG, target.run_name) != target.run_name or (RUN_TAG not in tags and "loss" in metrics)
    if not target.joins_parent or has_training:
        return target
    client.set_tag(parent_id, RUN_TAG, target.run_name)
    return replace(target, run_id=parent_id)


def experiment_of(client: Any, name: str, artifact_location: str | None = None) -> str:
    """Return the id of the experiment with that name, which is created if it does not exist."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location))
        except Exception:
            # Another run may have created it meanwhile.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def logged_steps(client: Any, run_id: str | None, name: str) -> list[int]:
    """Return the steps at which the run has a value of that metric."""
    return [metric.step for metric in client.get_metric_history(run_id, name)]


def log_points(client: Any, run_id: str | None, points: Sequence[Point]) -> None:
    """Log at most ``METRICS_PER_REQUEST`` values."""
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(p.name, p.value, p.timestamp_ms, p.step) for p in points])


def send_call(client: Any, run_id: str, call: RunCall) -> None:
    """Send a call; if the server refuses it, it is dropped with a warning, so that it does not block later ones."""
    try:
        call.send(client, run_id)
    except Exception as error:  # clients raise errors of many classes
        if not _is_refusal(error):
            raise
        logger.warning("MLflow refused %s of run %s: %s", call, run_id, first_line(error))


def first_line(error: Exception) -> str:
    """Return the message of a client's error, on one line and without secrets."""
    # For a failed connection MLflow and its libraries report a chain of errors, with the system's own at its end.
    if (found := _SYSTEM_ERROR.findall(str(error))) != []:
        return str(found[-1])
    lines = str(error).splitlines() or [type(error).__name__]
    return without_credentials(lines[0])


def _is_refusal(error: Exception) -> bool:
    """Return whether the server rejects the request as wrong, so that resending it would be useless.

    A server that is unreachable, overloaded or requires another token may accept the same request later.
    """
    status = getattr(error, "get_http_status_code", None)
    return status is not None and status() in _REFUSALS
