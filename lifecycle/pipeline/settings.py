"""Settings of a pipeline in addition to those of the run: ``pipeline.yaml`` in the folder of the recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mirrorspark.lifecycle.gate import Gates, Slicing, slicings_of
from mirrorspark.lifecycle.settings import settings_of
from mirrorspark.storage import one_line, read_text
from mirrorspark.training.configuration import ConfigError, read_yaml, recipe_folder

SETTINGS_FILE = "pipeline.yaml"


@dataclass(frozen=True)
class Precompute:
    """Rows that are scored ahead of time, for look-up by a key.

    Attributes:
        sql: Query over the recipe's source tables whose rows are scored.
        key: Column of the query by which the scores are looked up; it is unique.
    """

    sql: str
    key: str


@dataclass(frozen=True)
class PipelineSettings:
    """The settings of a pipeline.

    Attributes:
        slices: Slices of the test rows that the validation measures: SQL expressions, or each with a name.
        gates: Gates that a candidate must pass.
        warm_start: Whether a training begins with the weights of the champion, if there is one. A recipe's or command's
            own ``warm_start`` comes first.
        min_rows: Least number of rows of the recipe's table.
        row_change_at_most: Largest change of that number against the former date, as a share of it; None for any.
        drift_at_most: Largest population stability index of a column against the former date, beyond what chance
            explains; None to name columns that have drifted, and to go on.
        precompute: Rows that are scored ahead of time.
        cache_table: Whether Spark keeps the rows of the recipe's table while the pipeline runs, so that its query is
            computed once and not by every stage.
        smoke_rows: Number of rows that the deployed model is asked for, one by one.
        alerts: Targets of messages: ``log``, ``https://…``, ``mailto:…``.
    """

    slices: tuple[str | Slicing, ...] = ()
    gates: Gates = field(default_factory=Gates)
    warm_start: bool = True
    min_rows: int = 1
    row_change_at_most: float | None = 0.5
    drift_at_most: float | None = None
    precompute: Precompute | None = None
    cache_table: bool = False
    smoke_rows: int = 20
    alerts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        slicings = slicings_of(self.slices)
        self.gates.check_slicings(tuple(one.name for one in slicings))
        for name, least in (("min_rows", 1), ("row_change_at_most", 0), ("drift_at_most", 0), ("smoke_rows", 1)):
            if (value := getattr(self, name)) is not None and not value >= least:
                raise ValueError(f"{name} is {value}; use {least} or more")

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> "PipelineSettings":
        """Return settings from their plain form.

        Args:
            values: Fields as YAML has them.
            where: Names the file in errors.

        Raises:
            ConfigError: A field is unknown, or its value makes no sense.
        """
        return settings_of(cls, values, where, ConfigError)

    @classmethod
    def of_recipe(cls, recipe: str) -> "PipelineSettings":
        """Return the settings of a recipe: those of its folder's ``pipeline.yaml``, else the defaults.

        Raises:
            ConfigError: As in :meth:`load`.
        """
        source = recipe_folder(recipe).joinpath(SETTINGS_FILE)
        return cls.load(source) if source.is_file() else cls()

    @classmethod
    def load(cls, file: Any) -> "PipelineSettings":
        """Return the settings in a YAML file, given by its path.

        Raises:
            ConfigError: There is no such file, or it is not YAML of known fields.
        """
        source = Path(file) if isinstance(file, str) else file
        if not source.is_file():
            raise ConfigError(f"there is no file {source}; give the settings of the pipeline as YAML")
        try:
            values = read_yaml(read_text(source)) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{source} is not YAML: {one_line(error)}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{source} must be a mapping of fields to values; see docs/every-week.md")
        return cls.of(values, str(source))
