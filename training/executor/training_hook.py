"""The hook of a training: a test or a measurement adds callbacks in a rank, or delays its data.

The environment names the hook, and no product folder imports one: the faults are in `testing`.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from mirrorspark.training.protocol import AttemptPlan
from mirrorspark.training.protocol.outcomes import Activity

# Environment variable with the faults to inject; see `testing.fault`.
FAULTS_VARIABLE = "MIRRORSPARK_FAULTS"

# Environment variable with the name of a function, ``module:function``, that returns another hook. It has the arguments
# of `hook_for`.
HOOK_VARIABLE = "MIRRORSPARK_HOOK"

_INJECTED_FAULTS = "mirrorspark.testing.injected:hook_for"


class TrainingHook:
    """Leaves a training as it is. Other hooks override the methods."""

    def callbacks(self, callbacks: list[Any]) -> list[Any]:
        """Return the callbacks for ``fit``, given those of the training in their order."""
        return callbacks

    def input(self, dataset: Any, is_training: Callable[[], bool] = lambda: True) -> Any:
        """Return the training data for ``fit``, given that of the rank before a strategy distributes it.

        Args:
            dataset: The training data.
            is_training: Returns False while the data is read for something else.
        """
        return dataset


def hook_for(environment: Mapping[str, str], plan: AttemptPlan, rank: int, activity: Activity) -> TrainingHook:
    """Return the hook that the environment names for a rank, by default one that changes nothing."""
    name = environment.get(HOOK_VARIABLE) or (_INJECTED_FAULTS if environment.get(FAULTS_VARIABLE) else None)
    if name is None:
        return TrainingHook()
    module, _, function = name.partition(":")
    hook: TrainingHook = getattr(importlib.import_module(module), function)(environment, plan, rank, activity)
    return hook
