"""The part of the dataset that each worker of a training with parameter servers reads. Pure, without TensorFlow."""

from mirrorspark.data_pipelines.reading import ReadPlan
from mirrorspark.training.protocol import RankRole, Roles


def worker_read_plan(
    rows: int, batch_size: int, role: RankRole, roles: Roles, seed: int, epoch: int = 0, step_in_epoch: int = 0
) -> ReadPlan:
    """Return a worker's part of the training split: batches of its own share of every epoch, without end.

    An update is one worker's batch, so an epoch has as many updates as in synchronous training. Together the workers
    read each row of an epoch once, apart from rows that fill no batch, which are others in each epoch. The workers do
    not wait for each other, so the epochs of their streams drift apart.

    Args:
        rows: Rows of the training split.
        batch_size: Rows of one update.
        role: The worker.
        roles: Roles of all ranks.
        seed: Fixes the order.
        epoch: Completed epochs of the checkpoint.
        step_in_epoch: Updates that the checkpoint has of the next epoch. Which workers made them is unknown, so each
            stream continues from their mean.
    """
    together = batch_size * roles.workers
    return ReadPlan(
        "train",
        together,
        rank=role.index,
        workers=roles.workers,
        seed=seed,
        epoch=epoch,
        # Late in an epoch the mean may exceed the steps of a stream; its last step is near enough.
        step=min(step_in_epoch // roles.workers, max(0, rows // together - 1)),
        epochs=None,
        # A batch of padding alone would still move the weights by the optimizer's momentum.
        remainder="drop" if rows >= together else "pad",
    )
