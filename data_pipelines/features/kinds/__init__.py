"""The kinds of features and labels, as plain data that checks itself; `forms` has the conventions of their values."""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.data_pipelines.features.kinds.checks import FeatureSpecError, known_kind
    from mirrorspark.data_pipelines.features.kinds.forms import (
        FIRST_VOCABULARY_ID,
        MISSING_ID,
        OUT_OF_VOCABULARY_ID,
        UNBOUNDED,
        WIDE_FORMS,
        Form,
        RawForm,
    )
    from mirrorspark.data_pipelines.features.kinds.groups import (
        DerivedFeature,
        EmbeddedFeature,
        Feature,
        ListFeature,
        MeasuredFeature,
        TokenFeature,
        VectorFeature,
        VocabularyOwner,
    )
    from mirrorspark.data_pipelines.features.kinds.label import Label, LabelForm, LabelKind
    from mirrorspark.data_pipelines.features.kinds.numeric import (
        RANGE,
        Bucketed,
        Date,
        Numeric,
        Ordinal,
        TargetEncoding,
        TokenNumber,
    )
    from mirrorspark.data_pipelines.features.kinds.tokens import Categorical, MultiValued, Sequence, Text
    from mirrorspark.data_pipelines.features.kinds.vectors import ImageEmbedding, Sparse, TextEmbedding, Vector
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "FIRST_VOCABULARY_ID",
    "MISSING_ID",
    "OUT_OF_VOCABULARY_ID",
    "RANGE",
    "UNBOUNDED",
    "WIDE_FORMS",
    "Bucketed",
    "Categorical",
    "Date",
    "DerivedFeature",
    "EmbeddedFeature",
    "Feature",
    "FeatureSpecError",
    "Form",
    "ImageEmbedding",
    "Label",
    "LabelForm",
    "LabelKind",
    "ListFeature",
    "MeasuredFeature",
    "MultiValued",
    "Numeric",
    "Ordinal",
    "RawForm",
    "Sequence",
    "Sparse",
    "TargetEncoding",
    "Text",
    "TextEmbedding",
    "TokenFeature",
    "TokenNumber",
    "Vector",
    "VectorFeature",
    "VocabularyOwner",
    "known_kind",
]
