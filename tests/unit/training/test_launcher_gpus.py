"""T3: MirroredStrategyRunner's arguments for ``--gpus-per-worker``."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from spark_tensorflow_distributor import MirroredStrategyRunner

from mirrorspark.training.driver.launcher import SparkLauncher


class Session:
    """A session whose context takes a job group."""

    def __init__(self) -> None:
        self.sparkContext = self  # PySpark's name

    def getLocalProperty(self, name: str) -> None:  # noqa: N802 - PySpark's name
        """There is none."""

    def setLocalProperty(self, name: str, value: str | None) -> None:  # noqa: N802 - PySpark's name
        """Nobody asks for it."""

    def setJobGroup(self, group: str, description: str, interruptOnCancel: bool) -> None:  # noqa: N802, N803 - likewise
        """Nobody asks for it."""


@pytest.mark.parametrize(
    ("gpus_per_worker", "expected"),
    [
        (0, {"num_slots": 3, "use_gpu": False}),
        (1, {"num_slots": 3, "use_gpu": True}),
        # To the runner a slot is a GPU: it starts a task for as many of them as Spark gives to one.
        (2, {"num_slots": 6, "use_gpu": True}),
    ],
)
def test_the_runner_is_asked_for_all_gpus_of_all_workers(
    gpus_per_worker: int, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(MirroredStrategyRunner, "__init__", lambda self, **arguments: made.append(arguments))
    monkeypatch.setattr(MirroredStrategyRunner, "run", lambda self, task: [])
    SparkLauncher(cast(Any, Session()), gpus_per_worker)(cast(Any, SimpleNamespace(attempt=1, ranks=3)))
    assert made == [expected | {"use_custom_strategy": True, "gpu_resource_name": "gpu", "local_mode": False}]
