"""The configuration of a run: its fields, the rules between them, recipes and the command line.

Fields and their defaults are in ``fields``. An invalid value is refused before Spark starts.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.configuration.class_weights import class_factors
    from mirrorspark.training.configuration.classes import Classes
    from mirrorspark.training.configuration.command_line import parse, summary_file
    from mirrorspark.training.configuration.config import ConfigError, RunConfig, TrainingConfig
    from mirrorspark.training.configuration.costs import cost_matrix
    from mirrorspark.training.configuration.defaults import (
        ROWS_PER_WORKER,
        Presets,
        check_presets,
        default_baseline,
        default_batch_size,
        default_register,
        default_workers,
        defaults_of_label,
        defaults_of_presets,
        defaults_of_recommender,
        few_updates,
        learns_histories,
    )
    from mirrorspark.training.configuration.fields import (
        EventWay,
        MLflowRun,
        NullLabels,
        Optimizer,
        Registered,
        alternatives,
        check_values,
        default_strategy,
        type_in_words,
    )
    from mirrorspark.training.configuration.names import (
        check_experiment,
        check_name,
        check_output,
        check_registry_name,
        is_name,
    )
    from mirrorspark.training.configuration.recipe import SQL_FILE, as_yaml, read_yaml, recipe_folder, recipe_names
    from mirrorspark.training.configuration.setting_types import FurtherSettings, TrainingSettings
    from mirrorspark.training.configuration.tasks import (
        BOOSTING,
        LINEAR_BASELINES,
        MONOTONE,
        POPULARITY,
        RANKING,
        STRENGTHS,
        TASKS,
        BaselineName,
        RowBaseline,
    )
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "BOOSTING",
    "LINEAR_BASELINES",
    "MONOTONE",
    "POPULARITY",
    "RANKING",
    "ROWS_PER_WORKER",
    "SQL_FILE",
    "STRENGTHS",
    "TASKS",
    "BaselineName",
    "Classes",
    "ConfigError",
    "EventWay",
    "FurtherSettings",
    "MLflowRun",
    "NullLabels",
    "Optimizer",
    "Presets",
    "Registered",
    "RowBaseline",
    "RunConfig",
    "TrainingConfig",
    "TrainingSettings",
    "alternatives",
    "as_yaml",
    "check_experiment",
    "check_name",
    "check_output",
    "check_presets",
    "check_registry_name",
    "check_values",
    "class_factors",
    "cost_matrix",
    "default_baseline",
    "default_batch_size",
    "default_register",
    "default_strategy",
    "default_workers",
    "defaults_of_label",
    "defaults_of_presets",
    "defaults_of_recommender",
    "few_updates",
    "is_name",
    "learns_histories",
    "parse",
    "read_yaml",
    "recipe_folder",
    "recipe_names",
    "summary_file",
    "type_in_words",
]
