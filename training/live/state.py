"""What is known of a training from the events of its ranks. Pure: events in, values out."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mirrorspark.training.protocol.events import Event
from mirrorspark.training.protocol.timing import SILENT_SECONDS
from mirrorspark.training.protocol.words import ranks_in_words

# The steps of a rank are counted for its speed over so long.
_RATE_SECONDS = 10.0
# A shorter wait is a part of any step.
_WAIT_SECONDS = 1.0

# The input works ahead of the steps: where it is busy for nearly all of the time, the steps wait for it.
INPUT_BOUND_SHARE = 0.9

# Events about a rank that do not show that it is alive: its task, the supervisor and its last words send them.
_NO_SIGN_OF_LIFE = ("system", "stacks", "log", "error")

_WORDS = {
    "": "starting",
    "building": "building the model",
    "first_step": "first step",
    "ending": "at its end",
}


@dataclass(frozen=True)
class RankState:
    """What is known of one rank.

    Attributes:
        heard: When it was last heard, in the driver's seconds.
        waiting_for: Null, ``input`` or a rank.
        waiting_seconds: For how long by then.
        process_state: As its task sees it.
        global_batch_size: Examples of a step over all ranks that share it; None for a rank that shares none.
        steps_seen: When it was at which step, over the last seconds of training without a break.
        steps_per_second: Its own speed while it was last seen to train.
        busy_share: How much of the last seconds its input was busy, from 0 to 1.
        epoch_share: The same over the epoch that is under way: the sum of the reports, and how many there were.
        ended: How, once it has.
    """

    heard: float
    phase: str = ""
    host: str = ""
    step: int = 0
    collectives: int = 0
    waiting_for: str | None = None
    waiting_seconds: float = 0.0
    process_state: str = ""
    memory_bytes: int | None = None
    global_batch_size: int | None = None
    steps_seen: tuple[tuple[float, int], ...] = ()
    steps_per_second: float | None = None
    busy_share: float | None = None
    epoch_share: tuple[float, int] = (0.0, 0)
    ended: str = ""

    def is_silent(self, now: float) -> bool:
        """Whether it should have been heard meanwhile."""
        return not self.ended and now - self.heard > SILENT_SECONDS

    def is_in_trouble(self, now: float) -> bool:
        """Whether somebody should look after it."""
        return self.process_state in ("stopped", "zombie") or self.is_silent(now) or self.ended == "failed"

    @property
    def phase_in_words(self) -> str:
        """What it is doing."""
        return _WORDS.get(self.phase, self.phase)

    def condition(self, now: float) -> tuple[str, float | None]:
        """Return what it is doing, and for how many seconds where that tells something."""
        if self.ended:
            return self.ended, None
        if self.process_state == "stopped":
            return "stopped by a signal", None
        if self.process_state == "zombie":
            return "its process is dead", None
        if self.is_silent(now):
            return "silent", now - self.heard
        if self.waiting_for and self.waiting_seconds >= _WAIT_SECONDS:
            return f"waiting for {self.waiting_for}", self.waiting_seconds + now - self.heard
        return self.phase_in_words, None


@dataclass(frozen=True)
class Position:
    """How far the chief has come.

    Attributes:
        epoch: Under way, from 1.
        step_in_epoch: Steps of it done.
        steps: Of an epoch.
        examples_per_second: All ranks together.
        loss: Mean of the epoch so far.
        validation: Metrics of the last epoch.
        began: When and at which step of the whole training the first progress of this attempt came.
        now: Seconds and step of the newest one.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    steps: int = 0
    examples_per_second: float = 0.0
    loss: float | None = None
    validation: Mapping[str, float] = field(default_factory=dict)
    began: tuple[float, int] | None = None
    now: tuple[float, int] | None = None

    @property
    def done(self) -> int:
        """Steps of the whole training, those of earlier attempts included."""
        return (self.epoch - 1) * self.steps + self.step_in_epoch if self.steps and self.epoch else 0

    @property
    def steps_per_second(self) -> float | None:
        """Since this attempt's first progress, with validation and checkpoints; None before there are two."""
        if self.began is None or self.now is None or self.now[1] <= self.began[1] or self.now[0] <= self.began[0]:
            return None
        return _slope(self.began, self.now)

    def moved(self, now: float, **changes: Any) -> "Position":
        """Return where the chief is after it has told of progress at ``now``."""
        moved = dataclasses.replace(self, **changes)
        return dataclasses.replace(moved, began=self.began or (now, moved.done), now=(now, moved.done))


@dataclass(frozen=True)
class TrainingState:
    """What is known of the training.

    Attributes:
        epochs: Of the training at the most.
        workers: Of the attempt; 0 when none has begun.
        attempt: Which one is under way.
        ranks: Those that have been heard in it.
        position: How far the chief has come.
    """

    epochs: int
    workers: int = 0
    attempt: int = 0
    ranks: Mapping[int, RankState] = field(default_factory=dict)
    position: Position = field(default_factory=Position)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training; 0 while that is not known."""
        return self.epochs * self.position.steps

    @property
    def examples_per_rank_step(self) -> float | None:
        """Examples that a rank takes in a step of its own; None where that is not known.

        The ranks that run ``fit`` share each global batch. With parameter servers that is the coordinator alone, and
        each worker's step is a whole batch.
        """
        sizes = [rank.global_batch_size for rank in self.ranks.values() if rank.global_batch_size is not None]
        return max(sizes) / len(sizes) if sizes else None

    def after(self, event: Event, now: float) -> "TrainingState":
        """Return what is known after an event that came at ``now``, in seconds of a monotonic clock."""
        kind, rank = event["event"], event.get("rank")
        if kind == "attempt":
            position = dataclasses.replace(self.position, began=None, now=None)
            return TrainingState(self.epochs, event.get("workers") or 0, event["attempt"], position=position)
        if not isinstance(rank, int) or event.get("attempt", self.attempt) != self.attempt or event.get("recovered"):
            return self
        ranks, position, epochs = self.ranks, self.position, self.epochs
        if rank == 0:
            position = _position_after(position, event, now)
            if kind == "epoch_end":
                # The next epoch is judged by its own.
                ranks = {number: dataclasses.replace(state, epoch_share=(0.0, 0)) for number, state in ranks.items()}
            elif kind == "train_begin":
                epochs = event.get("epochs") or epochs
        state = _rank_after(ranks.get(rank, RankState(now)), event, now)
        return dataclasses.replace(self, epochs=epochs, position=position, ranks={**ranks, rank: state})


def _rank_after(rank: RankState, event: Event, now: float) -> RankState:
    """Return what is known of a rank after its event."""
    changes: dict[str, Any] = {} if event["event"] in _NO_SIGN_OF_LIFE else {"heard": now}
    match event["event"]:
        case "system":  # from its task, which lives on when the rank itself is silent
            changes["process_state"] = event.get("state") or ""
            changes["memory_bytes"] = event.get("memory_bytes")
            changes["host"] = event.get("host") or rank.host
        case "error":
            changes["ended"] = "failed"
        case "train_begin":  # a function may train again and again
            changes |= {"ended": "", "global_batch_size": event.get("global_batch_size")}
        case "train_end":
            changes["ended"] = "finished"
        case "epoch_end":
            changes["step"] = event.get("step") or rank.step
        case "alive":
            changes |= _signs_of_life(rank, event, now)
        case "phase":
            changes |= {"phase": event["phase"], "host": event.get("host") or rank.host, "waiting_for": None}
        case "progress":
            changes["phase"] = rank.phase if rank.phase in ("checkpoint", "ending") else "training"
            changes["step"] = event.get("step") or rank.step
        case "validation":
            changes["phase"] = "validation"
    return dataclasses.replace(rank, **changes)


def _signs_of_life(rank: RankState, event: Event, now: float) -> dict[str, Any]:
    is_training, share = event.get("phase") == "training", event.get("input_share")
    step = event.get("step") or rank.step
    # Another training counts from 0 again.
    recent = (one for one in rank.steps_seen if one[0] < now <= one[0] + _RATE_SECONDS and one[1] <= step)
    seen = (*recent, (now, step)) if is_training else ()
    total, reports = rank.epoch_share
    return {
        "phase": event.get("phase") or rank.phase,
        "step": step,
        "collectives": event.get("collectives") or rank.collectives,
        "waiting_for": event.get("waiting_for"),
        "waiting_seconds": event.get("waiting_seconds") or 0.0,
        "steps_seen": seen,
        "steps_per_second": _slope(seen[0], seen[-1]) if len(seen) > 1 else rank.steps_per_second,
        "busy_share": share,
        # Validation has an input of its own, which does not count.
        "epoch_share": (total + share, reports + 1) if is_training and share is not None else rank.epoch_share,
    }


def _slope(first: tuple[float, int], last: tuple[float, int]) -> float:
    return (last[1] - first[1]) / (last[0] - first[0])


def _position_after(position: Position, event: Event, now: float) -> Position:
    if event["event"] == "train_begin":
        # Where there has been progress in this attempt, another training of the same function begins.
        fresh = position if position.began is None else Position()
        return dataclasses.replace(fresh, steps=event.get("steps") or fresh.steps)
    if event["event"] == "epoch_end":  # short epochs are over before they have told of their progress
        logs = event["logs"]
        return position.moved(
            now,
            epoch=event["epoch"],
            step_in_epoch=position.steps,
            examples_per_second=event.get("examples_per_second") or position.examples_per_second,
            loss=logs.get("loss", position.loss),
            validation={name: logs[name] for name in validation_names(logs)},
        )
    if event["event"] != "progress" or not event["steps"]:
        return position
    told = {name: event[name] for name in ("epoch", "step_in_epoch", "steps", "loss")}
    return position.moved(now, **told, examples_per_second=event["examples_per_second"] or 0.0)


def validation_names(logs: Mapping[str, float]) -> list[str]:
    """Return the metrics of validation that are worth a place: its loss only where there is nothing else."""
    names = [name for name in logs if _bare(name).startswith("val_") and _bare(name) != "val_loss"]
    return names or [name for name in logs if _bare(name) == "val_loss"]


def epoch_names(logs: Mapping[str, float]) -> list[str]:
    """Return what is worth a place in the line of an epoch: the loss and the metrics of validation."""
    return [*(name for name in logs if _bare(name) == "loss"), *validation_names(logs)]


def _bare(name: str) -> str:
    """Return a metric's name without the training of the function that it is of: ``fit_2/val_auc``."""
    return name.rpartition("/")[2]


def input_verdict(state: TrainingState) -> str | None:
    """Return a line on the epoch that is about to end when its steps waited for data, else None."""
    sums = {number: rank.epoch_share for number, rank in state.ranks.items()}
    shares = {number: total / reports for number, (total, reports) in sums.items() if reports}
    bound = {number: share for number, share in shares.items() if share >= INPUT_BOUND_SHARE}
    if not bound:
        return None
    return (
        f"input-bound: the input of {ranks_in_words(bound)} was busy {max(bound.values()):.0%} of the epoch's steps, "
        f"which wait for it; more cores per worker (spark.task.cpus) or faster storage would help"
    )
