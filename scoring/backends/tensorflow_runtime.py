"""TensorFlow in a process that scores: how it is imported, and whose threads it computes with."""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

from scoring.backends.libraries import library
from scoring.backends.protocol import thread_count

# TensorFlow reads them when it starts its threads: those within an operation, and those between operations.
INTRA_OP, INTER_OP = "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"

_NEED = "scoring needs TensorFlow"
_KERAS_OPTIMIZERS = "tf_keras.src.optimizers"
# Another thread that scores must not meet the module without Keras.
_START = threading.Lock()

_LOGGER = logging.getLogger(__name__)


def limit_tensorflow(threads: int) -> None:
    """Have TensorFlow start with so many threads in this process, unless the environment says otherwise.

    Its threads are the process's, as a Python worker of Spark is the task's. Where it has been imported before, it may
    run already: it keeps what it has, and the log says so, once, if that is more.
    """
    tf = sys.modules.get("tensorflow")
    if tf is None:
        # Left alone, every Python worker of a node would start a thread per core of the node.
        for name in (INTRA_OP, INTER_OP):
            os.environ.setdefault(name, str(threads))
    elif INTRA_OP not in os.environ and compute_threads(tf) > threads:
        _warn_of_more_threads(compute_threads(tf), threads)


def start_tensorflow() -> Any:
    """Import TensorFlow, after setting what it reads from the environment only once; its threads stay as they are.

    It comes without Keras, which is imported when something asks for it: a Keras model, or a SavedModel that has an
    optimizer.

    Raises:
        ModuleNotFoundError: It is not installed here.
    """
    with _START:
        if "tensorflow" in sys.modules:
            return library("tensorflow", _NEED)
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        with _without_keras():
            return library("tensorflow", _NEED)


@contextlib.contextmanager
def _without_keras() -> Iterator[None]:
    """Keep TensorFlow, at the end of its own import, from importing Keras' optimizers and with them all of Keras.

    That takes 110 MB of a process, and a fifth of the time of the import. TensorFlow goes on where it is told that
    there are none, and its loader of SavedModels imports them itself where a model has an optimizer.
    """
    # How Python is told that there is no such module.
    sys.modules[_KERAS_OPTIMIZERS] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_KERAS_OPTIMIZERS]


def session_config(tf: Any, threads: int | None) -> Any:
    """Return the settings of a session of TensorFlow 1 that leaves the threads of the process as they are.

    Args:
        tf: TensorFlow.
        threads: With 1, operations run one after the other in the thread that calls, unless the environment says how
            many there are between operations. A large one is still divided among the threads within operations.
    """
    is_in_caller = threads == 1 and INTER_OP not in os.environ
    return tf.compat.v1.ConfigProto(
        # The first session of a process starts the threads within operations for all: as many as without it.
        intra_op_parallelism_threads=compute_threads(tf),
        inter_op_parallelism_threads=-1 if is_in_caller else 0,
    )


def traced_functions() -> frozenset[str]:
    """Return the functions that TensorFlow has traced or loaded in this process; none where it is not imported.

    Those of a session of TensorFlow 1 are not among them, nor does it tell for which shapes XLA has compiled one.
    """
    if "tensorflow" not in sys.modules:
        return frozenset()
    # Its own tests count so; there is no public way.
    from tensorflow.python.eager import context

    names = context.context().list_function_names()
    # A single operation, which TensorFlow puts in a function of its own when it runs it eagerly for the first time.
    return frozenset(name for name in names if not name.startswith("__wrapped__"))


def compute_threads(tf: Any) -> int:
    """Return how many threads TensorFlow computes with here; another UDF of this process may have started it before."""
    configured = int(tf.config.threading.get_intra_op_parallelism_threads())
    return thread_count(configured or int(os.environ.get(INTRA_OP) or 0) or None)


# Once in a process, however many models and tasks it sees.
@cache
def _warn_of_more_threads(has: int, cores: int) -> None:
    _LOGGER.warning(
        "TensorFlow computes with %d threads here, more than the task's cores (%d): this Python worker has imported it "
        "before, for another UDF, say, and tasks will take the cores from each other; start the session with "
        "spark.executorEnv.%s=%d and spark.executorEnv.%s=%d, or with more cores per task (spark.task.cpus)",
        has,
        cores,
        INTRA_OP,
        cores,
        INTER_OP,
        cores,
    )
