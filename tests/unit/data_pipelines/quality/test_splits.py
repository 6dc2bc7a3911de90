"""T3: how the rows of a rare value are divided."""

import pytest

from mirrorspark.data_pipelines.quality.split_rules import rows_of_rare_value


@pytest.mark.parametrize(
    ("rows", "shares", "expected"),
    [
        (1, (0.8, 0.9), (1, 0)),
        (2, (0.8, 0.9), (1, 0)),
        (3, (0.8, 0.9), (1, 1)),
        (20, (0.8, 0.9), (16, 2)),
        (2, (0.3, 1.0), (1, 1)),
        (1, (0.0, 0.5), (0, 0)),
        (4, (0.1, 0.55), (1, 1)),
    ],
)
def test_a_value_of_few_rows_comes_to_training_first_then_to_test_then_to_validation(
    rows: int, shares: tuple[float, float], expected: tuple[int, int]
) -> None:
    assert rows_of_rare_value(rows, *shares) == expected
