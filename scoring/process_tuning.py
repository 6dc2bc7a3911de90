"""What makes a Python worker of Spark fit for scoring: threads of numeric libraries, and the garbage collector."""

import gc

from scoring.backends.libraries import library


def limit_numeric_libraries(threads: int | None) -> None:
    """Give BLAS and OpenMP the threads of the task; None leaves them alone.

    NumPy has no way to say it, nor have many libraries that an MLflow model loads. It holds for the whole process: a
    Python worker of Spark belongs to the task, the process of a caller of the model does not.
    """
    if threads is not None:
        library("threadpoolctl", "scoring needs threadpoolctl").threadpool_limits(threads)


def spare_the_garbage_collector(*, has_dropped: bool) -> None:
    """Take all objects that live now out of garbage collection.

    Spark's Python daemon collects after every task, and walks the 340,000 objects of TensorFlow each time: measured,
    an empty task takes 210 ms of CPU, and 2 ms when they are frozen.

    Args:
        has_dropped: Whether a model has left the cache. Frozen objects that refer to each other are never freed, so it
            goes first; to look for it is to walk all objects once, which each of thousands of models should not cost.
    """
    if has_dropped:
        gc.unfreeze()
    gc.collect()
    gc.freeze()
