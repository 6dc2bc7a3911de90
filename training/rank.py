"""The process of one rank: strategy, data, model, fit. Started by :mod:`training.worker`, plan on standard input."""

import json
import logging
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from training.child_process import stay_until_dismissed, take_over
from training.events import EventClient
from training.plan import TrainingPlan

EXIT_FAILED = 1

# Under this name a checkpoint holds what the ranks told of every epoch so far.
PROGRESS_STATE = "progress"


def main() -> NoReturn:
    """Train as the plan says and answer with the number of completed epochs; the task ends this process."""
    line, answer = take_over()
    plan = TrainingPlan.from_json(line)
    rank = _rank()
    events = EventClient(plan.events, rank, plan.attempt)
    logging.getLogger().addHandler(_WarningsToDriver(events))

    def finish(epochs: int) -> None:
        events.close()
        print(json.dumps({"epochs": epochs}), file=answer, flush=True)
        # Peers take the end of a connection for a death, so nobody leaves before the task says that all have answered.
        stay_until_dismissed()

    try:
        train(plan, events, finish)
    except BaseException as error:
        failure = describe(error)
        events.send(failure)
        traceback.print_exc()
        events.close()
        # The task may know what to do with this where the driver was out of reach.
        print(json.dumps({key: failure[key] for key in ("cause", "type", "message")}), file=answer, flush=True)
    # Not a plain return: TensorFlow's threads can hang in a collective whose peer is gone.
    os._exit(EXIT_FAILED)


def train(plan: TrainingPlan, events: EventClient, finish: Callable[[int], None]) -> None:
    """Fit the model on this rank's share of every batch, then call ``finish`` with the number of completed epochs.

    ``finish`` is called from within ``fit``: on its way out ``fit`` destroys its iterators, and the tuning thread of
    tf.data, which sleeps for up to a minute, holds them until it wakes (a third of the runs lost 37 s so).
    """
    import tensorflow as tf
    import tf_keras

    from callbacks.backup import BackupAndRestore
    from callbacks.checkpoint import ChiefCheckpoint
    from callbacks.early_stopping import AgreedEarlyStopping
    from callbacks.nan_guard import StopOnNaN
    from callbacks.progress import EventCallback
    from callbacks.training_state import Stateful
    from data_pipelines.dataset import Dataset
    from models import catalog
    from models.objectives import compile_model

    events.send({"event": "phase", "phase": "connecting", "host": socket.gethostname(), "process": os.getpid()})
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    dataset = Dataset.open(plan.dataset)
    tf_keras.utils.set_random_seed(plan.seed)
    architecture = catalog.architecture(plan.model)
    steps = dataset.steps("train", plan.global_batch_size)
    with strategy.scope():
        model = architecture.build(catalog.settings(plan.model, plan.model_options), dataset.features, plan.seed)
        compile_model(
            model, architecture.TASK, plan.optimizer, plan.learning_rate, min(plan.steps_per_execution, steps)
        )
    stopping = AgreedEarlyStopping(monitor=plan.monitor, mode=plan.mode, patience=plan.patience or plan.epochs)
    progress = EventCallback(events.send, global_batch_size=plan.global_batch_size)
    stateful: dict[str, Stateful] = {"early_stopping": stopping, PROGRESS_STATE: progress}
    resume = BackupAndRestore(plan.checkpoints, resume_from=plan.resume_from, stateful=stateful)
    start = _resume_position(plan)
    model.fit(
        _batches(strategy, dataset, plan, "train", start),
        validation_data=_batches(strategy, dataset, plan, "validation", (0, 0)),
        epochs=plan.epochs,
        steps_per_epoch=steps,
        validation_steps=dataset.steps("validation", plan.global_batch_size),
        callbacks=[
            resume,
            StopOnNaN(),
            stopping,
            # Before the checkpoint: an epoch that is committed but untold would leave a hole in the curves, since it is
            # not repeated. One that is told twice is logged once.
            progress,
            ChiefCheckpoint(plan.checkpoints, monitor=plan.monitor, mode=plan.mode, stateful=stateful),
            tf_keras.callbacks.LambdaCallback(
                on_train_end=lambda logs: finish(resume.initial_epoch + len(model.history.epoch))
            ),
        ],
        verbose=0,
    )


def _batches(strategy: Any, dataset: Any, plan: TrainingPlan, split: str, start: tuple[int, int]) -> Any:
    """Return this rank's share of every global batch of ``split``, epoch after epoch."""
    from data_pipelines.dataset import ReadPlan, load_dataset

    def mine(context: Any) -> Any:
        read = ReadPlan(
            split,
            plan.global_batch_size,
            rank=context.input_pipeline_id,
            workers=context.num_input_pipelines,
            seed=plan.seed if split == "train" else None,
            epoch=start[0],
            step=start[1],
            epochs=None,
        )
        return load_dataset(dataset, read)

    # Every rank builds its own input, so TensorFlow must neither shard nor re-batch it.
    return strategy.distribute_datasets_from_function(mine)


def _resume_position(plan: TrainingPlan) -> tuple[int, int]:
    from callbacks import commit

    if plan.resume_from is None:
        return 0, 0
    checkpoint = commit.read_committed(Path(plan.resume_from))
    return checkpoint.epoch, checkpoint.step_in_epoch


def describe(error: BaseException) -> dict[str, Any]:
    """Return the error as an event.

    ``cause`` is ``peer`` when the error tells of another rank's end or a taken port, ``user`` when it stems from the
    model, the data or the configuration and would come again.
    """
    return {
        "event": "error",
        "is_from_tensorflow": _is_from_tensorflow(error),
        "cause": "peer" if _comes_from_outside(error) else "user",
        "type": type(error).__name__,
        "message": str(error)[:4000],
        "traceback": "".join(traceback.format_exception(error))[-8000:],
    }


# What the collectives of the other ranks raise when one is gone, beside UnavailableError.
_PEER_CLASSES = ("UnavailableError", "AbortedError", "CancelledError", "DeadlineExceededError")
_PEER_MESSAGES = ("Socket closed", "Connection reset", "Collective ops is aborted", "coordination service", "heartbeat")

# The port that was free when the cluster's addresses were dealt out may be taken when TensorFlow binds it.
_PORT_MESSAGES = ("Could not start gRPC server", "Address already in use")


def _is_from_tensorflow(error: BaseException) -> bool:
    if "tensorflow" not in sys.modules:  # failed before TensorFlow was there, or because it is not
        return False
    from tensorflow import errors

    return isinstance(error, errors.OpError)


def _comes_from_outside(error: BaseException) -> bool:
    """Whether the error tells of another rank's end or of a taken port, and not of the model or its data."""
    if not _is_from_tensorflow(error):
        return False
    texts = (*_PEER_MESSAGES, *_PORT_MESSAGES)
    return type(error).__name__ in _PEER_CLASSES or any(text in str(error) for text in texts)


def _rank() -> int:
    config = os.environ.get("TF_CONFIG")
    return int(json.loads(config)["task"]["index"]) if config else 0


class _WarningsToDriver(logging.Handler):
    def __init__(self, events: EventClient) -> None:
        super().__init__(logging.WARNING)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        # The channel's own warnings would come back to it for ever.
        if not record.name.startswith("training.events"):
            self._events.send({"event": "log", "level": record.levelname, "message": record.getMessage()[:2000]})


if __name__ == "__main__":
    main()
