"""The live view of a run: a bar and a line per rank in a terminal, a page in a notebook, lines in a file.

In this folder ``state.py`` has the state of a training, ``picture.py`` all that is to be seen, and ``screen.py`` and
``notebook.py`` show it.
"""

import contextlib
import dataclasses
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from pyspark.sql import SparkSession
from rich.console import Console
from rich.text import Text

from mirrorspark.data_pipelines.spark import CountedWork, SparkTasks, Tasks, task_bar
from mirrorspark.storage import without_credentials
from mirrorspark.training.protocol.messages import Event
from mirrorspark.training.protocol.outcomes import RankError, ranks_in_words
from mirrorspark.training.run_records.live import drawing
from mirrorspark.training.run_records.live.messages import Messages, message_key
from mirrorspark.training.run_records.live.notebook import NotebookScreen
from mirrorspark.training.run_records.live.picture import (
    Details,
    EpochResult,
    FinishedStage,
    Monitored,
    Picture,
    RunningStage,
)
from mirrorspark.training.run_records.live.screen import Screen, TerminalScreen, can_draw
from mirrorspark.training.run_records.live.stack_text import summarize_stacks
from mirrorspark.training.run_records.live.state import TrainingState, epoch_metrics, input_bound_warning

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.5

# Smaller weights are neither slow to exchange nor a question of memory.
_NOTABLE_WEIGHT_BYTES = 50_000_000

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
        began: float | None = None,
    ) -> None:
        """Choose the screen.

        Args:
            epochs: Maximum number of epochs.
            is_interactive: Draw on a screen; by default in a terminal or a notebook.
            write: Writes a line; by default the screen, or standard error without one.
            screen: The screen; by default the notebook's cell, else the terminal.
            clock: Returns monotonic seconds.
            began: When the run began, by the clock; by default now.
        """
        # Not rich's own recognition of notebooks, which would write into the cell by itself.
        console = Console(stderr=True, force_jupyter=False)
        display = task_bar.notebook_display()
        self._is_interactive = (display is not None or can_draw(console)) if is_interactive is None else is_interactive
        self._screen = screen or (TerminalScreen(console) if display is None else NotebookScreen(display))
        self._write_to = write or (self._screen.write if self._is_interactive else _print)
        self._clock = clock
        self._began = clock() if began is None else began
        self._first_stage: float | None = None
        # Threads of the ranks' connections and the supervisor bring events; the ticker's thread draws.
        self._lock = threading.RLock()
        self._state = TrainingState(epochs)
        self._messages = Messages()
        self._stacks: dict[int, str] = {}
        self._stage: Stage | None = None
        self._finished: list[FinishedStage] = []
        self._epochs: dict[int, EpochResult] = {}
        self._epochs_prefix = ""
        self._monitored: Monitored | None = None
        self._has_failed = False
        self._parameter_bytes = 0
        self.timings: dict[str, float] = {}

    def expect(self, epochs: int, monitored: Monitored, before: Iterable[Event] = ()) -> None:
        """Set the facts about a training that are known before it starts.

        Args:
            epochs: Maximum number of epochs.
            monitored: The metric that picks the best epoch.
            before: The ``epoch_end`` events of the epochs that an interrupted run has done.
        """
        with self._lock:
            self._state = dataclasses.replace(self._state, epochs=epochs)
            self._monitored = monitored
            for event in before:
                self._keep_epoch(event)

    @contextlib.contextmanager
    def stage(self, name: str, *, spark: SparkSession | None = None) -> Iterator["Stage"]:
        """Time a stage and show it; the yielded stage's ``note`` is printed at its end.

        With ``spark`` the view shows how many tasks of this session's jobs are done.
        """
        stage = Stage(name, self._clock)
        done = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(spark, done), name="live-view", daemon=True)
        with self._lock:
            self._stage = stage
            self._first_stage = stage.begin if self._first_stage is None else self._first_stage
            if self._draws_history:
                # A cell's output belongs to the cell that runs now, in this thread; the ticker's thread updates it.
                self._show()
        ticker.start()
        has_failed = True
        try:
            yield stage
            has_failed = False
        finally:
            done.set()
            ticker.join(timeout=5)
            seconds = self._clock() - stage.begin
            self.timings[name] = self.timings.get(name, 0.0) + seconds
            with self._lock:
                self._write_messages(everything=True)
                self._stage = None
                note = without_credentials(stage.note)
                markup = without_credentials(stage.details.markup) if stage.details else ""
                self._finished.append(FinishedStage(name, seconds, note, has_failed, markup))
                if self._is_interactive:
                    self._show()
        self._write_milestone(f"{name:<10} {seconds:6.1f} s  {stage.note}")
        for line in stage.details.lines if stage.details else ():
            self._write_milestone(f"  {line}")

    def all_seconds(self) -> dict[str, float]:
        """Return seconds that add up to the time since the beginning: the start, each stage, and between the stages."""
        now = self._clock()
        start = (now if self._first_stage is None else self._first_stage) - self._began
        between = now - self._began - start - sum(self.timings.values())
        seconds = {"start": start, **self.timings, "between stages": max(0.0, between)}
        return {name: round(value, 2) for name, value in seconds.items()}

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
                case "time_limit" if event["epochs"] != previous.epochs:
                    self._report_limit(event["epochs"])
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

    def log(self, line: str) -> None:
        """Write a line that is not an event."""
        with self._lock:
            self._write_after_messages(line)
            if self._draws_history and self._stage is None:  # There is no ticker.
                self._show()

    def _add_error(self, event: Event, now: float) -> None:
        text = event["message"] if event.get("type") == "killed" else f"{event.get('type')}: {event['message']}"
        text = _shortened(text)
        if event.get("cause") == "peer":  # Errors about a lost peer differ; one of them is enough.
            self._messages.add("peer", event["rank"], f" lost a peer: {text}", now)
        else:
            self._messages.add(f"error {message_key(text)}", event["rank"], f" failed: {text}", now)

    def _report_epoch(self, event: Event) -> None:
        names = epoch_metrics(event["logs"], self._monitored.name if self._monitored else "")
        logs = "  ".join(f"{name} {event['logs'][name]:.4f}" for name in names)
        rate = event["examples_per_second"]
        self._keep_epoch(event)
        speed = "" if rate is None else f"{rate:>9,.0f} examples/s  "
        self._write_messages(everything=True)
        self._write_milestone(f"  epoch {event['epoch']:>2}/{self._state.epochs}  {speed}{logs}")
        warning = input_bound_warning(self._state)
        if warning is not None and not event.get("recovered"):
            self._write_after_messages(f"  {warning}")

    def _keep_epoch(self, event: Event) -> None:
        result = EpochResult(event["epoch"], event["logs"], event.get("examples_per_second"))
        prefix = next(iter(result.logs), "").rpartition("/")[0]
        if prefix != self._epochs_prefix:
            # A function's next training counts from 1 again.
            self._epochs, self._epochs_prefix = {}, prefix
        self._epochs[result.epoch] = result

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
        # Explains slow steps. Attempts and fits repeat it.
        count = event.get("parameter_bytes") or 0
        if count >= _NOTABLE_WEIGHT_BYTES and count != self._parameter_bytes:
            self._write_after_messages(f"  the weights to train take {count / 1e6:,.0f} MB")
        self._parameter_bytes = count

    def _report_limit(self, epochs: int) -> None:
        limit = f"{epochs} epoch{'s' * (epochs != 1)}"
        self._write_after_messages(f"  the time limit is {limit}; epochs={epochs} (--epochs {epochs}) repeats them")

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
        """Update the picture, count Spark's tasks, and write due messages."""
        counted = SparkTasks(spark) if spark is not None and self._is_interactive else None
        while not done.wait(_TICK_SECONDS):
            tasks = None if counted is None else counted.at(self._clock())
            with self._lock:
                self._write_messages()
                if self._is_interactive and self._stage is not None:
                    self._show(tasks)

    def _picture(self, tasks: Tasks | None) -> Picture:
        now, stage = self._clock(), self._stage
        running = None
        if stage is not None:
            seconds = now - stage.begin
            running = RunningStage(stage.name, seconds, stage.is_training, tasks or stage.tasks, stage.doing)
        epochs = tuple(self._epochs[number] for number in sorted(self._epochs))
        return Picture(now, tuple(self._finished), running, self._state, epochs, self._monitored)

    @property
    def _draws_history(self) -> bool:
        return self._is_interactive and self._screen.shows_history

    def _write_milestone(self, line: str) -> None:
        """Write the line of a stage or an epoch that is over, unless the screen shows it anyway."""
        if not self._draws_history:
            self._write(line)

    def _write(self, line: str) -> None:
        line = without_credentials(line)
        with self._ignoring_output_errors():
            self._write_to(line)

    def _show(self, tasks: Tasks | None = None) -> None:
        with self._ignoring_output_errors():
            self._screen.show(self._picture(tasks))

    @contextlib.contextmanager
    def _ignoring_output_errors(self) -> Iterator[None]:
        """Let the run continue without its view if the terminal is closed, or the disk of its log is full."""
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the file is closed.
            if not self._has_failed:
                logger.warning("the run goes on, but cannot be shown: %s", error)
            self._has_failed = True


class Stage(CountedWork):
    """A running stage; the run sets its final line.

    Attributes:
        note: Its result in words, on one line.
        details: More of its result: lines for a terminal or a file, and markup for a notebook.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.name = name
        self.begin = clock()
        self.is_training = False
        self.note = ""
        self.details: Details | None = None


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _shortened(message: str) -> str:
    # Colours and cursor movements in a rank's message would garble the block.
    text = Text.from_ansi(" ".join(message.split())).plain
    return text if len(text) <= _MESSAGE_CHARACTERS else f"{text[:_MESSAGE_CHARACTERS]} ..."
