"""Faults on purpose in a training with parameter servers: the ranks into which each fault can be injected."""

import logging

import pytest
from tf_keras.callbacks import Callback

from mirrorspark.callbacks.checkpoint import ChiefCheckpoint
from mirrorspark.callbacks.stop_request import StopOnRequest
from mirrorspark.testing.injected import InjectedFaults, hook_for
from mirrorspark.training.configuration.config import TrainingConfig
from mirrorspark.training.protocol.outcomes.activity import Activity
from mirrorspark.training.protocol.plan import TrainingPlan
from mirrorspark.training.protocol.roles import Roles

ROLES = Roles(workers=2, servers=1)
SERVERS = TrainingConfig(
    name="a",
    model={"name": "multi_field"},
    global_batch_size=8,
    strategy="parameter_server",
    parameter_servers=ROLES.servers,
)


def hook(text: str, rank: int, attempt: int = 1) -> InjectedFaults:
    plan = TrainingPlan(SERVERS, "dataset", checkpoints="c", workers=ROLES.workers, attempt=attempt)
    return hook_for({"MIRRORSPARK_FAULTS": text}, plan, rank, Activity())


def struck(text: str, attempt: int = 1) -> dict[int, tuple[bool, list[str]]]:
    """Return per rank whether it has a fault at a step, and the faults of its data."""
    found = {}
    for rank in range(ROLES.ranks):
        faults = hook(text, rank, attempt)
        found[rank] = (bool(faults.at_steps), [str(fault.kind) for fault in faults.of_input])
    return found


def test_steps_strike_the_coordinator_and_data_is_held_up_at_the_workers() -> None:
    nothing: tuple[bool, list[str]] = (False, [])
    assert struck("") == dict.fromkeys(range(4), nothing)
    assert struck("kill:step=40;slow_input:rank=2,seconds=0.5") == {
        0: (True, []),
        1: nothing,
        2: (False, ["slow_input"]),
        3: nothing,
    }
    assert struck("hang_input:step=3")[1] == struck("hang_input:step=3")[2] == (False, ["hang_input"])
    assert struck("kill:step=40", attempt=2)[0] == nothing


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kill:rank=1,step=40", "'kill:rank=1,step=40', but rank 1 is worker 0: steps are counted by rank 0"),
        ("raise:rank=3", "but rank 3 is parameter server 0"),
        ("hang_input:rank=0", "but rank 0 is the coordinator: .* data is read by the workers, ranks 1 to 2; name one"),
        ("slow_input:rank=3", "or inject it from outside with faults.kill or faults.stop"),
        ("kill:rank=4", "rank 4 is not one of 4"),
    ],
)
def test_a_fault_that_can_never_strike_is_refused_by_every_rank(text: str, said: str) -> None:
    for rank in range(ROLES.ranks):
        with pytest.raises(ValueError, match=said):
            hook(text, rank)


def test_a_rank_logs_only_its_own_faults(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        struck("kill:step=40;hang_input:rank=1")
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "kill:step=40",
        "hang_input:rank=1",
    ]


def test_a_step_is_over_for_all_callbacks_before_its_fault_but_no_stop_precedes_it() -> None:
    checkpoint = ChiefCheckpoint("checkpoints", monitor=None)
    first, stop, last = Callback(), StopOnRequest(lambda: False, checkpoint), Callback()
    before, fault, *after = hook("kill:step=40", rank=0).callbacks([first, stop, last])
    assert [before, *after] == [first, stop, last]
    assert type(fault).__name__ == "_InjectAtStep"
    assert hook("kill:step=40", rank=1).callbacks([first, stop]) == [first, stop]
