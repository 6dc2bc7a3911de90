"""The place of a run in MLflow: its store, its experiment, and the active run that it belongs to."""

import contextlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mlflow.exceptions import MlflowException

from mirrorspark.callbacks.mlflow import tracking_store
from mirrorspark.storage import EventFile, without_credentials
from mirrorspark.training.configuration import ConfigError, MLflowRun
from mirrorspark.training.run_records.tracked_run import OuterRun, TrackedRun, deleted


class TracksRuns(Protocol):
    """The fields of a configuration that decide its MLflow store."""

    @property
    def tracking_uri(self) -> str | None:
        """MLflow tracking server or store; None for the one that MLflow is set to, or the run's own."""

    @property
    def output(self) -> str | Path:
        """The folder with all runs."""


class TrackedSettings(TracksRuns, Protocol):
    """The fields of a configuration that decide its run's place in MLflow."""

    @property
    def experiment(self) -> str | None:
        """MLflow experiment; None for that of the active run, the current or the default one."""

    @property
    def name(self) -> str:
        """The run's name, and the default experiment's."""

    @property
    def mlflow_run(self) -> MLflowRun:
        """The run to log to where a run is active in MLflow."""


def store_of(config: TracksRuns) -> str:
    """Return the MLflow store of a run: the configured one, else the one that MLflow is set to, else one of its own.

    Its own store is that of MLflow's active run, or a file in its output folder. This process then looks up models in
    it, too.
    """
    if given := config.tracking_uri or tracking_store.chosen_store():
        return given
    own = tracking_store.store_of_active_run() or tracking_store.own_store(Path(config.output))
    tracking_store.remember_own_store(own)
    return own


@dataclass(frozen=True)
class Tracking:
    """The place of a run in MLflow, found once, when its command begins.

    Attributes:
        store: Address of the MLflow store.
        experiment: Experiment of a run without an outer one: the configured one, else MLflow's current one in this
            store, else the run's name.
        outer: The active run that the training belongs to; None for a training with a run of its own.
    """

    store: str = field(repr=False)  # it may hold a password
    experiment: str
    outer: OuterRun | None = None

    @classmethod
    def find(cls, config: TrackedSettings) -> "Tracking":
        """Return the place of a run with these settings."""
        store = store_of(config)
        experiment = config.experiment or tracking_store.chosen_experiment(store) or config.name
        # The run of a configured experiment can be in no other one.
        is_alone = config.mlflow_run == "new" or config.experiment is not None
        active = None if is_alone else tracking_store.active_run(store)
        return cls(store, experiment, None if active is None else OuterRun(active, config.mlflow_run == "child"))

    def open_run(
        self, output: Path, run_id: str | None, name: str, log: EventFile | None = None, *, title: str | None = None
    ) -> TrackedRun:
        """Continue ``run_id``, log to the outer run, or start a run; see :class:`TrackedRun`."""
        return TrackedRun(self.store, self.experiment, output, run_id, name, log, self.outer, title=title)

    def open_ahead(self) -> None:
        """Open a store in a file, which MLflow then keeps open: a new one takes seconds.

        An error is left to the run, which opens it again.
        """
        file = tracking_store.sqlite_file(self.store)
        # MLflow would wait for a folder that it cannot write.
        if file is not None and os.access(file.parent, os.W_OK):
            with contextlib.suppress(MlflowException, OSError):
                tracking_store.store_client(self.store, tracking_store.registry_of(self.store))

    def goes_on_elsewhere(self, what: str, run_id: str | None) -> str | None:
        """Return a message if ``what`` goes on in ``run_id`` although another run is active; else None."""
        if self.outer is None or run_id in (None, self.outer.run.run_id):
            return None
        return f"{what} goes on in the MLflow run in which it began, {run_id}, not in the active one"

    def require_names(self, model: str) -> None:
        """Check that the store will take the names of the experiment and of the registered model.

        Raises:
            ConfigError: It will not.
        """
        if (misnamed := self.misnamed_model(model)) is not None:
            raise ConfigError(misnamed)
        self.require_experiment()

    def misnamed_model(self, model: str) -> str | None:
        """Return why the registry will not take ``model`` as the name of a registered model; None if it will."""
        registry = tracking_store.registry_of(self.store)
        if not re.match(r"(databricks-)?uc(:|$)", registry) or re.fullmatch(r"[^.]+\.[^.]+\.[^.]+", model):
            return None
        return (
            f"'{model}' is not a model of Unity Catalog ({without_credentials(registry)}), where names have three "
            f"parts: set registered_model (--registered-model) to catalog.schema.{model.rpartition('.')[2]}, with yours"
        )

    def require_experiment(self) -> None:
        """Check that Databricks will take the name of the experiment, and that it was not deleted.

        Raises:
            ConfigError: It will not, or it was.
        """
        if self.outer is None:
            self._require_active_experiment()
        if not self.store.startswith("databricks") or self.outer is not None or self.experiment.startswith("/"):
            return
        raise ConfigError(
            f"Databricks has no experiment '{self.experiment}': the name of one is a path in the workspace; set "
            f"experiment (--experiment) to /Users/YOU/{self.experiment}, or call mlflow.set_experiment"
        )

    def _require_active_experiment(self) -> None:
        file = self.store.partition("sqlite:///")[2]
        if not file or not Path(file).is_file():  # a server is asked when the run begins, and may be away until then
            return
        with contextlib.suppress(MlflowException, OSError):
            client = tracking_store.store_client(self.store, tracking_store.registry_of(self.store))
            found = client.get_experiment_by_name(self.experiment)
            if found is not None and found.lifecycle_stage == "deleted":
                raise ConfigError(deleted(self.experiment))
