"""Import, threads and devices of TensorFlow in a process that scores."""

import contextlib
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from mirrorspark.scoring.backends.libraries import library
from mirrorspark.scoring.backends.protocol import thread_count

# Numbers of threads within and between operations, which TensorFlow reads when it starts them.
INTRA_OP, INTER_OP = "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"

_NEED = "scoring needs TensorFlow"
_KERAS_OPTIMIZERS = "tf_keras.src.optimizers"
# Keeps other threads from using the module while Keras is blocked.
_START = threading.Lock()
# Set once this process is known to be a Python worker of Spark.
_WORKER = threading.Event()
# If this variable is set, the user wants TensorFlow to use GPUs.
_GPUS = "CUDA_VISIBLE_DEVICES"

# Notes that TensorFlow's first session prints at any log level.
_NOTES = (b"absl::InitializeLog()", b"MLIR V1 optimization pass is not enabled")

_LOGGER = logging.getLogger(__name__)


def limit_tensorflow(threads: int) -> None:
    """Limit the threads of TensorFlow in this process, unless the environment sets them, and keep it on the CPU.

    The limit applies to the process because a Python worker of Spark belongs to a task. If TensorFlow has been imported
    before, its threads may exist already: they stay, with one warning in the log if there are more.
    """
    _WORKER.set()
    tf = sys.modules.get("tensorflow")
    if tf is None:
        # By default every Python worker of a node would start a thread per core of the node.
        for name in (INTRA_OP, INTER_OP):
            os.environ.setdefault(name, str(threads))
    elif INTRA_OP not in os.environ and compute_threads(tf) > threads:
        _warn_of_more_threads(compute_threads(tf), threads)


def start_tensorflow() -> Any:
    """Import TensorFlow with the environment variables that it reads only once, except those for threads.

    Keras is not imported until a Keras model or a SavedModel with an optimizer needs it.

    Raises:
        ModuleNotFoundError: It is not installed here.
    """
    with _START:
        if "tensorflow" in sys.modules:
            tf = library("tensorflow", _NEED)
        else:
            os.environ["TF_USE_LEGACY_KERAS"] = "1"
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            with _without_keras():
                tf = library("tensorflow", _NEED)
        if _WORKER.is_set():
            _choose_devices(tf)
        return tf


@cache
def _choose_devices(tf: Any) -> None:
    """Keep TensorFlow in a Python worker off the GPUs, unless the environment names some, and without TF32.

    Every worker would reserve the whole memory of a GPU.
    """
    # TF32 has ten bits of mantissa: scores differ by up to 1e-4 from a CPU's.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    if _GPUS in os.environ:
        return
    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError:
        _LOGGER.warning(
            "another UDF has started TensorFlow with a GPU in this Python worker, so models are scored there, too; set "
            "spark.executorEnv.%s=-1 if they are to be scored on CPUs",
            _GPUS,
        )


@contextlib.contextmanager
def _without_keras() -> Iterator[None]:
    """Keep TensorFlow's import from importing Keras' optimizers, and with them all of Keras.

    Keras takes 110 MB and a fifth of the import time. TensorFlow works without the optimizers, and its loader of
    SavedModels imports them for a model that has one.
    """
    # None makes Python treat the module as missing.
    sys.modules[_KERAS_OPTIMIZERS] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_KERAS_OPTIMIZERS]


@contextlib.contextmanager
def without_notes() -> Iterator[None]:
    """Keep two lines of TensorFlow's first session off the terminal, and its notes out of a notebook's cell.

    The lines do not go by ``TF_CPP_MIN_LOG_LEVEL``, and are written straight to the file descriptor; all else is
    printed at the end. In a notebook TensorFlow logs to standard output, notes included.
    """
    logger = logging.getLogger("tensorflow")
    logger.addFilter(_is_more_than_a_note)
    try:
        with _without_lines(_NOTES):
            yield
    finally:
        logger.removeFilter(_is_more_than_a_note)


def _is_more_than_a_note(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO


@contextlib.contextmanager
def _without_lines(notes: Sequence[bytes]) -> Iterator[None]:
    try:
        stream = os.dup(2)
    except OSError:  # a process without standard error
        yield
        return
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stream, 2)
            printed.seek(0)
            for line in printed:
                if not any(note in line for note in notes):
                    os.write(stream, line)
            os.close(stream)


def session_config(tf: Any, threads: int | None) -> Any:
    """Return the configuration of a TensorFlow 1 session that keeps the threads of the process, and off the GPUs.

    A session does not go by the devices that ``tf.config`` shows. It uses a GPU if the environment names some.

    Args:
        tf: TensorFlow.
        threads: With 1, operations run sequentially in the calling thread, unless the environment sets the threads
            between operations. A large operation is still divided among the threads within operations.
    """
    is_in_caller = threads == 1 and INTER_OP not in os.environ
    return tf.compat.v1.ConfigProto(
        device_count={} if _GPUS in os.environ else {"GPU": 0},
        # The first session of a process starts these threads for all: the same number as without a session.
        intra_op_parallelism_threads=compute_threads(tf),
        inter_op_parallelism_threads=-1 if is_in_caller else 0,
    )


def traced_functions() -> frozenset[str]:
    """Return the functions that TensorFlow has traced or loaded in this process; none before its import.

    Functions of a TensorFlow 1 session and compilations by XLA are not included.
    """
    if "tensorflow" not in sys.modules:
        return frozenset()
    # TensorFlow's own tests use this; there is no public API.
    from tensorflow.python.eager import context

    names = context.context().list_function_names()
    # A name with this prefix is a single operation, which TensorFlow wraps when it first runs it eagerly.
    return frozenset(name for name in names if not name.startswith("__wrapped__"))


def compute_threads(tf: Any) -> int:
    """Return the number of threads of TensorFlow here; another UDF of this process may have started them."""
    configured = int(tf.config.threading.get_intra_op_parallelism_threads())
    return thread_count(configured or int(os.environ.get(INTRA_OP) or 0) or None)


# Cached so that the warning appears once per process, whatever the number of models and tasks.
@cache
def _warn_of_more_threads(has: int, cores: int) -> None:
    _LOGGER.warning(
        "TensorFlow computes with %d threads here, more than the task's cores (%d): this Python worker has imported it "
        "before, for example for another UDF, and tasks will take the cores from each other; start the session with "
        "spark.executorEnv.%s=%d and spark.executorEnv.%s=%d, or with more cores per task (spark.task.cpus)",
        has,
        cores,
        INTRA_OP,
        cores,
        INTER_OP,
        cores,
    )
