"""Where faults on purpose (`training.fault_injection.faults`) strike in a training with parameter servers.

Only the coordinator counts the steps of such a training, and only its workers read data. So what strikes at a step
strikes the coordinator, and what holds the data up strikes the workers.
"""

from collections.abc import Mapping

from mirrorspark.training.fault_injection import fault as faults
from mirrorspark.training.fault_injection import injected as injected_faults
from mirrorspark.training.fault_injection.fault import Fault
from mirrorspark.training.fault_injection.injected import InjectedFaults
from mirrorspark.training.protocol.activity import Activity
from mirrorspark.training.protocol.roles import COORDINATOR, Role, Roles


def faults_of(
    environment: Mapping[str, str], rank: int, attempt: int, roles: Roles, activity: Activity
) -> InjectedFaults:
    """Return the faults that the environment names for ``rank``, and say so aloud.

    Raises:
        ValueError: The text cannot be read, or it names a rank which that fault can never strike.
    """
    asked = faults.parse(environment.get(faults.VARIABLE, ""))
    for fault in asked:
        if fault.rank is not None and not _can_inject(fault, roles.of(fault.rank)):
            raise ValueError(
                f"{faults.VARIABLE} asks for '{fault}', but rank {fault.rank} is {roles.of(fault.rank)}: steps are "
                f"counted by rank {COORDINATOR}, the coordinator, and data is read by the workers, ranks 1 to "
                f"{roles.workers}; name one of these, or strike from outside with faults.kill or faults.stop"
            )
    mine = [fault for fault in asked if _can_inject(fault, roles.of(rank))]
    text = {faults.VARIABLE: ";".join(map(str, mine))}
    return injected_faults.from_environment(text, rank, attempt, activity.input_busy)


def _can_inject(fault: Fault, role: Role) -> bool:
    return role.job == ("worker" if fault.kind.endswith("_input") else "chief")
