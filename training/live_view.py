"""Shows a run while it runs: a bar per stage in a terminal or notebook, a line per stage and epoch in a file."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pyspark.sql import SparkSession
from tqdm.auto import tqdm

from training.events import Event

_TICK_SECONDS = 0.5
_BAR_FORMAT = "{desc:<10} {percentage:3.0f}% {bar:20} {elapsed}<{remaining} {detail}"


class _Bar(tqdm):  # type: ignore[type-arg]
    """A bar with free text behind it; tqdm's own postfix begins with a comma."""

    detail = ""

    @property
    def format_dict(self) -> dict[str, Any]:
        """What the bar's format can name."""
        return {**super().format_dict, "detail": self.detail}


class LiveView:
    """Follows the stages of a run and the events of its ranks."""

    def __init__(
        self, *, epochs: int, is_interactive: bool | None = None, write: Callable[[str], None] | None = None
    ) -> None:
        """Decide how to show things.

        Args:
            epochs: Epochs of the training at the most.
            is_interactive: Draw bars; by default in a terminal or a notebook.
            write: Where lines go; by default standard error.
        """
        self._is_interactive = _in_notebook() or sys.stderr.isatty() if is_interactive is None else is_interactive
        self._write = write or self._write_line
        self._epochs = epochs
        self._bar: Any = None
        self._validation = ""
        self.timings: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str, *, spark: SparkSession | None = None) -> Iterator["Stage"]:
        """Time a stage and show it.

        Args:
            name: What it is called.
            spark: Show how many tasks of this session's jobs are done.

        Yields:
            The stage; its ``note`` is printed with its end.
        """
        begin = time.monotonic()
        stage = Stage()
        with self._bar_of(name, spark) if self._is_interactive else contextlib.nullcontext():
            try:
                yield stage
            finally:
                self.timings[name] = time.monotonic() - begin
        self._write(f"{name:<10} {self.timings[name]:6.1f} s  {stage.note}")

    @contextlib.contextmanager
    def _bar_of(self, name: str, spark: SparkSession | None) -> Iterator[None]:
        self._bar = _Bar(total=1, desc=name, bar_format=_BAR_FORMAT, leave=False, file=sys.stderr)
        done = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(spark, done), daemon=True)
        ticker.start()
        try:
            yield
        finally:
            done.set()
            ticker.join(timeout=5)
            self._bar.close()
            self._bar = None

    def _tick(self, spark: SparkSession | None, done: threading.Event) -> None:
        """Keep the clock of the bar running, and count Spark's tasks."""
        while not done.wait(_TICK_SECONDS):
            if spark is not None:
                tracker = spark.sparkContext.statusTracker()
                stages = [info for info in map(tracker.getStageInfo, tracker.getActiveStageIds()) if info]
                self._bar.total = sum(info.numTasks for info in stages) or 1
                self._bar.n = sum(info.numCompletedTasks for info in stages)
                self._bar.detail = f"{self._bar.n}/{self._bar.total} Spark tasks"
            self._bar.refresh()

    def on_event(self, event: Event) -> None:
        """Show an event of a rank or of the supervisor."""
        kind = event["event"]
        if kind == "log":
            self._write(f"  rank {event['rank']}: {event['message']}")
        elif kind == "restart":
            self._show_restart(event)
        elif event.get("rank") == 0 and kind == "progress":
            self._show_progress(event)
        elif event.get("rank") == 0 and kind == "epoch_end":
            self._show_epoch(event)

    def _show_progress(self, event: Event) -> None:
        if self._bar is None or not event["steps"]:
            return
        self._bar.total = self._epochs * event["steps"]
        self._bar.n = (event["epoch"] - 1) * event["steps"] + event["step_in_epoch"]
        loss = "" if event["loss"] is None else f" loss {event['loss']:.4f}"
        self._bar.detail = (
            f"epoch {event['epoch']}/{self._epochs} step {event['step_in_epoch']}/{event['steps']} "
            f"{event['examples_per_second'] or 0:,.0f} examples/s{loss}{self._validation}"
        )

    def _show_epoch(self, event: Event) -> None:
        validation = {name: value for name, value in event["logs"].items() if name in _shown(event["logs"])[1:]}
        self._validation = "".join(f" {name} {value:.4f}" for name, value in validation.items())
        logs = "  ".join(
            f"{name} {value:.4f}" for name, value in event["logs"].items() if name in _shown(event["logs"])
        )
        self._write(
            f"  epoch {event['epoch']:>2}/{self._epochs}  {event['examples_per_second'] or 0:>9,.0f} examples/s  {logs}"
        )

    def _show_restart(self, event: Event) -> None:
        error = event["error"]
        who = "Spark" if error["rank"] is None else f"rank {error['rank']}"
        self._write(f"  attempt {event['attempt']} ended: {who}: {error['message']}; going on from the last checkpoint")

    def _write_line(self, line: str) -> None:
        if self._bar is not None:
            tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


class Stage:
    """What a stage says of itself when it ends."""

    note = ""


def _shown(logs: dict[str, float]) -> list[str]:
    """Return the metrics worth a place in the epoch's line: the loss and those of validation."""
    validation = [name for name in logs if name.startswith("val_") and name != "val_loss"]
    return ["loss", *(validation or ["val_loss"])]


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return bool(shell and shell.get_ipython() and "IPKernelApp" in shell.get_ipython().config)
