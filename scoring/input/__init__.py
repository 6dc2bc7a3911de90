"""Inputs of models: columns, their types, and the sources of rows.

A column of the wrong type is refused before any row is scored, and the error names the column.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.scoring.input import column_types
    from mirrorspark.scoring.input.column_types import element_name, is_array
    from mirrorspark.scoring.input.decoding import BUILT_IN, decoder_of_images, decoders
    from mirrorspark.scoring.input.feed import ColumnFeed, FeatureFeed, Feed
    from mirrorspark.scoring.input.images import ImageLayout, ImageLimits
    from mirrorspark.scoring.input.inputs import (
        Column,
        ColumnInputs,
        FeatureInputs,
        Inputs,
        Matrix,
        RowErrors,
        token_family,
    )
    from mirrorspark.scoring.input.null_policy import NO_NULL_POLICY, NullPolicy, NullRule
    from mirrorspark.scoring.input.parquet_scan import Reader, map_rows, rows_of
    from mirrorspark.scoring.input.spark_tables import SparkSource, read_together
    from mirrorspark.scoring.input.tfrecords import score_tfrecords, tfrecord_table
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "BUILT_IN",
    "NO_NULL_POLICY",
    "Column",
    "ColumnFeed",
    "ColumnInputs",
    "FeatureFeed",
    "FeatureInputs",
    "Feed",
    "ImageLayout",
    "ImageLimits",
    "Inputs",
    "Matrix",
    "NullPolicy",
    "NullRule",
    "Reader",
    "RowErrors",
    "SparkSource",
    "column_types",
    "decoder_of_images",
    "decoders",
    "element_name",
    "is_array",
    "map_rows",
    "read_together",
    "rows_of",
    "score_tfrecords",
    "tfrecord_table",
    "token_family",
]
