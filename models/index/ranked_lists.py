"""The outputs of a retrieval model for each row: a list of candidates, best first, and a list of their scores.

This module does not import TensorFlow, because the driver uses it to define the columns of a table.
"""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

CANDIDATES, SCORES = "candidates", "scores"

# Placeholder if a row has fewer candidates than places. Tokens are never empty.
UNFILLED = ""


def is_ranked_list(outputs: Iterable[str]) -> bool:
    """Return whether these are the names of a retrieval model's outputs."""
    return set(outputs) == {CANDIDATES, SCORES}


def is_filled(candidates: pa.Array) -> pa.Array:
    """Return bool ``[places]``: true where there is a candidate."""
    return pc.not_equal(candidates, UNFILLED)
