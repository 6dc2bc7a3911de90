"""Descriptions of a step in words, for the message of a loss that is not a number."""

from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.data_pipelines.reading import Dataset, ReadPlan
from mirrorspark.training.protocol import TrainingPlan
from mirrorspark.training.protocol.outcomes import Activity, numbers_in_words


def describe_step(
    dataset: Dataset, read_plan: ReadPlan, plan: TrainingPlan, activity: Activity, epoch: int, step: int
) -> str:
    """Return the records that a step read by a rank's ``read_plan``, and the checkpoint to resume from, in words."""
    files = "; ".join(
        f"{path} records {numbers_in_words(records)}"
        for path, records in dataset.records_of(read_plan, epoch, step).items()
    )
    return f"it read {files}; {describe_last_checkpoint(plan, activity, epoch, step)}"


def describe_last_checkpoint(plan: TrainingPlan, activity: Activity, epoch: int, step: int) -> str:
    """Return in words the newest intact checkpoint before a step of an epoch, both from 0."""
    with activity.within("checkpoint"):  # Reading it may take long, and the other ranks may wait.
        newest = next(
            (
                checkpoint
                for checkpoint in commit.committed(plan.checkpoints)
                if (checkpoint.epoch, checkpoint.step_in_epoch) <= (epoch, step)
                and commit.is_whole(checkpoint, activity.beat)
            ),
            None,
        )
    return f"the last checkpoint is that of step {newest.step:,}" if newest else "there is no checkpoint yet"
