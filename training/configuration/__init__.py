"""The configuration of a run: its fields, the rules between them, recipes and the command line.

Fields and their defaults are in ``fields``. An invalid value is refused before Spark starts.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.configuration.command_line import parse, summary_file
    from mirrorspark.training.configuration.config import ConfigError, RunConfig, TrainingConfig
    from mirrorspark.training.configuration.fields import (
        MLflowRun,
        Optimizer,
        Registered,
        alternatives,
        check_registry_name,
        check_values,
        likely_meant,
        type_in_words,
    )
    from mirrorspark.training.configuration.recipe import SQL_FILE, as_yaml, read_yaml, recipe_folder, recipe_names
    from mirrorspark.training.configuration.setting_types import FurtherSettings, TrainingSettings
    from mirrorspark.training.configuration.tasks import LINEAR_BASELINES, POPULARITY, TASKS, BaselineName
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "LINEAR_BASELINES",
    "POPULARITY",
    "SQL_FILE",
    "TASKS",
    "BaselineName",
    "ConfigError",
    "FurtherSettings",
    "MLflowRun",
    "Optimizer",
    "Registered",
    "RunConfig",
    "TrainingConfig",
    "TrainingSettings",
    "alternatives",
    "as_yaml",
    "check_registry_name",
    "check_values",
    "likely_meant",
    "parse",
    "read_yaml",
    "recipe_folder",
    "recipe_names",
    "summary_file",
    "type_in_words",
]
