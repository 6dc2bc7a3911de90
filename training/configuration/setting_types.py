"""The settings of a training as arguments, for type checkers and completion; a test holds them to the fields."""

from datetime import date
from os import PathLike
from typing import Any, Literal, TypedDict

from mirrorspark.callbacks.checkpoints import Mode
from mirrorspark.models import CalibrationKind, Schedule
from mirrorspark.training.configuration.fields import (
    EventWay,
    LearningRateScaling,
    MLflowRun,
    Optimizer,
    Precision,
    Registered,
    StrategyName,
)
from mirrorspark.training.configuration.tasks import BaselineName
from mirrorspark.training.protocol import BatchRule


class FurtherSettings(TypedDict, total=False):
    """The fields of ``TrainingConfig`` that ``fit`` takes without naming them in its signature."""

    ranked_queries: int | None
    class_weights: Literal["balanced"] | dict[Any, Any] | None
    resume: bool
    run_date: str | date | None
    learning_rate_scaling: LearningRateScaling
    learning_rate_schedule: Schedule
    warmup_steps: int
    clip_norm: float | None
    weight_decay: float | None
    accumulate: int
    local_steps: int
    outer_momentum: float
    outer_learning_rate: float
    precision: Precision
    xla: bool
    steps_per_execution: int
    batch_rule: BatchRule
    strategy: StrategyName | None
    parameter_servers: int
    allow_open_servers: bool
    threads_per_worker: int | None
    gpus_per_worker: int
    local_mode: bool
    events: EventWay
    checkpoints: str | PathLike[str] | None
    checkpoint_every_steps: int | None
    checkpoint_every_seconds: float | None
    keep_last: int
    keep_best: int
    max_restarts: int
    max_preemptions: int
    max_start_failures: int
    start_limit_seconds: float
    first_step_limit_seconds: float
    step_limit_seconds: float
    checkpoint_limit_seconds: float
    end_limit_seconds: float
    registered_model: str | None
    tracking_uri: str | None
    mlflow_run: MLflowRun
    monotone: dict[str, Any] | None
    calibration: CalibrationKind
    costs: dict[Any, Any] | None
    explain: bool
    top_k: int
    profile: bool
    price_per_core_hour: float | None
    verbose: bool


class TrainingSettings(FurtherSettings, total=False):
    """All fields of ``TrainingConfig``."""

    model: dict[str, Any]
    epochs: int
    time_limit: float | None
    patience: int
    monitor: str
    mode: Mode
    seed: int
    warm_start: str | PathLike[str] | None
    global_batch_size: int
    learning_rate: float
    optimizer: Optimizer
    workers: int | str
    name: str
    output: str | PathLike[str]
    experiment: str | None
    baseline: BaselineName | dict[str, Any] | list[Any]
    register: Registered
