"""What each worker of a training with parameter servers reads. Pure, and without TensorFlow."""

from mirrorspark.data_pipelines.reading.dataset import ReadPlan
from mirrorspark.training.protocol.roles import Role, Roles


def reading(
    rows: int, batch_size: int, role: Role, roles: Roles, seed: int, epoch: int = 0, step_in_epoch: int = 0
) -> ReadPlan:
    """Return what a worker reads: batches of its own share of every epoch, for ever.

    An update is one worker's batch, so that an epoch has as many updates as in synchronous training, whoever makes
    them. Together the workers read each row of an epoch once, apart from those that fill no batch: others in each
    epoch. They do not wait for each other, so the epochs of their streams drift apart.

    Args:
        rows: Of the training split.
        batch_size: Rows of one update.
        role: Which worker.
        roles: Of all ranks.
        seed: Fixes the order.
        epoch: Epochs that were completed when the training was saved.
        step_in_epoch: Updates of the next one that were. Which worker made them is not known: each stream goes on from
            their mean.
    """
    together = batch_size * roles.workers
    return ReadPlan(
        "train",
        together,
        rank=role.index,
        workers=roles.workers,
        seed=seed,
        epoch=epoch,
        # The last updates of an epoch may be more than a stream has steps: then the next epoch is near enough.
        step=min(step_in_epoch // roles.workers, max(0, rows // together - 1)),
        epochs=None,
        # A batch of nothing but padding would still move the weights by the optimizer's momentum.
        remainder="drop" if rows >= together else "pad",
    )
