"""Parts of training that fit any model: objectives, optimizers, the step loop and warm starts.

Losses and gradients are means over the rows that are not padding.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.models.fitting import absent_rows
    from mirrorspark.models.fitting.objectives import ScaledLoss, compile_model
    from mirrorspark.models.fitting.optimizers import (
        DistinctSlices,
        OptimizerSettings,
        accumulate_gradients,
        build_optimizer,
        gathering,
        schedule,
    )
    from mirrorspark.models.fitting.real_rows import count_real_rows, scale_in_hand, share_in_hand, share_of_rows
    from mirrorspark.models.fitting.step_loop import use_step_loop
    from mirrorspark.models.fitting.warm_start import EarlierModel, begin_from
    from mirrorspark.models.fitting.xla import compile_with_xla
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "DistinctSlices",
    "EarlierModel",
    "OptimizerSettings",
    "ScaledLoss",
    "absent_rows",
    "accumulate_gradients",
    "begin_from",
    "build_optimizer",
    "compile_model",
    "compile_with_xla",
    "count_real_rows",
    "gathering",
    "scale_in_hand",
    "schedule",
    "share_in_hand",
    "share_of_rows",
    "use_step_loop",
]
