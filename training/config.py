"""Every knob of a run: one frozen dataclass, checked when built; a recipe and the command line fill it in."""

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml

from callbacks.commit import Mode
from callbacks.credentials import without_credentials
from data_pipelines.features import FeatureSpec
from data_pipelines.storage import StorageError, StoragePath
from models import catalog
from models.settings import Schedule, check_warm_up
from training.records.atomic_file import write_when_changed
from training.records.run_history import DEFAULT_OUTPUT
from training.supervision.elastic import BatchRule, Elastic, WorkerRange, parse_workers

if TYPE_CHECKING:
    from data_pipelines.convert import ConversionOptions

RECIPE_FILE = "recipe.yaml"
SQL_FILE = "table.sql"

Baseline = Literal["none", "hist_gradient_boosting", "popularity"]
Optimizer = Literal["adam", "adagrad", "sgd"]
LearningRateScaling = Literal["none", "linear", "sqrt"]
Precision = Literal["float32", "mixed_float16", "mixed_bfloat16"]
StrategyName = Literal["ring", "multi_worker_mirrored", "parameter_server"]


class ConfigError(ValueError):
    """A run that cannot be started as it is described; the message says what to change."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a dataset becomes a registered model.

    Attributes:
        name: Names the registered model, the run folders and, by default, the experiment.
        workers: Workers that train side by side, each one Spark barrier task; ``2:4`` goes on with as few as 2 when
            slots are lost, and grows back to 4.
        batch_rule: What fewer workers change: ``keep_global_batch`` nothing, each takes a larger share;
            ``keep_batch_per_worker`` the global batch and, with it, the learning rate.
        output: Folder for datasets, checkpoints, models, scores and the default MLflow store.
        tracking_uri: MLflow tracking server or store; by default an SQLite file under ``output``.
        experiment: MLflow experiment; by default ``name``.
        resume: Continue an unfinished run of the same configuration.
        run_date: Day that the run stands for, as 2026-01-31: the same command for a day that is done trains nothing.
        verbose: Show what Spark and TensorFlow log.
        epochs: Passes over the training split at the most.
        patience: Stop after this many epochs without a better ``monitor``; 0 never stops early.
        monitor: Validation metric that picks the best epoch.
        mode: Whether a larger (``max``) or a smaller (``min``) ``monitor`` is better; by default as the monitor says.
        global_batch_size: Rows of one optimizer update over all workers.
        learning_rate: Step size of the optimizer; of a schedule, the highest one.
        learning_rate_scaling: Multiplies the learning rate by the number of workers (``linear``), by its root
            (``sqrt``) or not.
        learning_rate_schedule: How the learning rate goes on after the warm-up: ``constant``, or to 0 as ``cosine`` or
            ``linear``.
        warmup_steps: Steps over which the learning rate rises from 0.
        optimizer: Rule of the update.
        clip_norm: Longest gradient, over all weights together; by default none.
        accumulate: Parts in which a worker goes through its share of a batch; more need less memory.
        local_steps: Steps that a worker makes on its own before all go on from their mean; 1 is synchronous training.
        outer_momentum: Nesterov momentum of the moves of the workers' mean (DiLoCo), with local_steps above 1; 0 takes
            the mean as it is.
        outer_learning_rate: How far all go towards the mean of the workers, with local_steps above 1; 1 is all the way.
        precision: Number type of the layers' arithmetic; weights stay float32.
        xla: Compile the model's forward and backward pass with XLA.
        steps_per_execution: Most steps that TensorFlow runs before it comes back to Python.
        seed: Fixes initial weights, data order and dropout.
        warm_start: Model to begin from instead of random weights: ``models:/flights@champion``, ``runs:/<run id>`` or a
            folder. Embeddings are taken token by token, other weights by name and shape.
        strategy: How workers train together: ``ring`` (CPU: gradients over TCP connections between the workers) or
            ``multi_worker_mirrored`` (TensorFlow's, with NCCL on GPUs); by default as gpus_per_worker says. Or
            ``parameter_server``: servers hold tables that are too large for a worker, and nobody waits for the others.
        parameter_servers: Ranks that hold the variables, for the strategy ``parameter_server``.
        checkpoints: Where checkpoints go, a folder or the URI of a store; by default the run's folder.
        checkpoint_every_steps: Save within an epoch after so many steps, too.
        checkpoint_every_seconds: Save within an epoch after so many seconds, too.
        keep_last: Newest checkpoints to keep.
        keep_best: Best checkpoints by ``monitor`` to keep besides.
        max_restarts: How often a lost or hung worker may restart the training within an epoch.
        max_preemptions: How often a worker whose machine was taken away may restart the training within an epoch.
        max_start_failures: How often a worker that could not start may restart the training within an epoch.
        start_limit_seconds: Longest time in which a worker may stand still while it starts.
        first_step_limit_seconds: Longest time of the first step.
        step_limit_seconds: Longest time of any other step.
        checkpoint_limit_seconds: Longest time of a checkpoint.
        end_limit_seconds: Longest time in which the workers may leave, from when the last one has come to the end.
        profile: Record a TensorBoard profile of some steps of every worker.
        threads_per_worker: TensorFlow threads of a worker; by default what the Spark task has (``spark.task.cpus``).
        gpus_per_worker: GPUs of a worker, scheduled by Spark; 0 trains on the CPU.
        model: Name of an architecture and its settings.
        baseline: What the model is compared with.
        top_k: Candidates per row that a retrieval model recommends.
    """

    name: str = ""
    workers: int | str = 1
    batch_rule: BatchRule = "keep_global_batch"
    output: str = DEFAULT_OUTPUT
    tracking_uri: str | None = field(default=None, repr=False)  # it may hold a password, and notebooks show the rest
    experiment: str | None = None
    resume: bool = True
    run_date: str | None = None
    verbose: bool = False
    epochs: int = 40
    patience: int = 15
    monitor: str = "val_auc"
    # Set from the monitor when built, so that whoever reads it finds one.
    mode: Mode = None  # type: ignore[assignment]
    global_batch_size: int = 2048
    learning_rate: float = 0.001
    learning_rate_scaling: LearningRateScaling = "none"
    learning_rate_schedule: Schedule = "constant"
    warmup_steps: int = 0
    optimizer: Optimizer = "adam"
    clip_norm: float | None = None
    accumulate: int = 1
    local_steps: int = 1
    outer_momentum: float = 0.0
    outer_learning_rate: float = 1.0
    precision: Precision = "float32"
    xla: bool = False
    steps_per_execution: int = 50
    seed: int = 1
    warm_start: str | None = None
    strategy: StrategyName | None = None
    parameter_servers: int = 0
    checkpoints: str | None = None
    checkpoint_every_steps: int | None = None
    checkpoint_every_seconds: float | None = None
    keep_last: int = 2
    keep_best: int = 1
    max_restarts: int = 3
    max_preemptions: int = 100
    max_start_failures: int = 3
    start_limit_seconds: float = 300.0
    first_step_limit_seconds: float = 600.0
    step_limit_seconds: float = 120.0
    checkpoint_limit_seconds: float = 600.0
    end_limit_seconds: float = 300.0
    profile: bool = False
    threads_per_worker: int | None = None
    gpus_per_worker: int = 0
    model: dict[str, Any] = field(default_factory=lambda: {"name": "multi_field"})
    baseline: Baseline = "none"
    top_k: int = 20

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
        self._check_numbers()
        self._check_names()
        self._check_workers()
        self._check_strategy()
        _require(
            _NAME.fullmatch(self.name) is not None,
            f"name '{self.name}' must be letters, digits, '.', '_' or '-': it names folders and the registered model",
        )
        _require("name" in self.model, "the model has no name; set model.name")
        architecture = self.model["name"]
        _require(
            isinstance(architecture, str),
            f"model.name is {architecture!r}, which is no text; use one of {sorted(catalog.ARCHITECTURES)}",
        )
        _require(
            self.monitor in _MONITORS[self.task],
            f"monitor '{self.monitor}' is no metric of a {self.task} model; use one of {list(_MONITORS[self.task])}",
        )
        best = _MONITORS[self.task][self.monitor]
        object.__setattr__(self, "mode", vars(self)["mode"] or best)
        # The wrong one would keep the worst epoch, and nobody would notice.
        _require(self.mode == best, f"mode '{self.mode}' does not fit monitor '{self.monitor}'; set mode to {best}")
        _require(
            self.baseline in ("none", _BASELINES[self.task]),
            f"baseline '{self.baseline}' does not fit a {self.task} model; use {_BASELINES[self.task]} or none",
        )
        _require(
            self.task != "retrieval" or self.precision != "mixed_float16",
            f"precision mixed_float16 needs its losses scaled, which a {self.task} model does not do; use "
            f"mixed_bfloat16",
        )
        catalog.settings(self.model["name"], self.model_options)

    def _check_numbers(self) -> None:
        for name in _FROM_ONE:
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} is {value}; use 1 or more")
        for name in _FROM_ZERO:
            _require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; use 0 or more")
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            _require(value is None or 0 < value < math.inf, f"{name} is {value}; use a finite number above 0")
        _require(
            0 <= self.outer_momentum < 1,
            f"outer_momentum is {self.outer_momentum}; use a number from 0 up to, not including, 1",
        )

    def _check_names(self) -> None:
        for name, known in _KNOWN_NAMES.items():
            value = getattr(self, name)
            _require(value in known, f"{name} '{value}' is unknown; use one of {[name for name in known if name]}")

    def _check_run_date(self) -> None:
        given: Any = self.run_date
        if given is None:
            return
        if isinstance(given, date):  # a notebook's
            given = f"{given:%Y-%m-%d}"
            object.__setattr__(self, "run_date", given)
        try:
            # The library alone would take 20260131 for the same day, and so make two runs of one.
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
            "warm_start does not go with the strategy parameter_server, whose tables no rank holds whole; leave one of "
            "them out",
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
        """The numbers of workers that may train, and what each means for batch and learning rate."""
        return Elastic(parse_workers(self.workers), self.global_batch_size, self.batch_rule)

    @property
    def worker_range(self) -> WorkerRange:
        """From the fewest workers to the most."""
        return self.elastic.workers

    @property
    def strategy_name(self) -> StrategyName:
        """How workers train together."""
        return self.strategy or ("multi_worker_mirrored" if self.gpus_per_worker else "ring")

    @property
    def ranks_beside_workers(self) -> int:
        """Ranks that compute no gradients: parameter servers, and who coordinates them."""
        return 1 + self.parameter_servers if self.parameter_servers else 0

    @property
    def slots(self) -> int:
        """Slots that a training with the most workers takes."""
        return self.worker_range.most + self.ranks_beside_workers

    @property
    def only_once(self) -> bool:
        """Whether a run that has been done is not done again: that of a day, unless everything begins anew."""
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
        """Check that the model can be built for the features, and learns their label.

        Raises:
            ConfigError: It learns another kind of label, or does not go with sparse features.
            ModelSettingsError: The architecture cannot be built for the features.
        """
        kind = _LABEL_KINDS[self.task]
        _require(
            spec.label.kind == kind,
            f"model '{self.model['name']}' needs a label of kind {kind}; "
            f"'{spec.label.name}' is of kind {spec.label.kind}",
        )
        sparse = [feature.name for feature in spec if feature.form == "sparse"]
        _require(
            not (sparse and self.baseline == "hist_gradient_boosting"),
            f"baseline hist_gradient_boosting takes no sparse features, and {sparse} are; use --baseline none",
        )
        _require(not (sparse and self.xla), f"xla compiles no sparse features, and {sparse} are; leave it out")
        catalog.check_features(self.model["name"], self.model_options, spec)

    def require_steps(self, steps_per_epoch: int) -> None:
        """Raise ``ModelSettingsError`` unless the learning rate's schedule fits a training of so many steps."""
        check_warm_up(self.learning_rate_schedule, self.warmup_steps, steps_per_epoch * self.epochs)

    @property
    def task(self) -> str:
        """What the architecture learns: ``binary``, ``multi_label`` or ``retrieval``."""
        task = str(catalog.architecture(self.model["name"]).TASK)
        _require(
            task in _LABEL_KINDS,
            f"model '{self.model['name']}' learns {task}, which a run cannot evaluate and export; use one of "
            f"{sorted(_LABEL_KINDS)}, or train it in a loop of your own with load_dataset",
        )
        return task

    @property
    def model_options(self) -> dict[str, Any]:
        """The architecture's settings, without its name."""
        return {key: value for key, value in self.model.items() if key != "name"}

    @property
    def model_settings(self) -> dict[str, Any]:
        """The architecture's settings, those left at their default included."""
        return dataclasses.asdict(catalog.settings(self.model["name"], self.model_options))

    @property
    def identity(self) -> str:
        """Twelve hex digits that two runs share when one may continue the other on the same dataset.

        Where a run trains and how it reports may change between the two; what it learns may not.
        """
        # With local updates the workers meet for a checkpoint: when that is, is part of what is learnt.
        free = _FREE_TO_CHANGE - ({"checkpoint_every_steps"} if self.local_steps > 1 else set())
        knobs = {key: value for key, value in dataclasses.asdict(self).items() if key not in free}
        return hashlib.sha256(json.dumps(knobs, sort_keys=True).encode()).hexdigest()[:12]

    def public(self) -> dict[str, Any]:
        """Return every knob as anybody may see it: without the password of the tracking server."""
        return dataclasses.asdict(self) | {"tracking_uri": without_credentials(self.tracking_uri or "") or None}

    def for_ranks(self) -> "TrainingConfig":
        """Return what ranks need to know: how to train, and nothing of tables, stores or servers."""
        knobs = {knob.name: getattr(self, knob.name) for knob in dataclasses.fields(TrainingConfig)}
        return TrainingConfig(**knobs | {"tracking_uri": None})

    def as_yaml(self) -> str:
        """Return the resolved configuration in the form of a recipe, as anybody may see it."""
        return yaml.dump(self.public(), Dumper=_RecipeDumper, sort_keys=False, width=120)

    def save(self, path: Path) -> None:
        """Write the resolved configuration as YAML."""
        write_when_changed(path, self.as_yaml())


@dataclass(frozen=True)
class RunConfig(TrainingConfig):
    """One run of the main job: from the source tables to the scored table.

    Attributes:
        recipe: Name of a recipe that comes with the installation, or a folder with ``recipe.yaml`` and ``table.sql``.
        data: Folder with the source tables; by default the data package of the recipe.
        master: URL of a Spark cluster; by default the active session, else ``local[workers]``.
        dry_run: Print the resolved plan and the preflight result; start nothing but a Spark session.
        summary: File for the JSON summary.
        scoring_batch_size: Rows per call of the model when scoring.
        shards: TFRecord files per split.
        accept_data_errors: Train even where validation finds errors in the data, such as a column that gives the label
            away.
        reference_dataset: Directory of a former dataset, which this one should resemble: drift is reported.
        description: What the recipe is about.
        data_package: Installed package that carries the data when ``data`` is not given.
        data_package_folder: Folder in that package.
        csv_null: Text that means null in CSV files.
        tables: Per source table its columns in Spark's DDL.
        sql: The query that builds the table; read from ``table.sql`` of the recipe.
        features: Per feature its kind and options.
        label: The label column, or its name and kind.
        keys: The columns that name a row.
        weight: Column of training weights.
        exclude: List column of candidates that are not recommended for the row.
    """

    recipe: str = "flights"
    data: str | None = None
    master: str | None = None
    dry_run: bool = False
    summary: str | None = None
    scoring_batch_size: int = 4096
    shards: int = 8
    accept_data_errors: bool = False
    reference_dataset: str | None = None
    description: str = ""
    data_package: str | None = None
    data_package_folder: str = "data"
    csv_null: str = ""
    tables: dict[str, str] = field(default_factory=dict)
    sql: str = ""
    features: dict[str, Any] = field(default_factory=dict)
    label: str | dict[str, Any] = ""
    keys: str | list[str] = field(default_factory=list)
    weight: str | None = None
    exclude: str | None = None

    def __post_init__(self) -> None:
        self._take_paths("recipe", "data", "summary", "reference_dataset")
        if not self.name:
            object.__setattr__(self, "name", Path(self.recipe).absolute().name)
        super().__post_init__()
        for name in ("scoring_batch_size", "shards"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; use 1 or more")
        _require(bool(self.tables), f"recipe '{self.recipe}' names no tables; list each with its columns")
        self.require_features(self.spec)

    @property
    def spec(self) -> FeatureSpec:
        """The feature specification."""
        parts = {"features": self.features, "label": self.label, "keys": self.keys}
        return FeatureSpec.from_dict(parts | {"weight": self.weight, "exclude": self.exclude})

    @classmethod
    def from_recipe(cls, recipe: str, **knobs: Any) -> "RunConfig":
        """Return the configuration of a recipe with some of its fields set otherwise, as the command line does.

        Raises:
            ConfigError: There is no such recipe, or the values contradict each other.
        """
        return cls(**{**load_recipe(recipe), **knobs})

    @property
    def conversion(self) -> "ConversionOptions":
        """How rows become shards."""
        # Every task of a training imports this module, and converts nothing.
        from data_pipelines.convert import ConversionOptions

        return ConversionOptions(shards=self.shards, accept_errors=self.accept_data_errors)


_FROM_ONE = (
    *("epochs", "global_batch_size", "steps_per_execution", "top_k", "accumulate", "local_steps", "keep_last"),
    *("threads_per_worker", "checkpoint_every_steps"),
)
_FROM_ZERO = (
    *("patience", "seed", "gpus_per_worker", "warmup_steps", "keep_best", "parameter_servers"),
    *("max_restarts", "max_preemptions", "max_start_failures"),
)
_ABOVE_ZERO = (
    *("learning_rate", "clip_norm", "outer_learning_rate", "checkpoint_every_seconds"),
    *("start_limit_seconds", "first_step_limit_seconds", "step_limit_seconds", "checkpoint_limit_seconds"),
    "end_limit_seconds",
)
_KNOWN_NAMES: Mapping[str, tuple[str | None, ...]] = {
    "optimizer": get_args(Optimizer),
    "learning_rate_scaling": get_args(LearningRateScaling),
    "learning_rate_schedule": get_args(Schedule),
    "precision": get_args(Precision),
    "strategy": (None, *get_args(StrategyName)),
}
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_FREE_TO_CHANGE = frozenset(
    {"workers", "output", "tracking_uri", "experiment", "master", "resume", "dry_run", "summary", "verbose"}
    | {"threads_per_worker", "gpus_per_worker", "description", "reference_dataset", "profile", "strategy"}
    | {"parameter_servers"}
    | {"checkpoint_every_steps", "checkpoint_every_seconds", "keep_last", "keep_best", "steps_per_execution"}
    | {"max_restarts", "max_preemptions", "max_start_failures"}
    | {"start_limit_seconds", "first_step_limit_seconds", "step_limit_seconds", "checkpoint_limit_seconds"}
    | {"end_limit_seconds"}
)
_MONITORS: Mapping[str, Mapping[str, Mode]] = {
    "binary": {"val_auc": "max", "val_log_loss": "min", "val_loss": "min"},
    "multi_label": {"val_auc": "max", "val_log_loss": "min", "val_loss": "min"},
    "retrieval": {"val_loss": "min"},
}
_LABEL_KINDS = {"binary": "binary", "multi_label": "multi_label", "retrieval": "candidate"}
_BASELINES = {"binary": "hist_gradient_boosting", "multi_label": "popularity", "retrieval": "popularity"}


class _RecipeDumper(yaml.SafeDumper):
    """YAML in which a query stands as it was written, line by line."""


_RecipeDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


class _RecipeLoader(yaml.SafeLoader):
    """Reads whole numbers as YAML 1.2 does, and days as text.

    To its predecessor ``workers: 2:4`` is the number 124 (to base 60), and ``run_date: 2026-01-31`` no text.
    """


_RecipeLoader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:[0-9_]+|0x[0-9a-fA-F]+)$"), [*"-+0123456789"]
)


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the installation."""
    folders = (entry for entry in resources.files("recipes").iterdir() if entry.is_dir())
    return sorted(folder.name for folder in folders if folder.joinpath(RECIPE_FILE).is_file())


def load_recipe(recipe: str) -> dict[str, Any]:
    """Return the knobs that a recipe sets.

    Args:
        recipe: A name of :func:`recipe_names`, or a folder.

    Raises:
        ConfigError: There is no such recipe, or its file is no YAML mapping of known knobs.
    """
    folder: Any = Path(recipe)
    if recipe in recipe_names():  # a folder of that name in the working directory is ./name
        folder = resources.files("recipes").joinpath(recipe)
    elif not folder.is_dir():
        raise ConfigError(f"recipe '{recipe}' is unknown; use one of {recipe_names()} or the path of a folder")
    texts = {}
    for name in (RECIPE_FILE, SQL_FILE):
        if not folder.joinpath(name).is_file():
            raise ConfigError(f"recipe folder {folder} has no {name}; a recipe is a {RECIPE_FILE} and a {SQL_FILE}")
        texts[name] = folder.joinpath(name).read_text(encoding="utf-8")
    try:
        knobs = yaml.load(texts[RECIPE_FILE], _RecipeLoader)  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        raise ConfigError(f"{folder / RECIPE_FILE} is no YAML: {error}") from error
    if not isinstance(knobs, dict):
        raise ConfigError(f"{folder / RECIPE_FILE} is no mapping of fields to values; see those of {recipe_names()}")
    fields = dataclasses.fields(RunConfig)
    known = {knob.name for knob in fields}
    unknown = sorted(map(str, set(knobs) - known))
    if unknown:
        raise ConfigError(f"{folder / RECIPE_FILE} sets unknown fields {unknown}; known are {sorted(known)}")
    empty = [knob.name for knob in fields if knobs.get(knob.name, "") is None and knob.default is not None]
    if empty:
        raise ConfigError(
            f"{folder / RECIPE_FILE} gives no value for {empty}; leave the lines out to keep the defaults"
        )
    return knobs | {"recipe": recipe, "sql": texts[SQL_FILE]}


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)
