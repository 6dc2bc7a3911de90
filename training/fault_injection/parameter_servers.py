"""The ranks into which faults can be injected in a training with parameter servers.

Only the coordinator counts steps, and only the workers read data. So faults at a step are the coordinator's, and faults
of the input are the workers'.
"""

from collections.abc import Mapping

from mirrorspark.training.fault_injection import fault as faults
from mirrorspark.training.fault_injection import injected as injected_faults
from mirrorspark.training.fault_injection.fault import Fault
from mirrorspark.training.fault_injection.injected import InjectedFaults
from mirrorspark.training.protocol.activity import Activity
from mirrorspark.training.protocol.roles import COORDINATOR, Role, Roles


def faults_from_environment(
    environment: Mapping[str, str], rank: int, attempt: int, roles: Roles, activity: Activity
) -> InjectedFaults:
    """Return the faults that the environment has for ``rank``, and log them.

    Raises:
        ValueError: The text cannot be parsed, or has a fault for a rank where it cannot be injected.
    """
    requested = faults.parse(environment.get(faults.VARIABLE, ""))
    for fault in requested:
        if fault.rank is not None and not _can_inject(fault, roles.of(fault.rank)):
            raise ValueError(
                f"{faults.VARIABLE} asks for '{fault}', but rank {fault.rank} is {roles.of(fault.rank)}: steps are "
                f"counted by rank {COORDINATOR}, the coordinator, and data is read by the workers, ranks 1 to "
                f"{roles.workers}; name one of these, or inject it from outside with faults.kill or faults.stop"
            )
    mine = [fault for fault in requested if _can_inject(fault, roles.of(rank))]
    text = {faults.VARIABLE: ";".join(map(str, mine))}
    return injected_faults.from_environment(text, rank, attempt, activity.input_busy)


def _can_inject(fault: Fault, role: Role) -> bool:
    return role.job == ("worker" if fault.kind.endswith("_input") else "chief")
