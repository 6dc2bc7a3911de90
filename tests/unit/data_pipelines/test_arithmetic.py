"""Logarithms against the math library, and numbers at the edges of their types (F1).

That TensorFlow gives the same bits is shown by ``tests/unit/models/test_preprocessing.py``.
"""

import math

import numpy as np
import pytest

from mirrorspark.data_pipelines.features.arithmetic import LEAST_FLOAT32, NUMPY, measured, signed_log, standardised
from mirrorspark.data_pipelines.features.kinds import Numeric

DENORMAL = 5e-324


def logarithms(*values: float) -> list[float]:
    with np.errstate(invalid="ignore"):
        return signed_log(np.array(values, np.float64), NUMPY).tolist()


def test_logarithms_by_hand() -> None:
    assert logarithms(0.0, math.e - 1, 1 - math.e, 1.0, 3.0) == pytest.approx(
        [0.0, 1.0, -1.0, math.log(2), 2 * math.log(2)], rel=1e-15
    )


def test_logarithms_are_those_of_the_math_library_within_two_units_in_the_last_place() -> None:
    rng = np.random.default_rng(1)
    exponents = rng.uniform(-300, 300, 20_000)
    values = np.concatenate([10.0**exponents, rng.uniform(0, 4, 20_000), [2**-1022, 1.7e308]])
    expected = np.array([math.log1p(value) for value in values])
    found = signed_log(values, NUMPY)
    assert (np.abs(found - expected) <= 2 * np.spacing(expected)).all()
    assert (signed_log(-values, NUMPY) == -found).all()


def test_infinity_stays_infinite_and_missing_stays_missing() -> None:
    assert logarithms(math.inf, -math.inf) == [math.inf, -math.inf]
    assert math.isnan(logarithms(math.nan)[0])


def test_numbers_are_clipped_before_their_logarithm_is_taken() -> None:
    values = np.array([-5.0, 0.5, 7.0, math.inf, math.nan])
    assert measured(values, Numeric("x", clip=(0, 3)), NUMPY).tolist()[:4] == [0.0, 0.5, 3.0, 3.0]
    assert measured(values, Numeric("x", clip=(None, 3)), NUMPY).tolist()[:4] == [-5.0, 0.5, 3.0, 3.0]
    with_log = measured(values, Numeric("x", clip=(0, 3), log=True), NUMPY)
    assert with_log.tolist()[:4] == pytest.approx([0.0, math.log(1.5), math.log(4), math.log(4)])
    assert math.isnan(with_log[4])


def test_denormal_numbers_are_zero() -> None:
    assert standardised(np.array([DENORMAL, -DENORMAL]), 0.0, 0.0, 1.0, NUMPY).tolist() == [0.0, 0.0]
    least = standardised(np.array([LEAST_FLOAT32, LEAST_FLOAT32 / 2, -LEAST_FLOAT32 / 2]), 0.0, 0.0, 1.0, NUMPY)
    assert least.tolist() == [LEAST_FLOAT32, 0.0, 0.0]


def test_a_spread_too_small_to_divide_by_is_none() -> None:
    assert standardised(np.array([1.0, 2.0]), 0.0, 1.0, DENORMAL, NUMPY).tolist() == [0.0, 1.0]
    assert standardised(np.array([1e-250, 2e-250]), 0.0, 1e-250, 1e-250, NUMPY).tolist() == [0.0, 0.0]
