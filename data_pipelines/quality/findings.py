"""Findings of validation about a dataset, and the thresholds for them."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from mirrorspark.data_pipelines.quality.drift import Drift
from mirrorspark.pages import findings_html, heading_html, panel_html
from mirrorspark.storage import without_credentials


class Severity(StrEnum):
    """Severity of a finding: a model trained despite an error is worthless, despite a warning it may be."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Limits:
    """Thresholds of findings. Shares are between 0 and 1.

    Attributes:
        missing: Share of training rows without a value.
        missing_change: Difference of that share between training rows and another split, or the reference.
        unseen: Share of tokens of another split that the training rows lack, above the training rows' own share.
        outside: Share of numbers of another split outside the range of the training rows.
        wild: Distance of the largest value from the median, relative to that of the 99% quantile (or smallest and 1%).
        constant: Share of the most frequent value.
        agreement: Accuracy of a single column in predicting the label, 0.5 or less by chance with two classes.
        rare_class: Share of the rarest class of a label.
        label_change: Difference of a class's share between training rows and another split.
        held_back_rows: Rows of the validation or the test split.
        drift: Population stability index for a note.
        strong_drift: Population stability index for a warning.
    """

    missing: float = 0.5
    missing_change: float = 0.1
    unseen: float = 0.05
    outside: float = 0.01
    wild: float = 100.0
    constant: float = 0.995
    agreement: float = 0.999
    rare_class: float = 0.001
    label_change: float = 0.1
    held_back_rows: int = 50
    # The customary limits: Siddiqi, "Credit Risk Scorecards" (2006), chapter 8.
    drift: float = 0.1
    strong_drift: float = 0.25

    def strength_of(self, excess: float) -> str:
        """Return the strength of a drift beyond chance in a word, ``large`` or ``some``; nothing for less."""
        return "large" if excess >= self.strong_drift else "some" if excess >= self.drift else ""


@dataclass(frozen=True)
class Finding:
    """A single result of validation.

    Attributes:
        column: The column concerned; empty for the dataset.
        check: Name of the check, for counting and filtering.
        sentence: The problem, the value and the remedy.
    """

    severity: Severity
    column: str
    check: str
    sentence: str


@dataclass(frozen=True)
class Report:
    """The results of validation.

    Attributes:
        findings: Errors, then warnings, then notes, each in the order of the spec's columns.
        drift: Drift per column and split, the largest first.
        limits: The thresholds used.
    """

    findings: tuple[Finding, ...]
    drift: tuple[Drift, ...]
    limits: Limits

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity is severity)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that forbid training."""
        return self.of(Severity.ERROR)

    def refusal(self) -> str:
        """Return the reasons against training on the data, every error with its remedy; empty if there are none."""
        if not self.errors:
            return ""
        count = f"{len(self.errors)} error{'s' * (len(self.errors) != 1)}"
        return f"validation found {count} in the data: {'; '.join(finding.sentence for finding in self.errors)}"

    def summary(self) -> str:
        """Return one line with the number of findings per severity."""
        counts = {severity: len(self.of(severity)) for severity in Severity}
        parts = [f"{count} {severity}{'s' * (count != 1)}" for severity, count in counts.items() if count]
        return ", ".join(parts) or "nothing found"

    def _repr_html_(self) -> str:
        found = [{name: without_credentials(text) for name, text in vars(each).items()} for each in self.findings]
        return panel_html(heading_html(f"Validation: {self.summary()}"), findings_html(found) if found else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the report in its JSON form."""
        return asdict(self)


def percent(share: float) -> str:
    """Return a share as text, never rounded to 0% or 100%."""
    if share in (0, 1):
        return f"{share:.0%}"
    if share < 0.001:
        return "less than 0.1%"
    if share > 0.999:
        return "more than 99.9%"
    return f"{share:.1%}"
