"""The live view of a run: its screens, its lines of text and the displayed state.

It shows the events that it gets, and changes nothing in the run.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.run_records.live.details import add_findings, showing_warnings, spec_details
    from mirrorspark.training.run_records.live.picture import Monitored
    from mirrorspark.training.run_records.live.view import LiveView
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "LiveView",
    "Monitored",
    "add_findings",
    "showing_warnings",
    "spec_details",
]
