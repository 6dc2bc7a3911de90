"""Rules of splits that hold for tables in Spark and in memory: the shares, and the rare values of a label."""

from collections.abc import Sequence
from typing import Any

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.dataset import SPLITS
from mirrorspark.storage import meant

SPLIT_COLUMN = "split"

TRAIN, VALIDATION, TEST = SPLITS
SHARES = {TRAIN: 0.8, VALIDATION: 0.1, TEST: 0.1}
BOUNDS = (SHARES[TRAIN], SHARES[TRAIN] + SHARES[VALIDATION])
# With more rows a value is in each split as it should be by chance alone, within a few per cent.
RARE_ROWS = 1000
MOST_RARE_VALUES = 100
# Doubles hold whole numbers up to 2^53, so a hash of 53 bits becomes a number in [0, 1) without rounding.
HASH_BITS = 53


class SplitError(ClearError, ValueError):
    """A split that cannot be made; the message gives the wrong value and the remedy."""


def rows_of_rare_value(rows: int, train: float, held_back: float) -> tuple[int, int]:
    """Return the numbers of a value's rows for training and for validation; the rest are for test.

    A value of few rows goes to training first, because a model cannot learn a value that it never sees, then to test.
    """
    free = rows - int(train > 0)
    of_test = min(max(round((1 - held_back) * rows), int(held_back < 1)), free)
    of_validation = min(max(round((held_back - train) * rows), int(train < held_back)), free - of_test)
    return rows - of_test - of_validation, of_validation


def bounds_of_rare_value(fractions: Sequence[float], train: float, held_back: float) -> tuple[float, float]:
    """Return the fractions below which a value's rows are for training, and for training or validation.

    Args:
        fractions: Those of its rows, rising.
        train: The share of the training rows.
        held_back: The share of the training and the validation rows.
    """
    places = [*fractions, 1.0]
    of_train, of_validation = rows_of_rare_value(len(fractions), train, held_back)
    return places[of_train], places[of_train + of_validation]


def require_column(columns: Sequence[str], name: str) -> None:
    """Raise a ``SplitError`` unless the column of the times is there."""
    if name not in columns:
        raise SplitError(
            f"time column '{name}' is missing; the table has {list(columns)}{meant(name, columns)}: choose one of them"
        )


def require_label(columns: Sequence[str], name: str) -> None:
    """Raise a ``SplitError`` unless the column to stratify by is there."""
    if name not in columns:
        raise SplitError(
            f"column '{name}' to stratify by is missing; the table has {list(columns)}{meant(name, columns)}"
        )


def require_apart(name: str, oldest: Any, found: Sequence[Any]) -> None:
    """Raise a ``SplitError`` unless the first moments of validation and test are two, and later than the oldest."""
    if len(found) != len(BOUNDS) or not oldest < found[0] < found[1]:
        raise SplitError(
            f"time column '{name}' has too few different times to put a tenth of the rows each into validation and "
            f"test; add a column '{SPLIT_COLUMN}' of your own"
        )
