"""What a retrieval model gives for each row: a list of candidates, best first, and one of their scores.

Known without TensorFlow: what these lists become in a table is decided on the driver.
"""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

CANDIDATES, SCORES = "candidates", "scores"

# Stands in a place that nobody fills, where a row may get fewer candidates than it has places. No token is empty.
UNFILLED = ""


def is_ranked_list(outputs: Iterable[str]) -> bool:
    """Return whether outputs of these names are such lists."""
    return set(outputs) == {CANDIDATES, SCORES}


def is_filled(candidates: pa.Array) -> pa.Array:
    """Return bool ``[places]``: whether a candidate stands there."""
    return pc.not_equal(candidates, UNFILLED)
