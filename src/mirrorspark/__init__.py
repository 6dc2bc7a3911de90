"""Train TensorFlow models on the Spark cluster you already have, and get the scores back into a table.

``import mirrorspark as ms`` gives every public name, each imported when it is first used.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mirrorspark.lazy import lazy_exports

# OpenMP's threads spin while they wait for each other, and on a busy machine gradient boosting then takes three to four
# times as long as with threads that sleep. libgomp reads this once, when scikit-learn, XGBoost or LightGBM loads it, so
# it has to be set before; it also reaches the processes that are started from here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from mirrorspark.callbacks import AgreedEarlyStopping as AgreedEarlyStopping
    from mirrorspark.callbacks import AgreedReduceLROnPlateau as AgreedReduceLROnPlateau
    from mirrorspark.callbacks import BackupAndRestore as BackupAndRestore
    from mirrorspark.callbacks import ChiefCheckpoint as ChiefCheckpoint
    from mirrorspark.callbacks import EventCallback as EventCallback
    from mirrorspark.callbacks import MLflowLogger as MLflowLogger
    from mirrorspark.callbacks import ProfileSteps as ProfileSteps
    from mirrorspark.callbacks import ShortExecutions as ShortExecutions
    from mirrorspark.callbacks import StopOnNaN as StopOnNaN
    from mirrorspark.callbacks import StopOnRequest as StopOnRequest
    from mirrorspark.callbacks import Throughput as Throughput
    from mirrorspark.data_pipelines import ConversionOptions as ConversionOptions
    from mirrorspark.data_pipelines import TableError as TableError
    from mirrorspark.data_pipelines import check_tfrecords as check_tfrecords
    from mirrorspark.data_pipelines import convert as convert
    from mirrorspark.data_pipelines import ingest_csv as ingest_csv
    from mirrorspark.data_pipelines import read_profile as read_profile
    from mirrorspark.data_pipelines import read_table as read_table
    from mirrorspark.data_pipelines import read_tfrecords as read_tfrecords
    from mirrorspark.data_pipelines import write_tfrecords as write_tfrecords
    from mirrorspark.data_pipelines import write_tfrecords_from_parquet as write_tfrecords_from_parquet
    from mirrorspark.data_pipelines.dataset import DatasetCache as DatasetCache
    from mirrorspark.data_pipelines.dataset import DatasetError as DatasetError
    from mirrorspark.data_pipelines.features import FeatureSpec as FeatureSpec
    from mirrorspark.data_pipelines.features import FeatureSpecError as FeatureSpecError
    from mirrorspark.data_pipelines.quality import SplitError as SplitError
    from mirrorspark.data_pipelines.quality import check_leakage as check_leakage
    from mirrorspark.data_pipelines.quality import default_split as default_split
    from mirrorspark.data_pipelines.quality import random_split as random_split
    from mirrorspark.data_pipelines.quality import time_split as time_split
    from mirrorspark.data_pipelines.reading import Dataset as Dataset
    from mirrorspark.data_pipelines.reading import ReadPlan as ReadPlan
    from mirrorspark.data_pipelines.reading import RowPlan as RowPlan
    from mirrorspark.data_pipelines.reading import batches as batches
    from mirrorspark.data_pipelines.reading import count_rows as count_rows
    from mirrorspark.data_pipelines.reading import load_batches as load_batches
    from mirrorspark.data_pipelines.reading import load_dataset as load_dataset
    from mirrorspark.data_pipelines.reading import load_rows as load_rows
    from mirrorspark.data_pipelines.spark import TFRecordSource as TFRecordSource
    from mirrorspark.data_pipelines.spark import TFRecordsSource as TFRecordsSource
    from mirrorspark.fleet import Fleet as Fleet
    from mirrorspark.fleet import FleetError as FleetError
    from mirrorspark.fleet import fleet_from_coefficients as fleet_from_coefficients
    from mirrorspark.fleet import register_fleet as register_fleet
    from mirrorspark.fleet import score_fleet as score_fleet
    from mirrorspark.fleet.imports import fleet_from_keras as fleet_from_keras
    from mirrorspark.fleet.imports import fleet_from_lightgbm as fleet_from_lightgbm
    from mirrorspark.fleet.imports import fleet_from_models as fleet_from_models
    from mirrorspark.fleet.imports import fleet_from_onnx as fleet_from_onnx
    from mirrorspark.fleet.imports import fleet_from_pmml as fleet_from_pmml
    from mirrorspark.fleet.imports import fleet_from_sklearn as fleet_from_sklearn
    from mirrorspark.fleet.imports import fleet_from_xgboost as fleet_from_xgboost
    from mirrorspark.fleet.runs import FleetRun as FleetRun
    from mirrorspark.fleet.runs import FleetRunError as FleetRunError
    from mirrorspark.fleet.runs import LedgerError as LedgerError
    from mirrorspark.fleet.runs import rank_scores as rank_scores
    from mirrorspark.fleet.runs import resume_fleet as resume_fleet
    from mirrorspark.fleet.runs import run_fleet as run_fleet
    from mirrorspark.fleet.runs import select_scores as select_scores
    from mirrorspark.fleet.runs.planning import FleetPlan as FleetPlan
    from mirrorspark.fleet.runs.planning import plan_fleet as plan_fleet
    from mirrorspark.fleet.runs.report import FleetReport as FleetReport
    from mirrorspark.fleet.runs.report import fleet_report as fleet_report
    from mirrorspark.fleet.training import TrainedFleet as TrainedFleet
    from mirrorspark.fleet.training import train_fleet as train_fleet
    from mirrorspark.lifecycle.experiments import Arm as Arm
    from mirrorspark.lifecycle.experiments import Experiment as Experiment
    from mirrorspark.lifecycle.experiments import ExperimentError as ExperimentError
    from mirrorspark.lifecycle.experiments import analyse_experiment as analyse_experiment
    from mirrorspark.lifecycle.experiments import arms_of_results as arms_of_results
    from mirrorspark.lifecycle.experiments import check_experiments as check_experiments
    from mirrorspark.lifecycle.experiments import experiment_page as experiment_page
    from mirrorspark.lifecycle.experiments import plan_experiment as plan_experiment
    from mirrorspark.lifecycle.experiments.policies import EpsilonGreedy as EpsilonGreedy
    from mirrorspark.lifecycle.experiments.policies import LinUCB as LinUCB
    from mirrorspark.lifecycle.experiments.policies import PolicyLog as PolicyLog
    from mirrorspark.lifecycle.experiments.policies import ThompsonSampling as ThompsonSampling
    from mirrorspark.lifecycle.experiments.policies import choose_arms as choose_arms
    from mirrorspark.lifecycle.experiments.policies import off_policy_estimates as off_policy_estimates
    from mirrorspark.lifecycle.experiments.policies import replay_lists as replay_lists
    from mirrorspark.lifecycle.experiments.policies import replay_policy as replay_policy
    from mirrorspark.lifecycle.experiments.policies import replay_scores as replay_scores
    from mirrorspark.lifecycle.experiments.units import assign as assign
    from mirrorspark.lifecycle.experiments.units import assign_array as assign_array
    from mirrorspark.lifecycle.experiments.units import assign_units as assign_units
    from mirrorspark.lifecycle.experiments.units import attribute_actions as attribute_actions
    from mirrorspark.lifecycle.experiments.units import exposed_scores as exposed_scores
    from mirrorspark.lifecycle.experiments.units import exposure_faults as exposure_faults
    from mirrorspark.lifecycle.experiments.units import first_exposures as first_exposures
    from mirrorspark.lifecycle.experiments.units import log_exposures as log_exposures
    from mirrorspark.lifecycle.experiments.units import sign_unit as sign_unit
    from mirrorspark.lifecycle.experiments.units import switched_units as switched_units
    from mirrorspark.lifecycle.experiments.units import variant_column as variant_column
    from mirrorspark.lifecycle.experiments.units import variant_results as variant_results
    from mirrorspark.lifecycle.gate import EvalConfigError as EvalConfigError
    from mirrorspark.lifecycle.gate import Gap as Gap
    from mirrorspark.lifecycle.gate import Gates as Gates
    from mirrorspark.lifecycle.gate import Slicing as Slicing
    from mirrorspark.lifecycle.gate import Threshold as Threshold
    from mirrorspark.lifecycle.gate import Validation as Validation
    from mirrorspark.lifecycle.gate import log_validation as log_validation
    from mirrorspark.lifecycle.gate import read_eval_config as read_eval_config
    from mirrorspark.lifecycle.gate import validate as validate
    from mirrorspark.lifecycle.pipeline import PipelineSettings as PipelineSettings
    from mirrorspark.lifecycle.pipeline import StageFailedError as StageFailedError
    from mirrorspark.lifecycle.pipeline import run_pipeline as run_pipeline
    from mirrorspark.lifecycle.promotion import Evidence as Evidence
    from mirrorspark.lifecycle.promotion import FolderRegistry as FolderRegistry
    from mirrorspark.lifecycle.promotion import MLflowRegistry as MLflowRegistry
    from mirrorspark.lifecycle.promotion import Promotion as Promotion
    from mirrorspark.lifecycle.promotion import PromotionConflictError as PromotionConflictError
    from mirrorspark.lifecycle.promotion import PromotionRefusedError as PromotionRefusedError
    from mirrorspark.lifecycle.promotion import RegistryError as RegistryError
    from mirrorspark.lifecycle.promotion import audit_trail as audit_trail
    from mirrorspark.lifecycle.promotion import promote as promote
    from mirrorspark.lifecycle.promotion import rollback as rollback
    from mirrorspark.lifecycle.watching import DriftLimits as DriftLimits
    from mirrorspark.lifecycle.watching import ExpectedMetrics as ExpectedMetrics
    from mirrorspark.lifecycle.watching import NothingToWatchError as NothingToWatchError
    from mirrorspark.lifecycle.watching import Snapshot as Snapshot
    from mirrorspark.lifecycle.watching import SnapshotError as SnapshotError
    from mirrorspark.lifecycle.watching import live_metrics as live_metrics
    from mirrorspark.lifecycle.watching import log_watch as log_watch
    from mirrorspark.lifecycle.watching import watch as watch
    from mirrorspark.lifecycle.watching import watch_page as watch_page
    from mirrorspark.lifecycle.watching import watch_stream as watch_stream
    from mirrorspark.models.fitting import use_step_loop as use_step_loop
    from mirrorspark.models.layers.input import feature_inputs as feature_inputs
    from mirrorspark.models.layers.input import feature_vector as feature_vector
    from mirrorspark.models.layers.input import item_features as item_features
    from mirrorspark.pages.figures import calibration_curve as calibration_curve
    from mirrorspark.pages.figures import learning_curves as learning_curves
    from mirrorspark.pages.figures import lift_chart as lift_chart
    from mirrorspark.pages.figures import precision_recall_curve as precision_recall_curve
    from mirrorspark.pages.figures import recall_at_k_curve as recall_at_k_curve
    from mirrorspark.pages.figures import roc_curve as roc_curve
    from mirrorspark.pages.figures import run_curves as run_curves
    from mirrorspark.pages.figures import score_histogram as score_histogram
    from mirrorspark.recommending import rating_model as rating_model
    from mirrorspark.recommending import recommend as recommend
    from mirrorspark.recommending.item_index import RefreshedIndex as RefreshedIndex
    from mirrorspark.recommending.item_index import RefreshError as RefreshError
    from mirrorspark.recommending.item_index import refresh_index as refresh_index
    from mirrorspark.recommending.reranking import rank_candidates as rank_candidates
    from mirrorspark.recommending.reranking import rerank as rerank
    from mirrorspark.recommending.routing import Cascade as Cascade
    from mirrorspark.recommending.routing import Route as Route
    from mirrorspark.recommending.routing import Router as Router
    from mirrorspark.recommending.routing import package_router as package_router
    from mirrorspark.scoring import Predictor as Predictor
    from mirrorspark.scoring import ScoringError as ScoringError
    from mirrorspark.scoring import package_model as package_model
    from mirrorspark.scoring import register_model as register_model
    from mirrorspark.scoring import register_sql as register_sql
    from mirrorspark.scoring import score as score
    from mirrorspark.scoring import score_by_group as score_by_group
    from mirrorspark.scoring import score_files as score_files
    from mirrorspark.scoring import scorer_udf as scorer_udf
    from mirrorspark.scoring.embedding import Embedder as Embedder
    from mirrorspark.scoring.embedding import embed_images as embed_images
    from mirrorspark.scoring.embedding import embed_text as embed_text
    from mirrorspark.scoring.input import Column as Column
    from mirrorspark.scoring.input import score_tfrecords as score_tfrecords
    from mirrorspark.scoring.model.folder import ModelDirectory as ModelDirectory
    from mirrorspark.scoring.model.stored import resolve as resolve
    from mirrorspark.scoring.output import AtLeast as AtLeast
    from mirrorspark.scoring.output import Columns as Columns
    from mirrorspark.scoring.output import Labelled as Labelled
    from mirrorspark.scoring.output import Long as Long
    from mirrorspark.scoring.output import Named as Named
    from mirrorspark.scoring.output import Struct as Struct
    from mirrorspark.scoring.output import TopK as TopK
    from mirrorspark.scoring.output import Wide as Wide
    from mirrorspark.scoring.parity import ParityReport as ParityReport
    from mirrorspark.scoring.parity import log_parity as log_parity
    from mirrorspark.scoring.parity import parity as parity
    from mirrorspark.scoring.parity import parity_check as parity_check
    from mirrorspark.scoring.parity import ranking_parity as ranking_parity
    from mirrorspark.scoring.task import Counters as Counters
    from mirrorspark.serving.export import ExportedModel as ExportedModel
    from mirrorspark.serving.export import ExportError as ExportError
    from mirrorspark.serving.export import export_model as export_model
    from mirrorspark.serving.precomputed import PrecomputedScores as PrecomputedScores
    from mirrorspark.serving.precomputed import precompute as precompute
    from mirrorspark.spark_session import open_session as open_session
    from mirrorspark.training.configuration import ConfigError as ConfigError
    from mirrorspark.training.configuration import RunConfig as RunConfig
    from mirrorspark.training.configuration import TrainingConfig as TrainingConfig
    from mirrorspark.training.driver import TrainingFailedError as TrainingFailedError
    from mirrorspark.training.driver import TrainingStoppedError as TrainingStoppedError
    from mirrorspark.training.entry_points import TrainedModel as TrainedModel
    from mirrorspark.training.entry_points import TrainingEstimator as TrainingEstimator
    from mirrorspark.training.entry_points import default_config as default_config
    from mirrorspark.training.entry_points import default_spec as default_spec
    from mirrorspark.training.entry_points import fit as fit
    from mirrorspark.training.entry_points import run_train_fn as run_train_fn
    from mirrorspark.training.entry_points import train as train
    from mirrorspark.training.job import recipe_table as recipe_table
    from mirrorspark.training.protocol.ring import Ring as Ring
    from mirrorspark.training.protocol.ring import RingStrategy as RingStrategy
    from mirrorspark.training.results import FitResult as FitResult
    from mirrorspark.training.results import RecommenderResult as RecommenderResult
    from mirrorspark.training.results import Trained as Trained
    from mirrorspark.training.results.evaluation import Explanation as Explanation

    __version__: str

# The public names by subject, as docs/api.md lists them.
SUBJECTS: Mapping[str, tuple[str, ...]] = {
    "Data": (
        "batches",
        "check_leakage",
        "check_tfrecords",
        "ConversionOptions",
        "convert",
        "count_rows",
        "Dataset",
        "DatasetCache",
        "DatasetError",
        "default_split",
        "FeatureSpec",
        "FeatureSpecError",
        "ingest_csv",
        "load_batches",
        "load_dataset",
        "load_rows",
        "random_split",
        "read_profile",
        "read_table",
        "read_tfrecords",
        "ReadPlan",
        "RowPlan",
        "SplitError",
        "TableError",
        "TFRecordSource",
        "TFRecordsSource",
        "time_split",
        "write_tfrecords",
        "write_tfrecords_from_parquet",
    ),
    "Training": (
        "ConfigError",
        "default_config",
        "default_spec",
        "Explanation",
        "feature_inputs",
        "feature_vector",
        "fit",
        "FitResult",
        "item_features",
        "open_session",
        "recipe_table",
        "RecommenderResult",
        "Ring",
        "RingStrategy",
        "run_train_fn",
        "RunConfig",
        "train",
        "train_fleet",
        "Trained",
        "TrainedFleet",
        "TrainedModel",
        "TrainingConfig",
        "TrainingEstimator",
        "TrainingFailedError",
        "TrainingStoppedError",
        "use_step_loop",
    ),
    "Callbacks": (
        "AgreedEarlyStopping",
        "AgreedReduceLROnPlateau",
        "BackupAndRestore",
        "ChiefCheckpoint",
        "EventCallback",
        "MLflowLogger",
        "ProfileSteps",
        "ShortExecutions",
        "StopOnNaN",
        "StopOnRequest",
        "Throughput",
    ),
    "Scoring": (
        "AtLeast",
        "Cascade",
        "Column",
        "Columns",
        "Counters",
        "embed_images",
        "embed_text",
        "Embedder",
        "Fleet",
        "fleet_from_coefficients",
        "fleet_from_keras",
        "fleet_from_lightgbm",
        "fleet_from_models",
        "fleet_from_onnx",
        "fleet_from_pmml",
        "fleet_from_sklearn",
        "fleet_from_xgboost",
        "fleet_report",
        "FleetError",
        "FleetPlan",
        "FleetReport",
        "FleetRun",
        "FleetRunError",
        "Labelled",
        "LedgerError",
        "log_parity",
        "Long",
        "ModelDirectory",
        "Named",
        "package_model",
        "package_router",
        "parity",
        "parity_check",
        "ParityReport",
        "plan_fleet",
        "precompute",
        "PrecomputedScores",
        "Predictor",
        "rank_candidates",
        "rank_scores",
        "ranking_parity",
        "rating_model",
        "recommend",
        "refresh_index",
        "RefreshedIndex",
        "RefreshError",
        "register_fleet",
        "register_model",
        "register_sql",
        "rerank",
        "resolve",
        "resume_fleet",
        "Route",
        "Router",
        "run_fleet",
        "score",
        "score_by_group",
        "score_files",
        "score_fleet",
        "score_tfrecords",
        "scorer_udf",
        "ScoringError",
        "select_scores",
        "Struct",
        "TopK",
        "Wide",
    ),
    "Experiments": (
        "analyse_experiment",
        "Arm",
        "arms_of_results",
        "assign",
        "assign_array",
        "assign_units",
        "attribute_actions",
        "check_experiments",
        "choose_arms",
        "EpsilonGreedy",
        "Experiment",
        "experiment_page",
        "ExperimentError",
        "exposed_scores",
        "exposure_faults",
        "first_exposures",
        "LinUCB",
        "log_exposures",
        "off_policy_estimates",
        "plan_experiment",
        "PolicyLog",
        "replay_lists",
        "replay_policy",
        "replay_scores",
        "sign_unit",
        "switched_units",
        "ThompsonSampling",
        "variant_column",
        "variant_results",
    ),
    "Promotion": (
        "audit_trail",
        "EvalConfigError",
        "Evidence",
        "export_model",
        "ExportedModel",
        "ExportError",
        "FolderRegistry",
        "Gap",
        "Gates",
        "log_validation",
        "MLflowRegistry",
        "PipelineSettings",
        "promote",
        "Promotion",
        "PromotionConflictError",
        "PromotionRefusedError",
        "read_eval_config",
        "RegistryError",
        "rollback",
        "run_pipeline",
        "Slicing",
        "StageFailedError",
        "Threshold",
        "validate",
        "Validation",
    ),
    "Watching": (
        "DriftLimits",
        "ExpectedMetrics",
        "live_metrics",
        "log_watch",
        "NothingToWatchError",
        "Snapshot",
        "SnapshotError",
        "watch",
        "watch_page",
        "watch_stream",
    ),
    "Plots": (
        "calibration_curve",
        "learning_curves",
        "lift_chart",
        "precision_recall_curve",
        "recall_at_k_curve",
        "roc_curve",
        "run_curves",
        "score_histogram",
    ),
}

__all__ = [*sorted(name for names in SUBJECTS.values() for name in names), "__version__"]

if not TYPE_CHECKING:  # type checkers would take any name for one of ours
    _exported, _ = lazy_exports(__name__)

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("mirrorspark")
        return _exported(name)


def __dir__() -> list[str]:
    return __all__
