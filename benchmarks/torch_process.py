"""The process of PyTorch: runs in an environment that has it and Spark, and launches DDP through TorchDistributor.

It takes requests on its standard input, one JSON object per line, and answers each with one line of JSON.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

from benchmarks.connector_process import RESULT_PREFIX
from benchmarks.train_data import Work

_PROGRAM = Path(__file__).with_name("torch_rank.py")
_TRIES = 3


def serve(workers: int) -> None:
    """Answer requests until the input ends."""
    # Ranks inherit these from Spark's Python workers. All ranks are on this machine, as TF_CONFIG says to the others.
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    from pyspark.sql import SparkSession

    spark = (
        SparkSession.builder.master(f"local[{workers}]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )
    for line in sys.stdin:
        print(RESULT_PREFIX + json.dumps(_answer(json.loads(line), workers)), flush=True)
    spark.stop()


def _answer(request: dict[str, Any], workers: int) -> dict[str, Any]:
    if request["work"] == "versions":
        import torch  # type: ignore[import-not-found]  # in an environment of its own

        return {"torch": torch.__version__}
    return {"seconds": _seconds(Work(**request["of"]), request["optimizer"], workers)}


def _seconds(work: Work, optimizer: str, workers: int) -> float:
    """Return the seconds of the timed epochs, in the mean of the ranks."""
    # Its ranks meet at a port that was free a moment before. Where they do not, TorchDistributor returns all the same:
    # Spark's wrapper of torchrun forgets the exit status.
    for _ in range(_TRIES):
        told = _told(work, optimizer, workers)
        if len(told) == workers:
            return harmonic_mean(told)
    raise RuntimeError(f"{_TRIES} times not all of {workers} ranks of PyTorch have told how long they trained")


def _told(work: Work, optimizer: str, workers: int) -> list[float]:
    """Train once, and return the seconds of each rank that came to its end."""
    from pyspark.ml.torch.distributor import TorchDistributor

    folder = Path(tempfile.mkdtemp(prefix="torch-"))
    try:
        distributor = TorchDistributor(num_processes=workers, local_mode=False, use_gpu=False)
        distributor.run(str(_PROGRAM), work.to_json(), optimizer, str(folder))
        return [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("rank-*.json")]
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
