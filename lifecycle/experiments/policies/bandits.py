"""Bandits: policies that learn from rewards which arm to choose, and that log how probable each choice was."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special  # type: ignore[import-untyped]

from mirrorspark.lifecycle.experiments.definition import ExperimentError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Points of the numerical integral over an arm's posterior; the error of a propensity is below 1 / points.
_POINTS = 512


class Policy(Protocol):
    """A rule that chooses an arm for each row. It is immutable; learning returns a new policy."""

    @property
    def arms(self) -> int:
        """Number of arms."""

    def propensities(self, contexts: ArrayLike) -> Floats:
        """Return the probability of each arm, ``[rows, arms]``, for contexts ``[rows, dim]``; rows sum to 1."""

    def updated(self, contexts: ArrayLike, chosen: ArrayLike, rewards: ArrayLike) -> Self:
        """Return the policy after it has seen the rewards ``[rows]`` of the chosen arms ``[rows]``."""


@dataclass(frozen=True)
class Choices:
    """The arms that a policy chose, as they are logged.

    Attributes:
        arms: Number of the chosen arm, int64 ``[rows]``.
        propensities: Probability with which the policy chose it, ``[rows]``, for off-policy estimates.
    """

    arms: Integers
    propensities: Floats


def choose_arms(policy: Policy, contexts: ArrayLike, random: np.random.Generator) -> Choices:
    """Draw an arm for each row by the policy's propensities.

    Args:
        policy: The policy.
        contexts: Features of each row, ``[rows, dim]``; policies without contexts only count the rows.
        random: Where the draws come from.
    """
    probabilities = policy.propensities(contexts)
    drawn = random.random(len(probabilities))
    # Rounding may leave a sum just below 1, and the draw above it.
    arms = np.minimum((probabilities.cumsum(axis=1) <= drawn[:, None]).sum(axis=1), policy.arms - 1)
    return Choices(arms, probabilities[np.arange(len(arms)), arms])


@dataclass(frozen=True)
class ThompsonSampling:
    """Thompson sampling for rewards of 0 or 1, with a Beta posterior per arm (Thompson 1933; Chapelle and Li 2011).

    An arm's propensity is the posterior probability that it is the best one. Drawing arms by it is the same as drawing
    a rate from each posterior and taking the arm with the highest one, and its value is known.

    Attributes:
        successes: Number of rewards of 1 by arm.
        failures: Number of rewards of 0 by arm.
        prior: Parameters of the Beta distribution of each rate before any reward.
    """

    successes: tuple[float, ...]
    failures: tuple[float, ...]
    prior: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        _check_arms(len(self.successes), len(self.failures))
        if min(*self.successes, *self.failures) < 0 or min(self.prior) <= 0:
            raise ExperimentError(
                f"successes {self.successes} and failures {self.failures} are 0 or more, and prior {self.prior} is "
                f"above 0"
            )

    @classmethod
    def of(cls, arms: int) -> ThompsonSampling:
        """Return a policy that knows nothing of its arms yet."""
        return cls((0.0,) * arms, (0.0,) * arms)

    @property
    def arms(self) -> int:
        """Number of arms."""
        return len(self.successes)

    def propensities(self, contexts: ArrayLike) -> Floats:
        """Return the posterior probability that each arm is the best, ``[rows, arms]``; all rows are equal."""
        alpha = self.prior[0] + np.array(self.successes)
        beta = self.prior[1] + np.array(self.failures)
        # P(arm i is best) is the mean of the product of the others' distribution functions over i's posterior, whose
        # quantiles are the points of the integral.
        quantiles = (np.arange(_POINTS) + 0.5) / _POINTS
        rates = special.betaincinv(alpha[:, None], beta[:, None], quantiles)
        below = special.betainc(alpha[:, None, None], beta[:, None, None], rates[None])  # [other arm, arm, point]
        below[np.arange(self.arms), np.arange(self.arms)] = 1.0
        best = below.prod(axis=0).mean(axis=1)
        return np.tile(best / best.sum(), (_rows(contexts), 1))

    def updated(self, contexts: ArrayLike, chosen: ArrayLike, rewards: ArrayLike) -> ThompsonSampling:
        """Return the policy after rewards of 0 or 1.

        Raises:
            ExperimentError: A reward is neither 0 nor 1, an arm is unknown, or the lengths differ.
        """
        arms, values = _checked(chosen, rewards, self.arms)
        if not np.isin(values, (0, 1)).all():
            raise ExperimentError("Thompson sampling learns from rewards of 0 and 1; use another policy for amounts")
        return replace(
            self,
            successes=tuple(np.array(self.successes) + np.bincount(arms, values, minlength=self.arms)),
            failures=tuple(np.array(self.failures) + np.bincount(arms, 1 - values, minlength=self.arms)),
        )


@dataclass(frozen=True)
class EpsilonGreedy:
    """Mostly the arm with the highest mean reward, and with the probability ``epsilon`` any arm.

    Attributes:
        counts: Number of rewards by arm.
        sums: Sum of the rewards by arm.
        epsilon: Share of the choices that is spread evenly over all arms.
    """

    counts: tuple[float, ...]
    sums: tuple[float, ...]
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        _check_arms(len(self.counts), len(self.sums))
        _check_epsilon(self.epsilon)

    @classmethod
    def of(cls, arms: int, epsilon: float = 0.1) -> EpsilonGreedy:
        """Return a policy that knows nothing of its arms yet."""
        return cls((0.0,) * arms, (0.0,) * arms, epsilon)

    @property
    def arms(self) -> int:
        """Number of arms."""
        return len(self.counts)

    def propensities(self, contexts: ArrayLike) -> Floats:
        """Return the probability of each arm, ``[rows, arms]``; arms that were never tried are the best ones."""
        counts, sums = np.array(self.counts), np.array(self.sums)
        means = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
        return np.tile(_greedy(means[None], self.epsilon), (_rows(contexts), 1))

    def updated(self, contexts: ArrayLike, chosen: ArrayLike, rewards: ArrayLike) -> EpsilonGreedy:
        """Return the policy after rewards of any amount.

        Raises:
            ExperimentError: A reward is not a finite number, an arm is unknown, or the lengths differ.
        """
        arms, values = _checked(chosen, rewards, self.arms)
        return replace(
            self,
            counts=tuple(np.array(self.counts) + np.bincount(arms, minlength=self.arms)),
            sums=tuple(np.array(self.sums) + np.bincount(arms, values, minlength=self.arms)),
        )


@dataclass(frozen=True, eq=False)
class LinUCB:
    """The arm with the highest upper bound of a linear reward (Li, Chu, Langford and Schapire 2010, algorithm 1).

    The algorithm itself is deterministic. With the probability ``epsilon`` any arm is chosen, so that every arm has a
    propensity, without which no other policy could be estimated from the log.

    Attributes:
        precision: Precision of each arm's coefficients, ``[arms, dim, dim]``.
        weighted: Sum of context times reward by arm, ``[arms, dim]``.
        width: Width of the bound in standard errors (alpha in the paper).
        epsilon: Share of the choices that is spread evenly over all arms.
    """

    precision: Floats
    weighted: Floats
    width: float = 1.0
    epsilon: float = 0.05

    def __post_init__(self) -> None:
        _check_arms(len(self.precision), len(self.weighted))
        _check_epsilon(self.epsilon)
        if self.width < 0:
            raise ExperimentError(f"width is {self.width}; use 0 or more")

    @classmethod
    def of(cls, arms: int, dim: int, *, width: float = 1.0, epsilon: float = 0.05, penalty: float = 1.0) -> LinUCB:
        """Return a policy that knows nothing of its arms yet.

        Args:
            arms: Number of arms.
            dim: Length of the contexts; give them a constant 1, if rewards have an intercept.
            width: Width of the bound in standard errors.
            epsilon: Share of the choices that is spread evenly over all arms.
            penalty: Ridge penalty of the coefficients.

        Raises:
            ExperimentError: A number is out of range.
        """
        if dim < 1 or not penalty > 0:
            raise ExperimentError(f"dim is {dim} and penalty {penalty}; use 1 or more, and a number above 0")
        return cls(np.tile(penalty * np.eye(dim), (arms, 1, 1)), np.zeros((arms, dim)), width, epsilon)

    @property
    def arms(self) -> int:
        """Number of arms."""
        return len(self.weighted)

    def propensities(self, contexts: ArrayLike) -> Floats:
        """Return the probability of each arm for contexts ``[rows, dim]``: ``[rows, arms]``.

        Raises:
            ExperimentError: The contexts have another length.
        """
        rows = self._contexts(contexts)
        covariance = np.linalg.inv(self.precision)
        coefficients = np.einsum("aij,aj->ai", covariance, self.weighted)
        spread = np.sqrt(np.einsum("ri,aij,rj->ra", rows, covariance, rows, optimize=True))
        return _greedy(rows @ coefficients.T + self.width * spread, self.epsilon)

    def updated(self, contexts: ArrayLike, chosen: ArrayLike, rewards: ArrayLike) -> LinUCB:
        """Return the policy after rewards of any amount.

        Raises:
            ExperimentError: The contexts have another length, a reward is not finite, an arm is unknown, or the
                numbers of rows differ.
        """
        rows = self._contexts(contexts)
        arms, values = _checked(chosen, rewards, self.arms)
        if len(arms) != len(rows):
            raise ExperimentError(f"there are {len(rows)} contexts and {len(arms)} rewards; pass one of each per row")
        is_arm = (arms == np.arange(self.arms)[:, None]).astype(np.float64)  # [arms, rows]
        return replace(
            self,
            precision=self.precision + np.einsum("ar,ri,rj->aij", is_arm, rows, rows, optimize=True),
            weighted=self.weighted + (is_arm * values) @ rows,
        )

    def _contexts(self, contexts: ArrayLike) -> Floats:
        rows = np.asarray(contexts, np.float64)
        dim = self.weighted.shape[1]
        if rows.ndim != 2 or rows.shape[1] != dim:
            raise ExperimentError(f"contexts have the shape {rows.shape}; pass [rows, {dim}]")
        return rows


def _greedy(values: Floats, epsilon: float) -> Floats:
    """Return the probability of each arm, ``[rows, arms]``: the best ones share the part without exploration."""
    is_best = values == values.max(axis=1, keepdims=True)
    return epsilon / values.shape[1] + (1 - epsilon) * is_best / is_best.sum(axis=1, keepdims=True)


def _rows(contexts: ArrayLike) -> int:
    return len(np.asarray(contexts))


def _checked(chosen: ArrayLike, rewards: ArrayLike, arms: int) -> tuple[Integers, Floats]:
    numbers, values = np.asarray(chosen, np.int64), np.asarray(rewards, np.float64)
    if numbers.ndim != 1 or numbers.shape != values.shape:
        raise ExperimentError(f"chosen has shape {numbers.shape} and rewards {values.shape}; pass [rows] of both")
    if not np.isfinite(values).all():
        raise ExperimentError("a reward is not a finite number; leave out rows whose reward is not known")
    if ((numbers < 0) | (numbers >= arms)).any():
        raise ExperimentError(f"chosen has arms from {numbers.min()} to {numbers.max()}; there are {arms}, from 0")
    return numbers, values


def _check_arms(*lengths: int) -> None:
    if min(lengths) < 2 or len(set(lengths)) > 1:
        raise ExperimentError(f"a policy has {' and '.join(map(str, lengths))} arms; use two or more")


def _check_epsilon(epsilon: float) -> None:
    if not 0 <= epsilon <= 1:
        raise ExperimentError(f"epsilon is {epsilon}; use a share from 0 to 1")
