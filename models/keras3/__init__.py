"""Models of Keras 3: all that differs from tf-keras in their training, checkpoints and export.

A model is recognised by its class. Only ``model`` is imported where there is none.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.models.keras3.features import feature_vector
    from mirrorspark.models.keras3.loop import fit
    from mirrorspark.models.keras3.model import (
        averaged_variables,
        continue_at,
        inputs_of,
        is_code_of_keras3,
        is_keras3,
        named_inputs,
        require_tensorflow,
        tf_variables,
    )
    from mirrorspark.models.keras3.optimizers import build_optimizer
    from mirrorspark.models.keras3.retrieval import raw_retrieval
    from mirrorspark.models.keras3.rows import prepare
    from mirrorspark.models.keras3.steps import count_real_rows, share_steps
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "averaged_variables",
    "build_optimizer",
    "continue_at",
    "count_real_rows",
    "feature_vector",
    "fit",
    "inputs_of",
    "is_code_of_keras3",
    "is_keras3",
    "named_inputs",
    "prepare",
    "raw_retrieval",
    "require_tensorflow",
    "share_steps",
    "tf_variables",
]
