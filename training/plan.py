"""What the driver tells every rank of an attempt: plain data that travels as JSON."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from callbacks.commit import Mode
from training.events import EventAddress


@dataclass(frozen=True)
class TrainingPlan:
    """One attempt to train.

    Attributes:
        dataset: Dataset directory, readable by every rank.
        checkpoints: Checkpoint directory, readable by every rank and writable by the chief.
        model: Name of the architecture.
        model_options: Its settings.
        optimizer: Name of the optimizer.
        learning_rate: Its step size.
        epochs: Passes over the training split at the most.
        patience: Epochs without a better ``monitor`` before stopping; 0 never stops early.
        monitor: Validation metric that picks the best epoch.
        mode: Whether a larger or a smaller ``monitor`` is better.
        global_batch_size: Rows of one update over all workers.
        steps_per_execution: Steps between two returns to Python.
        seed: Fixes initial weights, data order and dropout.
        workers: Number of ranks.
        threads: TensorFlow threads of a rank; None for what its Spark task has.
        attempt: Counts from 1.
        resume_from: Checkpoint folder that all ranks restore, or None to start afresh.
        events: Where the driver listens.
        verbose: Let TensorFlow's own log through.
    """

    dataset: str
    checkpoints: str
    model: str
    model_options: dict[str, Any]
    optimizer: str
    learning_rate: float
    epochs: int
    patience: int
    monitor: str
    mode: Mode
    global_batch_size: int
    steps_per_execution: int
    seed: int
    workers: int
    threads: int | None
    attempt: int
    resume_from: str | None
    events: EventAddress
    verbose: bool = False

    def to_json(self) -> str:
        """Return the plan as one line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "TrainingPlan":
        """Read what :meth:`to_json` wrote."""
        document = json.loads(text)
        return cls(**document | {"events": EventAddress(**document["events"])})
