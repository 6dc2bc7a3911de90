"""All kinds of features, and the groups of them that are handled alike."""

from mirrorspark.data_pipelines.features.kinds.numeric import (
    Bucketed,
    Date,
    Numeric,
    Ordinal,
    TargetEncoding,
    TokenNumber,
)
from mirrorspark.data_pipelines.features.kinds.tokens import Categorical, MultiValued, Sequence, Text
from mirrorspark.data_pipelines.features.kinds.vectors import ImageEmbedding, Sparse, TextEmbedding, Vector

EmbeddedFeature = TextEmbedding | ImageEmbedding
Feature = (
    Numeric
    | Ordinal
    | Date
    | TokenNumber
    | TargetEncoding
    | Bucketed
    | Categorical
    | MultiValued
    | Sequence
    | Text
    | Sparse
    | Vector
    | EmbeddedFeature
)
MeasuredFeature = Numeric | Bucketed
TokenFeature = Categorical | MultiValued | Sequence | Text
VocabularyOwner = TokenFeature | TargetEncoding
DerivedFeature = TokenNumber | TargetEncoding
"""Features that are named freely, of columns that other features usually read, too."""
ListFeature = MultiValued | Sequence | Text
VectorFeature = Vector | EmbeddedFeature
