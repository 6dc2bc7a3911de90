"""Where faults on purpose (`training.faults`) strike in a training with parameter servers.

Only the coordinator counts the steps of such a training, and only its workers read data. So what strikes at a step
strikes the coordinator, and what holds the data up strikes the workers.
"""

from collections.abc import Mapping

from training import faults, injected_faults
from training.faults import Fault
from training.fitting.activity import Activity
from training.injected_faults import InjectedFaults
from training.parameter_servers.roles import COORDINATOR, Role, Roles


def faults_of(
    environment: Mapping[str, str], rank: int, attempt: int, roles: Roles, activity: Activity
) -> InjectedFaults:
    """Return the faults that the environment names for ``rank``, and say so aloud.

    Raises:
        ValueError: The text cannot be read, or it names a rank which that fault can never strike.
    """
    asked = faults.parse(environment.get(faults.VARIABLE, ""))
    for fault in asked:
        if fault.rank is not None and not _can_strike(fault, roles.of(fault.rank)):
            raise ValueError(
                f"{faults.VARIABLE} asks for '{fault}', but rank {fault.rank} is {roles.of(fault.rank)}: steps are "
                f"counted by rank {COORDINATOR}, the coordinator, and data is read by the workers, ranks 1 to "
                f"{roles.workers}; name one of these, or strike from outside with training.faults.kill or stop"
            )
    mine = [fault for fault in asked if _can_strike(fault, roles.of(rank))]
    text = {faults.VARIABLE: ";".join(map(str, mine))}
    return injected_faults.from_environment(text, rank, attempt, activity.input_busy)


def _can_strike(fault: Fault, role: Role) -> bool:
    return role.job == ("worker" if fault.kind.endswith("_input") else "chief")
