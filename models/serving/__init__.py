"""Export of models as SavedModels, and the feature transform in their graphs.

Tests verify that the transform in the graph is equal, bit for bit, to the one in Python.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.models.serving import export, signatures
    from mirrorspark.models.serving.export import candidate_embeddings
    from mirrorspark.models.serving.preprocessing import (
        encoded_signature,
        encoded_tensors,
        input_tensors,
        model_inputs,
        sparse_tensor,
    )
    from mirrorspark.models.serving.saved_functions import concrete, save_functions, saved_variables, state
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "candidate_embeddings",
    "concrete",
    "encoded_signature",
    "encoded_tensors",
    "export",
    "input_tensors",
    "model_inputs",
    "save_functions",
    "saved_variables",
    "signatures",
    "sparse_tensor",
    "state",
]
