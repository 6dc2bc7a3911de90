"""What a sweep does, checked when built; and what two sweeps share when one may go on with the other's trials."""

import hashlib
import json
import re
from dataclasses import dataclass, field

from training.config import ConfigError, RunConfig
from training.supervision.elastic import parse_workers
from training.sweeping.schedule import SweepLimits
from training.sweeping.space import SearchSpace
from training.sweeping.study import Pruner, Sampler

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class SweepOptions:
    """What a sweep does.

    Attributes:
        config: What all trials share, and where they run.
        space: What is searched.
        arguments: The flags that ``config`` was made of, for the command that trains the best again.
        limits: How far it goes.
        sampler: How values are chosen.
        pruner: Which trials end early.
        study: Name of the sweep; by default the newest one that searches the same, or a new name.
    """

    config: RunConfig
    space: SearchSpace
    arguments: tuple[str, ...] = ()
    limits: SweepLimits = field(default_factory=SweepLimits)
    sampler: Sampler = "tpe"
    pruner: Pruner = "median"
    study: str | None = None

    def __post_init__(self) -> None:
        if self.study is not None and _NAME.fullmatch(self.study) is None:
            raise ConfigError(f"study '{self.study}' must be letters, digits, '.', '_' or '-': it names a folder")
        if self.sampler == "grid":
            self.space.grid()  # raises

    @property
    def slots_per_trial(self) -> int:
        """The most slots that a trial may take: its workers, and what ranks it has besides."""
        searched = self.space.domains.get("workers")
        if searched is None:
            return self.config.slots
        return max(parse_workers(workers).most for workers in searched.ends) + self.config.ranks_beside_workers

    @property
    def epochs(self) -> int:
        """The most epochs that a trial may have."""
        searched = self.space.domains.get("epochs")
        return max(int(epochs) for epochs in (searched.ends if searched else (self.config.epochs,)))

    def identity(self, dataset_hash: str) -> str:
        """Return what two sweeps share when one may go on with the other's trials."""
        document = json.dumps([self.config.identity, self.space.to_dict(), dataset_hash])
        return hashlib.sha256(document.encode()).hexdigest()[:12]
