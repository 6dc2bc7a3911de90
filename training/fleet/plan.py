"""What the ranks train: the models of a stack and the settings that they share, as plain values."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from mirrorspark.scoring.fleet.columns import ACTIVATIONS
from mirrorspark.training.settings import ConfigError, check_values

TARGETS = "fleet_targets"
"""The dataset's vector of labels: the values of all targets, then, if some are missing, for each 1 or 0 if it is."""

WEIGHTS_FILE = "trained.npz"


@dataclass(frozen=True)
class StackSettings:
    """The settings that all models of a stack share.

    Attributes:
        hidden: Units of the hidden layers; none for linear models.
        activation: Of the hidden layers.
        epochs: Passes over the training rows at the most.
        patience: Epochs without a lower validation loss after which a model stops.
        learning_rate: Step size of Adam.
        global_batch_size: Rows of one update, over all workers; None for one that fits the number of rows.
        seed: Fixes the order of the rows and the weights that networks begin with.
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
        target: Its place in the vector of labels.
        penalty: The loss has this times half the sum of the squared weights, biases left out, in addition.
        positive_weight: Weight of the rows whose label is 1.
        share: Share of the training rows that have a label.
        start: Linear predictor of an untrained model: that of the mean label.
        mean: Subtracted from the labels before training.
        scale: The labels are then divided by this.
        inputs: The inputs that it reads; None for all.
    """

    name: str
    target: int
    link: str
    penalty: float = 0.0
    positive_weight: float = 1.0
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
        has_missing: Whether it says which labels are missing.
    """

    dataset: str
    settings: StackSettings
    global_batch_size: int
    targets: int
    has_missing: bool
    members: tuple[StackMember, ...]

    def to_json(self) -> str:
        """Return the plan as text, equal for equal plans: a run is continued by the digest of its arguments."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "StackPlan":
        """Return the plan in a text of :meth:`to_json`."""
        document = json.loads(text)
        members = (
            StackMember(**member | {"inputs": None if member["inputs"] is None else tuple(member["inputs"])})
            for member in document["members"]
        )
        settings = StackSettings(**document["settings"])
        return cls(**document | {"settings": settings, "members": tuple(members)})


def train_stack(plan: str) -> str:
    """Train the models of a plan (:meth:`StackPlan.to_json`) in a rank; return the path of the file of weights."""
    # Here, because the driver pickles this function and loads no TensorFlow.
    from mirrorspark.training.fleet.worker import train

    return train(StackPlan.from_json(plan))
