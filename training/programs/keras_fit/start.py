"""The start of an attempt in the data and in the learning rate's schedule, also after a change of batch size."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.storage import StoreUnreachableError
from mirrorspark.training.protocol import TrainingPlan, resume_step

# Key of `BatchState` in a checkpoint.
BATCH_STATE = "batch"


@dataclass(frozen=True)
class Start:
    """The position at which an attempt begins.

    Attributes:
        epoch: Completed epochs.
        step_in_epoch: First step within the next epoch.
        schedule_step: Optimizer step from which the schedule counts in steps of the current batch size.
        schedule_share: Share of the training that was done at that step.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    schedule_step: int = 0
    schedule_share: float = 0.0


@contextlib.contextmanager
def reading_from_store(checkpoint: str) -> Iterator[None]:
    """Turn an ``OSError`` of the block, which reads ``checkpoint``, into an error of the store.

    The driver has just read the checkpoint. Errors of the store are retried, errors of the model or the data are not.

    Raises:
        StoreUnreachableError: The store does not answer, or has lost the checkpoint.
        PermissionError: Others may write to the copy's folder; unchanged.
        StorageError: The store cannot be opened here at all; unchanged.
    """
    try:
        yield
    except PermissionError:
        raise
    except OSError as error:
        raise StoreUnreachableError(
            f"checkpoint {checkpoint} cannot be read here ({error}); every worker has to reach its store, and to have "
            f"room for a copy of remote files"
        ) from error


def read_start(plan: TrainingPlan, dataset: Dataset) -> Start:
    """Return the start of the plan's attempt: step 0, or the position of its checkpoint."""
    if plan.resume_from is None:
        return Start()
    with reading_from_store(plan.resume_from):
        checkpoint = commit.read_committed(plan.resume_from)
        then = checkpoint.states()[BATCH_STATE]
    batch, step, share = then["global_batch_size"], then["schedule_step"], then["schedule_share"]
    if batch != plan.global_batch_size:
        # The batch size has changed: the rest of the schedule is rescaled, so that it ends with the training.
        share += (checkpoint.step - step) / (dataset.steps("train", batch) * plan.config.epochs)
        step = checkpoint.step
    return Start(checkpoint.epoch, resume_step(checkpoint.step_in_epoch, batch, plan.global_batch_size), step, share)


class BatchState:
    """The batch size and schedule in a checkpoint: with another batch size a step is another place in the data."""

    def __init__(self, plan: TrainingPlan, start: Start) -> None:
        """Save the values of this attempt."""
        self._state = {
            "global_batch_size": plan.global_batch_size,
            "schedule_step": start.schedule_step,
            "schedule_share": start.schedule_share,
        }

    def get_state(self) -> dict[str, Any]:
        """Return plain JSON values; see `callbacks.checkpoints.training_state.Stateful`."""
        return dict(self._state)

    def set_state(self, state: dict[str, Any]) -> None:
        """Ignore the checkpoint's values: `read_start` has used them."""
