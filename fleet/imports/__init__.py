"""Import of trained models into fleets, with one module per library or format.

A model that a fleet cannot express is refused, and the error names it.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.fleet.imports.keras import fleet_from_keras
    from mirrorspark.fleet.imports.lightgbm import fleet_from_lightgbm
    from mirrorspark.fleet.imports.onnx import fleet_from_onnx
    from mirrorspark.fleet.imports.packaged import fleet_from_models
    from mirrorspark.fleet.imports.pmml import fleet_from_pmml
    from mirrorspark.fleet.imports.scikit_learn import fleet_from_sklearn
    from mirrorspark.fleet.imports.xgboost import fleet_from_xgboost
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "fleet_from_keras",
    "fleet_from_lightgbm",
    "fleet_from_models",
    "fleet_from_onnx",
    "fleet_from_pmml",
    "fleet_from_sklearn",
    "fleet_from_xgboost",
]
