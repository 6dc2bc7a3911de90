"""What a comparison of two scorings tells: the table for people, the document for machines, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

TOLERANCE = 1e-5
THRESHOLD = 0.5
WORST_ROWS = 10


@dataclass(frozen=True)
class WorstRow:
    """One score that differs: where it stands (key columns by name) and what each side says."""

    keys: dict[str, Any]
    reference: float
    candidate: float
    difference: float


@dataclass(frozen=True)
class ParityReport:
    """How far two scorings of the same rows lie apart.

    ``mean`` to ``max`` describe the absolute difference of every score. A NaN on either side, or on both, is an
    infinite difference: it is counted in ``nans`` and never ignored. ``order_changes`` counts rows whose order changes
    by more than rounding, and ``identical_order_share`` is the share of the rows whose order is the same to the last
    bit. What a row's order is depends on the scores: of ranked lists the order of the list, of lists of labels' scores
    which labels are the best, of one score per row its place among the rows. :func:`scoring.parity.parity` compares no
    order, and leaves the share None. ``threshold_flips`` is zero for ranked lists.
    """

    rows: int
    mean: float
    std: float
    p25: float
    p50: float
    p75: float
    p99: float
    max: float
    max_relative: float
    tolerance: float
    above_tolerance: int
    nans: int
    threshold: float | None
    threshold_flips: int
    worst: tuple[WorstRow, ...]
    order_changes: int = 0
    identical_order_share: float | None = None

    @property
    def passed(self) -> bool:
        """True when no score differs by more than the tolerance and no decision or order changes."""
        return self.max <= self.tolerance and self.threshold_flips == 0 and self.order_changes == 0

    @property
    def verdict(self) -> str:
        """``passed`` or ``FAILED``."""
        return "passed" if self.passed else "FAILED"

    def as_table(self) -> str:
        """Return the report as text: count, mean, std, quartiles, P99 and max, then the checks and the worst rows."""
        lines = [("count", f"{self.rows:,}")]
        lines += [
            (title, f"{value:.3e}")
            for title, value in (
                ("mean", self.mean),
                ("std", self.std),
                ("P25", self.p25),
                ("P50", self.p50),
                ("P75", self.p75),
                ("P99", self.p99),
                ("max", self.max),
                ("max relative", self.max_relative),
            )
        ]
        lines += self._checks()
        width = max(len(title) for title, _ in lines)
        text = ["absolute difference"] + [f"  {title:<{width}}  {value:>12}" for title, value in lines]
        if not self.passed and self.worst:
            text.append("worst rows")
            for row in self.worst:
                where = ", ".join(f"{name}={value}" for name, value in row.keys.items())
                text.append(
                    f"  {where}: reference {row.reference:.9g}, candidate {row.candidate:.9g}, "
                    f"difference {row.difference:.3e}"
                )
        return "\n".join(text)

    def _checks(self) -> list[tuple[str, str]]:
        lines = [(f"above {self.tolerance:g}", f"{self.above_tolerance:,}")]
        if self.nans:
            lines.append(("NaN", f"{self.nans:,}"))
        if self.threshold is not None:
            lines.append((f"flips at {self.threshold:g}", f"{self.threshold_flips:,}"))
        if self.identical_order_share is not None:
            lines.append(("identical order", f"{self.identical_order_share:.3%}"))
            lines.append(("order changes", f"{self.order_changes:,}"))
        return [*lines, ("parity", self.verdict)]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; infinite and NaN numbers become the strings inf and nan."""
        plain: dict[str, Any] = _json_ready({**asdict(self), "passed": self.passed})
        return plain


def _json_ready(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _json_ready(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
