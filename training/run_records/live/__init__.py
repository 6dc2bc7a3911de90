"""The live view of a run: its screen, its lines and the state that they show.

It only reads events, so it cannot slow or end a run.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.run_records.live.details import spec_details, tell_findings
    from mirrorspark.training.run_records.live.picture import Monitored
    from mirrorspark.training.run_records.live.view import LiveView
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "LiveView",
    "Monitored",
    "spec_details",
    "tell_findings",
]
