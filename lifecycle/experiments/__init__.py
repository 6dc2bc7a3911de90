"""Experiments: assignment of units to variants, their exposures and actions, the analysis, and bandits.

A unit keeps its variant while the weights stay the same. Until the planned end, always-valid intervals decide.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.lifecycle.experiments.analysis import Arm, analyse_experiment, arms_of_results
    from mirrorspark.lifecycle.experiments.assignment import (
        assign,
        assign_array,
        assign_units,
        sign_unit,
        variant_column,
    )
    from mirrorspark.lifecycle.experiments.bandits import EpsilonGreedy, LinUCB, ThompsonSampling, choose_arms
    from mirrorspark.lifecycle.experiments.definition import Experiment, ExperimentError, check_experiments
    from mirrorspark.lifecycle.experiments.exposed import exposed_scores
    from mirrorspark.lifecycle.experiments.exposures import (
        attribute_actions,
        exposure_faults,
        first_exposures,
        log_exposures,
        switched_units,
        variant_results,
    )
    from mirrorspark.lifecycle.experiments.off_policy import PolicyLog, off_policy_estimates
    from mirrorspark.lifecycle.experiments.page import experiment_page
    from mirrorspark.lifecycle.experiments.planning import plan_experiment
    from mirrorspark.lifecycle.experiments.replay import replay_lists, replay_policy, replay_scores
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "Arm",
    "EpsilonGreedy",
    "Experiment",
    "ExperimentError",
    "LinUCB",
    "PolicyLog",
    "ThompsonSampling",
    "analyse_experiment",
    "arms_of_results",
    "assign",
    "assign_array",
    "assign_units",
    "attribute_actions",
    "check_experiments",
    "choose_arms",
    "experiment_page",
    "exposed_scores",
    "exposure_faults",
    "first_exposures",
    "log_exposures",
    "off_policy_estimates",
    "plan_experiment",
    "replay_lists",
    "replay_policy",
    "replay_scores",
    "sign_unit",
    "switched_units",
    "variant_column",
    "variant_results",
]
