"""Scoring of TFRecord files, with the types and scores of the table that they were made from."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    DataType,
    LongType,
    StringType,
    StructField,
    StructType,
)

from mirrorspark.data_pipelines import read_tfrecords
from mirrorspark.data_pipelines.dataset import block_format, is_published
from mirrorspark.data_pipelines.features import FeatureSpec, kinds
from mirrorspark.scoring.batch import score_as_planned
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input.inputs import TokenFamily, trained_families
from mirrorspark.scoring.input.null_policy import NullRule
from mirrorspark.scoring.model.loading import DEFAULT_BATCH_SIZE
from mirrorspark.scoring.model.stored import PinnedModel
from mirrorspark.scoring.output import AS_COLUMNS, DEFAULT_COLUMNS, BadRows, Form
from mirrorspark.scoring.plan import ScoringPlan
from mirrorspark.scoring.task import Counters, OtherVersions, ScoringOptions
from mirrorspark.spark_session import on_running_session
from mirrorspark.storage import Location

_FROM_THE_TABLE = "score the table that it was made of, or records that write_tfrecords made of such a table"
_LISTS: frozenset[kinds.RawForm] = frozenset({"tokens", "times", "indices", "values"})


@on_running_session
def score_tfrecords(  # noqa: D417 - the others are those of score
    spark: SparkSession,
    paths: Location | Sequence[Location],
    model: str | Path | PinnedModel,
    *,
    keys: str | Sequence[str],
    tracking_uri: str | None = None,
    on_damage: str = "fail",
    outputs: Form | str | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    with_columns: str | Sequence[str] = DEFAULT_COLUMNS,
    nulls: Mapping[str, NullRule] | None = None,
    bad_rows: BadRows = "fail",
    other_versions: OtherVersions = "refuse",
    counters: Counters | None = None,
) -> DataFrame:
    """Score the rows of TFRecord files in row or block layout, like :func:`scoring.score`.

    Records do not distinguish a value from a list of one, or a boolean from the integers 0 and 1; the model's spec and
    the types of its training do. Only the keys and the model's columns are decoded. Records hold float32, so values of
    float64 were rounded when they were written.

    Args:
        spark: The session.
        paths: Files, folders or globs.
        model: URI of the model, or the result of :func:`scoring.model.stored.resolve`.
        keys: Columns that identify a row, in the types of the records.
        on_damage: ``fail`` at the first damaged record, or ``skip`` damaged records.

    The other arguments are those of :func:`scoring.score`.

    Raises:
        ModelNotFoundError: The URI does not lead to a model.
        ModelDirectoryError: The model was not trained here, so the types of its columns in records are unknown.
        FileNotFoundError: There are no files.
        ScoringError: A key is missing, the result would have a column twice, or the records are shards of a dataset.
        ColumnError: A raw column is missing, or has a type that its feature does not accept or was not trained with.
    """
    form = AS_COLUMNS if outputs is None else outputs
    options = ScoringOptions.of(form, batch_size, with_columns, nulls, bad_rows, other_versions)
    # Models that bring code are refused below: they were not trained here.
    plan = ScoringPlan.of(model, keys, options, tracking_uri, trust=True)
    plan = plan.with_named_labels() if outputs is None else plan
    return score_as_planned(tfrecord_table(spark, paths, plan, on_damage=on_damage), plan, counters=counters)


def tfrecord_table(
    spark: SparkSession,
    paths: Location | Sequence[Location],
    plan: ScoringPlan,
    *,
    on_damage: str = "fail",
) -> DataFrame:
    """Return the keys and the model's columns of TFRecord files, in the types that the model was trained with.

    Raises:
        FileNotFoundError: There are no files.
        ScoringError: They are shards of a dataset, whose features are encoded already.
    """
    # A list of files, which may be long, is recognised by its records below.
    if isinstance(paths, Location) and is_published(paths):
        raise ScoringError(f"{paths} is a dataset, whose features are encoded for training; {_FROM_THE_TABLE}")
    # The schema of all columns is inferred, from all files: one column costs as all.
    found = read_tfrecords(spark, paths, on_damage=on_damage).schema
    _refuse_encoded(found, plan.directory.features.spec)
    features = plan.directory.scored_features
    families = trained_families(features, plan.directory.features.column_types)
    schema = _schema(found, plan.keys, features, families)
    return read_tfrecords(spark, paths, schema=schema, on_damage=on_damage)


def _refuse_encoded(found: StructType, spec: FeatureSpec) -> None:
    """Reject rows that a conversion wrote for training, because their numbers would be scaled a second time."""
    encoded = {f"{block_format.LABEL_PREFIX}{spec.label.stored}", *(block_format.KEY_PREFIX + key for key in spec.keys)}
    if names := sorted(encoded.intersection(found.names)):
        raise ScoringError(
            f"the records have {names}: they are the shards of a dataset, whose features are encoded for training; "
            f"{_FROM_THE_TABLE}"
        )


def _schema(
    found: StructType, keys: Sequence[str], inputs: Sequence[kinds.Feature], families: Mapping[str, TokenFamily]
) -> StructType:
    """Return the columns of ``found`` that scoring reads, in the types that the features take."""
    in_records = {field.name: field.dataType for field in found}
    types = {key: in_records[key] for key in keys if key in in_records}
    for feature in inputs:
        for name in feature.columns:
            if isinstance(feature, kinds.Sparse) and name == feature.name:
                types[name] = VectorUDT()
            elif name in in_records:
                # Any bytes are inferred as a string.
                is_bytes = feature.raw[name] == "bytes"
                stored = BinaryType() if is_bytes else _token_type(in_records[name], families.get(name))
                is_list = feature.raw[name] in _LISTS and not isinstance(stored, ArrayType)
                types[name] = ArrayType(stored) if is_list else stored
    return StructType([StructField(name, type_) for name, type_ in types.items()])


def _token_type(stored: DataType, trained: TokenFamily | None) -> DataType:
    """Return the type of tokens in training if ``stored``, the type in the records, is ambiguous."""
    if isinstance(stored, LongType) and trained == "boolean":
        return BooleanType()
    if not isinstance(stored, ArrayType):
        return stored
    if isinstance(stored.elementType, StringType) and trained is not None:
        # Columns of empty lists are inferred as strings. Actual strings in place of numbers fail when they are decoded.
        return ArrayType({"boolean": BooleanType(), "integer": LongType(), "string": StringType()}[trained])
    return ArrayType(_token_type(stored.elementType, trained))
