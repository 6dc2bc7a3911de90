"""The server that forks Spark's Python workers in the tests, after it has imported the libraries of scoring tasks.

A worker whose task fails ends, and the next one would import TensorFlow for seconds. After each task Spark collects
garbage, which takes half a second with TensorFlow's million objects: objects from before the fork are left out.
"""

import gc
import importlib
import os

# Libraries must not start threads here, since a fork would lack them.
_NO_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}


def import_ahead() -> None:
    """Import as a worker does that scores."""
    gc.disable()
    before = {name: os.environ.get(name) for name in _NO_THREADS}
    os.environ.update(_NO_THREADS)
    for module in (
        "pyspark.worker",
        "pandas",
        "mirrorspark.scoring.task.scorer",
        "mirrorspark.scoring.model.loading.loaded",
    ):
        importlib.import_module(module)
    importlib.import_module("mirrorspark.scoring.backends.tensorflow_runtime").start_tensorflow()
    for name, value in before.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    # Workers of trainings with faults have an environment, and so a server, of their own, and import nothing.
    if "MIRRORSPARK_FAULTS" not in os.environ:
        import_ahead()
    importlib.import_module("pyspark.daemon").manager()
