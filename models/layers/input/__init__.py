"""Input layers: columns of a batch, embeddings of categories, sparse products."""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.models.layers.input.embeddings import (
        CrossedIds,
        Field,
        FieldEmbeddings,
        FieldLookup,
        SparseEmbedding,
        SparseLookup,
        dense_when_small,
        lay_out_fields,
        sparse_product,
    )
    from mirrorspark.models.layers.input.inputs import (
        concatenated,
        concatenated_inputs,
        dense_stack,
        embedded_sparse,
        feature_inputs,
        feature_vector,
        inputs_without_ids,
        item_features,
        lists_of_any_length,
        symbolic_inputs,
    )
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "CrossedIds",
    "Field",
    "FieldEmbeddings",
    "FieldLookup",
    "SparseEmbedding",
    "SparseLookup",
    "concatenated",
    "concatenated_inputs",
    "dense_stack",
    "dense_when_small",
    "embedded_sparse",
    "feature_inputs",
    "feature_vector",
    "inputs_without_ids",
    "item_features",
    "lay_out_fields",
    "lists_of_any_length",
    "sparse_product",
    "symbolic_inputs",
]
