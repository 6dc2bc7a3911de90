"""Parity: do two scorings of the same rows agree, row by row (requirement S14).

A mean or a 99th percentile hides one customer with a wrong score, so the verdict rests on the maximum and on the
decisions that would change.
"""

from scoring.parity.check import parity_check
from scoring.parity.key_join import join_on_keys
from scoring.parity.mlflow_log import log_to_mlflow
from scoring.parity.rankings import ranking_parity
from scoring.parity.report import THRESHOLD, TOLERANCE, ParityReport
from scoring.parity.scores import parity

__all__ = [
    "THRESHOLD",
    "TOLERANCE",
    "ParityReport",
    "join_on_keys",
    "log_to_mlflow",
    "parity",
    "parity_check",
    "ranking_parity",
]
