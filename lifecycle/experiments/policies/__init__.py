"""Policies that choose an arm for each request: bandits, their logs, and replays of logs."""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.lifecycle.experiments.policies.bandits import EpsilonGreedy, LinUCB, ThompsonSampling, choose_arms
    from mirrorspark.lifecycle.experiments.policies.off_policy import PolicyLog, off_policy_estimates
    from mirrorspark.lifecycle.experiments.policies.replay import replay_lists, replay_policy, replay_scores
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "EpsilonGreedy",
    "LinUCB",
    "PolicyLog",
    "ThompsonSampling",
    "choose_arms",
    "off_policy_estimates",
    "replay_lists",
    "replay_policy",
    "replay_scores",
]
