"""The MLflow run of a training, owned by the driver: one run, however many attempts."""

import contextlib
import io
import json
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from mlflow.exceptions import InvalidUrlException, MlflowException

from callbacks.credentials import HIDDEN, clean, is_secret_name, without_credentials
from callbacks.metric_buffer import MetricBuffer
from callbacks.metric_requests import experiment_of, first_line, start_run
from callbacks.metric_spill import Target
from callbacks.mlflow_store import limit_requests, registry_of, store_client
from callbacks.run_calls import LogArtifact, LogFolder, LogParams, SetAlias, SetStatus, SetTags
from callbacks.usage_metrics import STEP_PREFIX as _STEP_PREFIX
from callbacks.usage_metrics import named
from training.channel.events import Event

# MLflow's own limit for a parameter's value.
_PARAM_CHARACTERS = 6000


class TrackingError(RuntimeError):
    """The MLflow store refused; the message names it and what it said."""


def default_uri(output: Path) -> str:
    """Return the SQLite store under ``output``."""
    return f"sqlite:///{output.absolute() / 'mlflow.db'}"


logger = logging.getLogger(__name__)

# How long a run waits at its end for a server that is away, before it leaves a file and the command that replays it.
_CLOSE_SECONDS = 30.0
# How long one whose model is to be registered waits for it.
_SERVER_SECONDS = 60.0

# Points over optimizer steps, and of the machines: enough for a curve, and few requests.
_STEP_SECONDS = 5.0
_SYSTEM_SECONDS = 10.0
_LINGER_SECONDS = 5.0


class TrackedRun:
    """One MLflow run that the driver owns, however many attempts it takes; a server that is away does not stop it.

    Everything is sent in the background. While an ``http`` server is away, even from the start, it waits in memory;
    what could not be sent by the end lies in a file, and ``finish`` returns the command that replays it. A store that
    says no (a deleted experiment, wrong credentials) is refused at the start. The store is the one that it is given:
    what else MLflow is set to, or ``MLFLOW_TRACKING_URI`` names, is neither used nor changed.

    - over epochs: the metrics of the epoch, ``seconds_per_epoch``, ``examples_per_second``
    - over optimizer steps: ``step/loss``, ``step/examples_per_second``, ``world_size``
    - over the attempts, those of earlier drivers included: ``attempt``, whose points tell when each began
    - over the run's seconds: ``system/worker_0/...``, which MLflow shows as system metrics
    - tags ``attempts`` and ``workers``, and the artifact ``attempts.json``, as attempts come and go
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        output: Path,
        run_id: str | None,
        run_name: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Continue ``run_id``, or start a run; a server that is away gets it later.

        Args:
            uri: Store or server.
            experiment: Made where there is none of that name.
            output: Folder for what could not be sent.
            run_id: The run to continue; None starts one, or finds the one of ``run_name``.
            run_name: Unique among the trainings that share the experiment.
            clock: Returns seconds; monotonic.

        Raises:
            TrackingError: The store cannot be opened.
        """
        limit_requests()
        # Nor need anybody read which tables it makes in a new store.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        # Of a server that is away, one warning of ours is enough.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        self.uri = uri
        # One answer for all that follows: a notebook may set MLflow to another store while the run goes on.
        self.registry_uri = registry_of(uri)
        self._clock = clock
        self._lock = threading.Lock()
        self._due: dict[object, float] = {}
        self._attempts: list[dict[str, Any]] = []
        self._world_size_step = 0
        self._began = time.time()
        self.experiment_id: str | None = None
        try:
            self.client = store_client(uri, self.registry_uri)
            run_id = self._opened(experiment, output, run_id, run_name)
        except (MlflowException, OSError) as error:
            if not (uri.startswith(("http://", "https://")) and is_outage(error)):
                raise _refusal(f"the MLflow store {uri} cannot be opened", error) from None
            logger.warning(
                "MLflow at %s is away (%s); the training begins, and what it tells is sent later",
                without_credentials(uri),
                first_line(error),
            )
        self._buffer = MetricBuffer(
            self.client,
            run_id,
            experiment=experiment,
            run_name=run_name,
            # Not by the run's id, which the server may not have given yet.
            spill_path=output / f"mlflow-metrics-{run_name}.jsonl",
            linger_seconds=_LINGER_SECONDS,
        )

    def _opened(self, experiment: str, output: Path, run_id: str | None, run_name: str) -> str:
        """Return the id of the run, which is under way from now on."""
        # A database store would put artifacts into the working directory; a server knows its own place.
        location = (output.absolute() / "mlartifacts").as_uri() if self.uri.startswith("sqlite:") else None
        self.experiment_id = experiment_of(self.client, experiment, location)
        if run_id is None:
            run_id = start_run(self.client, Target(None, self.uri, experiment, run_name))
        try:
            self.client.update_run(run_id, status="RUNNING")
            # A resumed run's seconds go on where they ended.
            self._began = self.client.get_run(run_id).info.start_time / 1000
        except (MlflowException, OSError) as error:
            if is_outage(error):
                return run_id
            raise _refusal(f"MLflow run {run_id} cannot go on (--no-resume starts a new one)", error) from None
        return run_id

    @property
    def run_id(self) -> str | None:
        """The run; None as long as the server has not been there."""
        return self._buffer.run_id

    def require_run_id(self) -> str:
        """Return the run's id, once everything that waits has been sent or has had its time.

        Raises:
            TrackingError: The server has not been there yet.
        """
        self._buffer.flush(_SERVER_SECONDS)
        if self._buffer.run_id is None:
            raise self._still_away()
        return self._buffer.run_id

    def require_server(self) -> str:
        """Return the run's id, once the server takes what it is told: it has to take the model next.

        Raises:
            TrackingError: The server is still away.
        """
        run_id = self.require_run_id()
        if self._buffer.is_failing:
            raise self._still_away()
        return run_id

    def _still_away(self) -> TrackingError:
        return TrackingError(
            f"the MLflow server {without_credentials(self.uri)} is still away, so the model cannot be registered; the "
            f"training is done: the same command goes on from here once the server is back"
        )

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; nested ones get dotted names, and of one that is named like a secret only the name."""
        texts = {
            name: HIDDEN if is_secret_name(name) and value else without_credentials(str(value))[:_PARAM_CHARACTERS]
            for name, value in _flattened(params).items()
        }
        # A resumed run may train elsewhere or with another number of workers; MLflow keeps the first value.
        self._buffer.call(LogParams(texts))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._buffer.call(SetTags({name: without_credentials(value) for name, value in tags.items()}))

    def log_document(self, document: Any, name: str) -> None:
        """Keep a JSON document as an artifact."""
        self.log_text(json.dumps(clean(document), indent=2), name)

    def log_text(self, text: str, name: str) -> None:
        """Keep a text as an artifact."""
        self._buffer.call(LogArtifact.of(name, text.encode()))

    def log_figure(self, figure: Figure, name: str) -> None:
        """Keep a figure as a PNG artifact under ``plots/``."""
        content = io.BytesIO()
        figure.savefig(content, dpi=120, format="png")
        self._buffer.call(LogArtifact.of(f"plots/{name}.png", content.getvalue()))

    def log_folder(self, folder: Path, name: str) -> None:
        """Keep a folder's files as artifacts under ``name``."""
        self._buffer.call(LogFolder(name, str(folder.absolute())))

    def log_metrics(self, metrics: Mapping[str, float], step: int, timestamp_ms: int | None = None) -> None:
        """Log metrics in the background; a step that was logged before is skipped."""
        self._buffer.log(metrics, step, timestamp_ms)

    def name_version(self, model: str, version: str, alias: str) -> None:
        """Let ``alias`` of the registered model mean ``version``.

        Raises:
            TrackingError: The store refuses.
        """
        try:
            self.client.set_registered_model_alias(model, alias, version)
        except (MlflowException, OSError) as error:
            if not is_outage(error):
                raise _refusal(
                    f"the MLflow store {self.uri} did not name version {version} of '{model}' of run {self.run_id}",
                    error,
                ) from None
            self._buffer.call(SetAlias(model, alias, version))

    def on_event(self, event: Event) -> None:
        """Log what ranks and supervisor tell; it may have been told before, by an earlier driver's event file."""
        with self._lock:
            timestamp_ms = int(event["time"] * 1000) if "time" in event else None
            match event["event"]:
                case "epoch_end" if event.get("rank") == 0:
                    self._log_epoch(event, timestamp_ms)
                case "progress" if event.get("rank") == 0:
                    self._log_step(event, timestamp_ms)
                case "system":
                    self._log_system(event, timestamp_ms)
                case "attempt":
                    self._log_attempt(event, timestamp_ms)
                case "restart" if self._attempts:
                    error = event.get("error")
                    self._attempts[-1] |= {
                        "error": None if error is None else {**clean(dict(error)), "traceback": ""},
                        "decision": event.get("decision"),
                        "delay_seconds": event.get("delay_seconds"),
                    }
                    self.log_document(self._attempts, "attempts.json")

    def _log_epoch(self, event: Event, timestamp_ms: int | None) -> None:
        metrics = event["logs"] | {"seconds_per_epoch": event["seconds"]}
        if event["examples_per_second"]:
            metrics["examples_per_second"] = event["examples_per_second"]
        self.log_metrics(metrics, event["epoch"], timestamp_ms)
        if self._attempts and event.get("step"):
            self._log_world_size(event["step"], timestamp_ms)

    def _log_step(self, event: Event, timestamp_ms: int | None) -> None:
        if event.get("step") is None or not self._is_due("step", _STEP_SECONDS, event):
            return
        values = {name: event.get(name) for name in ("loss", "examples_per_second")}
        found = {f"{_STEP_PREFIX}{name}": value for name, value in values.items() if value is not None}
        self.log_metrics(found, event["step"], timestamp_ms)

    def _log_system(self, event: Event, timestamp_ms: int | None) -> None:
        if not self._is_due(("system", event["rank"]), _SYSTEM_SECONDS, event):
            return
        seconds = int(event.get("time", time.time()) - self._began)
        usage = named(event["rank"], event.get("cpu_percent"), event.get("memory_bytes"))
        self.log_metrics(usage, seconds, timestamp_ms)

    def _log_attempt(self, event: Event, timestamp_ms: int | None) -> None:
        workers, step = event.get("workers") or 0, event.get("resumed_from") or 0
        begun = {"attempt": event["attempt"], "workers": workers, "resumed_from_step": step, "error": None}
        self._attempts.append(begun)
        self.log_tags({"attempts": str(len(self._attempts)), "workers": str(workers)})
        self.log_metrics({"attempt": len(self._attempts)}, len(self._attempts), timestamp_ms)
        # At its first step: that of the checkpoint has the point of the epoch's end. And behind the last point, where
        # the attempt repeats steps: at an earlier one it would be lost.
        self._log_world_size(max(step, self._world_size_step) + 1, timestamp_ms)
        self.log_document(self._attempts, "attempts.json")

    def _log_world_size(self, step: int, timestamp_ms: int | None) -> None:
        self._world_size_step = max(step, self._world_size_step)
        self.log_metrics({"world_size": self._attempts[-1]["workers"]}, step, timestamp_ms)

    def _is_due(self, key: object, seconds: float, event: Event) -> bool:
        """Whether the last point of that kind is long enough ago, by the clock of who tells it."""
        now = float(event.get("time", self._clock()))
        if now < self._due.get(key, now):
            return False
        self._due[key] = now + seconds
        return True

    def finish(self, status: str) -> str | None:
        """Send what is left and end the run with ``FINISHED`` or ``FAILED``.

        Returns:
            The command that sends what a server that stayed away has not got; None when it has everything.
        """
        self._buffer.call(SetStatus(status))
        self._buffer.close(_CLOSE_SECONDS)
        return self._buffer.left_behind


def environment() -> dict[str, str]:
    """Return every installed package with its version."""
    found = {}
    for entry in distributions():
        with contextlib.suppress(FileNotFoundError):  # what an interrupted installation left behind
            if entry.metadata["Name"]:
                found[entry.metadata["Name"]] = entry.version
    return dict(sorted(found.items(), key=lambda entry: entry[0].lower()))


def git_commit(folder: Path) -> str | None:
    """Return the commit checked out in ``folder``, or None outside a clone."""
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def is_outage(error: Exception) -> bool:
    """Whether the server may take later what it did not take now: nobody answers, or it takes the fault for its own."""
    if isinstance(error, InvalidUrlException):
        return False
    if isinstance(error, MlflowException):
        return error.get_http_status_code() in (429, *range(500, 600))
    return isinstance(error, OSError)


def _refusal(what: str, error: Exception) -> TrackingError:
    # To be raised from None: what MLflow raises may quote the address with its password, and a notebook keeps it.
    return TrackingError(without_credentials(f"{what}: {error}"))


def _flattened(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= _flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
