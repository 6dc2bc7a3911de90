"""The cost of a run: core-seconds by stage, and money where a price is known. A pure function and its document."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# The stages whose work Spark's tasks do.
_SPARK_STAGES = ("infer", "convert", "score")
_TRAINING = "train"


@dataclass(frozen=True)
class Cost:
    """The cost of a run, as far as this driver has carried it out.

    Attributes:
        core_seconds: By stage: its seconds times the cores that it holds.
        total_core_seconds: Their sum.
        price_per_core_hour: In any currency; None if it is not known.
        money: In the same currency.
    """

    core_seconds: Mapping[str, float]
    total_core_seconds: float
    price_per_core_hour: float | None = None
    money: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the cost as a document."""
        return asdict(self)


def cost_of(
    seconds: Mapping[str, float],
    *,
    worker_cores: int,
    spark_cores: int,
    driver_cores: int,
    price_per_core_hour: float | None = None,
) -> Cost:
    """Return the cost of the stages.

    Args:
        seconds: Seconds by stage.
        worker_cores: Cores that the training's workers hold, all together.
        spark_cores: Cores of all slots of the session, which its other jobs hold.
        driver_cores: Cores of the driver, for all other stages.
        price_per_core_hour: Price of a core for an hour.
    """
    cores = {_TRAINING: worker_cores} | dict.fromkeys(_SPARK_STAGES, spark_cores)
    of_stages = {name: round(value * cores.get(name, driver_cores), 2) for name, value in seconds.items()}
    total = round(sum(of_stages.values()), 2)
    money = None if price_per_core_hour is None else total / 3600 * price_per_core_hour
    return Cost(of_stages, total, price_per_core_hour, money)
