"""The layers that the architectures share: embeddings, heads, dropout and inputs."""

from mirrorspark.models.layers.embeddings import (
    CrossedIds,
    Field,
    FieldEmbeddings,
    SparseEmbedding,
    dense_when_small,
    lay_out_fields,
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
from mirrorspark.models.layers.resumable import CountedCalls, ResumableDropout

__all__ = [
    "CountedCalls",
    "CrossedIds",
    "Field",
    "FieldEmbeddings",
    "OrdinalHead",
    "ResumableDropout",
    "SoftmaxHeads",
    "SparseEmbedding",
    "TwoWayHeads",
    "concatenated",
    "concatenated_inputs",
    "dense_stack",
    "dense_when_small",
    "embedded_sparse",
    "feature_inputs",
    "feature_vector",
    "inputs_without_ids",
    "lay_out_fields",
    "lists_of_any_length",
    "symbolic_inputs",
]
