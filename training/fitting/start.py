"""Where an attempt begins: in the data, and on the learning rate's schedule; also when batches change their size."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.storage.paths import StoreUnreachableError
from mirrorspark.training.protocol.elastic import resume_step
from mirrorspark.training.protocol.plan import TrainingPlan

BATCH_STATE = "batch"
"""Under this name a checkpoint holds what `Batches` keeps."""


@dataclass(frozen=True)
class Start:
    """Where an attempt begins.

    Attributes:
        epoch: Epochs completed.
        step_in_epoch: Step of the next one to begin with.
        schedule_step: Optimizer step from which this attempt's schedule counts in steps of this size.
        schedule_share: Share of the training that was done by then.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    schedule_step: int = 0
    schedule_share: float = 0.0


@contextlib.contextmanager
def from_store(checkpoint: str) -> Iterator[None]:
    """Tell of a store that fails while the block reads ``checkpoint`` as such: the driver had read it just before.

    It is tried again then, as an error of the model or the data is not. What others may write to, and a store that
    cannot be opened here at all, stay refused.

    Raises:
        StoreUnreachableError: It does not answer, or has lost the checkpoint.
        PermissionError: As it was.
        StorageError: As it was.
    """
    try:
        yield
    except PermissionError:
        raise
    except OSError as error:
        raise StoreUnreachableError(
            f"checkpoint {checkpoint} cannot be read here ({error}); every worker has to reach its store, and to have "
            f"room for a copy of what is not on a disk"
        ) from error


def start_of(plan: TrainingPlan, dataset: Dataset) -> Start:
    """Return where the attempt of ``plan`` begins: at the beginning, or where its checkpoint was taken."""
    if plan.resume_from is None:
        return Start()
    with from_store(plan.resume_from):
        checkpoint = commit.read_committed(plan.resume_from)
        then = checkpoint.states()[BATCH_STATE]
    batch, step, share = then["global_batch_size"], then["schedule_step"], then["schedule_share"]
    if batch != plan.global_batch_size:
        # Steps of another size: what is left of the schedule is counted anew, so that it ends with the training.
        share += (checkpoint.step - step) / (dataset.steps("train", batch) * plan.config.epochs)
        step = checkpoint.step
    return Start(checkpoint.epoch, resume_step(checkpoint.step_in_epoch, batch, plan.global_batch_size), step, share)


class Batches:
    """Keeps with a checkpoint what its steps were: one of another size is another place in the data."""

    def __init__(self, plan: TrainingPlan, start: Start) -> None:
        """Keep this attempt's."""
        self._state = {
            "global_batch_size": plan.global_batch_size,
            "schedule_step": start.schedule_step,
            "schedule_share": start.schedule_share,
        }

    def get_state(self) -> dict[str, Any]:
        """Return it, as plain JSON values; see `callbacks.checkpoints.training_state.Stateful`."""
        return dict(self._state)

    def set_state(self, state: dict[str, Any]) -> None:
        """Keep this attempt's own."""
