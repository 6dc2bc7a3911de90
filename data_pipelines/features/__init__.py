"""The feature specification, its fitted values, and the transform from raw columns to model inputs.

The same transform serves conversion and scoring. It needs neither Spark nor TensorFlow.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.data_pipelines.features import (
        arithmetic,
        candidate_lists,
        date_formats,
        embedded_columns,
        fitting,
        item_rows,
        kinds,
        labels,
        raw_columns,
        text_rules,
    )
    from mirrorspark.data_pipelines.features.column_facts import quoted
    from mirrorspark.data_pipelines.features.fitted import (
        FeatureMismatchError,
        FittedFeatures,
        ItemTable,
        NumericStatistics,
    )
    from mirrorspark.data_pipelines.features.infer import encoded_spec, infer_spec, numbers_in_order
    from mirrorspark.data_pipelines.features.item_features import infer_items
    from mirrorspark.data_pipelines.features.kinds import FeatureSpecError
    from mirrorspark.data_pipelines.features.names import USER_NAME, file_name, plain_name, repeated_names
    from mirrorspark.data_pipelines.features.spec import HELD_BACK, FeatureSpec
    from mirrorspark.data_pipelines.features.target_encoding import (
        HeldOutMeans,
        TargetSums,
        TrainingEncoder,
        with_target_means,
    )
    from mirrorspark.data_pipelines.features.transform import (
        Encoded,
        EncodedRows,
        Encoder,
        RaggedIds,
        SparseRows,
        bucket_boundaries,
        imputed_value,
        measured_values,
        non_finite,
        rows_at,
    )
    from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
    from mirrorspark.data_pipelines.features.vocabulary_kernels import mixed
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "HELD_BACK",
    "USER_NAME",
    "Encoded",
    "EncodedRows",
    "Encoder",
    "FeatureMismatchError",
    "FeatureSpec",
    "FeatureSpecError",
    "FittedFeatures",
    "HeldOutMeans",
    "ItemTable",
    "NumericStatistics",
    "RaggedIds",
    "SparseRows",
    "TargetSums",
    "TrainingEncoder",
    "Vocabulary",
    "arithmetic",
    "bucket_boundaries",
    "candidate_lists",
    "date_formats",
    "embedded_columns",
    "encoded_spec",
    "file_name",
    "fitting",
    "imputed_value",
    "infer_items",
    "infer_spec",
    "item_rows",
    "kinds",
    "labels",
    "measured_values",
    "mixed",
    "non_finite",
    "numbers_in_order",
    "plain_name",
    "quoted",
    "raw_columns",
    "repeated_names",
    "rows_at",
    "text_rules",
    "with_target_means",
]
