"""The cost of a run: core-seconds by stage, and money where a price is known. A pure function and its document."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mirrorspark.training.protocol.outcomes import Attempt
from mirrorspark.training.run_records import run_history

# The stages whose work Spark's tasks do.
_SPARK_STAGES = ("infer", "convert", "score")
_TRAINING = "train"


@dataclass(frozen=True)
class Cost:
    """The cost of a run: all attempts of its training, and the other stages as this driver has done them.

    Attributes:
        core_seconds: By stage: its seconds times the cores that it holds.
        total_core_seconds: Their sum.
        price_per_core_hour: Price in any currency; None if it is not known.
        money: Cost in the same currency.
        gap: The unknown part of the cost, in a sentence; empty if all of it is known.
    """

    core_seconds: Mapping[str, float]
    total_core_seconds: float
    price_per_core_hour: float | None = None
    money: float | None = None
    gap: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the cost as a document."""
        return asdict(self)


@dataclass(frozen=True)
class Reservation:
    """The slots and cores that a run held.

    Attributes:
        launches: The attempts of all drivers, from the run's events.
        attempts: The attempts of this driver.
        slots: Slots that the session has at the end. It may have lost some, so an attempt may have had more.
        driver_cores: Cores of the driver.
        beside: Ranks of an attempt that are not workers.
        cores_per_slot: Cores of a Spark task.
    """

    launches: Sequence[run_history.Launch]
    attempts: Sequence[Attempt]
    slots: int
    driver_cores: int
    beside: int = 0
    cores_per_slot: int = 1

    @property
    def most_slots(self) -> int:
        """The most slots that are known to have been there at once."""
        workers = [launch.workers or 0 for launch in self.launches] + [attempt.workers for attempt in self.attempts]
        return max(self.slots, max(workers, default=0) + self.beside)

    def of_training(self, seconds: float) -> tuple[float, str]:
        """Return the core-seconds of all attempts, and a sentence about the part that is not known.

        Args:
            seconds: Seconds of the training of this driver, which count where the events lack an attempt.
        """
        launched = [attempt.workers for attempt in self.attempts if attempt.workers]
        if len(self.launches) < len(launched) or any(launch.workers is None for launch in self.launches):
            workers = launched[-1] if launched else 0
            return seconds * (workers + self.beside) * self.cores_per_slot, (
                f"The run's events lack attempts: train is counted with the {workers} workers of the last one, and "
                f"without the training of earlier drivers."
            )
        earlier = len(self.launches) - len(launched)
        gap = f"Train includes attempts of earlier drivers ({earlier}), whose other stages are not known."
        slot_seconds = sum(launch.seconds * ((launch.workers or 0) + self.beside) for launch in self.launches)
        return slot_seconds * self.cores_per_slot, gap if earlier else ""


def cost_of(seconds: Mapping[str, float], reservation: Reservation, price_per_core_hour: float | None = None) -> Cost:
    """Return the cost of a run.

    Args:
        seconds: Seconds by stage, of this driver.
        reservation: The slots and cores that it held.
        price_per_core_hour: Price of a core for an hour.
    """
    cores = dict.fromkeys(_SPARK_STAGES, reservation.most_slots * reservation.cores_per_slot)
    of_stages = {name: value * cores.get(name, reservation.driver_cores) for name, value in seconds.items()}
    of_stages[_TRAINING], gap = reservation.of_training(seconds.get(_TRAINING, 0.0))
    of_stages = {name: round(value, 2) for name, value in of_stages.items()}
    total = round(sum(of_stages.values()), 2)
    money = None if price_per_core_hour is None else total / 3600 * price_per_core_hour
    return Cost(of_stages, total, price_per_core_hour, money, gap)
