"""The callbacks of ``model.fit`` in a rank, in their order, and their state in a checkpoint."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import tf_keras

from mirrorspark.callbacks import (
    AgreedEarlyStopping,
    AgreedTimeLimit,
    BackupAndRestore,
    ChiefCheckpoint,
    EventCallback,
    Locate,
    ProfileSteps,
    ShortExecutions,
    StopOnNaN,
    StopOnRequest,
)
from mirrorspark.callbacks.checkpoints import commit, fetch, training_state
from mirrorspark.training.configuration import TrainingConfig
from mirrorspark.training.executor import WorkerControl
from mirrorspark.training.programs.keras_fit.activity_callback import ActivityCallback
from mirrorspark.training.programs.keras_fit.start import BATCH_STATE, BatchState, Start, reading_from_store
from mirrorspark.training.protocol import PROGRESS_STATE, TrainingPlan
from mirrorspark.training.protocol.outcomes import Activity

Callbacks = Sequence[tf_keras.callbacks.Callback]


def with_local_checkpoint(plan: TrainingPlan, activity: Activity) -> TrainingPlan:
    """Return the plan with its checkpoint on this machine's disk; to be called before the ranks connect.

    A download may take long: its bytes count as progress, and no rank waits in a collective meanwhile.

    Raises:
        StoreUnreachableError: The store does not answer, this rank does not see the checkpoint, or its disk is full.
        CheckpointDamagedError: The checkpoint's checksums do not match.
        PermissionError: Others may write to the folder for copies.
    """
    if plan.resume_from is None:
        return plan
    with reading_from_store(plan.resume_from):
        checkpoint = fetch(commit.read_committed(plan.resume_from), progress=lambda done, total: activity.beat())
    return dataclasses.replace(plan, resume_from=str(checkpoint.path))


def fit_callbacks(
    plan: TrainingPlan,
    control: WorkerControl,
    *,
    start: Start,
    finish: Callable[[int], None],
    locate: Locate | None = None,
    is_stop_requested: Callable[[], bool] | None = None,
    checkpoint_class: Callable[..., ChiefCheckpoint] = ChiefCheckpoint,
    after_restore: Callbacks = (),
    before_checkpoint: Callbacks = (),
) -> list[tf_keras.callbacks.Callback]:
    """Return the callbacks of a rank, in the order in which each has to see a step; its hook may change them.

    Args:
        plan: The attempt.
        control: Connects the rank to its driver.
        start: Start of the attempt.
        finish: Called with the number of completed epochs at the end of the training.
        locate: Describes the records of a step; see `StopOnNaN`.
        is_stop_requested: By default the rank's own stop request.
        checkpoint_class: Class with the arguments of `ChiefCheckpoint`.
        after_restore: Callbacks to list right after the one that restores.
        before_checkpoint: Callbacks to list right before the one that saves.
    """
    config, activity = plan.config, control.activity
    stopping = AgreedEarlyStopping(monitor=config.monitor, mode=config.mode, patience=config.patience or config.epochs)
    limits: dict[str, AgreedTimeLimit] = {}
    if config.time_limit is not None:
        limits["time_limit"] = AgreedTimeLimit(config.time_limit, settled=partial(_send_epochs, control))
    progress = EventCallback(control.events.send, global_batch_size=plan.global_batch_size)
    stateful: dict[str, training_state.Stateful] = {
        "early_stopping": stopping,
        PROGRESS_STATE: progress,
        BATCH_STATE: BatchState(plan, start),
        **limits,
    }
    guard = StopOnNaN(locate=locate)
    resume = BackupAndRestore(
        plan.checkpoints,
        resume_from=plan.resume_from,
        stateful=stateful,
        verify=False,  # The driver has just verified it.
        initial_step_in_epoch=start.step_in_epoch,
    )
    checkpoint = _checkpoint(checkpoint_class, plan, activity, stateful, guard)
    callbacks = [
        resume,
        ActivityCallback(activity),
        *([ShortExecutions()] if _may_vary_executions(config) else []),
        *after_restore,
        guard,
        stopping,
        *limits.values(),
        # Before the checkpoint: a committed epoch is not repeated, and would leave a gap in the curves if it were not
        # reported. An epoch that is reported twice is logged once.
        progress,
        *([ProfileSteps(Path(plan.profile) / f"rank-{control.rank}")] if plan.profile else []),
        *before_checkpoint,
        checkpoint,
        StopOnRequest(is_stop_requested or control.stop_request.is_set, checkpoint),
        # Within fit, which destroys its iterators on return: that may take a minute, while tf.data's threads sleep.
        tf_keras.callbacks.LambdaCallback(
            on_train_end=lambda logs: finish(resume.initial_epoch + len(resume.model.history.epoch))
        ),
    ]
    return control.hook.callbacks(callbacks)


def _checkpoint(
    checkpoint_class: Callable[..., ChiefCheckpoint],
    plan: TrainingPlan,
    activity: Activity,
    stateful: Mapping[str, training_state.Stateful],
    guard: StopOnNaN,
) -> ChiefCheckpoint:
    """Return the callback that saves what the configuration asks for, as often as it does."""
    config = plan.config
    return checkpoint_class(
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
        beat=lambda: _count_progress(activity),
    )


def _send_epochs(control: WorkerControl, epochs: int) -> None:
    if control.rank == 0:
        control.events.send({"event": "time_limit", "epochs": epochs})


def _may_vary_executions(config: TrainingConfig) -> bool:
    """Return True if the result does not depend on the steps after which the training returns to Python."""
    # A coordinator schedules executions without waiting for them. With local updates a checkpoint averages the workers,
    # so the steps at which it may be taken change the result, which must not depend on how long a step takes.
    is_step_relevant = config.local_steps > 1 and config.checkpoint_every_steps is not None
    return config.parameter_servers == 0 and not is_step_relevant


def _count_progress(activity: Activity) -> None:
    """Count the publisher's progress only while the training waits for it: at other times it would hide a hang."""
    if activity.phase == "checkpoint":
        activity.beat()
