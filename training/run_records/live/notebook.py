"""The screen of a notebook: one output of the cell, updated in place, which the saved notebook keeps.

It is HTML without scripts, which Jupyter, VS Code and Databricks show alike, in the ink of the notebook's theme.
"""

import html
import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from mirrorspark.data_pipelines.spark import task_bar
from mirrorspark.pages import Cell, bar_html, panel_html, rows_html
from mirrorspark.pages.charts import metric_chart
from mirrorspark.training.run_records.live.drawing import RANK_COLUMNS, headline, rank_rows
from mirrorspark.training.run_records.live.picture import EpochResult, FinishedStage, Picture, RunningStage
from mirrorspark.training.run_records.live.state import TrainingState, bare, epoch_metrics, validation_metrics

# While it trains the output keeps its height, so that the page below does not move.
_SHOWN_EPOCHS = 8
# Of the charts' axis.
_FEWEST_EPOCHS = 10
_MOST_MESSAGES = 200


class NotebookScreen:
    """Draws the picture of a run, with all lines, into one output of the cell."""

    shows_history = True

    def __init__(self, display: task_bar.Display) -> None:
        """Show nothing yet.

        Args:
            display: IPython's function, or one with its arguments.
        """
        self._display = display
        self._handle: Any = None
        self._lines: deque[str] = deque(maxlen=_MOST_MESSAGES)
        self._shown: dict[str, str] = {}

    def show(self, picture: Picture) -> None:
        """Draw the picture in place of the one before."""
        # Consoles that are attached to a kernel show text only.
        contents = {"text/html": page(picture, self._lines), "text/plain": _as_text(picture)}
        if self._handle is None:
            self._handle = self._display(contents, raw=True, display_id=True)
        elif contents != self._shown:
            self._handle.update(contents, raw=True)
        self._shown = contents

    def write(self, line: str) -> None:
        """Add a line to the next picture."""
        # Not printed: standard error is pink, and prints would be below the output, away from their bar.
        self._lines.append(line)


def page(picture: Picture, lines: Sequence[str] = ()) -> str:
    """Return the picture as markup: the stages, the curves and the table of the epochs, the ranks, and the lines."""
    parts = [_stages(picture)]
    if picture.epochs:
        parts.append(
            '<div style="display:flex;flex-wrap:wrap;gap:.5em 2em;align-items:flex-start">'
            f'<div style="max-width:340px">{"".join(_charts(picture))}</div><div>{_epochs(picture)}</div></div>'
        )
    running = picture.running
    if running is not None and running.is_training and picture.training.ranks:
        parts.append(_ranks(picture.training, picture.now))
    if lines:
        parts.append(f"<pre>{html.escape(chr(10).join(line.strip() for line in lines))}</pre>")
    return panel_html(*parts)


def best_epoch(picture: Picture) -> int | None:
    """Return the epoch with the best value of the monitored metric, the first of equal ones; None if it is unknown."""
    monitored = picture.monitored
    if monitored is None:
        return None
    sign = 1 if monitored.mode == "max" else -1
    found = ((result.epoch, result.logs.get(monitored.name, math.nan)) for result in picture.epochs)
    values = {epoch: sign * value for epoch, value in found if not math.isnan(value)}
    return max(values, key=lambda epoch: values[epoch]) if values else None


def _stages(picture: Picture) -> str:
    rows = [
        f'<tr><td class="short">{_sign(stage)} {html.escape(stage.name)}</td>'
        f'<td class="number">{stage.seconds:.1f} s</td>'
        f"<td>{html.escape(stage.note or ('did not finish' if stage.has_failed else ''))}{stage.markup}</td></tr>"
        for stage in picture.finished
    ]
    if picture.running is not None:
        rows.append(_running(picture.running, picture.training))
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def _sign(stage: FinishedStage) -> str:
    return '<span class="error">✗</span>' if stage.has_failed else '<span class="good">✓</span>'


def _running(stage: RunningStage, training: TrainingState) -> str:
    share, left, words = _progress(stage, training)
    parts = [] if share is None else [bar_html(share), f"{share:.0%}"]
    parts += [f"{task_bar.clock_time(left)} left"] if left is not None else []
    parts += [html.escape(words)] if words else []
    return (
        f'<tr><td class="short">▸ <b>{html.escape(stage.name)}</b></td>'
        f'<td class="number">{task_bar.clock_time(stage.seconds)}</td>'
        f"<td>{' &ensp;'.join(parts)}</td></tr>"
    )


def _progress(stage: RunningStage, training: TrainingState) -> tuple[float | None, float | None, str]:
    """Return the share of a stage that is done, the seconds left, and the rest in words."""
    if stage.tasks is not None:
        tasks = stage.tasks
        return tasks.share, tasks.seconds_left, f"{tasks.done:,} of {tasks.total:,} {tasks.unit}"
    if stage.is_training:
        loss = training.position.loss
        words = (headline(training), "" if loss is None else f"loss {loss:.4f}")
        return training.share, training.seconds_left, "  ".join(filter(None, words))
    return None, None, stage.doing


def _charts(picture: Picture) -> list[str]:
    """Return the charts of the loss and of the monitored metric, each on training and validation rows."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name in ("loss", _metric_of_interest(picture)):
        for which, key in (("training", name), ("validation", f"val_{name}")):
            points = [(result.epoch, logs[key]) for result in picture.epochs if key in (logs := _bare_logs(result))]
            if points:
                found.setdefault(name, {})[which] = points
    last = picture.epochs[-1].epoch
    if picture.running is not None and picture.running.is_training:
        # Most trainings end early: an axis to the maximum of epochs would be empty for most of its length.
        last = max(last, min(picture.training.epochs, max(_FEWEST_EPOCHS, last + last // 4)))
    best, monitored = best_epoch(picture), picture.monitored
    return [
        metric_chart(
            name, of, epochs=last, best=best if monitored is not None and monitored.name == f"val_{name}" else None
        )
        for name, of in found.items()
    ]


def _metric_of_interest(picture: Picture) -> str:
    """Return the name of the metric to show next to the loss: the monitored one, else the first of the validation."""
    names = [name.removeprefix("val_") for name in map(bare, validation_metrics(picture.epochs[-1].logs))]
    monitored = picture.monitored.name.removeprefix("val_") if picture.monitored else ""
    return monitored if monitored in names else next(iter(names), "loss")


def _bare_logs(result: EpochResult) -> dict[str, float]:
    return {bare(name): value for name, value in result.logs.items()}


def _epochs(picture: Picture) -> str:
    names = epoch_metrics(picture.epochs[-1].logs, picture.monitored.name if picture.monitored else "")
    best = best_epoch(picture)
    rows = [
        [
            Cell(f"{result.epoch} (best)", "good") if result.epoch == best else result.epoch,
            *(f"{result.logs[name]:.4f}" if name in result.logs else "" for name in names),
            "" if result.examples_per_second is None else f"{result.examples_per_second:,.0f}",
        ]
        for result in picture.epochs
    ]
    head = ["epoch", *names, "examples/s"]
    table = rows_html(head, rows[-_SHOWN_EPOCHS:], numbers=range(len(head)))
    if len(rows) <= _SHOWN_EPOCHS:
        return table
    if picture.running is not None and picture.running.is_training:
        earlier = "" if best is None or best > picture.epochs[-_SHOWN_EPOCHS - 1].epoch else f"; the best is {best}"
        return f'{table}<p class="quiet">and {len(rows) - _SHOWN_EPOCHS} earlier epochs{earlier}</p>'
    everything = rows_html(head, rows, numbers=range(len(head)))
    return f"{table}<details><summary>all {len(rows)} epochs</summary>{everything}</details>"


def _ranks(training: TrainingState, now: float) -> str:
    rows = [
        [*row.cells, Cell(row.condition, "error") if row.is_in_trouble else row.condition]
        for row in rank_rows(training, now)
    ]
    return rows_html([*RANK_COLUMNS, ""], rows, numbers=range(1, len(RANK_COLUMNS)))


def _as_text(picture: Picture) -> str:
    lines = [f"{stage.name:<10} {stage.seconds:6.1f} s  {stage.note}".rstrip() for stage in picture.finished]
    if picture.running is not None:
        lines.append(f"{picture.running.name} …")
    return "\n".join(lines)
