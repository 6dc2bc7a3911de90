"""Units of experiments: their assignment to variants, exposures, actions and shown scores.

A unit keeps its variant while the weights stay the same.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.lifecycle.experiments.units.assignment import (
        assign,
        assign_array,
        assign_units,
        sign_unit,
        signed_unit,
        variant_column,
    )
    from mirrorspark.lifecycle.experiments.units.exposed import exposed_scores
    from mirrorspark.lifecycle.experiments.units.exposures import (
        attribute_actions,
        exposure,
        exposure_faults,
        first_exposures,
        log_exposures,
        switched_units,
        variant_results,
    )
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "assign",
    "assign_array",
    "assign_units",
    "attribute_actions",
    "exposed_scores",
    "exposure",
    "exposure_faults",
    "first_exposures",
    "log_exposures",
    "sign_unit",
    "signed_unit",
    "switched_units",
    "variant_column",
    "variant_results",
]
