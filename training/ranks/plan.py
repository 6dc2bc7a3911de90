"""What the driver tells every rank of an attempt: plain data that travels as JSON."""

import dataclasses
import json
import secrets
from dataclasses import dataclass

from training.channel.events import EventAddress
from training.config import TrainingConfig
from training.parameter_servers.roles import Roles

# Under this name a checkpoint holds what the ranks told of every epoch so far.
PROGRESS_STATE = "progress"


@dataclass(frozen=True)
class TrainingPlan:
    """One attempt to train.

    Attributes:
        config: How to train; the same for all attempts.
        dataset: Dataset directory, readable by every rank.
        checkpoints: Where checkpoints go, writable by the chief.
        workers: Number of ranks.
        global_batch_size: Rows of one update over all of them.
        learning_rate_scale: What the configured learning rate is multiplied with, for that many workers.
        attempt: Counts from 1.
        resume_from: Checkpoint that all ranks restore, or None to start afresh.
        events: Where the driver listens.
        token: Secret by which the ranks know each other.
        profile: Folder for the ranks' profiles; None records none.
        warm_start: Folder of the model whose weights a training begins from that starts afresh; None for random ones.
        fence: Id of the fence that is up for this attempt (`callbacks.fence`); None where there is none.
    """

    config: TrainingConfig
    dataset: str
    checkpoints: str
    workers: int
    global_batch_size: int
    learning_rate_scale: float = 1.0
    attempt: int = 1
    resume_from: str | None = None
    events: EventAddress = dataclasses.field(default_factory=lambda: EventAddress("", 0, ""))
    token: str = dataclasses.field(default_factory=lambda: secrets.token_hex(32), repr=False)
    profile: str | None = None
    warm_start: str | None = None
    fence: str | None = None

    @property
    def ranks(self) -> int:
        """Number of all ranks, those that are no workers included."""
        return self.workers + self.config.ranks_beside_workers

    @property
    def entry(self) -> str:
        """The function that every rank runs."""
        return (
            "training.parameter_servers.train:train" if self.config.parameter_servers else "training.fitting.fit:train"
        )

    @property
    def dispensable_ranks(self) -> frozenset[int]:
        """The ranks without which a training that is under way goes on."""
        if not self.config.parameter_servers:
            return frozenset()
        roles = Roles(self.workers, self.config.parameter_servers)
        return frozenset(rank for rank in range(roles.ranks) if roles.is_dispensable(rank))

    @property
    def threads(self) -> int | None:
        """TensorFlow threads of a rank; None for what its Spark task has."""
        return self.config.threads_per_worker

    @property
    def verbose(self) -> bool:
        """Whether TensorFlow's own log is let through."""
        return self.config.verbose

    def to_json(self) -> str:
        """Return the plan as one line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "TrainingPlan":
        """Read what :meth:`to_json` wrote."""
        document = json.loads(text)
        nested = {"config": TrainingConfig(**document["config"]), "events": EventAddress(**document["events"])}
        return cls(**document | nested)
