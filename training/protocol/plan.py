"""The plan that the driver sends to every rank of an attempt: plain data, sent as JSON."""

import dataclasses
import json
import secrets
from dataclasses import dataclass
from typing import Any, Self

from mirrorspark.training.configuration import TrainingConfig
from mirrorspark.training.protocol.messages import EventAddress
from mirrorspark.training.protocol.roles import Roles

# Name of the state in a checkpoint that holds the ranks' events of every epoch so far.
PROGRESS_STATE = "progress"


@dataclass(frozen=True, kw_only=True)
class AttemptPlan:
    """The plan of one attempt at any training. The supervisor fills in the fields that differ between attempts.

    Attributes:
        workers: Number of workers that compute gradients.
        checkpoints: Folder or URI of the checkpoints, writable by the chief.
        threads: TensorFlow threads of a worker; None for its Spark task's CPUs.
        verbose: Show all output and logs of the workers, including TensorFlow's own log.
        global_batch_size: Rows of one update over all workers.
        learning_rate_scale: Factor of the configured learning rate for that many workers.
        attempt: Counts from 1.
        resume_from: Checkpoint that all ranks restore, or None to start afresh.
        events: Address of the driver's event server.
        token: Secret by which the ranks authenticate each other.
        fence: Id of this attempt's fence (`callbacks.checkpoints.fencing`); None if there is none.
    """

    workers: int
    checkpoints: str
    threads: int | None = None
    verbose: bool = False
    global_batch_size: int = 0
    learning_rate_scale: float = 1.0
    attempt: int = 1
    resume_from: str | None = None
    events: EventAddress = dataclasses.field(default_factory=lambda: EventAddress("", 0, ""))
    token: str = dataclasses.field(default_factory=lambda: secrets.token_hex(32), repr=False)
    fence: str | None = None

    @property
    def entry(self) -> str:
        """The function that every rank runs, as ``module:function``."""
        raise NotImplementedError

    @property
    def meets_through_driver(self) -> bool:
        """True if the ranks meet through the driver: they then need neither ``TF_CONFIG`` nor GPUs."""
        return False

    @property
    def ranks(self) -> int:
        """Number of all ranks, including those that are not workers."""
        return self.workers

    @property
    def dispensable_ranks(self) -> frozenset[int]:
        """The ranks that a training can lose once it is under way."""
        return frozenset()

    def to_json(self) -> str:
        """Return the plan as one line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a plan from the output of :meth:`to_json`."""
        return cls._from_document(json.loads(text))

    @classmethod
    def _from_document(cls, document: dict[str, Any]) -> Self:
        return cls(**document | {"events": EventAddress(**document["events"])})


@dataclass(frozen=True)
class TrainingPlan(AttemptPlan):
    """The plan of one attempt at training a model of ours.

    Attributes:
        config: The training's settings; the same for all attempts.
        dataset: Dataset directory, readable by every rank.
        profile: Folder for the ranks' profiles; None records none.
        warm_start: Folder of the model with the initial weights of a fresh start; None for random ones.
        graph: File of the graph that the model propagates its embeddings over; None for a model without one.
        class_weights: Factor of a training row's weight by the number of its class; empty without class weights.
    """

    config: TrainingConfig
    dataset: str
    profile: str | None = None
    warm_start: str | None = None
    graph: str | None = None
    class_weights: tuple[float, ...] = ()

    @property
    def entry(self) -> str:
        """The function that every rank runs; a training with parameter servers has its own."""
        return (
            "mirrorspark.training.programs.parameter_servers.train:train"
            if self.config.parameter_servers
            else "mirrorspark.training.programs.keras_fit.fit:train"
        )

    @property
    def meets_through_driver(self) -> bool:
        """True for the ring, which trains on CPUs; TensorFlow's own strategies find the cluster in ``TF_CONFIG``."""
        return self.config.strategy_name == "ring"

    @property
    def ranks(self) -> int:
        """Number of workers, parameter servers and their coordinator."""
        return self.workers + self.config.ranks_beside_workers

    @property
    def roles(self) -> Roles | None:
        """The ranks' roles in a training with parameter servers."""
        return Roles(self.workers, self.config.parameter_servers) if self.config.parameter_servers else None

    @property
    def dispensable_ranks(self) -> frozenset[int]:
        """The workers of a training with parameter servers."""
        roles = self.roles
        return frozenset(rank for rank in range(roles.ranks) if roles.is_dispensable(rank)) if roles else frozenset()

    @classmethod
    def _from_document(cls, document: dict[str, Any]) -> Self:
        config, class_weights = TrainingConfig(**document["config"]), tuple(document["class_weights"])
        return super()._from_document(document | {"config": config, "class_weights": class_weights})
