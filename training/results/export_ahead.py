"""The export's process, started on the driver before there is a model to export."""

import os
from typing import Self

from mirrorspark.training.configuration import TrainingConfig
from mirrorspark.training.protocol.messages import Event
from mirrorspark.training.results.export import ExportProcess
from mirrorspark.training.results.export_plan import export_threads

# An epoch of so few rows takes seconds.
_FEW_ROWS = 20_000


class ExportAhead:
    """An export process that starts as the training ends, so that its imports overlap with the workers' end.

    It does not start earlier, since it takes 0.8 GB of memory, and its imports on the driver's machine would compete
    with the training. A training of few rows, which ends soon, and leaves it a core, is the exception: the process
    imports its libraries while the workers import theirs.
    """

    def __init__(self, config: TrainingConfig, rows: int | None = None) -> None:
        """Start nothing yet.

        Args:
            config: The training's settings.
            rows: Training rows, if they are known.
        """
        self._config = config
        busy = config.worker_range.most * (config.threads_per_worker or 1)
        self._is_short = rows is not None and rows <= _FEW_ROWS and busy < len(os.sched_getaffinity(0))
        self.process: ExportProcess | None = None

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process in any state."""
        if self.process is not None:
            self.process.close()

    def on_event(self, event: Event) -> None:
        """Start the process when the chief reports the end of its training; of a short one, with its workers."""
        has_ended = event["event"] == "train_end" and event.get("rank") == 0
        if self.process is None and (has_ended or (self._is_short and event["event"] == "attempt")):
            self.process = ExportProcess(export_threads(self._config), verbose=self._config.verbose)
