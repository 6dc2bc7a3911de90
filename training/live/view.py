"""The live view of a run: a bar and a line per rank in a terminal or notebook, a line per stage and epoch in a file.

:mod:`training.live.state` has the state, :mod:`training.live.drawing` draws it as a block, and
:mod:`training.live.screen` shows the block.
"""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pyspark.sql import SparkSession
from rich.console import Console, RenderableType
from rich.text import Text

from mirrorspark.storage.credentials import without_credentials
from mirrorspark.training.live import drawing
from mirrorspark.training.live.messages import Messages, message_key
from mirrorspark.training.live.screen import NotebookScreen, Screen, TerminalScreen, can_draw
from mirrorspark.training.live.stack_text import summarize_stacks
from mirrorspark.training.live.state import TrainingState, epoch_metrics, input_bound_warning
from mirrorspark.training.protocol.cause import RankError
from mirrorspark.training.protocol.events import Event
from mirrorspark.training.protocol.words import ranks_in_words

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.5

# The whole message is in the events file.
_MESSAGE_CHARACTERS = 300


class LiveView:
    """Shows the stages of a run and the events of its ranks."""

    def __init__(
        self,
        *,
        epochs: int,
        is_interactive: bool | None = None,
        write: Callable[[str], None] | None = None,
        screen: Screen | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Choose the screen.

        Args:
            epochs: Maximum number of epochs.
            is_interactive: Draw a block; by default in a terminal or a notebook.
            write: Writes a line; by default to standard error.
            screen: The screen for the block; by default the terminal or the notebook.
            clock: Returns monotonic seconds.
        """
        console = Console(stderr=True)
        self._is_interactive = can_draw(console) if is_interactive is None else is_interactive
        self._screen = screen or (NotebookScreen if console.is_jupyter else TerminalScreen)(console)
        self._write_to = write or (self._screen.write if self._is_interactive else _print)
        self._clock = clock
        # Threads of the ranks' connections and the supervisor bring events; the ticker's thread draws.
        self._lock = threading.RLock()
        self._state = TrainingState(epochs)
        self._messages = Messages()
        self._stacks: dict[int, str] = {}
        self._stage: Stage | None = None
        self._has_failed = False
        self._parameter_bytes: int | None = None
        self.timings: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str, *, spark: SparkSession | None = None) -> Iterator["Stage"]:
        """Time a stage and show it; the yielded stage's ``note`` is printed at its end.

        With ``spark`` the view shows how many tasks of this session's jobs are done.
        """
        stage = Stage(name, self._clock())
        done = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(spark, done), name="live-view", daemon=True)
        with self._lock:
            self._stage = stage
        ticker.start()
        try:
            yield stage
        finally:
            done.set()
            ticker.join(timeout=5)
            with self._lock:
                self._write_messages(everything=True)
                self._stage = None
                if self._is_interactive:
                    self._show(None)
            self.timings[name] = self._clock() - stage.begin
        self._write(f"{name:<10} {self.timings[name]:6.1f} s  {stage.note}")

    def on_event(self, event: Event) -> None:
        """Show an event of a rank or of the supervisor."""
        now = self._clock()
        with self._lock:
            if event["event"] == "epoch_end" and event.get("rank") == 0:
                self._report_epoch(event)
            if self._stage is not None:
                self._stage.is_training = True
            previous = self._state
            self._state = previous.after(event, now)
            match event["event"]:
                case "log":
                    text = _shortened(event["message"])
                    self._messages.add(f"log {message_key(text)}", event["rank"], f": {text}", now)
                case "error" if "message" in event:
                    self._add_error(event, now)
                case "stacks":
                    self._stacks[event["rank"]] = event.get("text") or ""
                case "attempt":
                    self._stacks = {}
                    self._report_attempt(event, previous.workers)
                case "train_begin" if event.get("rank") == 0:
                    self._report_model(event)
                case "restart":
                    self._report_restart(event)
                case "hung":
                    self._report_hang(event)
                case "waiting":
                    self._report_waiting(event)
                case "stopping":
                    self._write_after_messages(f"  stopping: {event.get('reason')}; the ranks save a checkpoint first")
            if self._stage is None:  # There is no ticker.
                self._write_messages(everything=True)

    def say(self, line: str) -> None:
        """Write a line that is not an event."""
        with self._lock:
            self._write_after_messages(line)

    def _add_error(self, event: Event, now: float) -> None:
        text = event["message"] if event.get("type") == "killed" else f"{event.get('type')}: {event['message']}"
        text = _shortened(text)
        if event.get("cause") == "peer":  # Errors about a lost peer differ; one of them is enough.
            self._messages.add("peer", event["rank"], f" lost a peer: {text}", now)
        else:
            self._messages.add(f"error {message_key(text)}", event["rank"], f" failed: {text}", now)

    def _report_epoch(self, event: Event) -> None:
        logs = "  ".join(f"{name} {event['logs'][name]:.4f}" for name in epoch_metrics(event["logs"]))
        rate = event["examples_per_second"]
        speed = "" if rate is None else f"{rate:>9,.0f} examples/s  "
        self._write_after_messages(f"  epoch {event['epoch']:>2}/{self._state.epochs}  {speed}{logs}")
        warning = input_bound_warning(self._state)
        if warning is not None and not event.get("recovered"):
            self._write_after_messages(f"  {warning}")

    def _report_attempt(self, event: Event, workers_before: int) -> None:
        workers, step = event.get("workers") or 0, event.get("resumed_from") or 0
        scale = event.get("learning_rate_scale") or 1.0
        before = "" if workers_before in (0, workers) else f", {workers_before} before"
        rate = "" if scale == 1.0 or workers_before == workers else f"; learning rate x {scale:g}"
        if before or rate:
            self._write_after_messages(
                f"  attempt {event['attempt']}: {drawing.workers_in_words(workers)}{before}{rate}"
            )
        if event["attempt"] == 1 and step:  # Restarts report the step of later attempts.
            self._write_after_messages(f"  resuming from step {step:,}")

    def _report_model(self, event: Event) -> None:
        # Explains slow first steps. Attempts and fits repeat it.
        count = event.get("parameter_bytes")
        if count not in (None, self._parameter_bytes):
            size = f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.1f} kB"
            self._write_after_messages(f"  the weights to train take {size}")
        self._parameter_bytes = count

    def _report_restart(self, event: Event) -> None:
        error = event.get("error")
        why = _shortened(RankError(**error).in_words) if error else "as requested"
        decision = event.get("decision") or "going on from the last checkpoint"
        delay = event.get("delay_seconds") or 0
        wait = f" (waiting {delay:.0f} s first)" if delay >= 1 else ""
        self._write_after_messages(f"  attempt {event['attempt']} ended: {why}; {decision}{wait}")

    def _report_waiting(self, event: Event) -> None:
        if "store" in event:
            self._write_after_messages(f"  waiting for the store of checkpoints {event['store']}")
            return
        self._write_after_messages(
            f"  waiting for slots: the cluster has {event['slots']}, the training needs {event['needed']}; it gives up "
            f"after {event['limit_seconds']:g} s"
        )

    def _report_hang(self, event: Event) -> None:
        self._write_after_messages(f"  hung: {event['why']}")
        stacks = self._stacks | {int(rank): text for rank, text in (event.get("stacks") or {}).items()}
        ranks_by_frames: dict[str, list[int]] = {}
        for rank, text in sorted(stacks.items()):
            if frames := summarize_stacks(text):
                ranks_by_frames.setdefault("; and in ".join(frames), []).append(rank)
        for frames_in_words, ranks in ranks_by_frames.items():
            self._write_after_messages(f"    {ranks_in_words(ranks)} in {frames_in_words}")

    def _write_messages(self, *, everything: bool = False) -> None:
        for line in self._messages.lines(self._clock(), everything=everything):
            self._write(f"  {line}")

    def _write_after_messages(self, line: str) -> None:
        """Write the ranks' earlier messages, then a line."""
        self._write_messages(everything=True)
        self._write(line)

    def _tick(self, spark: SparkSession | None, done: threading.Event) -> None:
        """Update the block, count Spark's tasks, and write due messages."""
        while not done.wait(_TICK_SECONDS):
            counts = None
            if spark is not None and self._is_interactive:
                try:
                    counts = _spark_tasks(spark)
                except Exception:
                    # The JVM is lost. Py4J logs that on every call, and the run's own call raises it.
                    spark = None
            with self._lock:
                self._write_messages()
                if self._is_interactive and self._stage is not None:
                    self._show(self._block(self._stage, counts))

    def _block(self, stage: "Stage", counts: tuple[int, int] | None) -> RenderableType:
        now = self._clock()
        elapsed = now - stage.begin
        if counts is not None:
            done, total = counts
            return drawing.bar(stage.name, elapsed, done / total, text=f"{done}/{total} Spark tasks")
        if stage.is_training:
            return drawing.training(stage.name, elapsed, self._state, now)
        return drawing.bar(stage.name, elapsed)

    def _write(self, line: str) -> None:
        line = without_credentials(line)
        with self._ignoring_output_errors():
            self._write_to(line)

    def _show(self, block: RenderableType | None) -> None:
        with self._ignoring_output_errors():
            self._screen.show(block)

    @contextlib.contextmanager
    def _ignoring_output_errors(self) -> Iterator[None]:
        """Let the run continue without its view if the terminal is closed, or the disk of its log is full."""
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the file is closed.
            if not self._has_failed:
                logger.warning("the run goes on, but cannot be shown: %s", error)
            self._has_failed = True


class Stage:
    """A running stage; the run sets its ``note``, which is printed at its end."""

    def __init__(self, name: str, begin: float) -> None:
        self.name = name
        self.begin = begin
        self.is_training = False
        self.note = ""


def _spark_tasks(spark: SparkSession) -> tuple[int, int]:
    """Return how many tasks of the active stages are done, and how many there are."""
    tracker: Any = spark.sparkContext.statusTracker()
    stages = [info for info in map(tracker.getStageInfo, tracker.getActiveStageIds()) if info]
    return sum(info.numCompletedTasks for info in stages), sum(info.numTasks for info in stages) or 1


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _shortened(message: str) -> str:
    # Colours and cursor movements in a rank's message would garble the block.
    text = Text.from_ansi(" ".join(message.split())).plain
    return text if len(text) <= _MESSAGE_CHARACTERS else f"{text[:_MESSAGE_CHARACTERS]} ..."
