"""The settings of a run by subject. The bounds, help text and default of a field are written only here."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import DocInfo, Ge, Gt, Interval, doc

from mirrorspark.callbacks.checkpoints import Mode
from mirrorspark.callbacks.mlflow import tracking_store
from mirrorspark.clear_error import ClearError
from mirrorspark.models import CalibrationKind, Schedule
from mirrorspark.storage import meant
from mirrorspark.training.configuration.tasks import BaselineName
from mirrorspark.training.protocol import BatchRule, Budgets, PhaseLimits

Registered = Literal["model", "better", "always"]
Optimizer = Literal["adam", "adamw", "adagrad", "lazy_adam", "lion", "sgd"]
LearningRateScaling = Literal["none", "linear", "sqrt"]
Precision = Literal["float32", "mixed_float16", "mixed_bfloat16"]
NullLabels = Literal["refuse", "drop"]
MLflowRun = Literal["active", "child", "new"]
StrategyName = Literal["ring", "multi_worker_mirrored", "parameter_server"]
EventWay = Literal["auto", "direct", "folder"]


def default_strategy(gpus_per_worker: int, *, of_keras3: bool = False) -> StrategyName:
    """Return the strategy of a training that names none; a model of Keras 3 has no other than the ring."""
    return "multi_worker_mirrored" if gpus_per_worker and not of_keras3 else "ring"


class ConfigError(ClearError, ValueError):
    """A run's configuration is invalid; the message names the change to make."""


@dataclass(frozen=True, kw_only=True)
class ResultSettings:
    """Names and places of the results."""

    name: Annotated[str, doc("Names the run folders and the registered model; by default as the recipe")] = ""
    registered_model: Annotated[
        str | None, doc("Registered model, catalog.schema.model in Unity Catalog; else as --name")
    ] = None
    output: Annotated[str, doc("Folder for datasets, runs, models and scores, shared by all machines")] = (
        tracking_store.DEFAULT_OUTPUT
    )
    tracking_uri: Annotated[
        str | None, doc("MLflow server or store; by default the one MLflow is set to, else a file in the output folder")
    ] = field(
        default=None,
        repr=False,  # it may hold a password, and notebooks show the rest
    )
    experiment: Annotated[str | None, doc("MLflow experiment; by default the one MLflow is set to, else as --name")] = (
        None
    )
    mlflow_run: Annotated[
        MLflowRun, doc("Run to log to within mlflow.start_run(): the active one, a child of it, or a new one")
    ] = "active"
    baseline: Annotated[
        BaselineName | dict[str, Any] | list[Any], doc("Baseline to compare the model with, or a list of them")
    ] = "none"
    monotone: Annotated[
        dict[str, Any] | None,
        doc("Features by which the score may only rise or fall: {age: increasing}"),
    ] = None
    register: Annotated[
        Registered,
        doc("The model; better: the best of it, baselines and a blend; always: the model, with the alias if worse"),
    ] = "model"
    calibration: Annotated[CalibrationKind, doc("What corrects a classifier's probabilities after the training")] = (
        "none"
    )
    costs: Annotated[
        dict[Any, Any] | None,
        doc("Costs of mistakes, by which scored rows get a decision"),
    ] = None
    explain: Annotated[bool, doc("Explain the predictions on some test rows, for the report")] = True
    top_k: Annotated[int, Ge(1), doc("Candidates per row that a retrieval model recommends")] = 20
    profile: Annotated[bool, doc("Record a TensorBoard profile of some steps of every worker")] = False
    price_per_core_hour: Annotated[
        float | None, Ge(0), doc("Price of a core for an hour, in any currency, for the cost in report and summary")
    ] = None
    verbose: Annotated[bool, doc("Show the logs of Spark and TensorFlow, and whole stack traces")] = False


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """The model, the length of its training, and the choice of the best epoch."""

    model: Annotated[
        dict[str, Any], doc("Architecture, by default as fits the label, and its settings: --model.embedding_dim 16")
    ] = field(default_factory=dict)
    # This one and those below that are None are set when built, so that readers always find a value.
    epochs: Annotated[int, Ge(1), doc("Most passes over the training split")] = None  # type: ignore[assignment]
    time_limit: Annotated[
        float | None,
        Gt(0),
        doc("Seconds of all epochs, up to --epochs; they become a number of epochs once, which restarts keep"),
    ] = None
    patience: Annotated[
        int,
        Ge(0),
        doc("Stop after this many epochs without a better --monitor; 0: never"),
    ] = None  # type: ignore[assignment]
    monitor: Annotated[
        str, doc("Validation metric that picks the best epoch; by default the first of the model's task")
    ] = None  # type: ignore[assignment]
    mode: Annotated[Mode, doc("Whether a larger or a smaller --monitor is better; by default as the monitor says")] = (
        None  # type: ignore[assignment]
    )
    ranked_queries: Annotated[
        int | None,
        Ge(0),
        doc(
            "Validation queries to rank after an epoch, for recall and NDCG; by default all if --monitor is one of them"
        ),
    ] = None
    class_weights: Annotated[
        Literal["balanced"] | dict[Any, Any] | None,
        doc("Weights of the training rows by class, {no: 1, yes: 5}, or balanced"),
    ] = None
    seed: Annotated[int, Ge(0), doc("Fixes initial weights, data order and dropout")] = 1
    warm_start: Annotated[str | None, doc("Model to begin from: models:/NAME@ALIAS, runs:/ID or a folder")] = None
    resume: Annotated[bool, doc("Continue an unfinished equal run; --no-resume begins anew")] = True
    run_date: Annotated[str | None, doc("Day of the run, as 2026-01-31; a finished day is not trained again")] = None


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """The batch and the update of the weights."""

    # Set once the number of training rows is known.
    global_batch_size: Annotated[
        int, Ge(1), doc("Rows of one update, over all workers; by default as fits the number of rows")
    ] = None  # type: ignore[assignment]
    learning_rate: Annotated[float, Gt(0), doc("Step size of the optimizer; of a schedule, the highest one")] = 0.001
    learning_rate_scaling: Annotated[
        LearningRateScaling, doc("Multiplies the learning rate by the number of workers, its root, or not")
    ] = "none"
    learning_rate_schedule: Annotated[Schedule, doc("Course of the learning rate after the warm-up")] = "constant"
    warmup_steps: Annotated[int, Ge(0), doc("Steps over which the learning rate rises from 0")] = 0
    optimizer: Annotated[Optimizer, doc("Rule of the update")] = None  # type: ignore[assignment]
    clip_norm: Annotated[float | None, Gt(0), doc("Longest gradient, over all weights together")] = None
    weight_decay: Annotated[
        float | None, Ge(0), doc("Share of a weight lost per step, times the learning rate; adamw: 0.004")
    ] = None
    accumulate: Annotated[int, Ge(1), doc("Parts of a worker's share of a batch; more need less memory")] = 1
    local_steps: Annotated[int, Ge(1), doc("Steps of a worker between two means of all workers; 1: synchronous")] = 1
    outer_momentum: Annotated[
        float, Interval(ge=0, lt=1), doc("Nesterov momentum of the workers' mean, with --local-steps above 1")
    ] = 0.0
    outer_learning_rate: Annotated[
        float, Gt(0), doc("Share of the way towards the workers' mean, with --local-steps above 1")
    ] = 1.0
    precision: Annotated[Precision, doc("Number type of the layers' arithmetic; weights stay float32")] = "float32"
    xla: Annotated[bool, doc("Compile the model's forward and backward pass with XLA")] = False
    steps_per_execution: Annotated[int, Ge(1), doc("Most steps between two returns to Python")] = 50


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """The workers and their strategy."""

    workers: Annotated[int | str, doc("Workers that train side by side; 2:4 goes on with as few as 2")] = 1
    batch_rule: Annotated[
        BatchRule, doc("Batch to keep when workers are lost: the global one, or that of each worker")
    ] = "keep_global_batch"
    strategy: Annotated[StrategyName | None, doc("How workers train together; by default as --gpus-per-worker")] = None
    parameter_servers: Annotated[int, Ge(0), doc("Servers of the variables, for the strategy parameter_server")] = 0
    allow_open_servers: Annotated[
        bool, doc("Let TensorFlow's servers, which any caller may use, listen on a network")
    ] = False
    threads_per_worker: Annotated[int | None, Ge(1), doc("TensorFlow threads; by default as spark.task.cpus")] = None
    gpus_per_worker: Annotated[int, Ge(0), doc("GPUs of a worker, scheduled by Spark; 0 trains on the CPU")] = 0
    local_mode: Annotated[
        bool, doc("Train in a process of the driver's machine, without a barrier job; needs --workers 1")
    ] = False
    events: Annotated[
        EventWay,
        doc("Way of workers' events: to this program directly, or by a folder in --output; auto tries both"),
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """The place, times and number of checkpoints."""

    checkpoints: Annotated[str | None, doc("Folder or URI of the checkpoints; by default the run's folder")] = None
    checkpoint_every_steps: Annotated[int | None, Ge(1), doc("Save after this many steps of an epoch, too")] = None
    checkpoint_every_seconds: Annotated[float | None, Gt(0), doc("Save after this many seconds, too")] = None
    keep_last: Annotated[int, Ge(1), doc("Newest checkpoints to keep")] = 2
    keep_best: Annotated[int, Ge(0), doc("Best checkpoints by --monitor to keep in addition")] = 1


@dataclass(frozen=True, kw_only=True)
class LimitSettings:
    """Restarts within an epoch, and the longest time of each phase."""

    max_restarts: Annotated[int, Ge(0), doc("Restarts in an epoch after lost or hung workers")] = Budgets.max_restarts
    max_preemptions: Annotated[int, Ge(0), doc("Restarts in an epoch after machines were taken away")] = (
        Budgets.max_preemptions
    )
    max_start_failures: Annotated[int, Ge(0), doc("Restarts in an epoch after workers that could not start")] = (
        Budgets.max_start_failures
    )
    start_limit_seconds: Annotated[float, Gt(0), doc("Longest standstill of a worker that starts")] = (
        PhaseLimits.start_seconds
    )
    first_step_limit_seconds: Annotated[float, Gt(0), doc("Longest time of the first step")] = (
        PhaseLimits.first_step_seconds
    )
    step_limit_seconds: Annotated[float, Gt(0), doc("Longest time of any other step")] = PhaseLimits.step_seconds
    checkpoint_limit_seconds: Annotated[float, Gt(0), doc("Longest time of a checkpoint")] = (
        PhaseLimits.checkpoint_seconds
    )
    end_limit_seconds: Annotated[float, Gt(0), doc("Longest time from the last worker's end to all exits")] = (
        PhaseLimits.end_seconds
    )


@dataclass(frozen=True, kw_only=True)
class CommandSettings:
    """The command: its cluster, its scoring, its output."""

    master: Annotated[
        str | None, doc("Spark cluster or Connect server; by default the active session, else local[workers]")
    ] = None
    dry_run: Annotated[bool, doc("Print the resolved configuration and the preflight's checks; train nothing")] = False
    summary: Annotated[str | None, doc("File for the JSON summary")] = None
    scoring_batch_size: Annotated[int, Ge(1), doc("Rows per call of the model when scoring")] = 4096


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The source tables, the query and the dataset: most of a recipe."""

    recipe: Annotated[str, doc("An installed recipe, or a folder with recipe.yaml and table.sql")] = "flights"
    data: Annotated[str | None, doc("Folder or URI with the source tables; by default the recipe's data package")] = (
        None
    )
    shards: Annotated[int, Ge(1), doc("TFRecord files per split")] = 8
    accept_data_errors: Annotated[bool, doc("Train even where validation finds errors in the data")] = False
    null_labels: Annotated[NullLabels, doc("Refuse rows without a label, or drop them")] = "refuse"
    reference_dataset: Annotated[str | None, doc("A former dataset; drift from it is reported")] = None
    description: Annotated[str, doc("Description of the recipe")] = ""
    data_package: Annotated[str | None, doc("Installed package with the data, used without --data")] = None
    data_package_folder: Annotated[str, doc("Folder in that package")] = "data"
    csv_null: Annotated[str, doc("Text that means null in CSV files")] = ""
    tables: Annotated[
        dict[str, str], doc("Columns per source table in Spark's DDL, or its place: a path, or a name of the catalog")
    ] = field(default_factory=dict)
    sql: Annotated[str, doc("Query that builds the table; by default the recipe's table.sql")] = ""
    features: Annotated[dict[str, Any], doc("Kind and options per feature")] = field(default_factory=dict)
    label: Annotated[str | dict[str, Any], doc("The label column, or its name and kind")] = ""
    keys: Annotated[str | list[str], doc("The columns that name a row")] = field(default_factory=list)
    weight: Annotated[str | None, doc("Column of training weights")] = None
    exclude: Annotated[str | None, doc("List column of candidates that are not recommended for the row")] = None
    user: Annotated[str | None, doc("Feature whose values are the users, where its name does not say so")] = None
    items: Annotated[dict[str, Any], doc("Key, query (sql) and features of a table of the candidates")] = field(
        default_factory=dict
    )


_KINDS: Mapping[str, tuple[type, ...]] = {
    "training": (FitSettings,),
    "batch and optimizer": (UpdateSettings,),
    "workers and strategy": (WorkerSettings,),
    "checkpoints": (CheckpointSettings,),
    "failures and limits": (LimitSettings,),
    "data": (DataSettings,),
    "scoring and results": (CommandSettings, ResultSettings),
}
_TYPES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
# All fields by subject, as --help and the documentation show them.
GROUPS: Mapping[str, tuple["dataclasses.Field[Any]", ...]] = {
    subject: tuple(each for kind in kinds for each in dataclasses.fields(kind)) for subject, kinds in _KINDS.items()
}


def help_texts() -> dict[str, str]:
    """Return the help text of every field."""
    return {
        name: next(part.documentation for part in hint.__metadata__ if isinstance(part, DocInfo))
        for kinds in _KINDS.values()
        for kind in kinds
        for name, hint in _hints(kind).items()
    }


def check_values(settings: Any) -> None:
    """Check every field of a settings object against its choices and bounds; None is allowed if it is the default.

    Raises:
        ConfigError: A value is not among the choices, or out of bounds.
    """
    kind: type = type(settings)
    for each in dataclasses.fields(kind):
        value, hint = getattr(settings, each.name), _hints(kind)[each.name]
        if value is None and each.default is None:
            continue
        plain, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        choices = choices_of(plain)
        # Its own rules check a list or a mapping.
        is_other = any(get_origin(part) is type(value) for part in alternatives(plain))
        if choices and not is_other and value not in choices:
            raise ConfigError(f"{each.name} '{value}' is unknown{meant(str(value), choices)}; use one of {choices}")
        for bound in (note for note in notes if not isinstance(note, DocInfo)):
            # A number as text cannot be compared with a bound.
            if not isinstance(value, Real) or not _holds(bound, value):
                raise ConfigError(f"{each.name} is {value!r}; use {_in_words(bound)}")


def choices_of(hint: Any) -> list[Any]:
    """Return the values that a type lists, or an empty list."""
    return [choice for part in alternatives(hint) if get_origin(part) is Literal for choice in get_args(part)]


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union type, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def type_in_words(hint: Any) -> str:
    """Describe the values of a type, for a message: ``a whole number or null``."""
    return " or ".join(map(_one_type_in_words, alternatives(hint)))


def _one_type_in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {list(get_args(hint))}"
    if get_origin(hint) is dict:
        return "a mapping"
    if get_origin(hint) in (tuple, list):
        return f"a list, each {type_in_words(get_args(hint)[0])}"
    return _TYPES.get(hint, str(hint))


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _holds(bound: object, value: Any) -> bool:
    match bound:
        case Ge(ge=low):
            return bool(value >= low)
        case Gt(gt=low):
            return bool(low < value < math.inf)
        case Interval(ge=low, lt=high):
            return bool(low <= value < high)
    raise TypeError(f"{bound!r} is not a bound")


def _in_words(bound: object) -> str:
    match bound:
        case Ge(ge=low):
            return f"{low} or more"
        case Gt(gt=low):
            return f"a finite number above {low}"
        case Interval(ge=low, lt=high):
            return f"a number from {low} up to, not including, {high}"
    raise TypeError(f"{bound!r} is not a bound")
