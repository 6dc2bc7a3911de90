"""What goes along with ``model.fit`` in a rank: the callbacks in their order, and what they keep with a checkpoint."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import tf_keras

from mirrorspark.callbacks.backup import BackupAndRestore
from mirrorspark.callbacks.checkpoint import ChiefCheckpoint
from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.callbacks.checkpoints.fetch import fetch
from mirrorspark.callbacks.checkpoints.training_state import Stateful
from mirrorspark.callbacks.early_stopping import AgreedEarlyStopping
from mirrorspark.callbacks.nan_guard import Locate, StopOnNaN
from mirrorspark.callbacks.profile import ProfileSteps
from mirrorspark.callbacks.progress import EventCallback
from mirrorspark.callbacks.short_executions import ShortExecutions
from mirrorspark.callbacks.stop_request import StopOnRequest
from mirrorspark.training.config import TrainingConfig
from mirrorspark.training.executor.worker_control import WorkerControl
from mirrorspark.training.fitting.follow import Follow
from mirrorspark.training.fitting.start import BATCH_STATE, Batches, Start, from_store
from mirrorspark.training.protocol.activity import Activity
from mirrorspark.training.protocol.plan import PROGRESS_STATE, TrainingPlan

Callbacks = Sequence[tf_keras.callbacks.Callback]


def with_local_checkpoint(plan: TrainingPlan, activity: Activity) -> TrainingPlan:
    """Return the plan with its checkpoint on this machine's disk; call it before the ranks meet.

    A download takes as long as it takes: its bytes count as progress, and nobody waits in a collective meanwhile.

    Raises:
        StoreUnreachableError: The store does not answer, this rank does not see the checkpoint, or its disk is full.
        CheckpointDamagedError: What came is not what was written.
        PermissionError: Others may write where copies go.
    """
    if plan.resume_from is None:
        return plan
    with from_store(plan.resume_from):
        checkpoint = fetch(commit.read_committed(plan.resume_from), progress=lambda done, total: activity.beat())
    return dataclasses.replace(plan, resume_from=str(checkpoint.path))


def fit_callbacks(
    plan: TrainingPlan,
    control: WorkerControl,
    *,
    start: Start,
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
        start: Where the attempt begins.
        end: Takes the number of completed epochs when training has come to its end.
        locate: Says what a step has read; see `StopOnNaN`.
        is_asked_to_stop: By default the rank's own stop request.
        checkpoint_class: Takes the arguments of `ChiefCheckpoint`.
        before_all: Behind the one that restores.
        before_checkpoint: Right before the one that saves.
        behind_checkpoint: Right behind it.
    """
    config, activity = plan.config, control.activity
    stopping = AgreedEarlyStopping(monitor=config.monitor, mode=config.mode, patience=config.patience or config.epochs)
    progress = EventCallback(control.events.send, global_batch_size=plan.global_batch_size)
    stateful: dict[str, Stateful] = {
        "early_stopping": stopping,
        PROGRESS_STATE: progress,
        BATCH_STATE: Batches(plan, start),
    }
    guard = StopOnNaN(locate=locate)
    resume = BackupAndRestore(
        plan.checkpoints,
        resume_from=plan.resume_from,
        stateful=stateful,
        verify=False,  # the driver has just done it
        initial_step_in_epoch=start.step_in_epoch,
    )
    checkpoint = checkpoint_class(
        plan.checkpoints,
        attempt=plan.attempt,
        fence=plan.fence,
        monitor=config.monitor,
        mode=config.mode,
        keep_last=config.keep_last,
        keep_best=config.keep_best,
        every_steps=config.checkpoint_every_steps,
        every_seconds=config.checkpoint_every_seconds,
        stateful=stateful,
        before_save=guard.check,
        on_wait=lambda: activity.within("checkpoint"),
        beat=lambda: _count_beat(activity),
    )
    return [
        resume,
        Follow(activity),
        *([ShortExecutions()] if _may_vary_executions(config) else []),
        *before_all,
        guard,
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


def _may_vary_executions(config: TrainingConfig) -> bool:
    """Whether it is all the same after which steps the training comes back to Python."""
    # A coordinator hands out executions without waiting for them. And local workers meet for a checkpoint: the steps
    # behind which one may be taken are part of the result then, which must not depend on how long a step takes.
    has_to_repeat = config.local_steps > 1 and config.checkpoint_every_steps is not None
    return config.parameter_servers == 0 and not has_to_repeat


def _count_beat(activity: Activity) -> None:
    """Note that the publisher gets on, where the training waits for it: at other times it must not hide a hang."""
    if activity.phase == "checkpoint":
        activity.beat()
