"""Lists of ranks and other numbers, in words."""

from collections.abc import Iterable


def numbers_in_words(numbers: Iterable[int]) -> str:
    """Return distinct numbers in ascending order, with three or more neighbours as a range: ``0-2, 5, 6``."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(
        f"{first}-{last}" if last > first + 1 else ", ".join(map(str, range(first, last + 1))) for first, last in spans
    )


def ranks_in_words(ranks: Iterable[int]) -> str:
    """Return ``rank 3`` or ``ranks 0-2, 5``."""
    different = set(ranks)
    return f"rank{'s' if len(different) > 1 else ''} {numbers_in_words(different)}"
