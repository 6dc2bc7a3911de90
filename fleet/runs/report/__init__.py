"""The report of a fleet's run: speed, cost, failures and drift, as values, as a page and as an MLflow run."""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.fleet.runs.report.call import PAGE_FILE, fleet_report
    from mirrorspark.fleet.runs.report.report import FleetReport
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "PAGE_FILE",
    "FleetReport",
    "fleet_report",
]
