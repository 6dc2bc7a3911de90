"""Lists of ranks, other numbers and findings, in words."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence


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


def findings_in_words(findings: Sequence[Mapping[str, str]]) -> str:
    """Return the number of findings of each severity: ``2 warnings, 1 note``."""
    counts = Counter(finding["severity"] for finding in findings)
    return ", ".join(f"{count} {severity}{'s' * (count > 1)}" for severity, count in counts.items()) or "nothing found"
