"""A run's settings as one frozen object, checked when built; a recipe and the command line fill it in."""

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mirrorspark.data_pipelines.features import FeatureSpec, kinds
from mirrorspark.data_pipelines.reading import MAX_LANES
from mirrorspark.models import catalog, check_warm_up, classical, own_model, sparse_features
from mirrorspark.storage import StorageError, StoragePath, atomic_file, clean
from mirrorspark.training.configuration import class_weights, costs
from mirrorspark.training.configuration import rules as config_rules
from mirrorspark.training.configuration.classes import Classes
from mirrorspark.training.configuration.defaults import (
    EPOCHS,
    EPOCHS_IN_TIME,
    OPTIMIZER,
    PATIENCE,
    default_batch_size,
    defaults_of_label,
)
from mirrorspark.training.configuration.fields import (
    CheckpointSettings,
    CommandSettings,
    ConfigError,
    DataSettings,
    FitSettings,
    LimitSettings,
    ResultSettings,
    StrategyName,
    UpdateSettings,
    WorkerSettings,
    check_values,
    default_strategy,
)
from mirrorspark.training.configuration.names import check_experiment, check_name, check_output, check_registry_name
from mirrorspark.training.configuration.recipe import as_yaml, load_recipe
from mirrorspark.training.configuration.rules import require
from mirrorspark.training.configuration.tasks import (
    BOOSTING,
    LINEAR_BASELINES,
    RANKING,
    RATING_ERROR,
    TASKS,
    RowBaseline,
)
from mirrorspark.training.protocol import Elastic, WorkerRange, parse_workers

if TYPE_CHECKING:
    from mirrorspark.data_pipelines import ConversionOptions

__all__ = ["ConfigError", "RunConfig", "TrainingConfig"]


# A dataclass lists the fields of its last base first.
@dataclass(frozen=True, kw_only=True)
class TrainingConfig(LimitSettings, CheckpointSettings, WorkerSettings, UpdateSettings, FitSettings, ResultSettings):
    """Settings of a training on a dataset. Its fields are listed by subject in :mod:`training.configuration.fields`."""

    def __post_init__(self) -> None:
        epochs = EPOCHS if self.time_limit is None else EPOCHS_IN_TIME
        model = self.model or {"name": "multi_field"}
        self._fill_in({"model": model, "epochs": epochs, "patience": PATIENCE, "optimizer": OPTIMIZER})
        self._take_paths("output", "checkpoints", "warm_start")
        self._check_run_date()
        object.__setattr__(self, "class_weights", class_weights.with_class_texts(self.class_weights))
        object.__setattr__(self, "costs", costs.with_class_texts(self.costs))
        check_output(self.output)
        if self.checkpoints is not None:
            try:
                StoragePath.of(self.checkpoints)
            except StorageError as error:
                raise ConfigError(f"checkpoints: {error}") from error
        check_values(self)
        if isinstance(self.workers, str) and self.workers.isdecimal():
            object.__setattr__(self, "workers", int(self.workers))
        config_rules.check_workers(self)
        config_rules.check_strategy(self)
        check_name(self.name, use="it names folders and the registered model")
        check_registry_name(self.registered_model)
        check_experiment(self.experiment)
        require("name" in self.model, "the model has no name; set model.name")
        architecture = self.model["name"]
        require(
            isinstance(architecture, str),
            f"model.name must be a string, not {architecture!r}; use one of {catalog.names()}",
        )
        monitor, mode = config_rules.monitored(self)
        object.__setattr__(self, "monitor", monitor)
        object.__setattr__(self, "mode", mode)
        config_rules.check_baseline(self)
        config_rules.check_register(self)
        config_rules.check_ranking(self)
        config_rules.check_class_weights(self)
        config_rules.check_costs(self)
        config_rules.check_monotone(self)
        config_rules.check_time_limit(self)
        require(
            not self.is_fitted or (self.warm_start is None and self.strategy != "parameter_server"),
            f"model '{self.model['name']}' is fitted without workers; leave warm_start and the strategy out",
        )
        require(
            self.task != "retrieval" or self.precision != "mixed_float16",
            f"precision mixed_float16 needs its losses scaled, which a {self.task} model does not do; use "
            f"mixed_bfloat16",
        )
        catalog.settings(self.model["name"], self.model_options)
        catalog.check_calibration(self.model["name"], self.calibration)

    @property
    def architecture(self) -> catalog.Architecture:
        """The architecture of the model."""
        return catalog.architecture(self.model["name"])

    @property
    def recommenders(self) -> tuple[classical.Recommender, ...]:
        """The baselines of a retrieval model, with their settings."""
        if self.task != "retrieval" or self.baseline == "none":
            return ()
        return tuple(
            map(classical.Recommender.parse, self.baseline if isinstance(self.baseline, list) else [self.baseline])
        )

    @property
    def row_baselines(self) -> tuple[RowBaseline, ...]:
        """The baselines of a model that scores rows, with their settings."""
        if self.task == "retrieval" or self.baseline == "none":
            return ()
        return tuple(map(RowBaseline.parse, self.baseline if isinstance(self.baseline, list) else [self.baseline]))

    @property
    def registrable(self) -> tuple[classical.Recommender | RowBaseline, ...]:
        """The baselines that may be registered in the place of the model, and blended with it."""
        if self.register != "better":
            return ()
        asked: tuple[classical.Recommender | RowBaseline, ...] = (*self.recommenders, *self.row_baselines)
        return tuple(one for one in asked if one.is_registrable)

    def _check_run_date(self) -> None:
        given: Any = self.run_date
        if given is None:
            return
        if isinstance(given, date):  # a notebook's
            given = f"{given:%Y-%m-%d}"
            object.__setattr__(self, "run_date", given)
        try:
            # fromisoformat also accepts 20260131, which would make a second run of the same day.
            is_day = isinstance(given, str) and bool(_DAY.fullmatch(given)) and bool(date.fromisoformat(given))
        except ValueError:
            is_day = False
        require(is_day, f"run_date '{given}' is not a date; use the form 2026-01-31")

    def fitted_to(self, rows: int) -> Self:
        """Return the settings with a batch that fits this number of training rows, unless they give one."""
        if vars(self)["global_batch_size"] is not None:
            return self
        return dataclasses.replace(self, global_batch_size=default_batch_size(rows, self.batch_parts))

    @property
    def batch_parts(self) -> int:
        """The number of equal parts that a batch is divided into, with the fewest and with the most workers."""
        workers, share = self.worker_range, self.accumulate * max(1, self.gpus_per_worker)
        if not workers.is_elastic:
            return workers.most * share
        if self.batch_rule == "keep_batch_per_worker":
            return workers.most * math.lcm(MAX_LANES, share)
        return math.lcm(workers.fewest, workers.most) * share

    @property
    def elastic(self) -> Elastic:
        """The allowed numbers of workers, with the batch and the learning rate of each."""
        return Elastic(self.worker_range, self.global_batch_size or self.batch_parts, self.batch_rule)

    @property
    def worker_range(self) -> WorkerRange:
        """The fewest and the most workers."""
        return parse_workers(self.workers)

    @property
    def strategy_name(self) -> StrategyName:
        """The strategy by which workers train together."""
        return self.strategy or default_strategy(self.gpus_per_worker, of_keras3=self.model.get("of_keras3", False))

    @property
    def open_servers(self) -> StrategyName | None:
        """The strategy, if it starts TensorFlow's unauthenticated servers."""
        return None if self.strategy_name == "ring" else self.strategy_name

    @property
    def ranks_beside_workers(self) -> int:
        """The number of ranks that compute no gradients: parameter servers and their coordinator."""
        return 1 + self.parameter_servers if self.parameter_servers else 0

    @property
    def slots(self) -> int:
        """The number of slots that a training with the most workers takes."""
        return self.worker_range.most + self.ranks_beside_workers

    @property
    def fewest_ranks(self) -> int:
        """The number of ranks of a training with the fewest workers."""
        return self.worker_range.fewest + self.ranks_beside_workers

    @property
    def only_once(self) -> bool:
        """True if a finished run is not repeated: it has a run date, and ``resume`` is on."""
        return self.run_date is not None and self.resume

    @property
    def scaled_learning_rate(self) -> float:
        """The learning rate of a training with the most workers."""
        most = self.worker_range.most
        factor = {"none": 1.0, "linear": float(most), "sqrt": most**0.5}[self.learning_rate_scaling]
        return self.learning_rate * factor

    def _fill_in(self, defaults: Mapping[str, Any]) -> None:
        """Set the fields that have no value, and the model, which may have some of its settings."""
        for name, value in defaults.items():
            if name == "model" or getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _take_paths(self, *names: str) -> None:
        # A notebook may give a pathlib.Path; text is what YAML, JSON and MLflow take.
        for name in names:
            if isinstance(getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(getattr(self, name)))

    def require_features(self, spec: FeatureSpec) -> None:
        """Check that the model can be built for the features and learns their label.

        Raises:
            ConfigError: The model learns another kind of label, or does not support sparse features.
            ModelSettingsError: The architecture cannot be built for the features.
        """
        kind = catalog.label_kind(self.model["name"]) or TASKS[self.task].label
        require(
            kind in (spec.label.kind, spec.label.form),
            f"model '{self.model['name']}' needs a label of kind {kind}; "
            f"'{spec.label.name}' is of kind {spec.label.kind}",
        )
        self.require_classes(Classes.of_label(spec.label))
        config_rules.check_monotone_features(self, spec)
        require(
            self.task != "retrieval" or self.monitor != RATING_ERROR or spec.label.rating is not None,
            f"monitor '{self.monitor}' is the error of a rating, and label '{spec.label.name}' has none; give the "
            f"label a rating, or monitor val_loss or val_recall@20",
        )
        require(
            self.task != "retrieval"
            or not self.registrable
            or (classical.history_of(spec) is not None and spec.label.rating is None),
            f"register better chooses among recommenders that score from a row's history, a list with vocabulary_of: "
            f"{spec.label.name}, and predict no ratings; add such a list and leave the rating out, or register model",
        )
        sparse = [feature.name for feature in (*spec, *(spec.items or ())) if feature.form == "sparse"]
        wide = [feature.name for feature in spec if feature.form in kinds.WIDE_FORMS]
        boosted = [asked.label for asked in self.row_baselines if asked.name in BOOSTING]
        require(
            not (wide and boosted),
            f"baseline {', '.join(boosted)} takes no sparse features or vectors, and {wide} are; use the baseline "
            f"{LINEAR_BASELINES.get(self.task)} or none",
        )
        require(not (sparse and self.xla), f"xla compiles no sparse features, and {sparse} are; leave it out")
        require(
            spec.items is None or catalog.reads_items(self.model["name"]),
            f"model '{self.model['name']}' reads no item features; use "
            f"{', '.join(filter(catalog.reads_items, catalog.names()))}, or leave items out",
        )
        require(
            spec.items is None or self.strategy != "parameter_server",
            "the strategy parameter_server would send all item features with every step; use another one, or leave "
            "items out",
        )
        catalog.check_features(self.model["name"], self.model_options, spec)
        if self.calibration == "centroids":
            sparse_features(spec, classes=0)

    def require_classes(self, classes: Classes) -> None:
        """Raise ``ConfigError`` if a setting names a class that a label does not have."""
        class_weights.check_class_weights(self.class_weights, classes)
        costs.check_costs(self.costs, classes)

    @property
    def as_recommender(self) -> classical.Recommender:
        """The model as a classical recommender, if it is one."""
        return classical.Recommender(self.model["name"], self.model_options)

    @property
    def is_fitted(self) -> bool:
        """True for a classical recommender, which is fitted instead of trained by workers in epochs."""
        return isinstance(self.architecture, classical.FittedArchitecture)

    def require_steps(self, steps_per_epoch: int) -> None:
        """Raise ``ModelSettingsError`` unless the learning rate's schedule fits epochs of ``steps_per_epoch`` steps."""
        check_warm_up(self.learning_rate_schedule, self.warmup_steps, steps_per_epoch * self.epochs)

    @property
    def task(self) -> str:
        """The architecture's task: ``binary``, ``multi_class``, ``multi_label``, ``regression`` or ``retrieval``."""
        task = str(self.architecture.TASK)
        require(
            task in TASKS,
            f"model '{self.model['name']}' learns {task}, which a run cannot evaluate and export; use one of "
            f"{sorted(TASKS)}, or train it in a loop of your own with load_batches",
        )
        return task

    @property
    def ranked_k(self) -> int | None:
        """The K of ``val_recall_at_K`` and ``val_ndcg_at_K``; None if no candidates are ranked after an epoch."""
        monitored = RANKING.fullmatch(self.monitor)
        if monitored:
            return int(monitored[1])
        return self.top_k if self.ranked_queries else None

    @property
    def model_options(self) -> dict[str, Any]:
        """The architecture's settings, without its name."""
        return {key: value for key, value in self.model.items() if key != "name"}

    @property
    def model_settings(self) -> dict[str, Any]:
        """The architecture's settings, including those left at their default, for readers."""
        settings = dataclasses.asdict(catalog.settings(self.model["name"], self.model_options))
        return own_model.without_code({"name": self.model["name"], **settings})

    @property
    def decisive(self) -> dict[str, Any]:
        """The settings that have to be equal for a run to be continued.

        Settings of a run's place and reports may change; those of its result may not.
        """
        # With local updates the workers synchronise for a checkpoint, so its time affects what is learnt.
        free = _FREE_TO_CHANGE - ({"checkpoint_every_steps"} if self.local_steps > 1 else set())
        settings = {key: value for key, value in dataclasses.asdict(self).items() if key not in free}
        settings["model"] = own_model.without_code(self.model)  # Its digest says whether it is the same.
        return settings

    @property
    def identity(self) -> str:
        """Twelve hex digits that two runs share when one may continue the other on the same dataset."""
        return hashlib.sha256(json.dumps(self.decisive, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def registry_name(self) -> str:
        """The name of the registered model."""
        return self.registered_model or self.name

    def public(self) -> dict[str, Any]:
        """Return every setting without the secrets in it, such as passwords in addresses and options of stores.

        The pickled code of a user's own model is left out, too.
        """
        settings = dataclasses.asdict(self) | {"model": own_model.without_code(self.model)}
        return {name: clean(value, names=False) for name, value in settings.items()}

    def for_ranks(self) -> "TrainingConfig":
        """Return the settings that ranks need to train, without tables, stores or servers."""
        settings = {each.name: getattr(self, each.name) for each in dataclasses.fields(TrainingConfig)}
        # The driver alone fits baselines, and has their packages; the export decides.
        of_driver = {"tracking_uri": None, "baseline": "none", "register": "model", "costs": None, "monotone": None}
        return TrainingConfig(**settings | of_driver)

    def as_yaml(self) -> str:
        """Return the resolved configuration in the form of a recipe, without passwords."""
        return as_yaml(self.public())

    def save(self, path: Path) -> None:
        """Write the resolved configuration as YAML."""
        atomic_file.write_when_changed(path, self.as_yaml())


@dataclass(frozen=True, kw_only=True)
class RunConfig(DataSettings, CommandSettings, TrainingConfig):
    """One run of the main job: from the source tables to the scored table."""

    def __post_init__(self) -> None:
        self._take_paths("recipe", "data", "summary", "reference_dataset")
        if not self.name:
            object.__setattr__(self, "name", Path(self.recipe).absolute().name)
        if "name" not in self.model:
            self._fill_in(defaults_of_label(self.spec.label.kind, vars(self), self.spec))
        super().__post_init__()
        require(bool(self.tables), f"recipe '{self.recipe}' names no tables; list each with its columns")
        require(
            not self.items or isinstance(self.items.get("sql"), str),
            f"recipe '{self.recipe}' has items without sql; give the query that builds their table",
        )
        self.require_features(self.spec)

    @property
    def spec(self) -> FeatureSpec:
        """The feature specification; candidates are those of histories, too, where the model learns these."""
        parts = {"features": self.features, "label": self.label, "keys": self.keys}
        items = {name: part for name, part in self.items.items() if name != "sql"}
        others = {"weight": self.weight, "exclude": self.exclude, "user": self.user, "items": items}
        spec = FeatureSpec.from_dict(parts | others)
        is_said = isinstance(self.label, Mapping) and "history_items" in self.label
        if is_said or spec.label.kind != "candidate" or "name" not in self.model:
            return spec
        if not catalog.learns_histories(self.model["name"], self.model_options):
            return spec
        return dataclasses.replace(spec, label=dataclasses.replace(spec.label, history_items=True))

    @classmethod
    def from_recipe(cls, recipe: str, **settings: Any) -> "RunConfig":
        """Return the configuration of a recipe with some of its fields overridden, as the command line does.

        Raises:
            ConfigError: There is no such recipe, or the values contradict each other.
        """
        return cls(**{**load_recipe(recipe), **settings})

    @property
    def conversion(self) -> "ConversionOptions":
        """The options of the conversion from rows to shards."""
        # Every task of a training imports this module, but converts nothing.
        from mirrorspark.data_pipelines import ConversionOptions

        return ConversionOptions(shards=self.shards, accept_errors=self.accept_data_errors)


_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_FREE_TO_CHANGE = frozenset(
    {"workers", "output", "tracking_uri", "experiment", "mlflow_run", "registered_model"}
    | {"master", "resume", "dry_run", "summary", "verbose"}
    | {"threads_per_worker", "gpus_per_worker", "description", "reference_dataset", "profile", "strategy", "register"}
    | {"explain", "price_per_core_hour", "baseline"}
    | {"parameter_servers", "allow_open_servers", "local_mode", "events"}
    | {"checkpoint_every_steps", "checkpoint_every_seconds", "keep_last", "keep_best", "steps_per_execution"}
    | {"max_restarts", "max_preemptions", "max_start_failures"}
    | {"start_limit_seconds", "first_step_limit_seconds", "step_limit_seconds", "checkpoint_limit_seconds"}
    | {"end_limit_seconds"}
)
