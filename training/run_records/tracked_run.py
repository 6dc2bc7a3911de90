"""The MLflow run of a training, owned by the driver: one run, however many attempts."""

import json
import logging
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException

from mirrorspark.callbacks.mlflow import MetricBuffer, metric_requests, share_view, tracking_store
from mirrorspark.clear_error import ClearError
from mirrorspark.storage import HIDDEN, EventFile, abilities, atomic_file, clean, is_secret_name, without_credentials

if TYPE_CHECKING:
    from mirrorspark.data_pipelines.reading import Dataset

logger = logging.getLogger(__name__)

# MLflow's own limit for a parameter's value.
_PARAM_CHARACTERS = 6000

# Longest wait at a run's end for an unreachable server; then the command that sends the rest later is shown.
_CLOSE_SECONDS = 30.0
# The same for a run whose model is to be registered.
_SERVER_SECONDS = 60.0

# A compromise between few requests and curves that move while one looks.
_LINGER_SECONDS = 5.0

# MLflow's limits for a dataset.
_DATASET_NAME_CHARACTERS = 500
_DIGEST_CHARACTERS = 36

_LOGGED_MODEL = re.compile(r"models:/(m-\w+)")


class TrackingError(ClearError, RuntimeError):
    """The MLflow store refused a request; the message names the store and quotes its answer."""


@dataclass(frozen=True)
class OuterRun:
    """MLflow's active run around a training.

    Attributes:
        is_parent_only: The training becomes a child of it in any case, instead of logging to it.
    """

    run: tracking_store.ActiveRun
    is_parent_only: bool


class TrackedRun:
    """The driver's MLflow run for all attempts of a training, which an unreachable server does not stop.

    Everything is sent in the background, from ``log``. Records that an unreachable ``http`` server has not
    got by the end stay in the log, and ``finish`` returns the command that sends them. A store that refuses requests (a
    deleted experiment, wrong credentials) is an error at the start. Only the given store is used; MLflow's own setting
    is not changed. The events are logged as follows:

    - over epochs: the metrics of the epoch, ``system/seconds_per_epoch``, ``system/examples_per_second``
    - over optimizer steps: ``system/step_loss``, ``system/step_examples_per_second``, ``system/world_size``
    - over the attempts, including those of earlier drivers: ``system/attempt``, whose points show the start of each
    - over the run's seconds: ``system/worker_0_...``, which MLflow shows as system metrics
    - tags ``attempts`` and ``workers``, and the artifact ``attempts.json``, as attempts come and go
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        output: Path,
        run_id: str | None,
        run_name: str,
        log: EventFile | None = None,
        outer: OuterRun | None = None,
        *,
        title: str | None = None,
    ) -> None:
        """Continue ``run_id``, log to the active run, or start a run; an unreachable server gets it later.

        Args:
            uri: Store or server.
            experiment: Created if there is none of that name.
            output: Folder of all runs.
            run_id: The run to continue; None starts one, or finds the one of ``run_name``.
            run_name: Unique among the trainings that share the experiment.
            log: The events of the run, in its folder; those of earlier drivers are sent, too. By default a file in
                ``output`` that is removed once all of it has been sent.
            outer: The active run. A first training logs to it, unless it is a parent only; a further one becomes its
                child. The status of the active run is left to the one who started it.
            title: The name that MLflow's pages show for a run that is started here; by default ``run_name``.

        Raises:
            TrackingError: The store cannot be opened.
        """
        tracking_store.limit_requests()
        # One warning of ours about an unreachable server is enough.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        self.uri = uri
        self.experiment = experiment
        # Resolved once, since a notebook may set MLflow to another store during the run.
        self.registry_uri = tracking_store.registry_of(uri)
        self._outer = outer
        self._title = title
        self.experiment_id: str | None = outer.run.experiment_id if outer and run_id is None else None
        try:
            self.client = tracking_store.store_client(uri, self.registry_uri)
            run_id = self._opened(experiment, output, run_id, run_name)
        except (MlflowException, OSError) as error:
            if "Current state is deleted" in str(error):
                raise TrackingError(deleted(experiment)) from None
            if not (uri.startswith(("http://", "https://")) and tracking_store.is_outage(error)):
                raise _refusal(f"the MLflow store {uri} cannot be opened", error) from None
            logger.warning(
                "MLflow at %s is away (%s); the training begins, and its metrics are sent later",
                without_credentials(uri),
                metric_requests.first_line(error),
            )
        self._buffer = MetricBuffer(
            self._target(run_id, run_name),
            client=self.client,
            # The run's id cannot be used, since the server may not have assigned it yet.
            log=output / f"mlflow-metrics-{run_name}.jsonl" if log is None else log,
            replay_command=None if log is None else _replay_command(log),
            linger_seconds=_LINGER_SECONDS,
        )

    def _opened(self, experiment: str, output: Path, run_id: str | None, run_name: str) -> str:
        """Open the run, mark it as running, and return its id."""
        if run_id is not None:
            return self._continued(run_id)
        if self._outer is not None:
            return self._joined(self._outer, run_name)
        self.experiment_id = metric_requests.experiment_of(self.client, experiment, _artifacts(self.uri, output))
        return metric_requests.start_run(self.client, self._target(None, run_name))

    def _target(self, run_id: str | None, run_name: str) -> metric_requests.Target:
        outer = self._outer
        return metric_requests.Target(
            run_id,
            self.uri,
            self.experiment,
            run_name,
            experiment_id=self.experiment_id if outer else None,
            parent_id=outer.run.run_id if outer else None,
            joins_parent=outer is not None and not outer.is_parent_only,
            title=self._title,
        )

    def _continued(self, run_id: str) -> str:
        try:
            # The run may have begun within an active run, in the experiment of that one.
            self.experiment_id = self.client.get_run(run_id).info.experiment_id
            self.experiment = self.client.get_experiment(self.experiment_id).name
            self.client.update_run(run_id, status="RUNNING")
        except (MlflowException, OSError) as error:
            if tracking_store.is_outage(error):
                raise
            raise _refusal(f"MLflow run {run_id} cannot go on (--no-resume starts a new one)", error) from None
        return run_id

    def _joined(self, outer: OuterRun, run_name: str) -> str:
        """Return the id of the active run, or of a new child if it has a training already."""
        active = outer.run
        self.experiment_id = active.experiment_id or str(self.client.get_run(active.run_id).info.experiment_id)
        self.experiment = self.client.get_experiment(self.experiment_id).name
        return metric_requests.start_run(self.client, self._target(None, run_name))

    @property
    def is_users(self) -> bool:
        """True if the run is the active one, which the user has started and will end."""
        return self._outer is not None and self._outer.run.run_id == self.run_id

    @property
    def page(self) -> str | None:
        """The address of the run's page; None if it is not known, or the store serves no pages."""
        if self.run_id is None or self.experiment_id is None:
            return None
        return tracking_store.run_page(self.uri, self.experiment_id, self.run_id)

    def share_comparison(self, metric: str) -> str | None:
        """Return the address of the page that compares the experiment's runs, with the chart of ``metric`` first.

        That of a store that serves no pages is on the server that ``mlflow ui`` starts. None if the pages are those of
        Databricks, or the store does not take the view's tag of the experiment.
        """
        page = self.page or f"{tracking_store.OWN_SERVER}/#/"
        if self.run_id is None or self.experiment_id is None or self.uri.startswith("databricks"):
            return None
        try:
            view = share_view(self.client, self.experiment_id, metric)
        except (MlflowException, OSError) as error:
            logger.info("no view of the comparison was shared: %s", without_credentials(str(error)))
            return None
        return f"{page.partition('/#/')[0]}{view}"

    @property
    def run_id(self) -> str | None:
        """The run's id; None while the server has not been reached."""
        return self._buffer.run_id

    @property
    def events(self) -> EventFile:
        """The log of the run's events."""
        return self._buffer.events

    def require_run_id(self) -> str:
        """Return the run's id after all queued records have been sent or have timed out.

        Raises:
            TrackingError: The server has not been reached yet.
        """
        self._buffer.flush(_SERVER_SECONDS)
        if self._buffer.run_id is None:
            raise self._still_away()
        return self._buffer.run_id

    def require_server(self) -> str:
        """Wait for the server, which has to take the model next, and return the run's id.

        Raises:
            TrackingError: The server is still unreachable.
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
        """Log the parameters that have a value; nested ones get dotted names, one named like a secret no value."""
        texts = {
            name: HIDDEN if is_secret_name(name) and value else without_credentials(str(value))[:_PARAM_CHARACTERS]
            for name, value in _flattened(params).items()
            if value is not None
        }
        # A resumed run may train elsewhere or with another number of workers; MLflow keeps the first value.
        self._buffer.call(metric_requests.LogParams(texts))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._buffer.call(metric_requests.SetTags(clean(tags)))

    def log_document(self, document: Any, name: str) -> None:
        """Keep a JSON document as an artifact."""
        self.log_text(json.dumps(clean(document), indent=2), name)

    def log_text(self, text: str, name: str) -> None:
        """Keep a small text as an artifact. It must be without secrets: nothing removes them later."""
        self._buffer.call(metric_requests.LogArtifact.of(name, text.encode()))

    def log_file(self, file: Path, folder: str = "") -> None:
        """Keep a file as an artifact under ``folder``; it is read when it is sent.

        Like the texts it must be without secrets.
        """
        name = str(PurePosixPath(folder, file.name))
        self._buffer.call(metric_requests.LogFile(name, str(file.absolute())))

    def log_figure(self, figure: Figure, file: Path) -> None:
        """Write a figure into a PNG file, and keep it as an artifact under ``plots/``."""
        file.parent.mkdir(exist_ok=True)
        with atomic_file.replaced(file) as opened:
            figure.savefig(opened, dpi=120, format="png")
        self.log_file(file, "plots")

    def log_folder(self, folder: Path, name: str) -> None:
        """Keep a folder's files as artifacts under ``name``."""
        self._buffer.call(metric_requests.LogFolder(name, str(folder.absolute())))

    def log_input(self, dataset: "Dataset") -> None:
        """Record the dataset that the run learns from, which MLflow lists and filters runs by."""
        manifest, spec = dataset.manifest, dataset.spec
        forms = {name: form for feature in spec for name, form in feature.raw.items()}
        types = {name: {"number": "double", "bytes": "binary"}.get(form, "string") for name, form in forms.items()}
        types[spec.label.name] = "double" if spec.label.kind in ("binary", "numeric") else "string"
        schema = [{"name": name, "type": type_, "required": False} for name, type_ in types.items()]
        self._buffer.call(
            metric_requests.LogInput(
                dataset.path.name[:_DATASET_NAME_CHARACTERS],
                manifest.content_hash[:_DIGEST_CHARACTERS],
                json.dumps({"uri": without_credentials(str(dataset.path))}),
                json.dumps({"mlflow_colspec": schema}),
                json.dumps({"num_rows": sum(manifest.rows(split) for split in manifest.splits)}),
            )
        )

    def log_metrics(self, metrics: Mapping[str, float], step: int, timestamp_ms: int | None = None) -> None:
        """Log metrics in the background; a step that was logged before is skipped."""
        self._buffer.log(metrics, step, timestamp_ms)

    def log_model_metrics(self, model_uri: str, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics of the run that are those of its logged model, too."""
        now_ms = int(time.time() * 1000)
        self.log_metrics(metrics, step, now_ms)
        if (model := _LOGGED_MODEL.fullmatch(model_uri)) is not None:
            self._buffer.call(metric_requests.LogModelMetrics(model[1], dict(metrics), step, now_ms))

    def describe_model(self, model: str, version: str, model_uri: str, text: str) -> None:
        """Set the description of a registered version, and of the logged model that it was made from."""
        logged = _LOGGED_MODEL.fullmatch(model_uri)
        self._buffer.call(
            metric_requests.DescribeModel(model, version, logged and logged[1], without_credentials(text))
        )

    def name_version(self, model: str, version: str, alias: str) -> None:
        """Set ``alias`` of the registered model to ``version``.

        Raises:
            TrackingError: The store refuses the request.
        """
        try:
            self.client.set_registered_model_alias(model, alias, version)
        except (MlflowException, OSError) as error:
            if not tracking_store.is_outage(error):
                raise _refusal(
                    f"the MLflow store {self.uri} did not name version {version} of '{model}' of run {self.run_id}",
                    error,
                ) from None
            self._buffer.call(metric_requests.SetAlias(model, alias, version))

    def finish(self, status: str) -> str | None:
        """Send the remaining records and end the run with ``FINISHED`` or ``FAILED``, unless it is the user's.

        Returns:
            The command that sends the records that an unreachable server missed; None if it has them all.
        """
        if not self.is_users:
            self._buffer.call(metric_requests.SetStatus(status))
        self._buffer.close(_CLOSE_SECONDS)
        return self._buffer.left_behind

    def abandon(self) -> None:
        """Leave the run and its log to another process: nothing more is written or sent, not even its end."""
        self._buffer.abandon()


def deleted(experiment: str) -> str:
    """Return the message that an experiment was deleted."""
    return (
        f"the MLflow experiment '{experiment}' was deleted, and its name stays taken: restore it in MLflow (mlflow "
        f"experiments restore), or set experiment (experiment=, --experiment) to another name"
    )


def _artifacts(store: str, output: Path) -> str | None:
    """Return the URI of the folder for files of a new experiment; None where the store has a place for them.

    A database would put them into the working directory. They go to the output folder, or next to SQLite's file where
    that folder has no renames, which MLflow needs.
    """
    if not store.startswith("sqlite:"):
        return None
    file = tracking_store.sqlite_file(store)
    folder = output if file is None or abilities.can_rename(output) else file.parent
    return (folder.absolute() / "mlartifacts").as_uri()


def _replay_command(log: EventFile) -> str:
    assert log.path is not None  # noqa: S101 - the log is in a run's folder
    folder = log.path.parent
    return f"mirrorspark runs replay {folder.name} --output {shlex.quote(str(folder.parents[1]))}"


def _refusal(what: str, error: Exception) -> TrackingError:
    # To be raised from None: MLflow's error may quote the address with its password, and a notebook would keep it.
    return TrackingError(without_credentials(f"{what}: {error}"))


def _flattened(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= _flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
