"""The plan of a training for its ranks: the models of a stack and the settings that they share, as plain values."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from mirrorspark.fleet.columns import ACTIVATIONS
from mirrorspark.training.configuration import ConfigError, check_values

TARGETS = "fleet_targets"
"""The dataset's vector of labels: one per target, 0 if it is missing. If any is missing, as many flags follow: 1 for a
label, 0 for a missing one."""

WEIGHTS_FILE = "trained.npz"


@dataclass(frozen=True)
class StackSettings:
    """The settings that all models of a stack share.

    Attributes:
        hidden: Units of the hidden layers; none for linear models.
        activation: Activation of the hidden layers.
        epochs: Most passes over the training rows.
        patience: Epochs without a lower validation loss after which a model stops.
        learning_rate: Step size of Adam.
        global_batch_size: Rows of one update, over all workers; None for one that fits the number of rows.
        seed: Fixes the order of the rows and the initial weights of networks.
    """

    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    epochs: Annotated[int, Ge(1)] = 100
    patience: Annotated[int, Ge(1)] = 5
    learning_rate: Annotated[float, Gt(0)] = 0.01
    global_batch_size: Annotated[int | None, Ge(1)] = None
    seed: Annotated[int, Ge(0)] = 1

    def __post_init__(self) -> None:
        check_values(self)
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if not all(isinstance(units, int) and units >= 1 for units in self.hidden):
            raise ConfigError(
                f"hidden is {self.hidden}; give the units of each hidden layer, 1 or more, or () for none"
            )
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation '{self.activation}' is unknown; use one of {', '.join(ACTIVATIONS)}")


@dataclass(frozen=True)
class StackMember:
    """One model of a stack.

    Attributes:
        target: Position of its label in the vector of labels.
        penalty: Half of this times the sum of the squared weights, without biases, is added to the loss.
        share: Share of the training rows that have a label.
        start: Linear predictor of the untrained model: that of the mean label.
        mean: Subtracted from the labels before training.
        scale: Divisor of the labels after that.
        inputs: Positions of the inputs that it reads; None for all.
    """

    name: str
    target: int
    link: str
    penalty: float = 0.0
    share: float = 1.0
    start: float = 0.0
    mean: float = 0.0
    scale: float = 1.0
    inputs: tuple[int, ...] | None = None


@dataclass(frozen=True)
class StackPlan:
    """A training of stacked models.

    Attributes:
        dataset: The directory of the converted rows.
        global_batch_size: Rows of one update, over all workers.
        targets: Number of targets in the vector of labels.
        has_missing: Whether the vector has flags.
    """

    dataset: str
    settings: StackSettings
    global_batch_size: int
    targets: int
    has_missing: bool
    members: tuple[StackMember, ...]

    def to_json(self) -> str:
        """Return the plan as text, the same for equal plans: by its digest an unfinished run is found."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "StackPlan":
        """Return the plan from its text."""
        document = json.loads(text)
        members = (
            StackMember(**member | {"inputs": None if member["inputs"] is None else tuple(member["inputs"])})
            for member in document["members"]
        )
        settings = StackSettings(**document["settings"])
        return cls(**document | {"settings": settings, "members": tuple(members)})


def train_stack(plan: str) -> str:
    """Train the models of a plan (:meth:`StackPlan.to_json`) in a rank; return the path of the file of weights."""
    # Imported here, because the driver, which pickles this function, loads no TensorFlow.
    from mirrorspark.fleet.training.worker import train

    return train(StackPlan.from_json(plan))
