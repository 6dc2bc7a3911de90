"""Sums of sparse gradients by row."""

import numpy as np
import pytest

from mirrorspark.training.protocol.ring.row_sums import sum_rows


@pytest.mark.parametrize("slices", [0, 1, 7, 500])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("index_dtype", ["int32", "int64"])
@pytest.mark.parametrize("shape", [(3,), (2, 2)])
def test_each_row_has_the_sum_of_its_values_in_their_order(
    slices: int, dtype: str, index_dtype: str, shape: tuple[int, ...]
) -> None:
    """T6: the rows are a few neighbours and a few far ones, in the order in which they first appear."""
    rng = np.random.default_rng(slices)
    rows = rng.choice([-1, *range(20), *(1 << rng.integers(0, 31, 20))], slices).astype(index_dtype)
    values = rng.standard_normal((slices, *shape)).astype(dtype)
    expected: dict[int, np.ndarray] = {}
    for row, value in zip(rows, values, strict=True):
        expected[int(row)] = expected[int(row)] + value if int(row) in expected else value
    parts = [slice(0), slice(slices // 3), slice(slices // 3, slices // 2), slice(slices // 2, None)]
    sums, named = sum_rows([(values[part], rows[part]) for part in parts])
    assert (sums.dtype, named.dtype, sums.shape) == (dtype, index_dtype, (len(expected), *shape))
    assert named.tolist() == [*expected]
    if expected:
        np.testing.assert_array_equal(sums, np.stack([*expected.values()]))


def test_parts_that_do_not_fit_together_are_refused() -> None:
    """The kernel would read beyond the end of the values."""
    values, rows = np.ones((2, 3), np.float32), np.array([0, 1])
    with pytest.raises(ValueError, match="has 1 values of type float32 for 2 rows of type int64"):
        sum_rows([(values, rows), (values[:1], rows)])
    with pytest.raises(ValueError, match="has 2 values of type float64"):
        sum_rows([(values, rows), (values.astype(np.float64), rows)])
