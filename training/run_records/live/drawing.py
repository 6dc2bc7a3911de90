"""The running stage in a terminal: a bar, and a line per rank. Pure: values in, tables of rich out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mirrorspark.data_pipelines.spark import task_bar
from mirrorspark.training.run_records.live.picture import Picture
from mirrorspark.training.run_records.live.state import RankState, TrainingState

# Of more ranks only the slowest few have lines, and the others share one.
_ALL_RANKS = 8
_SLOWEST = 5

_BAR_COLUMNS = 20

RANK_COLUMNS = ("", "step", "examples/s", "input busy", "memory")


def block(picture: Picture) -> RenderableType | None:
    """Return the running stage; None if there is none."""
    stage = picture.running
    if stage is None:
        return None
    if stage.tasks is not None:
        tasks = stage.tasks
        words = f"{tasks.done:,}/{tasks.total:,} {tasks.unit}"
        return bar(stage.name, stage.seconds, tasks.share, left=tasks.seconds_left, text=words)
    if stage.is_training:
        return training(stage.name, stage.seconds, picture.training, picture.now)
    return bar(stage.name, stage.seconds, text=stage.doing)


def bar(name: str, elapsed: float, share: float | None = None, *, left: float | None = None, text: str = "") -> Table:
    """Return the line of a stage: name, share done, elapsed seconds, seconds left, and a text."""
    line = Table.grid(padding=(0, 1))
    line.add_column(min_width=10)
    times = (
        task_bar.clock_time(elapsed)
        if left is None
        else f"{task_bar.clock_time(elapsed)}, {task_bar.clock_time(left)} left"
    )
    done: tuple[RenderableType, ...] = ()
    if share is not None:
        filled = ProgressBar(1.0, share, _BAR_COLUMNS, complete_style="green", finished_style="green")
        done = (f"{share:4.0%}", filled)
    line.add_row(name, *done, times, text)
    return line


def training(name: str, elapsed: float, state: TrainingState, now: float) -> RenderableType:
    """Return the bar of a training with the lines of its ranks."""
    parts: list[RenderableType] = [bar(name, elapsed, state.share, left=state.seconds_left)]
    if text := "  ".join(filter(None, (headline(state), metrics(state)))):
        parts.append(Text(f"  {text}"))
    return Group(*parts, rank_table(state, now)) if state.ranks else Group(*parts)


def headline(state: TrainingState) -> str:
    """Return the position and the speed of the training."""
    position = state.position
    if not state.ranks and state.attempt:
        return f"waiting for Spark to start {workers_in_words(state.workers)}"
    if position.now is None:
        words = Counter(rank.phase_in_words for rank in state.ranks.values())
        reported = f"{len(state.ranks)} of {state.workers} workers: " if state.workers else ""
        return reported + ", ".join(f"{word} {count}" if len(words) > 1 else word for word, count in words.items())
    return (
        f"epoch {position.epoch}/{state.epochs}  step {position.step_in_epoch:,}/{position.steps:,}  "
        f"{position.examples_per_second:,.0f} examples/s"
    )


def metrics(state: TrainingState) -> str:
    """Return the loss and the metrics of the last validation."""
    position = state.position
    values = {} if position.loss is None else {"loss": position.loss}
    return "  ".join(f"{name} {value:.4f}" for name, value in (values | dict(position.validation)).items())


def workers_in_words(workers: int) -> str:
    """Return ``1 worker`` or ``4 workers``."""
    return f"{workers} worker{'' if workers == 1 else 's'}"


@dataclass(frozen=True)
class RankRow:
    """The line of one rank, or of several.

    Attributes:
        cells: A text for each of :data:`RANK_COLUMNS`.
        condition: The phase or wait in words.
        is_in_trouble: It is stopped, dead, silent or failed.
    """

    cells: tuple[str, ...]
    condition: str
    is_in_trouble: bool = False


def rank_rows(state: TrainingState, now: float) -> list[RankRow]:
    """Return a row per rank; of many ranks only the slowest few, and a row for the others."""
    order = sorted(state.ranks, key=lambda rank: _slowness(state, rank, now))
    shown = sorted(order) if len(order) <= _ALL_RANKS else order[:_SLOWEST]
    others = [state.ranks[number] for number in order[len(shown) :]]
    has_several_hosts = len({rank.host for rank in state.ranks.values() if rank.host}) > 1
    rows = []
    for number in shown:
        rank = state.ranks[number]
        words, seconds = rank.condition(now)
        words += "" if seconds is None else f" ({seconds:.0f} s)"
        words += f"  {rank.host}" if has_several_hosts else ""
        rows.append(RankRow(_cells(f"rank {number}", state, [rank]), words, rank.is_in_trouble(now)))
    if others:
        counts = Counter(rank.condition(now)[0] for rank in others)
        words = ", ".join(word if len(counts) == 1 else f"{count} {word}" for word, count in counts.most_common(3))
        rows.append(RankRow(_cells(f"{len(others)} more", state, others), words))
    return rows


def rank_table(state: TrainingState, now: float) -> Table:
    """Return the rows of the ranks as a table."""
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")
    table.add_column("", min_width=8, no_wrap=True)
    # Wide enough for most values: columns that move are hard to read.
    for name, width in zip(RANK_COLUMNS[1:], (9, 10, 10, 8), strict=True):
        table.add_column(name, min_width=width, justify="right", no_wrap=True)
    table.add_column("")  # The only one that shrinks on a narrow terminal.
    for row in rank_rows(state, now):
        style = "red" if row.is_in_trouble else "yellow" if row.condition.startswith("waiting") else ""
        table.add_row(*row.cells, Text(row.condition, style, no_wrap=True, overflow="ellipsis"))
    return table


def _slowness(state: TrainingState, number: int, now: float) -> tuple[object, ...]:
    """Return the sort key: first ranks in trouble, then ranks that are behind, then ranks that others wait for."""
    rank = state.ranks[number]
    waiting = sum(other.waiting_for == f"rank {number}" for other in state.ranks.values())
    return not rank.is_in_trouble(now), rank.step, -waiting, rank.collectives, -(rank.busy_share or 0.0), number


def _cells(name: str, state: TrainingState, ranks: Sequence[RankState]) -> tuple[str, ...]:
    """Return the cells of one rank, or of several: the range of their steps, and the maximum of their usage."""
    steps = sorted({rank.step for rank in ranks})
    size = state.examples_per_rank_step
    rates = [rank.steps_per_second * size for rank in ranks if rank.steps_per_second is not None and size is not None]
    shares = [rank.busy_share for rank in ranks if rank.busy_share is not None]
    memory = [rank.memory_bytes for rank in ranks if rank.memory_bytes is not None]
    return (
        name,
        f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,}-{steps[-1]:,}",
        f"{sum(rates):,.0f}" if rates else "-",
        f"{max(shares):.0%}" if shares else "-",
        f"{max(memory) / 1e9:.2f} GB" if memory else "-",
    )
