"""One answer to "can a run start here?", how it is shown, and the error that ends a run that cannot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

_NAME_WIDTH = 14

Status = Literal["ok", "warn", "FAIL"]


class PreflightError(RuntimeError):
    """A run that cannot start; the message holds every failed check."""


@dataclass(frozen=True)
class Check:
    """One answer.

    Attributes:
        name: What was looked at.
        passed: Whether a run can start with it.
        detail: What was found; what to do about it where it did not pass.
        is_warning: Passed, but better mended all the same.
        values: What was measured.
    """

    name: str
    passed: bool
    detail: str
    is_warning: bool = False
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        """The answer in one word."""
        if not self.passed:
            return "FAIL"
        return "warn" if self.is_warning else "ok"

    def as_line(self) -> str:
        """Return the line of a table of checks."""
        return f"{self.status:<5}{self.name:<{_NAME_WIDTH}}{self.detail}"

    def as_document(self) -> dict[str, Any]:
        """Return it in the types that JSON has."""
        return {"name": self.name, "status": self.status, "detail": self.detail, "values": dict(self.values)}


def warning(name: str, detail: str) -> Check:
    """Return a check that passes, with a remark on what to mend."""
    return Check(name, True, detail, is_warning=True)


def require(checks: Sequence[Check]) -> None:
    """Raise unless every check passed.

    Raises:
        PreflightError: With the failed ones, in one line.
    """
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.passed]
    if failed:
        raise PreflightError("; ".join(failed))
