"""Shows a run while it runs: in a terminal or notebook a bar and a line per rank, in a file a line per stage and epoch.

:mod:`training.live.state` knows what is going on, :mod:`training.live.drawing` makes a block of that, and
:mod:`training.live.screen` puts it on the screen.
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
from mirrorspark.training.live.messages import Messages, sense_of
from mirrorspark.training.live.screen import NotebookScreen, Screen, TerminalScreen, can_draw
from mirrorspark.training.live.stack_text import telling_frames
from mirrorspark.training.live.state import TrainingState, epoch_names, input_verdict
from mirrorspark.training.protocol.cause import RankError
from mirrorspark.training.protocol.events import Event
from mirrorspark.training.protocol.words import ranks_in_words

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.5

# A message is a line, not a page; the whole of it is in the events file.
_MESSAGE_CHARACTERS = 300


class LiveView:
    """Follows the stages of a run and the events of its ranks."""

    def __init__(
        self,
        *,
        epochs: int,
        is_interactive: bool | None = None,
        write: Callable[[str], None] | None = None,
        screen: Screen | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Decide how to show things.

        Args:
            epochs: Epochs of the training at the most.
            is_interactive: Draw; by default in a terminal or a notebook.
            write: Where lines go; by default standard error.
            screen: Where to draw; by default the terminal or the notebook.
            clock: Returns seconds; monotonic.
        """
        console = Console(stderr=True)
        self._is_interactive = can_draw(console) if is_interactive is None else is_interactive
        self._screen = screen or (NotebookScreen if console.is_jupyter else TerminalScreen)(console)
        self._write_to = write or (self._screen.write if self._is_interactive else _print)
        self._clock = clock
        # Events come from the ranks' connections and from the supervisor, and the ticker draws.
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
        """Time a stage and show it.

        Args:
            name: What it is called.
            spark: Show how many tasks of this session's jobs are done.

        Yields:
            The stage; its ``note`` is printed with its end.
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
                self._say_messages(everything=True)
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
                self._say_epoch(event)
            if self._stage is not None:
                self._stage.is_training = True
            previous = self._state
            self._state = previous.after(event, now)
            match event["event"]:
                case "log":
                    text = _shortened(event["message"])
                    self._messages.add(f"log {sense_of(text)}", event["rank"], f": {text}", now)
                case "error" if "message" in event:
                    self._hear_error(event, now)
                case "stacks":
                    self._stacks[event["rank"]] = event.get("text") or ""
                case "attempt":
                    self._stacks = {}
                    self._say_attempt(event, previous.workers)
                case "train_begin" if event.get("rank") == 0:
                    self._say_model(event)
                case "restart":
                    self._say_restart(event)
                case "hung":
                    self._say_hung(event)
                case "waiting":
                    self._say_waiting(event)
                case "stopping":
                    self._say(f"  stopping: {event.get('reason')}; the ranks save a checkpoint first")
            if self._stage is None:  # nobody ticks
                self._say_messages(everything=True)

    def say(self, line: str) -> None:
        """Write a line that is no event of the training."""
        with self._lock:
            self._say(line)

    def _hear_error(self, event: Event, now: float) -> None:
        text = event["message"] if event.get("type") == "killed" else f"{event.get('type')}: {event['message']}"
        text = _shortened(text)
        if event.get("cause") == "peer":  # that a peer is gone has many words, of which one is enough
            self._messages.add("peer", event["rank"], f" lost a peer: {text}", now)
        else:
            self._messages.add(f"error {sense_of(text)}", event["rank"], f" failed: {text}", now)

    def _say_epoch(self, event: Event) -> None:
        logs = "  ".join(f"{name} {event['logs'][name]:.4f}" for name in epoch_names(event["logs"]))
        rate = event["examples_per_second"]
        speed = "" if rate is None else f"{rate:>9,.0f} examples/s  "
        self._say(f"  epoch {event['epoch']:>2}/{self._state.epochs}  {speed}{logs}")
        verdict = input_verdict(self._state)
        if verdict is not None and not event.get("recovered"):
            self._say(f"  {verdict}")

    def _say_attempt(self, event: Event, workers_before: int) -> None:
        workers, step = event.get("workers") or 0, event.get("resumed_from") or 0
        scale = event.get("learning_rate_scale") or 1.0
        before = "" if workers_before in (0, workers) else f", {workers_before} before"
        rate = "" if scale == 1.0 or workers_before == workers else f"; learning rate x {scale:g}"
        if before or rate:
            self._say(f"  attempt {event['attempt']}: {drawing.workers_in_words(workers)}{before}{rate}")
        if event["attempt"] == 1 and step:  # of later attempts their restart has told
            self._say(f"  going on from step {step:,}")

    def _say_model(self, event: Event) -> None:
        # Of a training that appears to hang in its first steps it is the first thing to know. Attempts and fits repeat.
        count = event.get("parameter_bytes")
        if count not in (None, self._parameter_bytes):
            self._say(f"  the weights to train take {count / 1e6:,.1f} MB")
        self._parameter_bytes = count

    def _say_restart(self, event: Event) -> None:
        error = event.get("error")
        why = _shortened(RankError(**error).in_words) if error else "as it was told"
        decision = event.get("decision") or "going on from the last checkpoint"
        delay = event.get("delay_seconds") or 0
        wait = f" (waiting {delay:.0f} s first)" if delay >= 1 else ""
        self._say(f"  attempt {event['attempt']} ended: {why}; {decision}{wait}")

    def _say_waiting(self, event: Event) -> None:
        if "store" in event:
            self._say(f"  waiting for the store of checkpoints {event['store']}")
            return
        self._say(
            f"  waiting for slots: the cluster has {event['slots']}, the training needs {event['needed']}; it gives up "
            f"after {event['limit_seconds']:g} s"
        )

    def _say_hung(self, event: Event) -> None:
        self._say(f"  hung: {event['why']}")
        stacks = self._stacks | {int(rank): text for rank, text in (event.get("stacks") or {}).items()}
        told: dict[str, list[int]] = {}
        for rank, text in sorted(stacks.items()):
            if frames := telling_frames(text):
                told.setdefault("; and in ".join(frames), []).append(rank)
        for frames_in_words, ranks in told.items():
            self._say(f"    {ranks_in_words(ranks)} in {frames_in_words}")

    def _say_messages(self, *, everything: bool = False) -> None:
        for line in self._messages.lines(self._clock(), everything=everything):
            self._write(f"  {line}")

    def _say(self, line: str) -> None:
        """Write a line behind what the ranks have said before it."""
        self._say_messages(everything=True)
        self._write(line)

    def _tick(self, spark: SparkSession | None, done: threading.Event) -> None:
        """Keep the block up to date, count Spark's tasks, and write what ranks said a moment ago."""
        while not done.wait(_TICK_SECONDS):
            counts = None
            if spark is not None and self._is_interactive:
                try:
                    counts = _spark_tasks(spark)
                except Exception:
                    # The JVM is gone, which its library has many words for and logs each time. Who needs it says so.
                    spark = None
            with self._lock:
                self._say_messages()
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
        with self._unless_nobody_looks():
            self._write_to(line)

    def _show(self, block: RenderableType | None) -> None:
        with self._unless_nobody_looks():
            self._screen.show(block)

    @contextlib.contextmanager
    def _unless_nobody_looks(self) -> Iterator[None]:
        """Let the run go on without its view when the terminal is gone, or the disk of its log is full."""
        try:
            yield
        except (OSError, ValueError) as error:  # a closed file is a ValueError
            if not self._has_failed:
                logger.warning("the run goes on, but cannot be shown: %s", error)
            self._has_failed = True


class Stage:
    """The stage under way; the run sets its ``note``, which is printed with its end."""

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
    # A colour or a cursor that moves in a rank's message would garble what is drawn.
    text = Text.from_ansi(" ".join(message.split())).plain
    return text if len(text) <= _MESSAGE_CHARACTERS else f"{text[:_MESSAGE_CHARACTERS]} ..."
