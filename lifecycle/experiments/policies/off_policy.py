"""Off-policy estimates of a policy's reward, from the log of another one; and a model's metrics from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats  # type: ignore[import-untyped]

from mirrorspark.lifecycle.experiments.definition import ExperimentError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """The mean reward that a policy would have had.

    Attributes:
        method: ``ips``, ``snips`` or ``dr``.
        value: The estimate.
        low: Lower end of its interval.
        high: Upper end of its interval.
        effective_rows: Number of rows of equal weight that would be as informative (Kish 1965); with few of them, the
            interval is too optimistic.
    """

    method: str
    value: float
    low: float
    high: float
    effective_rows: float


@dataclass(frozen=True, eq=False)
class PolicyLog:
    """Logged actions of a policy, and their rewards.

    Attributes:
        chosen: Number of the chosen arm, int64 ``[rows]``.
        propensities: Probability with which it was chosen, ``[rows]``, above 0.
        rewards: Reward, ``[rows]``.
    """

    chosen: NDArray[np.int64]
    propensities: Floats
    rewards: Floats

    def __post_init__(self) -> None:
        for name, type_ in (("chosen", np.int64), ("propensities", np.float64), ("rewards", np.float64)):
            object.__setattr__(self, name, np.asarray(getattr(self, name), type_))
        shapes = [self.chosen.shape, self.propensities.shape, self.rewards.shape]
        if len(set(shapes)) > 1 or self.chosen.ndim != 1 or len(self.chosen) < 2:
            raise ExperimentError(f"the log has columns of the shapes {shapes}; pass [rows] of each, two or more")
        if not ((self.propensities > 0) & (self.propensities <= 1)).all():
            row = int(np.flatnonzero(~((self.propensities > 0) & (self.propensities <= 1)))[0])
            raise ExperimentError(
                f"the propensity of row {row} is {self.propensities[row]}; a choice that was made has one above 0, at "
                f"most 1"
            )
        if not np.isfinite(self.rewards).all() or self.chosen.min() < 0:
            raise ExperimentError("a reward of the log is not a finite number, or an arm is negative; remove the row")


def off_policy_estimates(
    log: PolicyLog,
    target: ArrayLike,
    *,
    predicted: ArrayLike | None = None,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """Estimate the mean reward of another policy from a log, with intervals from the central limit theorem.

    The log's policy must choose with a probability above 0 whatever the other one does.

    Args:
        log: The log.
        target: Probability of each arm under the other policy, ``[rows, arms]``: its ``propensities``.
        predicted: Predicted reward of each arm, ``[rows, arms]``, by a model that was not fitted on these rows.
        confidence: Level of the intervals.

    Returns:
        ``ips``, inverse propensity scoring (Horvitz and Thompson 1952); ``snips``, its self-normalised form, whose
        weights sum to the rows (Swaminathan and Joachims 2015); and with ``predicted``, ``dr``, which is right if
        either the propensities or the predictions are (Dudík, Langford and Li 2011, "Doubly robust policy evaluation
        and learning").

    Raises:
        ExperimentError: The shapes do not match, the target has rows without probabilities, or the policy chooses
            nothing that the log has.
    """
    arms = _probabilities(target, len(log.chosen), int(log.chosen.max()))
    rows = np.arange(len(log.chosen))
    weights = arms[rows, log.chosen] / log.propensities
    if not weights.any():
        raise ExperimentError("the target policy never chooses an arm that the log chose, so nothing is known of it")
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    found = {"ips": _estimate("ips", weights * log.rewards, effective, confidence)}
    value = float(np.average(log.rewards, weights=weights))
    # The influence of a row on a ratio of means (the delta method).
    influence = value + weights * (log.rewards - value) / weights.mean()
    found["snips"] = _estimate("snips", influence, effective, confidence)
    if predicted is not None:
        rewards = np.asarray(predicted, np.float64)
        if rewards.shape != arms.shape or not np.isfinite(rewards).all():
            raise ExperimentError(f"predicted has shape {rewards.shape} and target {arms.shape}; pass finite numbers")
        by_model = (arms * rewards).sum(axis=1)
        residual = weights * (log.rewards - rewards[rows, log.chosen])
        found["dr"] = _estimate("dr", by_model + residual, effective, confidence)
    return found


def _estimate(method: str, values: Floats, effective: float, confidence: float) -> Estimate:
    value = float(values.mean())
    half = float(stats.norm.ppf((1 + confidence) / 2) * values.std(ddof=1) / np.sqrt(len(values)))
    return Estimate(method, value, value - half, value + half, effective)


def _probabilities(target: ArrayLike, rows: int, last_arm: int) -> Floats:
    arms = np.asarray(target, np.float64)
    if arms.ndim != 2 or len(arms) != rows or arms.shape[1] <= last_arm:
        raise ExperimentError(f"target has shape {arms.shape}; pass [{rows}, arms] with {last_arm + 1} arms or more")
    if (arms < 0).any() or not np.allclose(arms.sum(axis=1), 1, atol=1e-6):
        raise ExperimentError("a row of target has no probabilities of arms: they are 0 or more and sum to 1")
    return arms
