"""Experiments: assignment of units to variants, their exposures and actions, the analysis, and bandits.

A unit keeps its variant while the weights stay the same. Until the planned end, always-valid intervals decide.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.lifecycle.experiments.analysis import Arm, analyse_experiment, arms_of_results
    from mirrorspark.lifecycle.experiments.definition import Experiment, ExperimentError, check_experiments
    from mirrorspark.lifecycle.experiments.page import experiment_page
    from mirrorspark.lifecycle.experiments.planning import plan_experiment
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "Arm",
    "Experiment",
    "ExperimentError",
    "analyse_experiment",
    "arms_of_results",
    "check_experiments",
    "experiment_page",
    "plan_experiment",
]
