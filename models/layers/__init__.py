"""The layers that the architectures share: embeddings, heads, dropout and inputs.

Random layers count their calls, and a resumed training continues their sequence of numbers from its checkpoint.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.models.layers import recurrent, tabular
    from mirrorspark.models.layers.attention import CausalStates, StateAtEnd
    from mirrorspark.models.layers.embeddings import (
        CrossedIds,
        Field,
        FieldEmbeddings,
        SparseEmbedding,
        dense_when_small,
        lay_out_fields,
        sparse_product,
    )
    from mirrorspark.models.layers.heads import OrdinalHead, SoftmaxHeads, TwoWayHeads
    from mirrorspark.models.layers.inputs import (
        concatenated,
        concatenated_inputs,
        dense_stack,
        embedded_sparse,
        feature_inputs,
        feature_vector,
        inputs_without_ids,
        lists_of_any_length,
        symbolic_inputs,
    )
    from mirrorspark.models.layers.members import (
        MemberLoss,
        is_ensemble,
        mean_class_logits,
        mean_log_odds,
        mean_numbers,
        of_all,
    )
    from mirrorspark.models.layers.resumable import CountedCalls, ResumableDropout
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "CausalStates",
    "CountedCalls",
    "CrossedIds",
    "Field",
    "FieldEmbeddings",
    "MemberLoss",
    "OrdinalHead",
    "ResumableDropout",
    "SoftmaxHeads",
    "SparseEmbedding",
    "StateAtEnd",
    "TwoWayHeads",
    "concatenated",
    "concatenated_inputs",
    "dense_stack",
    "dense_when_small",
    "embedded_sparse",
    "feature_inputs",
    "feature_vector",
    "inputs_without_ids",
    "is_ensemble",
    "lay_out_fields",
    "lists_of_any_length",
    "mean_class_logits",
    "mean_log_odds",
    "mean_numbers",
    "of_all",
    "recurrent",
    "sparse_product",
    "symbolic_inputs",
    "tabular",
]
