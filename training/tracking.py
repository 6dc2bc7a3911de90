"""The MLflow run of a training, owned by the driver: one run, however many attempts."""

import contextlib
import json
import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import mlflow
from matplotlib.figure import Figure
from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException

from callbacks.credentials import without_credentials
from callbacks.metric_buffer import MetricBuffer
from training.events import Event

# MLflow's own limit for a parameter's value.
_PARAM_CHARACTERS = 6000


class TrackingError(RuntimeError):
    """The MLflow store refused; the message names it and what it said."""


def default_uri(output: Path) -> str:
    """Return the SQLite store under ``output``."""
    return f"sqlite:///{output.absolute() / 'mlflow.db'}"


class TrackedRun:
    """One MLflow run: parameters and artifacts at once, metrics through a buffer that survives an outage."""

    def __init__(self, uri: str, experiment: str, output: Path, run_id: str | None, run_name: str) -> None:
        """Continue ``run_id``, or start a run.

        Raises:
            TrackingError: The store cannot be opened.
        """
        # MLflow retries a dead server for minutes by default; the buffer retries better, and in the background.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        # Nor need anybody read which tables it makes in a new store.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        self.uri = uri
        try:
            self.client = mlflow.MlflowClient(tracking_uri=uri)
            self.experiment_id = _experiment(self.client, experiment, output, uri)
            if run_id is None:
                run_id = self.client.create_run(self.experiment_id, run_name=run_name).info.run_id
        except (MlflowException, OSError) as error:
            raise _refusal(f"the MLflow store {uri} cannot be opened", error) from error
        try:
            self.client.update_run(run_id, status="RUNNING")
        except (MlflowException, OSError) as error:
            raise _refusal(f"MLflow run {run_id} cannot go on (--no-resume starts a new one)", error) from error
        self.run_id: str = run_id
        self._metrics = MetricBuffer(self.client, run_id, spill_path=output / f"mlflow-metrics-{run_id}.jsonl")

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; nested ones get dotted names."""
        flat = [Param(name, str(value)[:_PARAM_CHARACTERS]) for name, value in _flattened(params).items()]
        with self._refusals("did not take the parameters"):
            known = self.client.get_run(self.run_id).data.params
            # A resumed run may train elsewhere or with another number of workers; MLflow keeps the first value.
            self.client.log_batch(self.run_id, params=[param for param in flat if param.key not in known])

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        with self._refusals("did not take the tags"):
            self.client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def log_document(self, document: Any, name: str) -> None:
        """Keep a JSON document as an artifact."""
        self.log_text(json.dumps(document, indent=2), name)

    def log_text(self, text: str, name: str) -> None:
        """Keep a text as an artifact."""
        with self._refusals(f"did not take {name}"):
            self.client.log_text(self.run_id, text, name)

    def log_figure(self, figure: Figure, name: str) -> None:
        """Keep a figure as a PNG artifact under ``plots/``."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.png"
            figure.savefig(path, dpi=120)
            with self._refusals(f"did not take the plot {name}"):
                self.client.log_artifact(self.run_id, str(path), "plots")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics in the background; a step that was logged before is skipped."""
        self._metrics.log(metrics, step)

    def name_version(self, model: str, version: str, alias: str) -> None:
        """Let ``alias`` of the registered model mean ``version``."""
        with self._refusals(f"did not name version {version} of '{model}'"):
            self.client.set_registered_model_alias(model, alias, version)

    def on_event(self, event: Event) -> None:
        """Log the epochs that the chief reports."""
        if event["event"] == "epoch_end" and event.get("rank") == 0:
            metrics = event["logs"] | {"seconds_per_epoch": event["seconds"]}
            if event["examples_per_second"]:
                metrics["examples_per_second"] = event["examples_per_second"]
            self.log_metrics(metrics, event["epoch"])

    def finish(self, status: str) -> None:
        """Send what is left and end the run with ``FINISHED`` or ``FAILED``."""
        self._metrics.close()
        with self._refusals("did not take the end"):
            self.client.set_terminated(self.run_id, status)

    @contextlib.contextmanager
    def _refusals(self, what: str) -> Iterator[None]:
        """Say what the store refused; the run can go on from its last commit once the store is back."""
        try:
            yield
        except (MlflowException, OSError) as error:
            raise _refusal(f"the MLflow store {self.uri} {what} of run {self.run_id}", error) from error


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


def _refusal(what: str, error: Exception) -> TrackingError:
    return TrackingError(without_credentials(f"{what}: {error}"))


def _experiment(client: mlflow.MlflowClient, name: str, output: Path, uri: str) -> str:
    existing = client.get_experiment_by_name(name)
    if existing is not None:
        return str(existing.experiment_id)
    # A database store would put artifacts into the working directory; a server knows its own place.
    location = (output.absolute() / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
    return str(client.create_experiment(name, artifact_location=location))


def _flattened(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= _flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
