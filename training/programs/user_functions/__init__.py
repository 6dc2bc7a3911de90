"""Users' own training functions, run unchanged under our supervision.

They are written for ``MirroredStrategyRunner`` and called in the same way.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.programs.user_functions import plan
    from mirrorspark.training.programs.user_functions.plan import FunctionPlan, FunctionStrategy, TrainFn
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "FunctionPlan",
    "FunctionStrategy",
    "TrainFn",
    "plan",
]
