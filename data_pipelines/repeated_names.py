"""Names that stand in a list more than once."""

from collections import Counter
from collections.abc import Iterable


def repeated_names(names: Iterable[str]) -> list[str]:
    """Return those that come more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)
