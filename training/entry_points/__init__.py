"""Other ways to start a training than the main job, for notebooks and scripts, and the commands runs and doctor."""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.entry_points.early_checks import check_session
    from mirrorspark.training.entry_points.estimator import TrainedModel, TrainingEstimator
    from mirrorspark.training.entry_points.fit_rows import default_spec
    from mirrorspark.training.entry_points.fit_table import default_config, fit
    from mirrorspark.training.entry_points.launch import Launched, run_train_fn
    from mirrorspark.training.entry_points.runs import duration, table
    from mirrorspark.training.entry_points.train_dataset import train
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "Launched",
    "TrainedModel",
    "TrainingEstimator",
    "check_session",
    "default_config",
    "default_spec",
    "duration",
    "fit",
    "run_train_fn",
    "table",
    "train",
]
