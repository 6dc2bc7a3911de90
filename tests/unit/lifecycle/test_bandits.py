"""E4, E5: bandits regret less than uniform choices, log true propensities, and off-policy intervals cover the truth."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from mirrorspark.evaluation.metrics import binary_metrics, regression_metrics
from mirrorspark.lifecycle.experiments.definition import ExperimentError
from mirrorspark.lifecycle.experiments.policies.bandits import (
    EpsilonGreedy,
    LinUCB,
    Policy,
    ThompsonSampling,
    choose_arms,
)
from mirrorspark.lifecycle.experiments.policies.off_policy import PolicyLog, off_policy_estimates
from mirrorspark.lifecycle.experiments.policies.replay import replay_lists, replay_policy, replay_scores
from mirrorspark.models.retrieval.list_metrics import ranking_metrics

Floats = NDArray[np.float64]
RATES = np.array([0.05, 0.08, 0.12, 0.06])
# The reward's rate is linear in the context, whose first number is 1.
COEFFICIENTS = np.array([[0.3, 0.2, 0.0], [0.3, -0.2, 0.0], [0.3, 0.0, 0.2]])


# Propensities


def test_a_propensity_of_thompson_sampling_is_the_probability_that_the_arm_is_best() -> None:
    # Beta(2, 1) against Beta(1, 1): the integral of 2x * x is 2 / 3.
    policy = ThompsonSampling((0, 1), (0, 0))
    assert policy.propensities(np.empty((3, 0))) == pytest.approx(np.tile([1 / 3, 2 / 3], (3, 1)), abs=1e-4)
    several = ThompsonSampling((12, 20, 900, 0), (200, 180, 9_000, 0))
    random = np.random.default_rng(1)
    draws = random.beta(1 + np.array(several.successes), 1 + np.array(several.failures), (200_000, 4)).argmax(axis=1)
    expected = np.bincount(draws, minlength=4) / len(draws)
    assert several.propensities(np.empty((1, 0)))[0] == pytest.approx(expected, abs=0.005)


def test_choices_are_drawn_by_the_propensities_that_are_logged() -> None:
    policy = EpsilonGreedy((10, 10, 10), (1, 3, 3), epsilon=0.3)
    assert policy.propensities([[0.0]])[0] == pytest.approx([0.1, 0.45, 0.45])
    found = choose_arms(policy, np.empty((30_000, 0)), np.random.default_rng(2))
    counts = np.bincount(found.arms, minlength=3)
    assert stats.chisquare(counts, 30_000 * np.array([0.1, 0.45, 0.45])).pvalue > 1e-3
    np.testing.assert_allclose(found.propensities, np.array([0.1, 0.45, 0.45])[found.arms])


def test_an_arm_that_was_never_tried_is_tried() -> None:
    assert EpsilonGreedy((5, 0), (5, 0), epsilon=0.0).propensities([[0.0]])[0] == pytest.approx([0, 1])


def test_linucb_chooses_the_arm_of_the_highest_bound() -> None:
    # One context of length 1. Arm 0: precision 1 + 4, mean 2 / 5, spread 1 / sqrt(5); arm 1: precision 1, 0, 1.
    policy = LinUCB.of(2, 1, width=1.0, epsilon=0.2).updated([[1.0]] * 4, [0] * 4, [0.5] * 4)
    assert policy.precision.ravel() == pytest.approx([5, 1])
    assert policy.weighted.ravel() == pytest.approx([2, 0])
    # 0.4 + 0.447 < 1: the less known arm has the higher bound; without the bound the better one is chosen.
    assert policy.propensities([[1.0]])[0] == pytest.approx([0.1, 0.9])
    sure = LinUCB(policy.precision, policy.weighted, width=0.0, epsilon=0.2)
    assert sure.propensities([[1.0], [-1.0]]) == pytest.approx(np.array([[0.9, 0.1], [0.1, 0.9]]))


# Regret


def test_bandits_regret_far_less_than_uniform_choices() -> None:
    """Over 4 runs of 10,000 choices in 100 batches, against the best of four arms."""
    policies: dict[str, Callable[[], Policy]] = {
        "thompson": lambda: ThompsonSampling.of(4),
        "epsilon": lambda: EpsilonGreedy.of(4, epsilon=0.1),
        "uniform": lambda: EpsilonGreedy.of(4, epsilon=1.0),
    }
    regret = {name: np.mean([regret_of(make(), seed) for seed in range(4)]) for name, make in policies.items()}
    assert regret["uniform"] == pytest.approx(10_000 * (RATES.max() - RATES.mean()), rel=0.05)
    assert regret["thompson"] < 0.35 * regret["uniform"]
    assert regret["epsilon"] < 0.6 * regret["uniform"]


def regret_of(policy: Policy, seed: int) -> float:
    random = np.random.default_rng(seed)
    regret = 0.0
    for _ in range(100):
        contexts = np.empty((100, 0))
        arms = choose_arms(policy, contexts, random).arms
        regret += (RATES.max() - RATES[arms]).sum()
        policy = policy.updated(contexts, arms, random.random(100) < RATES[arms])
    return regret


def test_linucb_finds_the_best_arm_of_each_context() -> None:
    random = np.random.default_rng(3)
    policy = LinUCB.of(3, 3, width=1.0, epsilon=0.05)
    regrets = []
    for _ in range(60):
        contexts = contexts_of(random, 50)
        rates = contexts @ COEFFICIENTS.T
        arms = choose_arms(policy, contexts, random).arms
        regrets.append((rates.max(axis=1) - rates[np.arange(50), arms]).mean())
        policy = policy.updated(contexts, arms, random.random(50) < rates[np.arange(50), arms])
    uniform = (rates.max(axis=1) - rates.mean(axis=1)).mean()
    assert np.mean(regrets) < 0.5 * uniform
    assert np.mean(regrets[-20:]) < 0.3 * uniform


# Off-policy estimates


def contexts_of(random: np.random.Generator, rows: int) -> Floats:
    return np.concatenate([np.ones((rows, 1)), random.uniform(-1, 1, (rows, 2))], axis=1)


def logging_policy(contexts: Floats) -> Floats:
    """Return the probabilities of a policy that prefers the arms of the larger numbers of a context."""
    exponents = np.exp(np.stack([contexts[:, 1], contexts[:, 2], np.zeros(len(contexts))], axis=1))
    return exponents / exponents.sum(axis=1, keepdims=True)


def target_policy(contexts: Floats) -> Floats:
    """Return the probabilities of a policy that mostly takes the best arm."""
    best = (contexts @ COEFFICIENTS.T).argmax(axis=1)
    return 0.1 / 3 + 0.9 * np.eye(3)[best]


def logged(random: np.random.Generator, rows: int) -> tuple[Floats, PolicyLog]:
    contexts = contexts_of(random, rows)
    probabilities = logging_policy(contexts)
    arms = (probabilities.cumsum(axis=1) <= random.random(rows)[:, None]).sum(axis=1)
    rates = (contexts @ COEFFICIENTS.T)[np.arange(rows), arms]
    rewards = (random.random(rows) < rates).astype(np.float64)
    return contexts, PolicyLog(arms, probabilities[np.arange(rows), arms], rewards)


def true_value(policy: Callable[[Floats], Floats]) -> float:
    contexts = contexts_of(np.random.default_rng(0), 1_000_000)
    return float((policy(contexts) * (contexts @ COEFFICIENTS.T)).sum(axis=1).mean())


def test_off_policy_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """There are 500 logs; four standard errors of the share are 3.9 points."""
    random = np.random.default_rng(4)
    truth, logs = true_value(target_policy), 500
    covered = dict.fromkeys(("ips", "snips", "dr"), 0)
    widths: dict[str, list[float]] = {name: [] for name in covered}
    for _ in range(logs):
        contexts, log = logged(random, 1_000)
        # A model of the rewards that is wrong in its slopes.
        predicted = 0.3 + 0.5 * (contexts @ COEFFICIENTS.T - 0.3)
        for name, estimate in off_policy_estimates(log, target_policy(contexts), predicted=predicted).items():
            covered[name] += estimate.low <= truth <= estimate.high
            widths[name].append(estimate.high - estimate.low)
    for name, count in covered.items():
        assert count / logs == pytest.approx(0.95, abs=0.039), name
    # The other two estimators exist for this.
    assert max(np.mean(widths["dr"]), np.mean(widths["snips"])) < 0.9 * np.mean(widths["ips"])
    assert true_value(logging_policy) < truth - 0.02


def test_doubly_robust_estimates_survive_a_wrong_model_or_wrong_propensities() -> None:
    contexts, log = logged(np.random.default_rng(5), 200_000)
    truth, target, rates = true_value(target_policy), target_policy(contexts), contexts @ COEFFICIENTS.T
    wrong = PolicyLog(log.chosen, np.full(len(log.chosen), 1 / 3), log.rewards)
    assert off_policy_estimates(log, target, predicted=np.full_like(rates, 0.9))["dr"].value == pytest.approx(
        truth, abs=0.01
    )
    assert off_policy_estimates(wrong, target, predicted=rates)["dr"].value == pytest.approx(truth, abs=0.01)
    assert abs(off_policy_estimates(wrong, target)["ips"].value - truth) > 0.02


def test_a_policy_is_estimated_exactly_from_its_own_log() -> None:
    contexts, log = logged(np.random.default_rng(6), 500)
    found = off_policy_estimates(log, logging_policy(contexts))
    for estimate in found.values():
        assert estimate.value == pytest.approx(log.rewards.mean())
        half = stats.norm.ppf(0.975) * log.rewards.std(ddof=1) / np.sqrt(500)
        assert estimate.high - estimate.value == pytest.approx(half)
        assert estimate.effective_rows == pytest.approx(500)


# Replay


def test_a_replay_has_the_metric_names_of_the_evaluation() -> None:
    contexts, log = logged(np.random.default_rng(7), 20_000)
    scores = contexts @ COEFFICIENTS.T
    found = replay_scores(log, scores)
    of_chosen, weight = scores[np.arange(len(scores)), log.chosen], 1 / log.propensities
    assert found.metrics == binary_metrics(log.rewards, of_chosen, weight)
    assert {"auc", "pr_auc", "log_loss", "brier"} <= set(found.metrics)
    best = true_value(lambda rows: np.eye(3)[(rows @ COEFFICIENTS.T).argmax(axis=1)])
    assert set(found.rewards) == {"ips", "snips", "dr"}
    assert all(estimate.value == pytest.approx(best, abs=0.02) for estimate in found.rewards.values())
    amounts = replay_scores(log, scores, task="regression").metrics
    assert amounts == regression_metrics(log.rewards, of_chosen, weight)


def test_lists_have_the_metric_names_of_the_evaluation_and_rare_items_weigh_more() -> None:
    lists, liked = np.array([[1, 2, 3], [4, 5, 6]]), np.array([2, 9])
    alike = replay_lists(lists, liked, [0.5, 0.5], ks=(1, 3))
    assert alike == pytest.approx(ranking_metrics(lists, liked, (1, 3)))
    assert alike["recall_at_3"] == 0.5
    # Weights 4 and 1: the first row's hit is 0.8 of all.
    assert replay_lists(lists, liked, [0.25, 1.0], ks=(3,))["recall_at_3"] == pytest.approx(0.8)


def test_a_policy_earns_in_a_replay_what_it_earns_online() -> None:
    """The log prefers bad arms; 40 rewards are learned from at a time, in both."""
    online, replayed = [], []
    for seed in range(8):
        random = np.random.default_rng(seed)
        chosen = random.choice(4, 60_000, p=[0.4, 0.2, 0.2, 0.2])
        log = PolicyLog(chosen, np.array([0.4, 0.2, 0.2, 0.2])[chosen], random.random(60_000) < RATES[chosen])
        found = replay_policy(EpsilonGreedy.of(4, epsilon=0.2), np.empty((60_000, 0)), log, random, batch_rows=160)
        replayed.append(found.rewards.mean())
        policy, rewards = EpsilonGreedy.of(4, epsilon=0.2), []
        for _ in range(len(found.rewards) // 40):
            arms = choose_arms(policy, np.empty((40, 0)), random).arms
            rewards.append(random.random(40) < RATES[arms])
            policy = policy.updated(np.empty((40, 0)), arms, rewards[-1])
        online.append(np.concatenate(rewards).mean())
    assert np.mean(replayed) == pytest.approx(np.mean(online), abs=0.006)
    assert np.mean(replayed) > RATES.mean() + 0.02
    assert sum(found.policy.propensities([[0.0]])[0] > 0.5) == 1


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ThompsonSampling.of(1), "has 1 and 1 arms; use two or more"),
        (lambda: ThompsonSampling((1, 2), (0, -1)), "are 0 or more"),
        (lambda: ThompsonSampling.of(2).updated([[0]], [0], [0.5]), "learns from rewards of 0 and 1"),
        (lambda: EpsilonGreedy.of(2, epsilon=1.5), "epsilon is 1.5"),
        (lambda: EpsilonGreedy.of(2).updated([[0]], [2], [1.0]), "arms from 2 to 2; there are 2, from 0"),
        (lambda: EpsilonGreedy.of(2).updated([[0]], [0], [np.nan]), "a reward is not a finite number"),
        (lambda: EpsilonGreedy.of(2).updated([[0]], [0, 1], [1.0]), r"shape \(2,\) and rewards \(1,\)"),
        (lambda: LinUCB.of(2, 3).propensities([[1.0]]), r"shape \(1, 1\); pass \[rows, 3\]"),
        (lambda: LinUCB.of(2, 1).updated([[1.0]], [0, 1], [1.0, 1.0]), "1 contexts and 2 rewards"),
        (lambda: LinUCB.of(2, 0), "dim is 0"),
        (lambda: LinUCB.of(2, 1, width=-1.0), "width is -1.0"),
        (lambda: PolicyLog([0, 1], [0.5, 0.0], [1.0, 1.0]), "the propensity of row 1 is 0.0"),  # type: ignore[arg-type]
        (lambda: PolicyLog([0], [0.5], [1.0]), "two or more"),  # type: ignore[arg-type]
        (lambda: off_policy_estimates(LOG, [[1.0, 0.0]]), r"pass \[2, arms\] with 2 arms"),
        (lambda: off_policy_estimates(LOG, [[1.0, 1.0], [0.0, 1.0]]), "no probabilities"),
        (lambda: off_policy_estimates(LOG, [[0.0, 1.0], [1.0, 0.0]]), "never chooses an arm that the log chose"),
        (lambda: off_policy_estimates(LOG, [[1.0, 0.0], [1.0, 0.0]], predicted=[[1.0], [1.0]]), "predicted has shape"),
        (lambda: replay_scores(LOG, [[0.5, 0.5]]), r"pass \[2, arms\]"),
        (lambda: replay_scores(LOG, [[0.5, np.nan], [0.5, 0.5]]), "a score is not a finite number"),
        (lambda: replay_lists([[1]], [1], [0.0], ks=(1,)), "a propensity is not above 0"),
        (lambda: replay_policy(EpsilonGreedy.of(2), [[0.0]], LOG, np.random.default_rng(0)), "1 contexts for 2 rows"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        call()


LOG = PolicyLog(np.array([0, 1]), np.array([0.5, 0.5]), np.array([1.0, 0.0]))
