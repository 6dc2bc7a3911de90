"""S7: what the main job decides of itself."""

import numpy as np
import pytest

from scoring.parity import parity
from training.pipeline import ParityFailedError, require_parity


def test_equal_scores_are_let_through() -> None:
    require_parity(parity(np.array([0.2, 0.8]), np.array([0.2, 0.8])))


def test_one_row_that_differs_is_named_though_the_99th_percentile_passes() -> None:
    reference = np.full(10_000, 0.2)
    candidate = reference.copy()
    candidate[7] += 7e-3
    report = parity(reference, candidate, keys={"flight_id": np.arange(10_000)})
    assert report.p99 == 0
    with pytest.raises(ParityFailedError, match=r"up to 7\.0e-03 .* on 1 of 10000 rows .*flight_id.*7"):
        require_parity(report)
