"""Replay of a log with a candidate model or policy: the metrics that trained models are evaluated by, and rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mirrorspark.evaluation import binary_metrics, regression_metrics
from mirrorspark.lifecycle.experiments.definition import ExperimentError
from mirrorspark.lifecycle.experiments.policies.bandits import Policy, choose_arms
from mirrorspark.lifecycle.experiments.policies.off_policy import Estimate, PolicyLog, off_policy_estimates
from mirrorspark.models.retrieval import RANKING_KS, ranking_values

SomePolicy = TypeVar("SomePolicy", bound=Policy)


@dataclass(frozen=True)
class Replay:
    """Result of a candidate model in the place of the one that wrote a log.

    Attributes:
        metrics: Metrics of the model's scores as predictions of the rewards, by the names of the evaluation of a
            trained model (``auc``, ``log_loss``, ``rmse``, …). Each row weighs the inverse of its propensity, as if
            the log had chosen all arms equally often.
        rewards: Mean reward of choosing the arm with the highest score, by the method of the estimate.
    """

    metrics: Mapping[str, float]
    rewards: Mapping[str, Estimate]


def replay_scores(
    log: PolicyLog, scores: ArrayLike, *, task: Literal["binary", "regression"] = "binary", confidence: float = 0.95
) -> Replay:
    """Evaluate a model on a log before it is shown to anybody.

    Args:
        log: The log.
        scores: The model's score of each arm, ``[rows, arms]``: probabilities for rewards of 0 and 1.
        task: Kind of the rewards: 0 and 1, or amounts.
        confidence: Level of the intervals of the rewards.

    Raises:
        ExperimentError: The shapes do not match, a score is not a finite number, or the best arm is never in the log.
        ValueError: The rewards have one class only, or a score is not a probability.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 2 or len(values) != len(log.chosen) or values.shape[1] <= log.chosen.max():
        raise ExperimentError(f"scores have shape {values.shape}; pass [{len(log.chosen)}, arms] with all arms")
    if not np.isfinite(values).all():
        raise ExperimentError("a score is not a finite number; leave out its row")
    of_chosen, weight = values[np.arange(len(values)), log.chosen], 1 / log.propensities
    measure = binary_metrics if task == "binary" else regression_metrics
    best = np.eye(values.shape[1])[values.argmax(axis=1)]
    return Replay(
        measure(log.rewards, of_chosen, weight, split="replay"),
        off_policy_estimates(log, best, predicted=values, confidence=confidence),
    )


def replay_lists(
    lists: ArrayLike, items: ArrayLike, propensities: ArrayLike, ks: Sequence[int] = RANKING_KS
) -> dict[str, float]:
    """Return the metrics of ranked lists on a log of items that were shown and liked.

    A liked item weighs the inverse of the probability with which it was shown, so that items that the former model
    preferred do not count more (Yang et al. 2018, "Unbiased offline recommender evaluation for missing-not-at-random
    implicit feedback"); the weights are normalised.

    Args:
        lists: The candidate model's list for each logged row, best first, ``[rows, k]``.
        items: The liked item, ``[rows]``.
        propensities: Probability with which the item was shown, ``[rows]``.
        ks: List lengths to report.

    Returns:
        ``recall_at_K``, ``ndcg_at_K`` and so on, by the names of the evaluation of a trained model.

    Raises:
        ExperimentError: A propensity is not above 0.
        ValueError: There are no rows, or the shapes do not match.
    """
    shown = np.asarray(propensities, np.float64)
    if not ((shown > 0) & (shown <= 1)).all():
        raise ExperimentError("a propensity is not above 0 and at most 1; an item that was shown has one")
    values = ranking_values(lists, items, ks)
    return {name: float(np.average(of, weights=1 / shown)) for name, of in values.items()}


@dataclass(frozen=True, eq=False)
class ReplayedPolicy(Generic[SomePolicy]):
    """A policy that has learned from a log.

    Attributes:
        policy: The policy after the log.
        rewards: Rewards of the rows that the policy would have seen, in the order of the log, ``[kept]``: their mean is
            its mean reward while it learned.
    """

    policy: SomePolicy
    rewards: NDArray[np.float64]


def replay_policy(
    policy: SomePolicy, contexts: ArrayLike, log: PolicyLog, random: np.random.Generator, *, batch_rows: int = 1
) -> ReplayedPolicy[SomePolicy]:
    """Let a policy learn from a log as it would have learned online.

    Rows whose arm the policy does not choose are skipped (Li, Chu, Langford and Wang 2011, "Unbiased offline evaluation
    of contextual-bandit-based news article recommendation algorithms"). Arms that the log preferred are thinned out
    first, so that all are left equally often (rejection sampling; Dudík, Erhan, Langford and Li 2012). The rows must
    not depend on one another.

    Args:
        policy: The policy.
        contexts: Features of each row, ``[rows, dim]``.
        log: The log of a policy that chose every arm with a probability above 0.
        random: Where the draws come from.
        batch_rows: The policy learns after this number of rows of the log.

    Raises:
        ExperimentError: The numbers of rows differ, an arm is unknown, or ``batch_rows`` is below 1.
    """
    rows = np.asarray(contexts, np.float64)
    if len(rows) != len(log.chosen) or batch_rows < 1:
        raise ExperimentError(
            f"there are {len(rows)} contexts for {len(log.chosen)} rows of the log, and batch_rows is {batch_rows}; "
            f"pass one context per row, and 1 or more"
        )
    is_left = np.flatnonzero(random.random(len(rows)) < log.propensities.min() / log.propensities)
    kept = []
    for start in range(0, len(is_left), batch_rows):
        batch = is_left[start : start + batch_rows]
        agreed = batch[choose_arms(policy, rows[batch], random).arms == log.chosen[batch]]
        policy = policy.updated(rows[agreed], log.chosen[agreed], log.rewards[agreed])
        kept.append(log.rewards[agreed])
    return ReplayedPolicy(policy, np.concatenate(kept) if kept else np.empty(0))
