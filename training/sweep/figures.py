"""The figures of a sweep, drawn by Optuna."""

from typing import Any

import matplotlib.pyplot as plt
import optuna
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import TrialState
from optuna.visualization.matplotlib import (
    plot_optimization_history,
    plot_parallel_coordinate,
    plot_param_importances,
)

from mirrorspark.pages.figures import make_literal
from mirrorspark.training.sweep.study import importances

_WIDTH_INCHES, _HEIGHT_INCHES = 7.2, 4.8
_INCHES_PER_AXIS = 2.2
# Optuna's blues begin with white, in which a poor trial's line is invisible. Dark remains best.
_VISIBLE = {"Blues": "viridis_r", "Blues_r": "viridis"}


def figures(study: optuna.Study, metric: str) -> dict[str, Figure]:
    """Return the figures for which the study has enough complete trials."""
    complete = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    found = {}
    axes: Any
    with plt.rc_context():  # The other two set a style for the whole process, so this one comes first.
        if complete > 1:
            axes = plot_parallel_coordinate(study, target_name=metric)
            for lines in axes.collections:
                lines.set_cmap(_VISIBLE[lines.get_cmap().name])
            found["parallel_coordinate"] = _figure(axes, _INCHES_PER_AXIS * (len(study.best_params) + 1))
        if complete:
            axes = plot_optimization_history(study, target_name=metric)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            found["optimization_history"] = _figure(axes)
        if importances(study):
            axes = plot_param_importances(study, target_name=metric)
            axes.legend(loc="lower right")  # Next to the shortest bar; the default place may cover one.
            found["param_importances"] = _figure(axes)
    return found


def _figure(axes: Any, width_inches: float = 0.0) -> Figure:
    figure: Figure = axes.figure
    plt.close(figure)  # Notebooks do not show it; it can still be saved.
    figure.set_size_inches(max(_WIDTH_INCHES, width_inches), _HEIGHT_INCHES)
    figure.set_layout_engine("tight")
    make_literal(figure)
    return figure
