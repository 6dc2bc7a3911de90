"""TensorFlow in a process that scores: started with the threads of the task, and a session of it for one model."""

import os
import sys
from typing import Any

from scoring.backends.libraries import library


def start_tensorflow(threads: int | None) -> Any:
    """Import TensorFlow, after setting what it reads from the environment only once.

    Args:
        threads: Where this process has not imported it yet and the environment (``TF_NUM_INTRAOP_THREADS``,
            ``TF_NUM_INTEROP_THREADS``) does not say; None leaves it its own choice.

    Raises:
        ModuleNotFoundError: It is not installed here.
    """
    if "tensorflow" not in sys.modules:
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        if threads is not None:
            # Left alone, every Python worker of a node would start a thread per core of the node.
            os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(threads))
            os.environ.setdefault("TF_NUM_INTEROP_THREADS", str(threads))
    return library("tensorflow", "scoring needs TensorFlow")


def traced_functions() -> frozenset[str]:
    """Return the functions of which TensorFlow holds graphs in this process; none where it is not imported."""
    if "tensorflow" not in sys.modules:
        return frozenset()
    # Its own tests count so; there is no public way.
    from tensorflow.python.eager import context

    return frozenset(context.context().list_function_names())


def compute_threads(tf: Any) -> int:
    """Return how many threads TensorFlow computes with here; another UDF of this process may have started it before."""
    configured = int(tf.config.threading.get_intra_op_parallelism_threads())
    return configured or int(os.environ.get("TF_NUM_INTRAOP_THREADS") or os.cpu_count() or 1)
