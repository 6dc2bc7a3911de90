"""Parity: row-by-row comparison of two scorings of the same rows.

A mean or a 99th percentile hides a single wrong score, so the verdict depends on the maximum and on changed
decisions.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.scoring.parity.check import parity_check
    from mirrorspark.scoring.parity.key_join import join_on_keys
    from mirrorspark.scoring.parity.rankings import ranking_parity
    from mirrorspark.scoring.parity.report import THRESHOLD, TOLERANCE, ParityReport, log_parity
    from mirrorspark.scoring.parity.scores import parity
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "THRESHOLD",
    "TOLERANCE",
    "ParityReport",
    "join_on_keys",
    "log_parity",
    "parity",
    "parity_check",
    "ranking_parity",
]
