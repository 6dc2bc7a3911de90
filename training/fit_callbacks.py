"""What goes along with ``model.fit`` in a rank: the callbacks in their order, and what they keep with a checkpoint."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tf_keras

from callbacks import commit
from callbacks.backup import BackupAndRestore
from callbacks.checkpoint import ChiefCheckpoint
from callbacks.early_stopping import AgreedEarlyStopping
from callbacks.nan_guard import Locate, StopOnNaN
from callbacks.profile import ProfileSteps
from callbacks.progress import EventCallback
from callbacks.stop_request import StopOnRequest
from callbacks.training_state import Stateful
from training.elastic import resume_step
from training.follow import Follow
from training.plan import PROGRESS_STATE, TrainingPlan
from training.rank_control import RankControl

# Under this name a checkpoint holds how many rows its steps had.
_BATCH_STATE = "batch"

Callbacks = Sequence[tf_keras.callbacks.Callback]


def fit_callbacks(
    plan: TrainingPlan,
    control: RankControl,
    *,
    step_in_epoch: int,
    end: Callable[[int], None],
    locate: Locate | None = None,
    is_asked_to_stop: Callable[[], bool] | None = None,
    checkpoint_class: Callable[..., ChiefCheckpoint] = ChiefCheckpoint,
    before_all: Callbacks = (),
    before_checkpoint: Callbacks = (),
    behind_checkpoint: Callbacks = (),
) -> list[tf_keras.callbacks.Callback]:
    """Return the callbacks of a rank, in the order in which each has to see a step.

    Args:
        plan: What to do.
        control: Ties the rank to its driver.
        step_in_epoch: Where in its first epoch the training begins; see `start_position`.
        end: Takes the number of completed epochs when training has come to its end.
        locate: Says what a step has read; see `StopOnNaN`.
        is_asked_to_stop: By default the rank's own stop request.
        checkpoint_class: Takes the arguments of `ChiefCheckpoint`.
        before_all: Behind the one that restores.
        before_checkpoint: Right before the one that saves.
        behind_checkpoint: Right behind it.
    """
    config = plan.config
    stopping = AgreedEarlyStopping(monitor=config.monitor, mode=config.mode, patience=config.patience or config.epochs)
    progress = EventCallback(control.events.send, global_batch_size=plan.global_batch_size)
    stateful: dict[str, Stateful] = {
        "early_stopping": stopping,
        PROGRESS_STATE: progress,
        _BATCH_STATE: _BatchSize(plan.global_batch_size),
    }
    resume = BackupAndRestore(
        plan.checkpoints,
        resume_from=plan.resume_from,
        stateful=stateful,
        verify=False,  # the driver has just done it
        initial_step_in_epoch=step_in_epoch,
    )
    checkpoint = checkpoint_class(
        plan.checkpoints,
        attempt=plan.attempt,
        monitor=config.monitor,
        mode=config.mode,
        keep_last=config.keep_last,
        keep_best=config.keep_best,
        every_steps=config.checkpoint_every_steps,
        every_seconds=config.checkpoint_every_seconds,
        stateful=stateful,
    )
    return [
        resume,
        Follow(control.activity),
        *before_all,
        StopOnNaN(locate=locate),
        stopping,
        # Before the checkpoint: an epoch that is committed but untold would leave a hole in the curves, since it is not
        # repeated. One that is told twice is logged once.
        progress,
        *([ProfileSteps(Path(plan.profile) / f"rank-{control.rank}")] if plan.profile else []),
        *before_checkpoint,
        checkpoint,
        *behind_checkpoint,
        StopOnRequest(is_asked_to_stop or control.stop_request.is_set, checkpoint),
        # From within fit: on its way out it destroys its iterators, which may take a minute (the threads of tf.data
        # that hold them sleep).
        tf_keras.callbacks.LambdaCallback(
            on_train_end=lambda logs: end(resume.initial_epoch + len(resume.model.history.epoch))
        ),
    ]


def start_position(plan: TrainingPlan) -> tuple[int, int]:
    """Return epoch and step in it where the data goes on."""
    if plan.resume_from is None:
        return 0, 0
    checkpoint = commit.read_committed(plan.resume_from)
    then = checkpoint.states()[_BATCH_STATE]["global_batch_size"]
    return checkpoint.epoch, resume_step(checkpoint.step_in_epoch, then, plan.global_batch_size)


class _BatchSize:
    """Keeps with a checkpoint how many rows its steps had: a step of another size is another place in the data."""

    def __init__(self, global_batch_size: int) -> None:
        self._global_batch_size = global_batch_size

    def get_state(self) -> dict[str, Any]:
        return {"global_batch_size": self._global_batch_size}

    def set_state(self, state: dict[str, Any]) -> None:
        """Keep this attempt's own."""
