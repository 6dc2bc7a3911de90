"""Report of a comparison of two scorings, as a text table, as JSON and in an MLflow run, with its verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mirrorspark.callbacks.mlflow import tracking_store
from mirrorspark.pages import Cell, heading_html, panel_html, rows_html
from mirrorspark.storage import without_credentials

TOLERANCE = 1e-5
THRESHOLD = 0.5
WORST_ROWS = 10


@dataclass(frozen=True)
class WorstRow:
    """A score that differs, with its row's keys by column and both values."""

    keys: dict[str, Any]
    reference: float
    candidate: float
    difference: float

    @property
    def where(self) -> str:
        """The row's keys in words."""
        return ", ".join(f"{name}={value}" for name, value in self.keys.items())


@dataclass(frozen=True)
class ParityReport:
    """Differences between two scorings of the same rows.

    ``mean`` to ``max`` describe the absolute difference of every score. A NaN on either side is an infinite difference
    and is counted in ``nans``. ``order_changes`` counts rows whose order changes by more than rounding, and
    ``identical_order_share`` is the share of rows with exactly the same order. The order of a row is the order of its
    ranked list, its best labels for a list of labels' scores, or its rank among the rows for a single score.
    :func:`scoring.parity.parity` compares no order and leaves the share None. ``threshold_flips`` is zero for ranked
    lists.
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
        """True if no score differs by more than the tolerance and no decision or order changes."""
        return self.max <= self.tolerance and self.threshold_flips == 0 and self.order_changes == 0

    @property
    def verdict(self) -> str:
        """``passed`` or ``FAILED``."""
        return "passed" if self.passed else "FAILED"

    def as_table(self) -> str:
        """Return the report as text: count, mean, std, quartiles, P99 and max, then the checks and the worst rows."""
        lines = [*self._differences(), *self._checks()]
        width = max(len(title) for title, _ in lines)
        text = ["absolute difference"] + [f"  {title:<{width}}  {value:>12}" for title, value in lines]
        if not self.passed and self.worst:
            text.append("worst rows")
            for row in self.worst:
                text.append(
                    f"  {row.where}: reference {row.reference:.9g}, candidate {row.candidate:.9g}, "
                    f"difference {row.difference:.3e}"
                )
        return "\n".join(text)

    def _repr_html_(self) -> str:
        verdict = Cell(self.verdict, "good" if self.passed else "error")
        rows = [*self._differences(), *((title, verdict if title == "parity" else of) for title, of in self._checks())]
        parts = [heading_html("Parity: absolute difference of the scores"), rows_html((), rows, numbers=(1,))]
        if not self.passed and self.worst:
            worst = [
                (
                    without_credentials(row.where),
                    f"{row.reference:.9g}",
                    f"{row.candidate:.9g}",
                    f"{row.difference:.3e}",
                )
                for row in self.worst
            ]
            head = ("row", "reference", "candidate", "difference")
            parts += [heading_html("Worst rows"), rows_html(head, worst, numbers=(1, 2, 3))]
        return panel_html(*parts)

    def _differences(self) -> list[tuple[str, str]]:
        measures = [
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
        return [("count", f"{self.rows:,}"), *measures]

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
        """Return the report as JSON values; infinite and NaN numbers become the strings inf and nan."""
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


def log_parity(
    report: ParityReport, run_id: str, *, tracking_uri: str | None = None, name: str = "parity_check"
) -> None:
    """Log a report to an MLflow run.

    The run gets the artifacts ``{name}.txt`` (the table) and ``{name}.json`` (all figures), and the tags ``{name}``,
    which is ``passed`` or ``FAILED``, and ``{name}.max``, the largest difference. Existing ones of that name are
    replaced.

    Args:
        report: The report.
        run_id: The run, which may have ended.
        tracking_uri: Address of the MLflow store; by default the one that MLflow is configured with.
        name: Name of the check, unique in the run. ``parity`` is taken by the files of a run of the main job.

    Raises:
        MlflowException: There is no such run, or the store cannot be used.
    """
    import mlflow  # takes seconds

    client = tracking_store.store_client(tracking_uri or mlflow.get_tracking_uri())
    client.log_text(run_id, f"{report.as_table()}\n", f"{name}.txt")
    client.log_dict(run_id, report.to_dict(), f"{name}.json")
    client.set_tag(run_id, name, report.verdict)
    client.set_tag(run_id, f"{name}.max", f"{report.max:.3e}")
