"""The training of one rank: data, strategy, model, callbacks and ``model.fit``.

On CPUs and with the same number of workers, a resumed training ends with the same weights, bit for bit.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.programs.keras_fit import fit, interaction_graph
    from mirrorspark.training.programs.keras_fit.activity_callback import ActivityCallback
    from mirrorspark.training.programs.keras_fit.callback_list import fit_callbacks, with_local_checkpoint
    from mirrorspark.training.programs.keras_fit.start import read_start
    from mirrorspark.training.programs.keras_fit.step_description import describe_last_checkpoint
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "ActivityCallback",
    "describe_last_checkpoint",
    "fit",
    "fit_callbacks",
    "interaction_graph",
    "read_start",
    "with_local_checkpoint",
]
