"""The driver's part of a training: attempts, watchdog, failure policy, elastic workers, signals.

``failure_policy`` decides by a pure function of the attempts, and the supervisor carries the decision out.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.driver.errors import NotEnoughSlotsError, TrainingFailedError, TrainingStoppedError
    from mirrorspark.training.driver.launcher import SparkLauncher
    from mirrorspark.training.driver.signals import on_stop_signals
    from mirrorspark.training.driver.store_reads import StoreReader
    from mirrorspark.training.driver.supervisor import Launcher, OpenServer, Supervisor
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "Launcher",
    "NotEnoughSlotsError",
    "OpenServer",
    "SparkLauncher",
    "StoreReader",
    "Supervisor",
    "TrainingFailedError",
    "TrainingStoppedError",
    "on_stop_signals",
]
