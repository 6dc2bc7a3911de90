"""What is known of a training from the events of its ranks, and the lines that show it. Pure: values in, text out."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from training.channel.events import Event
from training.live.messages import ranks_in_words
from training.supervision.timing import SILENT_SECONDS

# More ranks than this are shown by the slowest few and a line for the others.
_ALL_RANKS = 8
_SLOWEST = 5

# Over so long the steps of a rank are counted for its speed.
_RATE_SECONDS = 10.0
# A shorter wait is a part of any step.
_WAIT_SECONDS = 1.0

# The input works ahead of the steps: where it is busy for nearly all of the time, the steps wait for it.
INPUT_BOUND_SHARE = 0.9

_WORDS = {
    "connecting": "connecting",
    "building": "building the model",
    "restoring": "restoring",
    "first_step": "first step",
    "ending": "at its end",
}


@dataclass(frozen=True)
class RankState:
    """What is known of one rank.

    Attributes:
        heard: When it was last heard, in the driver's seconds.
        phase: What it is doing.
        host: Its machine.
        step: Optimizer steps done.
        collectives: Ring operations done.
        waiting_for: Null, ``input`` or a rank.
        waiting_seconds: For how long by then.
        process_state: As its task sees it.
        memory_bytes: Resident.
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

    def is_in_trouble(self, now: float) -> bool:
        """Whether somebody should look after it."""
        return bool(self.process_state in ("stopped", "zombie") or self.is_silent(now) or self.ended == "failed")

    def is_silent(self, now: float) -> bool:
        """Whether it should have been heard meanwhile."""
        return not self.ended and now - self.heard > SILENT_SECONDS

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
        return _WORDS.get(self.phase, self.phase) or "starting", None

    def in_words(self, now: float) -> str:
        """Return the condition as text."""
        words, seconds = self.condition(now)
        return words if seconds is None else f"{words} ({seconds:.0f} s)"


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
        return (self.now[1] - self.began[1]) / (self.now[0] - self.began[0])


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

    def after(self, event: Event, now: float) -> "TrainingState":
        """Return what is known after an event that came at ``now``, in seconds of a monotonic clock."""
        kind, rank = event["event"], event.get("rank")
        if kind == "attempt":
            position = dataclasses.replace(self.position, began=None, now=None)
            workers = event.get("workers") or 0
            return TrainingState(self.epochs, workers, event["attempt"], position=position)
        if not isinstance(rank, int) or event.get("attempt", self.attempt) != self.attempt or event.get("recovered"):
            return self
        position = _position_after(self.position, event, now) if rank == 0 else self.position
        ranks = self.ranks
        if kind == "epoch_end" and rank == 0:
            # The next epoch is judged by its own.
            ranks = {number: dataclasses.replace(state, epoch_share=(0.0, 0)) for number, state in ranks.items()}
        state = _rank_after(ranks.get(rank, RankState(now)), event, now)
        epochs = event.get("epochs") or self.epochs if kind == "train_begin" and rank == 0 else self.epochs
        return dataclasses.replace(self, epochs=epochs, position=position, ranks={**ranks, rank: state})


def _rank_after(rank: RankState, event: Event, now: float) -> RankState:
    """Return what is known of a rank after its event."""
    match event["event"]:
        case "system":  # from its task, which lives on when the rank itself is silent
            return dataclasses.replace(
                rank,
                process_state=event.get("state") or "",
                memory_bytes=event.get("memory_bytes"),
                host=event.get("host") or rank.host,
            )
        case "stacks" | "log":
            return rank
        case "error":
            return dataclasses.replace(rank, ended="failed")
        case "train_begin":
            # A function may train again and again.
            return dataclasses.replace(rank, heard=now, ended="", global_batch_size=event.get("global_batch_size"))
        case "epoch_end":
            return dataclasses.replace(rank, heard=now, step=event.get("step") or rank.step)
        case "train_end":
            return dataclasses.replace(rank, heard=now, ended="finished")
        case "alive":
            share = event.get("input_share")
            total, reports = rank.epoch_share
            step = event.get("step") or rank.step
            seen = _steps_seen(rank, step, now) if event.get("phase") == "training" else ()
            return dataclasses.replace(
                rank,
                heard=now,
                phase=event.get("phase") or rank.phase,
                step=step,
                steps_seen=seen,
                steps_per_second=_slope(seen) if len(seen) > 1 else rank.steps_per_second,
                collectives=event.get("collectives") or rank.collectives,
                waiting_for=event.get("waiting_for"),
                waiting_seconds=event.get("waiting_seconds") or 0.0,
                busy_share=share,
                epoch_share=(total + float(share or 0.0), reports + 1) if _counts(event) else rank.epoch_share,
            )
        case "phase":
            return dataclasses.replace(
                rank, heard=now, phase=event["phase"], host=event.get("host") or rank.host, waiting_for=None
            )
        case "progress":
            phase = rank.phase if rank.phase in ("checkpoint", "ending") else "training"
            return dataclasses.replace(rank, heard=now, phase=phase, step=event.get("step") or rank.step)
        case "validation":
            return dataclasses.replace(rank, heard=now, phase="validation")
    return dataclasses.replace(rank, heard=now)


def _steps_seen(rank: RankState, step: int, now: float) -> tuple[tuple[float, int], ...]:
    """Return where the rank was over the last seconds, up to now; another training counts from 0 again."""
    before = [one for one in rank.steps_seen if one[0] < now and now - one[0] <= _RATE_SECONDS and one[1] <= step]
    return (*before, (now, step))


def _slope(seen: Sequence[tuple[float, int]]) -> float:
    (begin, first), (end, last) = seen[0], seen[-1]
    return (last - first) / (end - begin)


def _counts(event: Event) -> bool:
    """Whether the event tells how busy the input is while steps are made: validation has an input of its own."""
    return event.get("phase") == "training" and event.get("input_share") is not None


def _position_after(position: Position, event: Event, now: float) -> Position:
    if event["event"] == "train_begin":
        # Where there has been progress in this attempt, another training of the same function begins.
        fresh = position if position.began is None else Position()
        return dataclasses.replace(fresh, steps=event.get("steps") or fresh.steps)
    if event["event"] == "epoch_end":
        logs = event["logs"]
        # Short epochs are over before they have told of their progress.
        ended = dataclasses.replace(
            position,
            epoch=event["epoch"],
            step_in_epoch=position.steps,
            examples_per_second=event.get("examples_per_second") or position.examples_per_second,
            loss=logs.get("loss", position.loss),
            validation={name: logs[name] for name in validation_names(logs)},
        )
        return dataclasses.replace(ended, began=position.began or (now, ended.done), now=(now, ended.done))
    if event["event"] != "progress" or not event["steps"]:
        return position
    moved = dataclasses.replace(
        position,
        epoch=event["epoch"],
        step_in_epoch=event["step_in_epoch"],
        steps=event["steps"],
        examples_per_second=event["examples_per_second"] or 0.0,
        loss=event["loss"],
    )
    return dataclasses.replace(moved, began=position.began or (now, moved.done), now=(now, moved.done))


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


def headline(state: TrainingState) -> str:
    """Return what stands behind the bar: where the training is, how fast, and the loss."""
    position = state.position
    if not state.ranks and state.attempt:
        return f"waiting for Spark to start {workers_in_words(state.workers)}"
    if position.now is None:
        if not state.ranks:
            return ""
        words = Counter(_WORDS.get(rank.phase, rank.phase) or "starting" for rank in state.ranks.values())
        heard = f"{len(state.ranks)} of {state.workers} workers: " if state.workers else ""
        return heard + ", ".join(f"{word} {count}" if len(words) > 1 else word for word, count in words.items())
    return (
        f"epoch {position.epoch}/{state.epochs} step {position.step_in_epoch:,}/{position.steps:,} "
        f"{position.examples_per_second:,.0f} examples/s"
    )


def workers_in_words(workers: int) -> str:
    """Return ``1 worker`` or ``4 workers``."""
    return f"{workers} worker{'' if workers == 1 else 's'}"


def metrics(state: TrainingState) -> str:
    """Return the loss and the metrics of the last validation."""
    position = state.position
    values = {} if position.loss is None else {"loss": position.loss}
    return " ".join(f"{name} {value:.4f}" for name, value in (values | dict(position.validation)).items())


def rank_rows(state: TrainingState, now: float) -> list[str]:
    """Return a line per rank; of many ranks the slowest few, and a line for all others."""
    if not state.ranks:
        return []
    order = sorted(state.ranks, key=lambda rank: _slowness(state, rank, now))
    shown = order if len(order) <= _ALL_RANKS else order[:_SLOWEST]
    has_several_hosts = len({rank.host for rank in state.ranks.values() if rank.host}) > 1
    rows = []
    for number in sorted(shown) if shown is order else shown:
        rank = state.ranks[number]
        host = f"  {rank.host}" if has_several_hosts else ""
        rows.append(_row(f"rank {number}", state, [rank], rank.in_words(now) + host))
    others = [state.ranks[number] for number in order[len(shown) :]]
    if others:
        counts = Counter(rank.condition(now)[0] for rank in others)
        words = ", ".join(word if len(counts) == 1 else f"{count} {word}" for word, count in counts.most_common(3))
        rows.append(_row(f"{len(others)} more", state, others, words))
    return rows


def _slowness(state: TrainingState, number: int, now: float) -> tuple[object, ...]:
    """Return the order of ranks: first who is in trouble, then who is behind, then who the others wait for."""
    rank = state.ranks[number]
    waiting = sum(other.waiting_for == f"rank {number}" for other in state.ranks.values())
    return (
        not rank.is_in_trouble(now),
        rank.step,
        -waiting,
        rank.collectives,
        -(rank.busy_share or 0.0),
        number,
    )


def _row(name: str, state: TrainingState, ranks: Sequence[RankState], words: str) -> str:
    """Return a line for one rank, or for several: from the slowest to the fastest, and the most of what they use."""
    steps = sorted({rank.step for rank in ranks})
    step = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,}-{steps[-1]:,}"
    size = _examples_per_step(state)
    rates = [rank.steps_per_second * size for rank in ranks if rank.steps_per_second is not None and size is not None]
    shares = [rank.busy_share for rank in ranks if rank.busy_share is not None]
    memory = [rank.memory_bytes for rank in ranks if rank.memory_bytes is not None]
    cells = (
        f"{name:<8}",
        f"step {step:>9}",
        f"{sum(rates):>9,.0f}/s" if rates else f"{'-':>9}  ",
        f"input busy {max(shares):>4.0%}" if shares else f"input busy {'-':>4}",
        f"{max(memory) / 1e9:>6.2f} GB" if memory else f"{'-':>6}   ",
        words,
    )
    return "  " + "  ".join(cells)


def _examples_per_step(state: TrainingState) -> float | None:
    """Return what a rank takes in a step of its own; None where that is not known.

    The ranks that run ``fit`` share each global batch. With parameter servers that is the coordinator alone, and each
    worker's step is a whole batch.
    """
    sizes = [rank.global_batch_size for rank in state.ranks.values() if rank.global_batch_size is not None]
    return max(sizes) / len(sizes) if sizes else None


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
