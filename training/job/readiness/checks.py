"""The result of a preflight check, and the error that ends a run whose checks fail."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mirrorspark.clear_error import ClearError, one_visible_line
from mirrorspark.storage import without_credentials

_NAME_WIDTH = 14

Status = Literal["ok", "warn", "FAIL"]


class PreflightError(ClearError, RuntimeError):
    """A run that cannot start; the message holds every failed check."""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: Subject of the check.
        passed: True if a run can start.
        detail: The finding, and for a failed check the remedy; secrets are removed.
        is_warning: Passed, with a recommendation.
        values: Measurements.
    """

    name: str
    passed: bool
    detail: str
    is_warning: bool = False
    values: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # It may quote a store's address, a folder's name, or the error of a library.
        object.__setattr__(self, "detail", one_visible_line(without_credentials(self.detail)))

    @property
    def status(self) -> Status:
        """The result in one word."""
        if not self.passed:
            return "FAIL"
        return "warn" if self.is_warning else "ok"

    def as_line(self) -> str:
        """Return the check's line of a table."""
        return f"{self.status:<5}{self.name:<{_NAME_WIDTH}}{self.detail}"

    def as_document(self) -> dict[str, Any]:
        """Return the check as JSON types."""
        return {"name": self.name, "status": self.status, "detail": self.detail, "values": dict(self.values)}


def warning(name: str, detail: str) -> Check:
    """Return a check that passes with a recommendation."""
    return Check(name, True, detail, is_warning=True)


def failure(name: str, detail: str) -> Check:
    """Return a failed check."""
    return Check(name, False, detail)


def require(checks: Sequence[Check]) -> None:
    """Raise unless every check passed.

    Raises:
        PreflightError: With all failed checks, in one line.
    """
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.passed]
    if failed:
        raise PreflightError("; ".join(failed))
