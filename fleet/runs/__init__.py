"""Resumable runs of fleets: microbatches, and the ledger that records them.

A microbatch is published whole or not at all, and a resumed run scores only the rest. Clusters may share a run.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.fleet.runs.ledger import LedgerError
    from mirrorspark.fleet.runs.run import FleetRun, FleetRunError, resume_fleet, run_fleet
    from mirrorspark.fleet.runs.select import rank_scores, select_scores
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "FleetRun",
    "FleetRunError",
    "LedgerError",
    "rank_scores",
    "resume_fleet",
    "run_fleet",
    "select_scores",
]
