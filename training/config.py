"""A run's settings as one frozen object, checked when built; a recipe and the command line fill it in."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirrorspark.callbacks.checkpoints.commit import Mode
from mirrorspark.data_pipelines.features.kinds import WIDE_FORMS
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.models import catalog, own_model
from mirrorspark.models.classical import RECOMMENDERS, FittedArchitecture, Recommender
from mirrorspark.models.settings import check_warm_up
from mirrorspark.storage.atomic_file import write_when_changed
from mirrorspark.storage.credentials import clean
from mirrorspark.storage.paths import StorageError, StoragePath
from mirrorspark.training.protocol.elastic import Elastic, WorkerRange, parse_workers
from mirrorspark.training.protocol.names import is_name
from mirrorspark.training.recipe import as_yaml, load_recipe
from mirrorspark.training.settings import (
    CheckpointSettings,
    ConfigError,
    DataSettings,
    FitSettings,
    LimitSettings,
    OptimizerSettings,
    ResultSettings,
    RunSettings,
    StrategyName,
    WorkerSettings,
    check_registry_name,
    check_values,
)

if TYPE_CHECKING:
    from mirrorspark.data_pipelines.convert import ConversionOptions

__all__ = ["ConfigError", "RunConfig", "TrainingConfig"]


# A dataclass lists the fields of its last base first.
@dataclass(frozen=True, kw_only=True)
class TrainingConfig(LimitSettings, CheckpointSettings, WorkerSettings, OptimizerSettings, FitSettings, ResultSettings):
    """Settings of a training on a dataset. Its fields are listed by subject in :mod:`training.settings`."""

    def __post_init__(self) -> None:
        self._take_paths("output", "checkpoints", "warm_start")
        self._check_run_date()
        _require(
            "://" not in self.output,
            f"output '{self.output}' is on another store; give a folder on a disk that the driver and all executors "
            f"share",
        )
        if self.checkpoints is not None:
            try:
                StoragePath.of(self.checkpoints)
            except StorageError as error:
                raise ConfigError(f"checkpoints: {error}") from error
        check_values(self)
        self._check_workers()
        self._check_strategy()
        _require(
            is_name(self.name),
            f"name '{self.name}' must be letters, digits, '.', '_' or '-': it names folders and the registered model",
        )
        check_registry_name(self.registered_model)
        _require("name" in self.model, "the model has no name; set model.name")
        architecture = self.model["name"]
        _require(
            isinstance(architecture, str),
            f"model.name is {architecture!r}, which is no text; use one of {catalog.names()}",
        )
        known = _MONITORS[self.task]
        if vars(self)["monitor"] is None:
            object.__setattr__(self, "monitor", next(iter(known)))
        if self.task == "retrieval":
            # Papers write recall@20; MLflow refuses the sign in a metric's name.
            object.__setattr__(self, "monitor", str(self.monitor).replace("@", "_at_"))
            if _RANKING.fullmatch(self.monitor):
                known = {**known, self.monitor: "max"}
        if own_model.is_own(self.model) and self.monitor not in known:
            # Only its code knows its metrics.
            _require(
                self.monitor.startswith("val_") and self.mode is not None,
                f"monitor '{self.monitor}' of an own model needs a name that begins with val_, and mode min or max",
            )
            known = {self.monitor: self.mode}
        _require(
            self.monitor in known,
            f"monitor '{self.monitor}' is no metric of a {self.task} model; use one of {list(known)}",
        )
        best = known[self.monitor]
        object.__setattr__(self, "mode", vars(self)["mode"] or best)
        # The wrong mode would silently keep the worst epoch.
        _require(self.mode == best, f"mode '{self.mode}' does not fit monitor '{self.monitor}'; set mode to {best}")
        self._check_baseline()
        self._check_register()
        self._check_ranking()
        _require(
            not self.is_fitted or (self.warm_start is None and self.strategy != "parameter_server"),
            f"model '{self.model['name']}' is fitted without workers; leave warm_start and the strategy out",
        )
        _require(
            self.task != "retrieval" or self.precision != "mixed_float16",
            f"precision mixed_float16 needs its losses scaled, which a {self.task} model does not do; use "
            f"mixed_bfloat16",
        )
        catalog.settings(self.model["name"], self.model_options)
        catalog.check_calibration(self.model["name"], self.calibration)

    def _check_baseline(self) -> None:
        known, or_several = _BASELINES[self.task], ", a list of them" if self.task == "retrieval" else ""
        _require(
            self.baseline in ("none", *known) or (bool(or_several) and isinstance(self.baseline, list)),
            f"baseline '{self.baseline}' does not fit a {self.task} model; use {', '.join(known)}{or_several} or none",
        )
        labels = [asked.label for asked in self.recommenders]
        _require(len(set(labels)) == len(labels), f"baseline lists one twice: {labels}; leave out the repetition")

    @property
    def recommenders(self) -> tuple[Recommender, ...]:
        """The baselines of a retrieval model, with their settings."""
        if self.task != "retrieval" or self.baseline == "none":
            return ()
        return tuple(map(Recommender.parse, self.baseline if isinstance(self.baseline, list) else [self.baseline]))

    def _check_register(self) -> None:
        if self.register == "model":
            return
        _require(
            self.baseline == "hist_gradient_boosting",
            f"register better needs a baseline that can be registered, and '{self.baseline}' cannot; use the baseline "
            f"hist_gradient_boosting, or register model",
        )
        _require(
            self.model.get("loss") != "quantile",
            "register better does not go with model.loss quantile: gradient boosting gives no interval; use another "
            "loss, or register model",
        )
        _require(
            self.calibration == "none",
            f"calibration '{self.calibration}' does not go with register better: gradient boosting is not calibrated; "
            f"leave one of them out",
        )

    def _check_ranking(self) -> None:
        _require(
            not self.ranked_queries or self.task == "retrieval",
            f"ranked_queries is {self.ranked_queries}, but a {self.task} model ranks no candidates; leave it out",
        )
        _require(
            self.ranked_queries != 0 or not _RANKING.fullmatch(self.monitor),
            f"ranked_queries is 0, so there is no {self.monitor} to monitor; use a larger number, or leave it out",
        )
        _require(
            self.ranked_k is None or self.strategy != "parameter_server",
            "the strategy parameter_server has no process that holds all candidates, to rank them; monitor val_loss, "
            "and leave ranked_queries out",
        )

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
        _require(is_day, f"run_date '{given}' is no day; give one as 2026-01-31")

    def _check_workers(self) -> None:
        if isinstance(self.workers, str) and self.workers.isdecimal():
            object.__setattr__(self, "workers", int(self.workers))
        try:
            sizes = self.elastic.sizes
        except ValueError as error:
            raise ConfigError(str(error)) from error
        shares = {size: self.elastic.batch(size).global_batch_size // size for size in sizes}
        for size, share in shares.items():
            _require(
                share % self.accumulate == 0,
                f"a worker's share of a batch, {share} rows with {size} workers, does not divide into "
                f"{self.accumulate} parts; use another accumulate or global_batch_size",
            )
            _require(
                share // self.accumulate % max(1, self.gpus_per_worker) == 0,
                f"what a worker computes at once, {share // self.accumulate} rows with {size} workers, does not divide "
                f"among {self.gpus_per_worker} GPUs; use another global_batch_size",
            )

    def _check_strategy(self) -> None:
        _require(
            self.strategy_name == "ring" or self.local_steps == 1,
            "local_steps above 1 need the strategy ring, which trains on CPUs; use local_steps 1",
        )
        _require(
            self.local_steps > 1 or (self.outer_momentum == 0 and self.outer_learning_rate == 1),
            f"outer_momentum {self.outer_momentum} and outer_learning_rate {self.outer_learning_rate} say how local "
            f"updates become one, and with local_steps 1 there are none; set local_steps above 1, or leave both out",
        )
        is_asynchronous = self.strategy == "parameter_server"
        _require(
            is_asynchronous == (self.parameter_servers > 0),
            f"strategy {self.strategy_name} with parameter_servers {self.parameter_servers}; give the strategy "
            f"parameter_server and 1 or more of them, or neither",
        )
        _require(
            not is_asynchronous or (self.gpus_per_worker == 0 and not self.xla and self.precision == "float32"),
            "the strategy parameter_server trains on CPUs in float32 without xla; leave gpus_per_worker, xla and "
            "precision out",
        )
        _require(
            not is_asynchronous or self.warm_start is None,
            "warm_start does not go with the strategy parameter_server, whose tables no worker holds whole; leave one "
            "of them out",
        )
        _require(
            not is_asynchronous or not self.worker_range.is_elastic,
            f"workers {self.workers}: the strategy parameter_server needs a fixed number; it goes on without a lost "
            f"worker anyway",
        )
        for what, name in ((self.accumulate > 1, "accumulate"), (self.local_steps > 1, "local_steps")):
            _require(
                not what or self.precision != "mixed_float16",
                f"{name} above 1 does not go with precision mixed_float16, whose loss scaling judges every step of all "
                f"workers; use mixed_bfloat16",
            )
        _require(
            self.local_steps == 1 or self.checkpoint_every_seconds is None,
            "checkpoint_every_seconds does not go with local_steps above 1: the workers meet for a checkpoint, so when "
            "one is taken is part of the result; use checkpoint_every_steps",
        )
        _require(
            self.strategy != "ring" or self.gpus_per_worker == 0,
            "the strategy ring trains on CPUs; leave strategy out to train on GPUs",
        )

    @property
    def elastic(self) -> Elastic:
        """The allowed numbers of workers, with the batch and the learning rate of each."""
        return Elastic(parse_workers(self.workers), self.global_batch_size, self.batch_rule)

    @property
    def worker_range(self) -> WorkerRange:
        """The fewest and the most workers."""
        return self.elastic.workers

    @property
    def strategy_name(self) -> StrategyName:
        """The strategy by which workers train together."""
        return self.strategy or ("multi_worker_mirrored" if self.gpus_per_worker else "ring")

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
    def only_once(self) -> bool:
        """True if a finished run is not repeated: it has a run date, and ``resume`` is on."""
        return self.run_date is not None and self.resume

    @property
    def scaled_learning_rate(self) -> float:
        """The learning rate of a training with the most workers."""
        most = self.worker_range.most
        factor = {"none": 1.0, "linear": float(most), "sqrt": most**0.5}[self.learning_rate_scaling]
        return self.learning_rate * factor

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
        kind = _LABEL_KINDS[self.task]
        _require(
            spec.label.kind == kind,
            f"model '{self.model['name']}' needs a label of kind {kind}; "
            f"'{spec.label.name}' is of kind {spec.label.kind}",
        )
        sparse = [feature.name for feature in spec if feature.form == "sparse"]
        wide = [feature.name for feature in spec if feature.form in WIDE_FORMS]
        _require(
            not (wide and self.baseline == "hist_gradient_boosting"),
            f"baseline hist_gradient_boosting takes no sparse features or vectors, and {wide} are; use --baseline none",
        )
        _require(not (sparse and self.xla), f"xla compiles no sparse features, and {sparse} are; leave it out")
        reads_items = getattr(catalog.architecture(self.model["name"]), "READS_ITEMS", False)
        _require(
            spec.items is None or reads_items,
            f"model '{self.model['name']}' reads no item features; use two_tower, or leave items out",
        )
        _require(
            spec.items is None or self.strategy != "parameter_server",
            "the strategy parameter_server would send all item features with every step; use another one, or leave "
            "items out",
        )
        catalog.check_features(self.model["name"], self.model_options, spec)

    @property
    def as_recommender(self) -> Recommender:
        """The model as a classical recommender, if it is one."""
        return Recommender(self.model["name"], self.model_options)

    @property
    def is_fitted(self) -> bool:
        """True for a classical recommender, which is fitted instead of trained by workers in epochs."""
        return isinstance(catalog.architecture(self.model["name"]), FittedArchitecture)

    def require_steps(self, steps_per_epoch: int) -> None:
        """Raise ``ModelSettingsError`` unless the learning rate's schedule fits a training of so many steps."""
        check_warm_up(self.learning_rate_schedule, self.warmup_steps, steps_per_epoch * self.epochs)

    @property
    def task(self) -> str:
        """The architecture's task: ``binary``, ``multi_class``, ``multi_label``, ``regression`` or ``retrieval``."""
        task = str(catalog.architecture(self.model["name"]).TASK)
        _require(
            task in _LABEL_KINDS,
            f"model '{self.model['name']}' learns {task}, which a run cannot evaluate and export; use one of "
            f"{sorted(_LABEL_KINDS)}, or train it in a loop of your own with load_batches",
        )
        return task

    @property
    def ranked_k(self) -> int | None:
        """The K of ``val_recall_at_K`` and ``val_ndcg_at_K``; None if no candidates are ranked after an epoch."""
        monitored = _RANKING.fullmatch(self.monitor)
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

        Where a run trains and how it reports may change; what it learns may not.
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
        return TrainingConfig(**settings | {"tracking_uri": None})

    def as_yaml(self) -> str:
        """Return the resolved configuration in the form of a recipe, without passwords."""
        return as_yaml(self.public())

    def save(self, path: Path) -> None:
        """Write the resolved configuration as YAML."""
        write_when_changed(path, self.as_yaml())


@dataclass(frozen=True, kw_only=True)
class RunConfig(DataSettings, RunSettings, TrainingConfig):
    """One run of the main job: from the source tables to the scored table."""

    def __post_init__(self) -> None:
        self._take_paths("recipe", "data", "summary", "reference_dataset")
        if not self.name:
            object.__setattr__(self, "name", Path(self.recipe).absolute().name)
        super().__post_init__()
        _require(bool(self.tables), f"recipe '{self.recipe}' names no tables; list each with its columns")
        _require(
            not self.items or isinstance(self.items.get("sql"), str),
            f"recipe '{self.recipe}' has items without sql; give the query that builds their table",
        )
        self.require_features(self.spec)

    @property
    def spec(self) -> FeatureSpec:
        """The feature specification."""
        parts = {"features": self.features, "label": self.label, "keys": self.keys}
        items = {name: part for name, part in self.items.items() if name != "sql"}
        return FeatureSpec.from_dict(parts | {"weight": self.weight, "exclude": self.exclude, "items": items})

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
        from mirrorspark.data_pipelines.convert import ConversionOptions

        return ConversionOptions(shards=self.shards, accept_errors=self.accept_data_errors)


_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_FREE_TO_CHANGE = frozenset(
    {"workers", "output", "tracking_uri", "experiment", "mlflow_run", "registered_model"}
    | {"master", "resume", "dry_run", "summary", "verbose"}
    | {"threads_per_worker", "gpus_per_worker", "description", "reference_dataset", "profile", "strategy", "register"}
    | {"explain", "price_per_core_hour"}
    | {"parameter_servers", "allow_open_servers"}
    | {"checkpoint_every_steps", "checkpoint_every_seconds", "keep_last", "keep_best", "steps_per_execution"}
    | {"max_restarts", "max_preemptions", "max_start_failures"}
    | {"start_limit_seconds", "first_step_limit_seconds", "step_limit_seconds", "checkpoint_limit_seconds"}
    | {"end_limit_seconds"}
)
_MONITORS: Mapping[str, Mapping[str, Mode]] = {
    "binary": {"val_auc": "max", "val_log_loss": "min", "val_loss": "min"},
    "multi_label": {"val_auc": "max", "val_log_loss": "min", "val_loss": "min"},
    "multi_class": {"val_log_loss": "min", "val_accuracy": "max", "val_loss": "min"},
    "regression": {"val_rmse": "min", "val_mae": "min", "val_loss": "min"},
    # Lists of any other length, too.
    "retrieval": {"val_loss": "min", "val_recall_at_20": "max", "val_ndcg_at_20": "max"},
}
_RANKING = re.compile(r"val_(?:recall|ndcg)_at_([1-9]\d{0,3})", re.ASCII)
_LABEL_KINDS = {
    "binary": "binary",
    "multi_class": "multi_class",
    "multi_label": "multi_label",
    "regression": "number",
    "retrieval": "candidate",
}
_BASELINES = {
    "binary": ("hist_gradient_boosting",),
    "multi_class": ("hist_gradient_boosting",),
    "multi_label": ("popularity",),
    "regression": ("hist_gradient_boosting",),
    "retrieval": tuple(RECOMMENDERS),
}


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)
