"""Programs written for spark-tensorflow-distributor, with `run_train_fn` in the place of its runner's ``run``."""

import itertools
import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import spark_tensorflow_distributor

from mirrorspark.training.driver import launcher  # noqa: F401 - it needs the runner itself
from mirrorspark.training.entry_points.launch import run_train_fn


class Runner:
    """The interface of ``MirroredStrategyRunner``.

    Args:
        run: `run_train_fn` with the settings that the runner does not have.
        slots: The slots that there are, in place of those that a program asks for; None for those.
        has_gpus: False to train on CPUs, whatever a program asks for.
    """

    _numbers = itertools.count()

    def __init__(
        self,
        *,
        run: Callable[..., Any],
        slots: int | None,
        has_gpus: bool,
        num_slots: int,
        use_gpu: bool = True,
        **options: Any,
    ) -> None:
        self._run = partial(run, **options)
        self._slots = num_slots if slots is None else min(slots, num_slots)
        self._has_gpus = has_gpus and use_gpu

    def get_num_tasks(self) -> int:
        return self._slots

    def run(self, train_fn: Callable[..., Any], **kwargs: Any) -> Any:
        # Only a function in local mode has GPUs here: all of them are its one process's.
        workers, gpus = (1, self._slots) if self._has_gpus else (self._slots, 0)
        name = f"distributor-{next(self._numbers)}"
        return self._run(train_fn, workers, name=name, kwargs=kwargs, gpus_per_worker=gpus).result


def program(
    path: Path,
    *,
    slots: int | None = None,
    has_gpus: bool = False,
    run: Callable[..., Any] = run_train_fn,
    **settings: Any,
) -> dict[str, Any]:
    """Run a program to its end, and return its functions."""
    runner = partial(Runner, run=partial(run, **settings), slots=slots, has_gpus=has_gpus)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spark_tensorflow_distributor, "MirroredStrategyRunner", runner)
        return runpy.run_path(str(path), run_name="__main__")
