"""The folder of a sweep, which one command at a time holds."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from mirrorspark.training.configuration import ConfigError
from mirrorspark.training.protocol import RUNS_FOLDER, WARM_START_FOLDER
from mirrorspark.training.run_records import RunFolder, run_state, runs_of_identity
from mirrorspark.training.sweep.options import SweepOptions

SWEEPS_FOLDER = "sweeps"


@dataclass(frozen=True)
class SweepPlace:
    """The places of a sweep and its trials.

    Attributes:
        folder: The sweep's folder.
        label: Unique in the experiment; names the MLflow runs.
        parent_run_id: Returns the sweep's MLflow run; None until the server has answered.
    """

    folder: Path
    label: str
    parent_run_id: Callable[[], str | None]

    def run_folder(self, number: int) -> Path:
        """Return a trial's run folder; ``mirrorspark runs list --output FOLDER`` lists them."""
        return self.folder / RUNS_FOLDER / f"{self.label}-{number:04}"

    @property
    def warm_start(self) -> Path:
        """Folder of the model that all trials begin from."""
        return self.folder / WARM_START_FOLDER

    @property
    def has_trials(self) -> bool:
        """Return True if a trial has begun."""
        return (self.folder / RUNS_FOLDER).is_dir()


def find_folder(options: SweepOptions, identity: str) -> RunFolder:
    """Return the folder of the sweep to resume, or of a new one.

    Without a name it is the newest sweep of the same search space, configuration and dataset; ``--no-resume`` begins a
    new one.

    Raises:
        ConfigError: The sweep of that name differs, or exists despite ``--no-resume``.
    """
    sweeps = Path(options.config.output).absolute() / SWEEPS_FOLDER
    if options.study is not None:
        path = sweeps / options.study
        path.mkdir(parents=True, exist_ok=True)
        state = run_state.read_state(path)
        if state is not None and not options.config.resume:
            raise ConfigError(f"study '{options.study}' is in {path} already; give another --study, or resume it")
        if state is not None and state.identity != identity:
            raise ConfigError(
                f"study '{options.study}' in {path} searches other values, or trains another configuration or dataset; "
                f"give this sweep another --study, or the flags of that one to resume it"
            )
        return RunFolder(path, identity, state.mlflow_run_id if state else None)
    if options.config.resume:
        for path, state in runs_of_identity(sweeps, identity):
            return RunFolder(path, identity, state.mlflow_run_id)
    path = sweeps / f"{options.config.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:4]}"
    path.mkdir(parents=True)
    return RunFolder(path, identity, None)
