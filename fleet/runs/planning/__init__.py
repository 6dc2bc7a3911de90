"""The planning of a fleet's run: cores and hours, the division among clusters, and settings of Spark.

A plan is arithmetic on rates that were measured on a sample of the table.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.fleet.runs.planning import command
    from mirrorspark.fleet.runs.planning.capacity import FleetPlan
    from mirrorspark.fleet.runs.planning.probe import plan_fleet
    from mirrorspark.fleet.runs.planning.settings import FAIR, problems_of
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "FAIR",
    "FleetPlan",
    "command",
    "plan_fleet",
    "problems_of",
]
