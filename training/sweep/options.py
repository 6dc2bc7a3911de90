"""The options of a sweep, checked when built."""

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Literal

from mirrorspark.training.config import ConfigError, RunConfig
from mirrorspark.training.protocol.elastic import parse_workers
from mirrorspark.training.protocol.names import is_name
from mirrorspark.training.sweep.space import SearchSpace

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["median", "hyperband", "none"]

_MOST_GRID_POINTS = 100_000


@dataclass(frozen=True)
class SweepOptions:
    """What a sweep does.

    Attributes:
        config: What all trials share, and where they run.
        space: What is searched.
        arguments: The flags that ``config`` was made of, for the command that trains the best again.
        trials: How many trials there are in all, those of earlier commands included.
        timeout_seconds: After so long no trial starts any more; None for no such limit.
        parallel: How many train side by side at the most; None for as many as have slots.
        max_failures: So many failed trials in a row end the sweep.
        sampler: How values are chosen.
        pruner: Which trials end early.
        study: Name of the sweep; by default the newest one that searches the same, or a new name.
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

    def __post_init__(self) -> None:
        for name in ("trials", "parallel", "max_failures"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; use 1 or more")
        if self.timeout_seconds is not None and not self.timeout_seconds > 0:
            raise ConfigError(f"--timeout is {self.timeout_seconds:g}; use seconds above 0")
        if self.study is not None and not is_name(self.study):
            raise ConfigError(f"study '{self.study}' must be letters, digits, '.', '_' or '-': it names a folder")
        if self.sampler == "grid":
            # A grid gives no more trials than it has points.
            points = math.prod(map(len, self.space.grid().values()))
            if points > _MOST_GRID_POINTS:
                most = f"{_MOST_GRID_POINTS:,}"
                raise ConfigError(
                    f"the grid has {points:,} points; use fewer values (at most {most}) or another sampler"
                )
            object.__setattr__(self, "trials", min(self.trials, points))

    @property
    def slots_per_trial(self) -> int:
        """The most slots that a trial may take: its workers, and the other ranks that it has."""
        workers = self.space.ends("workers", self.config.workers)
        return max(parse_workers(each).most for each in workers) + self.config.ranks_beside_workers

    @property
    def epochs(self) -> int:
        """The most epochs that a trial may have."""
        return max(int(epochs) for epochs in self.space.ends("epochs", self.config.epochs))

    def identity(self, dataset_hash: str) -> str:
        """Return what two sweeps share when one may go on with the other's trials."""
        document = json.dumps([self.config.identity, dict(self.space.specs), dataset_hash])
        return hashlib.sha256(document.encode()).hexdigest()[:12]
