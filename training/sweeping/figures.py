"""The figures of a sweep: how it got on, which values went together, and what mattered."""

from matplotlib.figure import Figure

from plots.sweep import importance_bars, optimisation_history, parallel_coordinates
from training.sweeping.report import SweepSummary
from training.sweeping.space import Range, SearchSpace


def figures(summary: SweepSummary, space: SearchSpace) -> dict[str, Figure]:
    """Return the figures that a sweep's trials are enough for."""
    told = [trial for trial in summary.trials if trial.best is not None and trial.values]
    complete = [trial for trial in told if trial.state == "complete"]
    found: dict[str, Figure] = {}
    if complete:
        found["optimisation_history"] = optimisation_history(
            {trial.number: trial.best or 0.0 for trial in complete},
            {trial.number: trial.best or 0.0 for trial in told if trial.state == "pruned"},
            metric=summary.monitor,
            mode=summary.mode,
        )
    if len(complete) > 1:
        found["parallel_coordinates"] = parallel_coordinates(
            [trial.values for trial in complete],
            [trial.best or 0.0 for trial in complete],
            metric=summary.monitor,
            mode=summary.mode,
            log=[knob for knob, domain in space.domains.items() if isinstance(domain, Range) and domain.is_log],
        )
    if summary.importances:
        found["importances"] = importance_bars(summary.importances, metric=summary.monitor)
    return found
