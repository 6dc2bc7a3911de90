"""The running stage in a terminal: a bar, and a line per rank. Pure: values in, tables of rich out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
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
_UNBOUNDED = 10_000

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


@dataclass(frozen=True)
class _WidestThatFits:
    """Forms of the same facts, the widest first, of which the terminal gets the first that fits it."""

    forms: Sequence[RenderableType]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unbounded = options.update(max_width=_UNBOUNDED)
        widths = (Measurement.get(console, unbounded, form).maximum for form in self.forms)
        fitting = (form for form, width in zip(self.forms, widths, strict=True) if width <= options.max_width)
        yield next(fitting, self.forms[-1])


def bar(
    name: str, elapsed: float, share: float | None = None, *, left: float | None = None, text: str = ""
) -> RenderableType:
    """Return the line of a stage: name, share done, elapsed seconds, seconds left, and a text."""
    so_far = task_bar.clock_time(elapsed)
    times = so_far if left is None else f"{so_far}, {task_bar.clock_time(left)} left"
    if share is None:
        return _WidestThatFits([_line(name, times, text), _line(name, times)])
    drawn = [
        ProgressBar(1.0, share, columns, complete_style="green", finished_style="green")
        for columns in (_BAR_COLUMNS, _BAR_COLUMNS // 2)
    ]
    forms = [_line(name, f"{share:4.0%}", one, times, text) for one in drawn]
    return _WidestThatFits([*forms, _line(name, f"{share:4.0%}", times, text), _line(name, f"{share:4.0%}", times)])


def _line(*cells: RenderableType) -> Table:
    line = Table.grid(padding=(0, 1))
    line.add_column(min_width=10)
    for _ in cells[1:]:
        line.add_column(no_wrap=True)
    line.add_row(*cells)
    return line


def training(name: str, elapsed: float, state: TrainingState, now: float) -> RenderableType:
    """Return the bar of a training with the lines of its ranks."""
    parts: list[RenderableType] = [bar(name, elapsed, state.share, left=state.seconds_left)]
    words = [word for text in (headline(state), metrics(state)) if text for word in text.split("  ")]
    if words:
        # Broken between two of them, if at all.
        pairs = ((words[:place], words[place:]) for place in range(len(words), 0, -1))
        texts = ["\n".join(f"  {'  '.join(line)}" for line in pair if line) for pair in pairs]
        parts.append(_WidestThatFits(list(map(Text, texts))))
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


def rank_table(state: TrainingState, now: float) -> RenderableType:
    """Return the rows of the ranks as a table; a narrow terminal gets fewer columns, and conditions that are cut."""
    rows = rank_rows(state, now)
    return _WidestThatFits([_rank_table(rows, RANK_COLUMNS[:count]) for count in (5, 4, 3)])


def _rank_table(rows: Sequence[RankRow], columns: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")
    table.add_column("", min_width=8, no_wrap=True)
    # Wide enough for most values: columns that move are hard to read.
    for name, width in zip(columns[1:], (9, 10, 10, 8), strict=False):
        table.add_column(name, min_width=width, justify="right", no_wrap=True)
    # The only one that shrinks. With room for most conditions others seldom come and go.
    table.add_column("", min_width=20 if len(columns) > 3 else None)
    for row in rows:
        style = "red" if row.is_in_trouble else "yellow" if row.condition.startswith("waiting") else ""
        cells = row.cells[: len(columns)]
        table.add_row(*cells, Text(row.condition, style, no_wrap=True, overflow="ellipsis"))
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
