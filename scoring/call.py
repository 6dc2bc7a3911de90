"""One call of scoring: the model that it is of, the keys of the rows, and how they are scored."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from pyspark.sql import SparkSession

from scoring.checks import check_columns
from scoring.counters import Counters
from scoring.hooks import HOOKS_FILE
from scoring.loaded_model import Search
from scoring.model_directory import ModelDirectory
from scoring.model_uri import PinnedModel, pinned_model
from scoring.scorer import Scorer, Settings
from scoring.shipping import ship

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoringCall:
    """What the driver knows of a call.

    Attributes:
        pinned: The model.
        keys: Columns that name a row; they pass through unchanged.
        settings: How to call the model, and what its scores look like.
    """

    pinned: PinnedModel
    keys: tuple[str, ...]
    settings: Settings

    @classmethod
    def of(
        cls,
        model: str | Path | PinnedModel,
        tracking_uri: str | None,
        keys: str | Sequence[str],
        settings: Settings,
    ) -> "ScoringCall":
        """Pin the model.

        Raises:
            ModelNotFoundError: The URI leads to no model.
        """
        return cls(pinned_model(model, tracking_uri), (keys,) if isinstance(keys, str) else tuple(keys), settings)

    @cached_property
    def directory(self) -> ModelDirectory:
        """The model's folder, opened."""
        return ModelDirectory.open(self.pinned.path)

    @cached_property
    def added(self) -> pa.Schema:
        """The columns behind the keys.

        Raises:
            ScoringError: The model's outputs cannot take the form that is asked for.
        """
        return self.settings.schema(self.directory)

    @property
    def columns(self) -> tuple[str, ...]:
        """The keys and the columns that the model reads, each once."""
        return tuple(dict.fromkeys([*self.keys, *self.directory.inputs.columns]))

    def check_names(self, names: Sequence[str]) -> None:
        """Check the names of a table's columns.

        Raises:
            ScoringError: A key is missing, or a column would stand in the result twice.
            ColumnError: An input is missing.
        """
        check_columns(names, self.keys, self.directory.inputs, self.added.names)

    def check_types(self, schema: pa.Schema) -> None:
        """Check the types of the model's columns, as tasks will get them.

        Raises:
            ColumnError: A column has a type that the model cannot take.
            ScoringError: The null policy does not fit.
        """
        self.directory.inputs.check(schema)
        self.settings.nulls.check(pa.schema([schema.field(name) for name in self.directory.inputs.columns]))

    def log_hooks(self) -> None:
        """Say in the log which code of the model runs in the executors, where it brings some."""
        if hooks := self.directory.hooks:
            label, names = self.pinned.label, ", ".join(hooks)
            _LOGGER.info("model %s brings code that runs in the executors: %s of its %s", label, names, HOOKS_FILE)

    def scorer(self, spark: SparkSession, *, counters: Counters | None = None, search: Search | None = None) -> Scorer:
        """Send the model to where tasks find it, and return what they need."""
        self.log_hooks()
        return Scorer(ship(spark, self.pinned), self.settings, counters, search)
