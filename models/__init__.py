"""Model architectures, and the layers, optimizers and indexes that they share. Nothing here depends on Spark.

``catalog`` finds an architecture by its name. A classical recommender is fitted; the others build a Keras model.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.models import (
        blend,
        boosted_trees,
        catalog,
        classical,
        decisions,
        keras3,
        linear_model,
        own_model,
    )
    from mirrorspark.models.calibration import (
        CALIBRATION_FILE,
        CalibratedArchitecture,
        CalibrationKind,
        Floats,
        ProbabilisticArchitecture,
        counted_rows,
        fit,
        log_loss,
        save_calibration,
    )
    from mirrorspark.models.centroids import (
        CentroidArchitecture,
        LabelledRows,
        fit_centroids,
        fit_mixture,
        sparse_features,
    )
    from mirrorspark.models.code_digests import code_digest
    from mirrorspark.models.settings import ModelSettingsError, Schedule, check_candidates, check_warm_up, labelled
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "CALIBRATION_FILE",
    "CalibratedArchitecture",
    "CalibrationKind",
    "CentroidArchitecture",
    "Floats",
    "LabelledRows",
    "ModelSettingsError",
    "ProbabilisticArchitecture",
    "Schedule",
    "blend",
    "boosted_trees",
    "catalog",
    "check_candidates",
    "check_warm_up",
    "classical",
    "code_digest",
    "counted_rows",
    "decisions",
    "fit",
    "fit_centroids",
    "fit_mixture",
    "keras3",
    "labelled",
    "linear_model",
    "log_loss",
    "own_model",
    "save_calibration",
    "sparse_features",
]
