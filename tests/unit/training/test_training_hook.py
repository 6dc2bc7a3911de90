"""The hook of a training: which one the environment names, and that the usual one changes nothing."""

from collections.abc import Mapping

import pytest

from mirrorspark.testing.injected import InjectedFaults
from mirrorspark.training.executor.training_hook import TrainingHook, hook_for
from mirrorspark.training.programs.user_functions.plan import FunctionPlan
from mirrorspark.training.protocol.outcomes.activity import Activity
from mirrorspark.training.protocol.plan import AttemptPlan

PLAN = FunctionPlan(workers=2, checkpoints="c")


class Named(TrainingHook):
    def __init__(self, rank: int) -> None:
        self.rank = rank


def own_hook(environment: Mapping[str, str], plan: AttemptPlan, rank: int, activity: Activity) -> Named:
    return Named(rank)


@pytest.mark.parametrize("environment", [{}, {"MIRRORSPARK_FAULTS": ""}])
def test_without_a_name_the_hook_changes_nothing(environment: dict[str, str]) -> None:
    hook = hook_for(environment, PLAN, 0, Activity())
    callbacks, data = [object()], object()
    assert type(hook) is TrainingHook
    assert hook.callbacks(callbacks) is callbacks
    assert hook.input(data) is data


def test_faults_are_found_by_name() -> None:
    hook = hook_for({"MIRRORSPARK_FAULTS": "kill:rank=1"}, PLAN, 1, Activity())
    assert isinstance(hook, InjectedFaults)
    assert [str(fault) for fault in hook.at_steps] == ["kill:rank=1"]


def test_another_hook_takes_the_place_of_faults() -> None:
    environment = {"MIRRORSPARK_HOOK": f"{__name__}:own_hook", "MIRRORSPARK_FAULTS": "kill"}
    hook = hook_for(environment, PLAN, 1, Activity())
    assert isinstance(hook, Named)
    assert hook.rank == 1
