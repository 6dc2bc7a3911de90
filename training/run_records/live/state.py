"""The state of a training as its ranks' events show it. Pure: events in, values out."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mirrorspark.training.protocol.messages import Event
from mirrorspark.training.protocol.outcomes import ranks_in_words, timing

# Window in which a rank's speed is measured.
_RATE_SECONDS = 10.0
# Shorter waits are part of every step.
_WAIT_SECONDS = 1.0

# The input works ahead of the steps: if it is busy nearly all of the time, the steps wait for it.
INPUT_BOUND_SHARE = 0.9

# Events that are not a heartbeat of a rank: its task or the supervisor sends them, or it fails.
_NO_HEARTBEAT = ("system", "stacks", "log", "error")

_WORDS = {
    "": "starting",
    "building": "building the model",
    "first_step": "first step",
    "ending": "at its end",
}


@dataclass(frozen=True)
class RankState:
    """The state of one rank.

    Attributes:
        last_seen: Time of its last heartbeat, in the driver's monotonic seconds.
        waiting_for: None, ``input`` or a rank.
        waiting_seconds: Duration of that wait at the last heartbeat.
        process_state: The process's state as its task reports it.
        global_batch_size: Examples of a step over all ranks; None for a rank that does not run ``fit``.
        steps_seen: Times and steps of the last seconds of uninterrupted training.
        steps_per_second: Speed when it last trained.
        busy_share: Share of the last seconds in which its input was busy, from 0 to 1.
        epoch_share: The same for the current epoch: sum and number of the reports.
        ended: ``finished`` or ``failed``; empty before.
    """

    last_seen: float
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
        """Return True if its heartbeat is overdue."""
        return not self.ended and now - self.last_seen > timing.SILENT_SECONDS

    def is_in_trouble(self, now: float) -> bool:
        """Return True if it is stopped, dead, silent or failed."""
        return self.process_state in ("stopped", "zombie") or self.is_silent(now) or self.ended == "failed"

    @property
    def phase_in_words(self) -> str:
        """The phase as text."""
        return _WORDS.get(self.phase, self.phase)

    def condition(self, now: float) -> tuple[str, float | None]:
        """Return the rank's condition as text, and for a wait or a silence its seconds."""
        if self.ended:
            return self.ended, None
        if self.process_state == "stopped":
            return "stopped by a signal", None
        if self.process_state == "zombie":
            return "its process is dead", None
        if self.is_silent(now):
            return "silent", now - self.last_seen
        if self.waiting_for and self.waiting_seconds >= _WAIT_SECONDS:
            return f"waiting for {self.waiting_for}", self.waiting_seconds + now - self.last_seen
        return self.phase_in_words, None


@dataclass(frozen=True)
class Position:
    """The chief's position.

    Attributes:
        epoch: Current epoch, from 1.
        step_in_epoch: Steps done in it.
        steps: Steps of an epoch.
        examples_per_second: Over all ranks.
        loss: Mean of the epoch so far.
        validation: Metrics of the last validation.
        began: Time and step of the attempt's first progress.
        now: Time and step of its newest progress.
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
        """Steps done in the whole training, including earlier attempts."""
        return (self.epoch - 1) * self.steps + self.step_in_epoch if self.steps and self.epoch else 0

    @property
    def steps_per_second(self) -> float | None:
        """Mean speed since the attempt's first progress, with validation and checkpoints; None before two reports."""
        if self.began is None or self.now is None or self.now[1] <= self.began[1] or self.now[0] <= self.began[0]:
            return None
        return _slope(self.began, self.now)

    def advanced(self, now: float, **changes: Any) -> "Position":
        """Return the position after progress at ``now``."""
        moved = dataclasses.replace(self, **changes)
        return dataclasses.replace(moved, began=self.began or (now, moved.done), now=(now, moved.done))


@dataclass(frozen=True)
class TrainingState:
    """The state of the training.

    Attributes:
        epochs: Maximum number of epochs.
        workers: Workers of the attempt; 0 before the first.
        attempt: Number of the current attempt.
        ranks: Ranks that have reported in it.
        position: The chief's position.
    """

    epochs: int
    workers: int = 0
    attempt: int = 0
    ranks: Mapping[int, RankState] = field(default_factory=dict)
    position: Position = field(default_factory=Position)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training; 0 while unknown."""
        return self.epochs * self.position.steps

    @property
    def share(self) -> float:
        """Share of the steps that are done, from 0 to 1."""
        return min(1.0, self.position.done / (self.total_steps or 1))

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all epochs are done, at the attempt's mean speed; None while it is unknown."""
        rate = self.position.steps_per_second
        return (self.total_steps - self.position.done) / rate if rate else None

    @property
    def examples_per_rank_step(self) -> float | None:
        """Examples in a rank's step; None if unknown.

        The ranks that run ``fit`` share each global batch. With parameter servers only the coordinator runs it, and
        each worker's step is a whole batch.
        """
        sizes = [rank.global_batch_size for rank in self.ranks.values() if rank.global_batch_size is not None]
        return max(sizes) / len(sizes) if sizes else None

    def after(self, event: Event, now: float) -> "TrainingState":
        """Return the state after an event at ``now``, in monotonic seconds."""
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
                # The next epoch is measured anew.
                ranks = {number: dataclasses.replace(state, epoch_share=(0.0, 0)) for number, state in ranks.items()}
            elif kind in ("train_begin", "time_limit"):
                epochs = event.get("epochs") or epochs
        state = _rank_after(ranks.get(rank, RankState(now)), event, now)
        return dataclasses.replace(self, epochs=epochs, position=position, ranks={**ranks, rank: state})


def _rank_after(rank: RankState, event: Event, now: float) -> RankState:
    """Return a rank's state after its event."""
    changes: dict[str, Any] = {} if event["event"] in _NO_HEARTBEAT else {"last_seen": now}
    match event["event"]:
        case "system":  # From its task, which also reports a silent rank.
            changes["process_state"] = event.get("state") or ""
            changes["memory_bytes"] = event.get("memory_bytes")
            changes["host"] = event.get("host") or rank.host
        case "error":
            changes["ended"] = "failed"
        case "train_begin":  # A function may train several times.
            changes |= {"ended": "", "global_batch_size": event.get("global_batch_size")}
        case "train_end":
            changes["ended"] = "finished"
        case "epoch_end":
            changes["step"] = event.get("step") or rank.step
        case "alive":
            changes |= _heartbeat_changes(rank, event, now)
        case "phase":
            changes |= {"phase": event["phase"], "host": event.get("host") or rank.host, "waiting_for": None}
        case "progress":
            changes["phase"] = rank.phase if rank.phase in ("checkpoint", "ending") else "training"
            changes["step"] = event.get("step") or rank.step
        case "validation":
            changes["phase"] = "validation"
    return dataclasses.replace(rank, **changes)


def _heartbeat_changes(rank: RankState, event: Event, now: float) -> dict[str, Any]:
    is_training, share = event.get("phase") == "training", event.get("input_share")
    step = event.get("step") or rank.step
    # A second training of the function counts from 0 again.
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
        # After progress in this attempt this is another training of the same function.
        fresh = position if position.began is None else Position()
        return dataclasses.replace(fresh, steps=event.get("steps") or fresh.steps)
    if event["event"] == "epoch_end":  # Short epochs end before they report progress.
        logs = event["logs"]
        return position.advanced(
            now,
            epoch=event["epoch"],
            step_in_epoch=position.steps,
            examples_per_second=event.get("examples_per_second") or position.examples_per_second,
            loss=logs.get("loss", position.loss),
            validation={name: logs[name] for name in validation_metrics(logs)},
        )
    if event["event"] != "progress" or not event["steps"]:
        return position
    values = {name: event[name] for name in ("epoch", "step_in_epoch", "steps", "loss")}
    return position.advanced(now, **values, examples_per_second=event["examples_per_second"] or 0.0)


def validation_metrics(logs: Mapping[str, float]) -> list[str]:
    """Return the names of the validation metrics to show: the loss only if there is no other."""
    names = [name for name in logs if bare(name).startswith("val_") and bare(name) != "val_loss"]
    return names or [name for name in logs if bare(name) == "val_loss"]


def epoch_metrics(logs: Mapping[str, float], monitored: str = "") -> list[str]:
    """Return the names of the metrics in the line of an epoch: the loss, the monitored one and others of validation."""
    losses = [name for name in logs if bare(name) == "loss"]
    return [*losses, *sorted(validation_metrics(logs), key=lambda name: bare(name) != monitored)]


def bare(name: str) -> str:
    """Return a metric's name without the prefix of a function's second training: ``fit_2/val_auc``."""
    return name.rpartition("/")[2]


def input_bound_warning(state: TrainingState) -> str | None:
    """Return a warning if the steps of the epoch waited for data, else None."""
    sums = {number: rank.epoch_share for number, rank in state.ranks.items()}
    shares = {number: total / reports for number, (total, reports) in sums.items() if reports}
    bound = {number: share for number, share in shares.items() if share >= INPUT_BOUND_SHARE}
    if not bound:
        return None
    return (
        f"input-bound: the input of {ranks_in_words(bound)} was busy {max(bound.values()):.0%} of the epoch's steps, "
        f"which wait for it; more cores per worker (spark.task.cpus) or faster storage would help"
    )
