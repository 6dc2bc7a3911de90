"""Fleets: thousands of small models over the columns of one wide table, scored in one pass.

A fleet is plain data with a row per model. Imported models keep their scores, up to rounding in 32-bit arithmetic.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.fleet.coefficients import fleet_from_coefficients
    from mirrorspark.fleet.columns import FleetError
    from mirrorspark.fleet.fleet import Fleet
    from mirrorspark.fleet.registry import register_fleet
    from mirrorspark.fleet.score import score_fleet
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "Fleet",
    "FleetError",
    "fleet_from_coefficients",
    "register_fleet",
    "score_fleet",
]
