"""Score TFRecord files: the same features, the same types and so the same scores as from a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import ArrayType, BooleanType, DataType, LongType, StringType, StructField, StructType

from data_pipelines.blocks import KEY_PREFIX, LABEL_PREFIX
from data_pipelines.feature_kinds import Feature, RawForm, Sparse
from data_pipelines.features import FeatureSpec
from data_pipelines.manifest import is_published
from data_pipelines.storage import Location
from data_pipelines.tfrecords import read_tfrecords
from scoring.bad_rows import BadRows
from scoring.batch import score
from scoring.call import ScoringCall
from scoring.checks import ScoringError
from scoring.counters import Counters
from scoring.forms import AS_COLUMNS, Form
from scoring.loaded_model import DEFAULT_BATCH_SIZE
from scoring.model_uri import PinnedModel
from scoring.null_policy import NullRule
from scoring.scorer import OtherVersions, Settings
from scoring.token_families import TokenFamily, trained_families

_FROM_THE_TABLE = "score the table that it was made of, or records that write_tfrecords made of such a table"
_LISTS: frozenset[RawForm] = frozenset({"tokens", "times", "indices", "values"})


def score_tfrecords(
    spark: SparkSession,
    paths: Location | Sequence[Location],
    model: str | Path | PinnedModel,
    *,
    keys: str | Sequence[str],
    tracking_uri: str | None = None,
    on_damage: str = "fail",
    outputs: Form | str = AS_COLUMNS,
    batch_size: int = DEFAULT_BATCH_SIZE,
    with_version: bool = True,
    nulls: Mapping[str, NullRule] | None = None,
    bad_rows: BadRows = "fail",
    other_versions: OtherVersions = "refuse",
    counters: Counters | None = None,
) -> DataFrame:
    """Return what :func:`scoring.batch.score` returns, for the rows of TFRecord files in row or block layout.

    Records do not say whether a feature of one value is a list; the model's spec does. Nor do they tell a boolean from
    the integers 0 and 1; the types that the model was trained with do. Only the keys and the model's columns are
    decoded. Records hold float32: a table of float64 that was written to them was rounded then.

    Args:
        spark: The session.
        paths: Files, folders or globs.
        model: URI of the model, or what :func:`scoring.model_uri.resolve` made of it.
        keys: Columns that name a row; their types are those of the records.
        tracking_uri: MLflow store of the URI; by default the one that MLflow is set to.
        on_damage: ``fail`` at the first damaged record, or ``skip`` such records.
        outputs: As for :func:`scoring.batch.score`, and so are the others.
        batch_size: Rows per call of the model.
        with_version: Add the column ``model_version``.
        nulls: Per column what stands in for a null, or ``"fail"`` where none may be.
        bad_rows: What becomes of a row that cannot be scored.
        other_versions: What to do on executors with other libraries than the model was exported with.
        counters: Collects what the tasks say of themselves.

    Raises:
        ModelNotFoundError: The URI leads to no model.
        ModelDirectoryError: The model was not trained here, so that nothing tells what its columns are in records.
        FileNotFoundError: There are no files.
        ScoringError: A key is missing, a column would stand in the result twice, or the records are a dataset's.
        ColumnError: A raw column is missing, or has a type that its feature cannot take or was not trained with.
    """
    call = ScoringCall.of(model, tracking_uri, keys, Settings())
    table = tfrecord_table(spark, paths, call, on_damage=on_damage)
    return score(
        table,
        call.pinned,
        keys=keys,
        tracking_uri=tracking_uri,
        outputs=outputs,
        batch_size=batch_size,
        with_version=with_version,
        nulls=nulls,
        bad_rows=bad_rows,
        other_versions=other_versions,
        counters=counters,
    )


def tfrecord_table(
    spark: SparkSession,
    paths: Location | Sequence[Location],
    call: ScoringCall,
    *,
    on_damage: str = "fail",
) -> DataFrame:
    """Return the keys and the model's columns of TFRecord files, in the types that the model was trained with.

    Raises:
        FileNotFoundError: There are no files.
        ScoringError: They are those of a dataset, whose features are encoded already.
    """
    # Of a list of files, which may be long, their records tell.
    if isinstance(paths, Location) and is_published(paths):
        raise ScoringError(f"{paths} is a dataset, whose features are encoded for training; {_FROM_THE_TABLE}")
    # Its whole schema is looked for, in all files: the types of one column cost as much as those of all.
    found = read_tfrecords(spark, paths, on_damage=on_damage).schema
    _refuse_encoded(found, call.directory.features.spec)
    features = call.directory.scored_features
    families = trained_families(features, call.directory.features.column_types)
    schema = _schema(found, call.keys, features, families)
    return read_tfrecords(spark, paths, schema=schema, on_damage=on_damage)


def _refuse_encoded(found: StructType, spec: FeatureSpec) -> None:
    """Refuse rows that a conversion wrote for training: numbers among them would be scaled a second time."""
    encoded = {LABEL_PREFIX + spec.label.name, *(KEY_PREFIX + key for key in spec.keys)}
    if names := sorted(encoded.intersection(found.names)):
        raise ScoringError(
            f"the records have {names}: they are the shards of a dataset, whose features are encoded for training; "
            f"{_FROM_THE_TABLE}"
        )


def _schema(
    found: StructType, keys: Sequence[str], inputs: Sequence[Feature], families: Mapping[str, TokenFamily]
) -> StructType:
    """Return the columns among ``found`` that scoring reads, in the types that the features take."""
    in_records = {field.name: field.dataType for field in found}
    types = {key: in_records[key] for key in keys if key in in_records}
    for feature in inputs:
        for name in feature.columns:
            if isinstance(feature, Sparse) and name == feature.name:
                types[name] = VectorUDT()
            elif name in in_records:
                stored = _told_apart(in_records[name], families.get(name))
                is_list = feature.raw[name] in _LISTS and not isinstance(stored, ArrayType)
                types[name] = ArrayType(stored) if is_list else stored
    return StructType([StructField(name, type_) for name, type_ in types.items()])


def _told_apart(stored: DataType, trained: TokenFamily | None) -> DataType:
    """Return the type that tokens had in training where ``stored``, found in records, does not tell it."""
    if isinstance(stored, LongType) and trained == "boolean":
        return BooleanType()
    if not isinstance(stored, ArrayType):
        return stored
    if isinstance(stored.elementType, StringType) and trained is not None:
        # Lists that are all empty are found as strings; texts in place of numbers fail when they are decoded.
        return ArrayType({"boolean": BooleanType(), "integer": LongType(), "string": StringType()}[trained])
    return ArrayType(_told_apart(stored.elementType, trained))
