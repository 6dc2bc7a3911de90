"""Train TensorFlow models on the Spark cluster you already have, and get the scores back into a table.

``import mirrorspark as ms`` gives every public name, each imported from its module when it is first used.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names once more, for type checkers and editors
    from mirrorspark.callbacks.backup import BackupAndRestore as BackupAndRestore
    from mirrorspark.callbacks.checkpoint import ChiefCheckpoint as ChiefCheckpoint
    from mirrorspark.callbacks.early_stopping import AgreedEarlyStopping as AgreedEarlyStopping
    from mirrorspark.callbacks.mlflow_log import MLflowLogger as MLflowLogger
    from mirrorspark.callbacks.nan_guard import StopOnNaN as StopOnNaN
    from mirrorspark.callbacks.profile import ProfileSteps as ProfileSteps
    from mirrorspark.callbacks.progress import EventCallback as EventCallback
    from mirrorspark.callbacks.reduce_lr import AgreedReduceLROnPlateau as AgreedReduceLROnPlateau
    from mirrorspark.callbacks.short_executions import ShortExecutions as ShortExecutions
    from mirrorspark.callbacks.stop_request import StopOnRequest as StopOnRequest
    from mirrorspark.callbacks.throughput import Throughput as Throughput
    from mirrorspark.data_pipelines.any_table import TableError as TableError
    from mirrorspark.data_pipelines.conversion import ConversionOptions as ConversionOptions
    from mirrorspark.data_pipelines.conversion import convert as convert
    from mirrorspark.data_pipelines.conversion import read_profile as read_profile
    from mirrorspark.data_pipelines.dataset.cache import DatasetCache as DatasetCache
    from mirrorspark.data_pipelines.dataset.manifest import DatasetError as DatasetError
    from mirrorspark.data_pipelines.features.checks import FeatureSpecError as FeatureSpecError
    from mirrorspark.data_pipelines.features.spec import FeatureSpec as FeatureSpec
    from mirrorspark.data_pipelines.ingest import ingest_csv as ingest_csv
    from mirrorspark.data_pipelines.quality.leakage import check_leakage as check_leakage
    from mirrorspark.data_pipelines.quality.splits import SplitError as SplitError
    from mirrorspark.data_pipelines.quality.splits import default_split as default_split
    from mirrorspark.data_pipelines.quality.splits import random_split as random_split
    from mirrorspark.data_pipelines.quality.splits import time_split as time_split
    from mirrorspark.data_pipelines.reading.dataset import Dataset as Dataset
    from mirrorspark.data_pipelines.reading.dataset import ReadPlan as ReadPlan
    from mirrorspark.data_pipelines.reading.dataset import batches as batches
    from mirrorspark.data_pipelines.reading.dataset import load_batches as load_batches
    from mirrorspark.data_pipelines.reading.dataset import load_dataset as load_dataset
    from mirrorspark.data_pipelines.reading.foreign import RowPlan as RowPlan
    from mirrorspark.data_pipelines.reading.foreign import count_rows as count_rows
    from mirrorspark.data_pipelines.reading.foreign import load_rows as load_rows
    from mirrorspark.data_pipelines.spark.tfrecord_source import TFRecordSource as TFRecordSource
    from mirrorspark.data_pipelines.tfrecords import check_tfrecords as check_tfrecords
    from mirrorspark.data_pipelines.tfrecords import read_tfrecords as read_tfrecords
    from mirrorspark.data_pipelines.tfrecords import write_tfrecords as write_tfrecords
    from mirrorspark.data_pipelines.tfrecords import write_tfrecords_from_parquet as write_tfrecords_from_parquet
    from mirrorspark.fleet.coefficients import fleet_from_coefficients as fleet_from_coefficients
    from mirrorspark.fleet.columns import FleetError as FleetError
    from mirrorspark.fleet.fleet import Fleet as Fleet
    from mirrorspark.fleet.imports.keras import fleet_from_keras as fleet_from_keras
    from mirrorspark.fleet.imports.lightgbm import fleet_from_lightgbm as fleet_from_lightgbm
    from mirrorspark.fleet.imports.onnx import fleet_from_onnx as fleet_from_onnx
    from mirrorspark.fleet.imports.packaged import fleet_from_models as fleet_from_models
    from mirrorspark.fleet.imports.pmml import fleet_from_pmml as fleet_from_pmml
    from mirrorspark.fleet.imports.scikit_learn import fleet_from_sklearn as fleet_from_sklearn
    from mirrorspark.fleet.imports.xgboost import fleet_from_xgboost as fleet_from_xgboost
    from mirrorspark.fleet.registry import register_fleet as register_fleet
    from mirrorspark.fleet.runs.ledger import LedgerError as LedgerError
    from mirrorspark.fleet.runs.planning.capacity import FleetPlan as FleetPlan
    from mirrorspark.fleet.runs.planning.probe import plan_fleet as plan_fleet
    from mirrorspark.fleet.runs.report.call import fleet_report as fleet_report
    from mirrorspark.fleet.runs.report.report import FleetReport as FleetReport
    from mirrorspark.fleet.runs.run import FleetRun as FleetRun
    from mirrorspark.fleet.runs.run import FleetRunError as FleetRunError
    from mirrorspark.fleet.runs.run import resume_fleet as resume_fleet
    from mirrorspark.fleet.runs.run import run_fleet as run_fleet
    from mirrorspark.fleet.runs.select import rank_scores as rank_scores
    from mirrorspark.fleet.runs.select import select_scores as select_scores
    from mirrorspark.fleet.score import score_fleet as score_fleet
    from mirrorspark.fleet.training.train import train_fleet as train_fleet
    from mirrorspark.fleet.training.trained import TrainedFleet as TrainedFleet
    from mirrorspark.lifecycle.experiments.analysis import Arm as Arm
    from mirrorspark.lifecycle.experiments.analysis import analyse_experiment as analyse_experiment
    from mirrorspark.lifecycle.experiments.analysis import arms_of_results as arms_of_results
    from mirrorspark.lifecycle.experiments.assignment import assign as assign
    from mirrorspark.lifecycle.experiments.assignment import assign_array as assign_array
    from mirrorspark.lifecycle.experiments.assignment import assign_units as assign_units
    from mirrorspark.lifecycle.experiments.assignment import sign_unit as sign_unit
    from mirrorspark.lifecycle.experiments.assignment import variant_column as variant_column
    from mirrorspark.lifecycle.experiments.bandits import EpsilonGreedy as EpsilonGreedy
    from mirrorspark.lifecycle.experiments.bandits import LinUCB as LinUCB
    from mirrorspark.lifecycle.experiments.bandits import ThompsonSampling as ThompsonSampling
    from mirrorspark.lifecycle.experiments.bandits import choose_arms as choose_arms
    from mirrorspark.lifecycle.experiments.definition import Experiment as Experiment
    from mirrorspark.lifecycle.experiments.definition import ExperimentError as ExperimentError
    from mirrorspark.lifecycle.experiments.definition import check_experiments as check_experiments
    from mirrorspark.lifecycle.experiments.exposed import exposed_scores as exposed_scores
    from mirrorspark.lifecycle.experiments.exposures import attribute_actions as attribute_actions
    from mirrorspark.lifecycle.experiments.exposures import exposure_faults as exposure_faults
    from mirrorspark.lifecycle.experiments.exposures import first_exposures as first_exposures
    from mirrorspark.lifecycle.experiments.exposures import log_exposures as log_exposures
    from mirrorspark.lifecycle.experiments.exposures import switched_units as switched_units
    from mirrorspark.lifecycle.experiments.exposures import variant_results as variant_results
    from mirrorspark.lifecycle.experiments.off_policy import PolicyLog as PolicyLog
    from mirrorspark.lifecycle.experiments.off_policy import off_policy_estimates as off_policy_estimates
    from mirrorspark.lifecycle.experiments.page import experiment_page as experiment_page
    from mirrorspark.lifecycle.experiments.planning import plan_experiment as plan_experiment
    from mirrorspark.lifecycle.experiments.replay import replay_lists as replay_lists
    from mirrorspark.lifecycle.experiments.replay import replay_policy as replay_policy
    from mirrorspark.lifecycle.experiments.replay import replay_scores as replay_scores
    from mirrorspark.lifecycle.gate.eval_config import EvalConfigError as EvalConfigError
    from mirrorspark.lifecycle.gate.eval_config import read_eval_config as read_eval_config
    from mirrorspark.lifecycle.gate.gate import log_validation as log_validation
    from mirrorspark.lifecycle.gate.gate import validate as validate
    from mirrorspark.lifecycle.gate.slices import Slicing as Slicing
    from mirrorspark.lifecycle.gate.thresholds import Gap as Gap
    from mirrorspark.lifecycle.gate.thresholds import Gates as Gates
    from mirrorspark.lifecycle.gate.thresholds import Threshold as Threshold
    from mirrorspark.lifecycle.gate.validation import Validation as Validation
    from mirrorspark.lifecycle.pipeline.run import run_pipeline as run_pipeline
    from mirrorspark.lifecycle.pipeline.settings import PipelineSettings as PipelineSettings
    from mirrorspark.lifecycle.pipeline.stages import StageFailedError as StageFailedError
    from mirrorspark.lifecycle.promotion.promotions import Evidence as Evidence
    from mirrorspark.lifecycle.promotion.promotions import Promotion as Promotion
    from mirrorspark.lifecycle.promotion.promotions import PromotionConflictError as PromotionConflictError
    from mirrorspark.lifecycle.promotion.promotions import PromotionRefusedError as PromotionRefusedError
    from mirrorspark.lifecycle.promotion.promotions import audit_trail as audit_trail
    from mirrorspark.lifecycle.promotion.promotions import promote as promote
    from mirrorspark.lifecycle.promotion.promotions import rollback as rollback
    from mirrorspark.lifecycle.promotion.registry import FolderRegistry as FolderRegistry
    from mirrorspark.lifecycle.promotion.registry import MLflowRegistry as MLflowRegistry
    from mirrorspark.lifecycle.promotion.registry import RegistryError as RegistryError
    from mirrorspark.lifecycle.watching.counting import NothingToWatchError as NothingToWatchError
    from mirrorspark.lifecycle.watching.drift import DriftLimits as DriftLimits
    from mirrorspark.lifecycle.watching.live import Promise as Promise
    from mirrorspark.lifecycle.watching.live import live_metrics as live_metrics
    from mirrorspark.lifecycle.watching.page import log_watch as log_watch
    from mirrorspark.lifecycle.watching.page import watch_page as watch_page
    from mirrorspark.lifecycle.watching.snapshot import Snapshot as Snapshot
    from mirrorspark.lifecycle.watching.snapshot import SnapshotError as SnapshotError
    from mirrorspark.lifecycle.watching.watcher import watch as watch
    from mirrorspark.lifecycle.watching.watcher import watch_stream as watch_stream
    from mirrorspark.models.fitting.step_loop import use_step_loop as use_step_loop
    from mirrorspark.models.layers import feature_inputs as feature_inputs
    from mirrorspark.models.layers import feature_vector as feature_vector
    from mirrorspark.pages.figures.calibration import calibration_curve as calibration_curve
    from mirrorspark.pages.figures.lift import lift_chart as lift_chart
    from mirrorspark.pages.figures.ranking import recall_at_k_curve as recall_at_k_curve
    from mirrorspark.pages.figures.scores import score_histogram as score_histogram
    from mirrorspark.pages.figures.threshold_curves import precision_recall_curve as precision_recall_curve
    from mirrorspark.pages.figures.threshold_curves import roc_curve as roc_curve
    from mirrorspark.pages.figures.training_curves import learning_curves as learning_curves
    from mirrorspark.pages.figures.training_curves import run_curves as run_curves
    from mirrorspark.recommending.item_index.build import RefreshError as RefreshError
    from mirrorspark.recommending.item_index.refresh import RefreshedIndex as RefreshedIndex
    from mirrorspark.recommending.item_index.refresh import refresh_index as refresh_index
    from mirrorspark.recommending.ratings import rating_model as rating_model
    from mirrorspark.recommending.recommendations import recommend as recommend
    from mirrorspark.recommending.reranking.cascade import rank_candidates as rank_candidates
    from mirrorspark.recommending.reranking.reranker import rerank as rerank
    from mirrorspark.recommending.routing.package import package_router as package_router
    from mirrorspark.recommending.routing.router import Cascade as Cascade
    from mirrorspark.recommending.routing.router import Route as Route
    from mirrorspark.recommending.routing.router import Router as Router
    from mirrorspark.scoring.batch import score as score
    from mirrorspark.scoring.embedding.embed import embed_images as embed_images
    from mirrorspark.scoring.embedding.embed import embed_text as embed_text
    from mirrorspark.scoring.embedding.embedder import Embedder as Embedder
    from mirrorspark.scoring.errors import ScoringError as ScoringError
    from mirrorspark.scoring.files import score_files as score_files
    from mirrorspark.scoring.groups import score_by_group as score_by_group
    from mirrorspark.scoring.input.inputs import Column as Column
    from mirrorspark.scoring.input.tfrecords import score_tfrecords as score_tfrecords
    from mirrorspark.scoring.model.directory import ModelDirectory as ModelDirectory
    from mirrorspark.scoring.model.uri import resolve as resolve
    from mirrorspark.scoring.output.forms import AtLeast as AtLeast
    from mirrorspark.scoring.output.forms import Columns as Columns
    from mirrorspark.scoring.output.forms import Labelled as Labelled
    from mirrorspark.scoring.output.forms import Long as Long
    from mirrorspark.scoring.output.forms import Struct as Struct
    from mirrorspark.scoring.output.forms import TopK as TopK
    from mirrorspark.scoring.output.forms import Wide as Wide
    from mirrorspark.scoring.package import package_model as package_model
    from mirrorspark.scoring.parity import ParityReport as ParityReport
    from mirrorspark.scoring.parity import log_parity as log_parity
    from mirrorspark.scoring.parity import parity as parity
    from mirrorspark.scoring.parity import parity_check as parity_check
    from mirrorspark.scoring.parity import ranking_parity as ranking_parity
    from mirrorspark.scoring.predictor import Predictor as Predictor
    from mirrorspark.scoring.registration import register_model as register_model
    from mirrorspark.scoring.sql import register_sql as register_sql
    from mirrorspark.scoring.task.scorer import Counters as Counters
    from mirrorspark.scoring.udf import scorer_udf as scorer_udf
    from mirrorspark.serving.export.export import ExportedModel as ExportedModel
    from mirrorspark.serving.export.export import ExportError as ExportError
    from mirrorspark.serving.export.export import export_model as export_model
    from mirrorspark.serving.precomputed.precomputation import precompute as precompute
    from mirrorspark.serving.precomputed.store import PrecomputedScores as PrecomputedScores
    from mirrorspark.spark_session.start import open_session as open_session
    from mirrorspark.training.configuration.config import ConfigError as ConfigError
    from mirrorspark.training.configuration.config import RunConfig as RunConfig
    from mirrorspark.training.configuration.config import TrainingConfig as TrainingConfig
    from mirrorspark.training.driver.errors import TrainingFailedError as TrainingFailedError
    from mirrorspark.training.driver.errors import TrainingStoppedError as TrainingStoppedError
    from mirrorspark.training.entry_points.estimator import TrainedModel as TrainedModel
    from mirrorspark.training.entry_points.estimator import TrainingEstimator as TrainingEstimator
    from mirrorspark.training.entry_points.fit_table import default_config as default_config
    from mirrorspark.training.entry_points.fit_table import default_spec as default_spec
    from mirrorspark.training.entry_points.fit_table import fit as fit
    from mirrorspark.training.entry_points.launch import run_train_fn as run_train_fn
    from mirrorspark.training.entry_points.train_dataset import train as train
    from mirrorspark.training.job.sources import recipe_table as recipe_table
    from mirrorspark.training.protocol.ring.ring import Ring as Ring
    from mirrorspark.training.protocol.ring.strategy import RingStrategy as RingStrategy
    from mirrorspark.training.results.delivery import Trained as Trained
    from mirrorspark.training.results.evaluation.explanation import Explanation as Explanation
    from mirrorspark.training.results.fit_result import FitResult as FitResult

    __version__: str

# Per subject the modules and their public names.
SUBJECTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "Data": {
        "data_pipelines.any_table": ("TableError",),
        "data_pipelines.conversion": ("convert", "ConversionOptions", "read_profile"),
        "data_pipelines.dataset.cache": ("DatasetCache",),
        "data_pipelines.dataset.manifest": ("DatasetError",),
        "data_pipelines.features.checks": ("FeatureSpecError",),
        "data_pipelines.features.spec": ("FeatureSpec",),
        "data_pipelines.ingest": ("ingest_csv",),
        "data_pipelines.quality.leakage": ("check_leakage",),
        "data_pipelines.quality.splits": ("SplitError", "default_split", "random_split", "time_split"),
        "data_pipelines.reading.dataset": ("Dataset", "ReadPlan", "batches", "load_batches", "load_dataset"),
        "data_pipelines.reading.foreign": ("RowPlan", "count_rows", "load_rows"),
        "data_pipelines.spark.tfrecord_source": ("TFRecordSource",),
        "data_pipelines.tfrecords": (
            "check_tfrecords",
            "read_tfrecords",
            "write_tfrecords",
            "write_tfrecords_from_parquet",
        ),
    },
    "Training": {
        "models.layers": ("feature_inputs", "feature_vector"),
        "models.fitting.step_loop": ("use_step_loop",),
        "spark_session.start": ("open_session",),
        "training.configuration.config": ("ConfigError", "RunConfig", "TrainingConfig"),
        "training.driver.errors": ("TrainingFailedError", "TrainingStoppedError"),
        "training.entry_points.estimator": ("TrainedModel", "TrainingEstimator"),
        "training.entry_points.fit_table": ("default_config", "default_spec", "fit"),
        "fleet.training.train": ("train_fleet",),
        "fleet.training.trained": ("TrainedFleet",),
        "training.entry_points.launch": ("run_train_fn",),
        "training.results.delivery": ("Trained",),
        "training.results.evaluation.explanation": ("Explanation",),
        "training.results.fit_result": ("FitResult",),
        "training.protocol.ring.ring": ("Ring",),
        "training.protocol.ring.strategy": ("RingStrategy",),
        "training.job.sources": ("recipe_table",),
        "training.entry_points.train_dataset": ("train",),
    },
    "Callbacks": {
        "callbacks.backup": ("BackupAndRestore",),
        "callbacks.checkpoint": ("ChiefCheckpoint",),
        "callbacks.early_stopping": ("AgreedEarlyStopping",),
        "callbacks.mlflow_log": ("MLflowLogger",),
        "callbacks.nan_guard": ("StopOnNaN",),
        "callbacks.profile": ("ProfileSteps",),
        "callbacks.progress": ("EventCallback",),
        "callbacks.reduce_lr": ("AgreedReduceLROnPlateau",),
        "callbacks.short_executions": ("ShortExecutions",),
        "callbacks.stop_request": ("StopOnRequest",),
        "callbacks.throughput": ("Throughput",),
    },
    "Scoring": {
        "scoring.batch": ("score",),
        "scoring.embedding.embed": ("embed_images", "embed_text"),
        "scoring.embedding.embedder": ("Embedder",),
        "scoring.errors": ("ScoringError",),
        "scoring.files": ("score_files",),
        "fleet.coefficients": ("fleet_from_coefficients",),
        "fleet.columns": ("FleetError",),
        "fleet.fleet": ("Fleet",),
        "fleet.imports.keras": ("fleet_from_keras",),
        "fleet.imports.lightgbm": ("fleet_from_lightgbm",),
        "fleet.imports.onnx": ("fleet_from_onnx",),
        "fleet.imports.packaged": ("fleet_from_models",),
        "fleet.imports.pmml": ("fleet_from_pmml",),
        "fleet.imports.scikit_learn": ("fleet_from_sklearn",),
        "fleet.imports.xgboost": ("fleet_from_xgboost",),
        "fleet.registry": ("register_fleet",),
        "fleet.runs.ledger": ("LedgerError",),
        "fleet.runs.report.call": ("fleet_report",),
        "fleet.runs.report.report": ("FleetReport",),
        "fleet.runs.planning.capacity": ("FleetPlan",),
        "fleet.runs.planning.probe": ("plan_fleet",),
        "fleet.runs.run": ("FleetRun", "FleetRunError", "resume_fleet", "run_fleet"),
        "fleet.runs.select": ("rank_scores", "select_scores"),
        "fleet.score": ("score_fleet",),
        "scoring.groups": ("score_by_group",),
        "scoring.input.inputs": ("Column",),
        "scoring.input.tfrecords": ("score_tfrecords",),
        "scoring.model.directory": ("ModelDirectory",),
        "scoring.model.uri": ("resolve",),
        "scoring.output.forms": ("AtLeast", "Columns", "Labelled", "Long", "Struct", "TopK", "Wide"),
        "scoring.package": ("package_model",),
        "scoring.parity": ("ParityReport", "log_parity", "parity", "parity_check", "ranking_parity"),
        "serving.precomputed.precomputation": ("precompute",),
        "serving.precomputed.store": ("PrecomputedScores",),
        "scoring.predictor": ("Predictor",),
        "recommending.recommendations": ("recommend",),
        "recommending.reranking.cascade": ("rank_candidates",),
        "recommending.reranking.reranker": ("rerank",),
        "recommending.ratings": ("rating_model",),
        "scoring.registration": ("register_model",),
        "recommending.routing.package": ("package_router",),
        "recommending.routing.router": ("Cascade", "Route", "Router"),
        "scoring.sql": ("register_sql",),
        "scoring.task.scorer": ("Counters",),
        "scoring.udf": ("scorer_udf",),
        "recommending.item_index.build": ("RefreshError",),
        "recommending.item_index.refresh": ("RefreshedIndex", "refresh_index"),
    },
    "Experiments": {
        "lifecycle.experiments.analysis": ("Arm", "analyse_experiment", "arms_of_results"),
        "lifecycle.experiments.assignment": ("assign", "assign_array", "assign_units", "sign_unit", "variant_column"),
        "lifecycle.experiments.bandits": ("EpsilonGreedy", "LinUCB", "ThompsonSampling", "choose_arms"),
        "lifecycle.experiments.definition": ("Experiment", "ExperimentError", "check_experiments"),
        "lifecycle.experiments.exposed": ("exposed_scores",),
        "lifecycle.experiments.exposures": (
            "attribute_actions",
            "exposure_faults",
            "first_exposures",
            "log_exposures",
            "switched_units",
            "variant_results",
        ),
        "lifecycle.experiments.off_policy": ("PolicyLog", "off_policy_estimates"),
        "lifecycle.experiments.page": ("experiment_page",),
        "lifecycle.experiments.planning": ("plan_experiment",),
        "lifecycle.experiments.replay": ("replay_lists", "replay_policy", "replay_scores"),
    },
    "Promotion": {
        "serving.export.export": ("ExportError", "ExportedModel", "export_model"),
        "lifecycle.gate.eval_config": ("EvalConfigError", "read_eval_config"),
        "lifecycle.gate.slices": ("Slicing",),
        "lifecycle.gate.thresholds": ("Gap", "Gates", "Threshold"),
        "lifecycle.gate.gate": ("log_validation", "validate"),
        "lifecycle.gate.validation": ("Validation",),
        "lifecycle.pipeline.run": ("run_pipeline",),
        "lifecycle.pipeline.settings": ("PipelineSettings",),
        "lifecycle.pipeline.stages": ("StageFailedError",),
        "lifecycle.promotion.promotions": (
            "Evidence",
            "Promotion",
            "PromotionConflictError",
            "PromotionRefusedError",
            "audit_trail",
            "promote",
            "rollback",
        ),
        "lifecycle.promotion.registry": ("FolderRegistry", "MLflowRegistry", "RegistryError"),
    },
    "Watching": {
        "lifecycle.watching.counting": ("NothingToWatchError",),
        "lifecycle.watching.drift": ("DriftLimits",),
        "lifecycle.watching.live": ("Promise", "live_metrics"),
        "lifecycle.watching.page": ("log_watch", "watch_page"),
        "lifecycle.watching.snapshot": ("Snapshot", "SnapshotError"),
        "lifecycle.watching.watcher": ("watch", "watch_stream"),
    },
    "Plots": {
        "pages.figures.calibration": ("calibration_curve",),
        "pages.figures.lift": ("lift_chart",),
        "pages.figures.ranking": ("recall_at_k_curve",),
        "pages.figures.scores": ("score_histogram",),
        "pages.figures.threshold_curves": ("precision_recall_curve", "roc_curve"),
        "pages.figures.training_curves": ("learning_curves", "run_curves"),
    },
}
_MODULES = {name: module for modules in SUBJECTS.values() for module, names in modules.items() for name in names}

__all__ = [*sorted(_MODULES), "__version__"]

if not TYPE_CHECKING:  # type checkers would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            value: Any = version("mirrorspark")
        elif name in _MODULES:
            from importlib import import_module

            value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
