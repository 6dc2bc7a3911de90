"""The options of a sweep, checked when built."""

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Literal

from mirrorspark.training.configuration import ConfigError, RunConfig, check_name
from mirrorspark.training.protocol import parse_workers
from mirrorspark.training.sweep.space import SearchSpace

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["median", "hyperband", "none"]

_MOST_GRID_POINTS = 100_000


@dataclass(frozen=True)
class SweepOptions:
    """The settings of a sweep.

    Attributes:
        config: Configuration of all trials.
        arguments: The flags of ``config``, for the command that trains the best trial again.
        trials: Number of trials, including those of earlier commands.
        timeout_seconds: Time after which no trial starts.
        parallel: Maximum of parallel trials; None for as many as the slots allow.
        max_failures: Consecutive failed trials that end the sweep.
        study: Name of the sweep; by default the newest equal one, or a new name.
    """

    config: RunConfig
    space: SearchSpace
    arguments: tuple[str, ...] = ()
    trials: int = 20
    timeout_seconds: float | None = None
    parallel: int | None = None
    max_failures: int = 5
    sampler: Sampler = "tpe"
    pruner: Pruner = "median"
    study: str | None = None
    summary: str | None = None

    def __post_init__(self) -> None:
        if self.config.time_limit is not None:
            raise ConfigError(
                f"time_limit is {self.config.time_limit:g}, and trials that share the cores would each get another "
                f"number of epochs by the clock; set epochs, and --timeout for the sweep"
            )
        for name in ("trials", "parallel", "max_failures"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; use 1 or more")
        if self.timeout_seconds is not None and not self.timeout_seconds > 0:
            raise ConfigError(f"--timeout is {self.timeout_seconds:g}; use seconds above 0")
        if self.study is not None:
            check_name(self.study, "study", "it names a folder")
        if self.sampler == "grid":
            points = math.prod(map(len, self.space.grid().values()))
            if points > _MOST_GRID_POINTS:
                raise ConfigError(
                    f"the grid has {points:,} points; use at most {_MOST_GRID_POINTS:,}, or another sampler"
                )
            object.__setattr__(self, "trials", min(self.trials, points))

    @property
    def slots_per_trial(self) -> int:
        """The maximum of a trial's slots: for its workers and its other ranks."""
        workers = self.space.bounds("workers", self.config.workers)
        return max(parse_workers(each).most for each in workers) + self.config.ranks_beside_workers

    @property
    def epochs(self) -> int:
        """The maximum of a trial's epochs."""
        return max(int(epochs) for epochs in self.space.bounds("epochs", self.config.epochs))

    def identity(self, dataset_hash: str) -> str:
        """Return a digest that is equal for two sweeps if one may resume the other's trials."""
        document = json.dumps([self.config.identity, dict(self.space.specs), dataset_hash])
        return hashlib.sha256(document.encode()).hexdigest()[:12]
