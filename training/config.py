"""Every knob of a run: one frozen dataclass, checked when built; a recipe and the command line fill it in."""

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from callbacks.commit import Mode
from callbacks.credentials import without_credentials
from data_pipelines.convert import ConversionOptions
from data_pipelines.features import FeatureSpec
from models import catalog

RECIPE_FILE = "recipe.yaml"
SQL_FILE = "table.sql"

Baseline = Literal["none", "hist_gradient_boosting", "popularity"]
Optimizer = Literal["adam", "adagrad", "sgd"]


class ConfigError(ValueError):
    """A run that cannot be started as it is described; the message says what to change."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a dataset becomes a registered model.

    Attributes:
        name: Names the registered model, the run folders and, by default, the experiment.
        workers: Workers that train side by side; each is one Spark barrier task.
        output: Folder for datasets, checkpoints, models, scores and the default MLflow store.
        tracking_uri: MLflow tracking server or store; by default an SQLite file under ``output``.
        experiment: MLflow experiment; by default ``name``.
        resume: Continue an unfinished run of the same configuration.
        verbose: Show what Spark and TensorFlow log.
        epochs: Passes over the training split at the most.
        patience: Stop after this many epochs without a better ``monitor``; 0 never stops early.
        monitor: Validation metric that picks the best epoch.
        mode: Whether a larger or a smaller ``monitor`` is better.
        global_batch_size: Rows of one optimizer update over all workers.
        learning_rate: Step size of the optimizer.
        optimizer: Rule of the update.
        steps_per_execution: Steps that TensorFlow runs before it comes back to Python.
        seed: Fixes initial weights, data order and dropout.
        max_restarts: How often a lost worker may restart the training.
        threads_per_worker: TensorFlow threads of a worker; by default what the Spark task has (``spark.task.cpus``).
        gpus_per_worker: GPUs of a worker, scheduled by Spark; 0 trains on the CPU.
        model: Name of an architecture and its settings.
        baseline: What the model is compared with.
        top_k: Candidates per row that a retrieval model recommends.
    """

    name: str = ""
    workers: int = 1
    output: str = "mirrorspark-output"
    tracking_uri: str | None = field(default=None, repr=False)  # it may hold a password, and notebooks show the rest
    experiment: str | None = None
    resume: bool = True
    verbose: bool = False
    epochs: int = 40
    patience: int = 15
    monitor: str = "val_auc"
    mode: Mode = "max"
    global_batch_size: int = 2048
    learning_rate: float = 0.001
    optimizer: Optimizer = "adam"
    steps_per_execution: int = 10
    seed: int = 1
    max_restarts: int = 3
    threads_per_worker: int | None = None
    gpus_per_worker: int = 0
    model: dict[str, Any] = field(default_factory=lambda: {"name": "multi_field"})
    baseline: Baseline = "none"
    top_k: int = 20

    def __post_init__(self) -> None:
        self._take_paths("output")
        _require(
            "://" not in self.output,
            f"output '{self.output}' is on another store; give a folder on a disk that the driver and all executors "
            f"share",
        )
        for name in ("workers", "epochs", "global_batch_size", "steps_per_execution", "top_k"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; use 1 or more")
        for name in ("patience", "seed", "max_restarts", "gpus_per_worker"):
            _require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; use 0 or more")
        _require(
            0 < self.learning_rate < math.inf, f"learning_rate is {self.learning_rate}; use a finite number above 0"
        )
        _require(
            self.optimizer in get_args(Optimizer),
            f"optimizer '{self.optimizer}' is unknown; use one of {list(get_args(Optimizer))}",
        )
        _require(
            self.threads_per_worker is None or self.threads_per_worker >= 1,
            f"threads_per_worker is {self.threads_per_worker}; use 1 or more",
        )
        _require(
            self.global_batch_size % self.workers == 0,
            f"global_batch_size {self.global_batch_size} does not divide among {self.workers} workers; "
            f"use a multiple of {self.workers}",
        )
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
        # The wrong one would keep the worst epoch, and nobody would notice.
        best = _MONITORS[self.task][self.monitor]
        _require(self.mode == best, f"mode '{self.mode}' does not fit monitor '{self.monitor}'; set mode to {best}")
        _require(
            self.baseline in ("none", _BASELINES[self.task]),
            f"baseline '{self.baseline}' does not fit a {self.task} model; use {_BASELINES[self.task]} or none",
        )
        catalog.settings(self.model["name"], self.model_options)

    def _take_paths(self, *names: str) -> None:
        # A notebook may give a pathlib.Path; text is what YAML, JSON and MLflow take.
        for name in names:
            if isinstance(getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(getattr(self, name)))

    def require_label(self, spec: FeatureSpec) -> None:
        """Raise ``ConfigError`` unless the spec's label is what the model learns."""
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

    @property
    def task(self) -> str:
        """What the architecture learns: ``binary`` or ``retrieval``."""
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
        knobs = {key: value for key, value in dataclasses.asdict(self).items() if key not in _FREE_TO_CHANGE}
        return hashlib.sha256(json.dumps(knobs, sort_keys=True).encode()).hexdigest()[:12]

    def public(self) -> dict[str, Any]:
        """Return every knob as anybody may see it: without the password of the tracking server."""
        return dataclasses.asdict(self) | {"tracking_uri": without_credentials(self.tracking_uri or "") or None}

    def as_yaml(self) -> str:
        """Return the resolved configuration in the form of a recipe, as anybody may see it."""
        return yaml.safe_dump(self.public(), sort_keys=False, width=120)

    def save(self, path: Path) -> None:
        """Write the resolved configuration as YAML."""
        path.write_text(self.as_yaml(), encoding="utf-8")


@dataclass(frozen=True)
class RunConfig(TrainingConfig):
    """One run of the main job: from the source tables to the scored table.

    Attributes:
        recipe: Name of a recipe that comes with the installation, or a folder with ``recipe.yaml`` and ``table.sql``.
        data: Folder with the source tables; by default the data package of the recipe.
        master: URL of a Spark cluster; by default the active session, else ``local[workers]``.
        dry_run: Print the resolved plan and the preflight result, start nothing.
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
    label: str | dict[str, str] = ""
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
        self.require_label(self.spec)

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
    def conversion(self) -> ConversionOptions:
        """How rows become shards."""
        return ConversionOptions(shards=self.shards, accept_errors=self.accept_data_errors)


_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_FREE_TO_CHANGE = frozenset(
    {"workers", "output", "tracking_uri", "experiment", "master", "resume", "dry_run", "summary", "verbose"}
    | {"max_restarts", "threads_per_worker", "gpus_per_worker", "description", "reference_dataset"}
)
_MONITORS: Mapping[str, Mapping[str, Mode]] = {
    "binary": {"val_auc": "max", "val_log_loss": "min", "val_loss": "min"},
    "retrieval": {"val_loss": "min"},
}
_LABEL_KINDS = {"binary": "binary", "retrieval": "candidate"}
_BASELINES = {"binary": "hist_gradient_boosting", "retrieval": "popularity"}


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
        knobs = yaml.safe_load(texts[RECIPE_FILE])
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
