"""Conversion of a table to a dataset directory: stage rows, fit features, write shards, publish."""

import contextlib
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
from pyspark.sql import DataFrame

from mirrorspark.data_pipelines.dataset import (
    FEATURES_FOLDER,
    FORMAT_VERSION,
    MANIFEST_FILE,
    SPLITS,
    TEST_ROWS_FILE,
    TEST_SPLIT,
    TRAIN_SPLIT,
    DatasetCache,
    DatasetError,
    EncodeTask,
    Manifest,
    ShardResult,
    Staged,
    TargetSumsTask,
    block_format,
    is_published,
    stage,
)
from mirrorspark.data_pipelines.features import (
    FeatureSpec,
    FittedFeatures,
    TargetSums,
    candidate_lists,
    fitting,
    quoted,
    raw_columns,
    with_target_means,
)
from mirrorspark.data_pipelines.memory_tables import CATEGORIES
from mirrorspark.data_pipelines.quality import (
    PAGE_FILE,
    PROFILE_FILE,
    SPLIT_COLUMN,
    DatasetProfile,
    Limits,
    PageFacts,
    Report,
    dataset_page,
    profiling,
    validate,
)
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.data_pipelines.shard_counts import check_classes, split_counts, statistics, with_exact_findings
from mirrorspark.data_pipelines.sources import MemorySource, Source, SparkSource, source_of
from mirrorspark.data_pipelines.spark import BatchFunction, collected
from mirrorspark.data_pipelines.tfrecord import table_blocks
from mirrorspark.pages import beside_the_result
from mirrorspark.spark_session import SPARK_ERRORS, on_running_session, task_message
from mirrorspark.storage import Location, StoragePath, clean, lacking
from mirrorspark.storage.publish import SaveMode, TargetExistsError, WriteJob, WrittenFile

EXAMPLE_FILE = "example.parquet"
EXAMPLE_ROWS = 5

# As many as explain a model's predictions in two seconds.
TEST_ROWS = 2_000

# Folders in the write's staging folder, in addition to the attempts that it publishes.
_RAW_FOLDER = "raw"
_DRIVER_ATTEMPT = "driver"
_HELD_OUT_MEANS_FILE = "held_out_means.npz"


class Embedder(Protocol):
    """Embeds the texts and images among the features: :class:`scoring.embedding.Embedder`.

    It is handed in because encoders are run by the backends of scoring, which imports this package.
    """

    def source(self, spec: FeatureSpec) -> dict[str, Any]:
        """Return the entries that the encoders of ``spec`` and of its items add to the source of a dataset."""

    def embedded(
        self, df: DataFrame, spec: FeatureSpec, dataset: Location, *, progress: bool
    ) -> tuple[DataFrame, FeatureSpec]:
        """Return ``df`` with embedded columns, and ``spec`` with the encoders' digests and the lengths of vectors."""


class DatasetExistsError(DatasetError):
    """A path with a whole dataset, from an earlier conversion or one that ran at the same time."""


@dataclass(frozen=True)
class ConversionOptions:
    """Options of a conversion.

    Attributes:
        split_column: String column with the split of a row; values other than ``SPLITS`` are refused.
        shards: Files per split.
        rows_per_block: Examples in one record.
        accept_errors: Write the dataset even if validation finds errors in it, for example a column that gives the
            label away. The report is written either way.
    """

    split_column: str = SPLIT_COLUMN
    shards: int = 8
    rows_per_block: int = table_blocks.ROWS_PER_BLOCK
    accept_errors: bool = False

    def __post_init__(self) -> None:
        for name in ("shards", "rows_per_block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is below 1")


def dataset_address(source: Mapping[str, Any], spec: FeatureSpec, options: ConversionOptions) -> str:
    """Return twelve hex digits that identify a conversion's result: equal inputs give an equal address."""
    document = json.dumps([FORMAT_VERSION, source, spec.hash, vars(options)], sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()[:12]


@on_running_session
def convert(
    df: DataFrame | MemorySource,
    spec: FeatureSpec,
    path: str | Path,
    *,
    source: Mapping[str, Any] | None = None,
    options: ConversionOptions = ConversionOptions(),
    reference: DatasetProfile | None = None,
    limits: Limits | None = None,
    cache: DatasetCache | None = None,
    items: DataFrame | None = None,
    embedder: Embedder | None = None,
    progress: bool = True,
) -> Dataset:
    """Fit ``spec`` on the training rows of ``df`` and write all rows as TFRecord shards to ``path``.

    ``path`` appears atomically and complete, or not at all; on an object store its manifest appears last, and a folder
    without one is not a dataset. Spark evaluates ``df`` once, and once more for each text or image to embed. A hash of
    the keys divides rows among shards and orders them there (rows of equal keys by their columns), so the same table
    gives the same shards. Outside the training split keys are unique, because predictions are found by them. During the
    conversion, the staged rows take their own size on the store. Where a label of kind ``candidate`` is an array, a
    training row becomes one for each of its candidates, and another row holds all of them back.

    Args:
        df: The table; it needs the spec's columns and ``options.split_column``. A small table in memory is converted by
            this process.
        spec: The feature specification.
        path: Directory to create, a local path or a URI. It must be reachable from the executors.
        source: The source of the rows, for the manifest, without secrets in it.
        options: Options of the conversion.
        reference: Profile of a former dataset that this one should resemble: drift is reported.
        limits: Thresholds of validation's findings; None for the customary ones.
        cache: The cache for the local copy if ``path`` is on another store; by default in the user's cache folder.
        items: The table of items, a row per candidate, if the spec has ``items``. This process holds it in memory.
        embedder: A :class:`scoring.embedding.Embedder`, for features of the kinds ``text_embedding`` and
            ``image_embedding``.
        progress: Show a bar of Spark's tasks where one can be seen: in a terminal or a notebook.

    Raises:
        DatasetExistsError: ``path`` already holds a dataset, or does by the time this one is complete.
        DatasetError: Something else is at ``path``, the label of a split has only one class, two rows of the validation
            or test split have the same key, a row has an invalid value (an unknown split, a null key, a label that is
            neither 0 nor 1), or validation finds an error.
        EmptySplitError: A split has no rows, or nothing can be learnt from the training rows.
        ColumnError: A column is missing or has the wrong type, or the training rows hold an infinite number; or there
            are texts or images to embed and no embedder, or images that cannot be read.
        LabelError: The label has the wrong type.
        ScoringError: An encoder cannot be used.
    """
    table = source_of(df)
    target = StoragePath.of(path)
    if is_published(target):
        raise DatasetExistsError(f"{path} exists already; open it with load_dataset, or delete it to convert again")
    spec, plans = _checked(table, spec, options.split_column)
    _check_items(items, spec)
    _check_embedder(embedder, spec, table)
    try:
        job = WriteJob.begin(target, SaveMode.ERROR)
    except (TargetExistsError, NotADirectoryError) as error:
        if is_published(target):  # another conversion has just ended
            raise DatasetExistsError(f"{path} exists already; open it with load_dataset") from error
        raise DatasetError(f"{path} exists already and is not a dataset; choose another path, or delete it") from error
    try:
        if embedder is not None and isinstance(table, SparkSource):
            table, items, spec = _embedded(table.df, items, spec, embedder, path, progress=progress)
            if spec.embedded:  # Vectors have taken the place of texts and images.
                plans = check_columns(table, spec, options.split_column)
        conversion = _Conversion(job, spec, options, plans, items)
        with table.progress("convert") if progress else contextlib.nullcontext():
            files = conversion.write(table, clean(source or {}), reference, limits or Limits())
        job.publish(files, last=(MANIFEST_FILE,))
    except SPARK_ERRORS as error:
        raise DatasetError(f"the table cannot be converted: {task_message(error)}") from error
    except TargetExistsError as error:
        raise DatasetExistsError(f"another conversion has made {path} meanwhile; open it with load_dataset") from error
    finally:
        job.abort()  # Removes the staging folder, also after a publication.
    # The page of an earlier attempt whose table was refused.
    _refused_page(target).delete()
    return Dataset.open(path, cache=cache)


def read_profile(path: str | Path | StoragePath) -> DatasetProfile:
    """Return the profile of the dataset at ``path``, as a reference for another one.

    Raises:
        DatasetError: There is none, or it is damaged.
    """
    file = StoragePath.of(path) / PROFILE_FILE
    try:
        return DatasetProfile.from_dict(json.loads(file.read_bytes()))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{file} is not a profile of a dataset ({error}); give the directory of a former dataset as the reference"
        ) from error


@dataclass(frozen=True)
class _Conversion:
    """The steps of one conversion, which all write below one staging folder."""

    job: WriteJob
    spec: FeatureSpec
    options: ConversionOptions
    plans: raw_columns.ColumnPlans
    items: DataFrame | None = None

    def write(
        self, table: Source, source: dict[str, Any], reference: DatasetProfile | None, limits: Limits
    ) -> list[WrittenFile]:
        """Write everything that belongs to the dataset; return the files, the manifest last."""
        scratch = self.job.staging / _RAW_FOLDER
        staged = stage(table, self.spec, self.plans, self.options.split_column, self.options.shards, scratch)
        self._check_splits(staged)
        samples = {split: staged.sample(split) for split in SPLITS}
        items = (
            collected(self.items.select(*map(quoted, self.spec.items.columns)))
            if self.items and self.spec.items
            else None
        )
        categories = [field.name for field in table.schema if CATEGORIES in field.metadata]
        fitted = fitting.fit_features(
            table,
            measured=staged.measured,
            spec=self.spec,
            plans=self.plans,
            sample=samples[TRAIN_SPLIT],
            scratch=scratch,
            target=scratch / FEATURES_FOLDER if self.spec.target_encodings else self._own(FEATURES_FOLDER),
            items=items,
            categories=categories,
        )
        held_out = ""
        if self.spec.target_encodings:
            fitted, held_out = self._with_target_means(table, staged, fitted, scratch)
        results = self._encode(table, staged, held_out)
        check_classes(results, self.spec.label)
        profile = profiling.profile_columns(samples, self.spec, counts=split_counts(results), reference=reference)
        report = with_exact_findings(validate(profile, self.spec, reference, limits), staged, results)
        manifest = Manifest(
            features_hash=fitted.hash,
            splits={split: tuple(result.shard for result in results if result.split == split) for split in SPLITS},
            statistics=statistics(results, fitted),
            source=source,
            options=vars(self.options),
            columns=(*self.spec.columns, self.options.split_column),
            findings=tuple(vars(finding) for finding in report.findings),
            versions=library_versions(),
        )
        is_refused = bool(report.errors) and not self.options.accept_errors
        kept = _refused_page(self.job.target) if is_refused else self._own(PAGE_FILE)
        with beside_the_result(f"the page {kept}"):
            kept.write_bytes(self._page(manifest, profile, report, reference))
        if is_refused:
            raise DatasetError(
                f"{report.refusal()}. See {kept}. Fix the table, or accept the errors (accept_errors, "
                f"--accept-data-errors) to write the dataset anyway"
            )
        self._write_own_files(manifest, samples[TEST_SPLIT], profile)
        written = [result.written_file() for result in results]
        return [*written, *self._own_files()]

    def _check_splits(self, staged: Staged) -> None:
        for split in SPLITS:
            if not staged.rows(split):
                raise fitting.EmptySplitError(
                    "there are no training rows; check the table or the rule that makes its split column"
                    if split == TRAIN_SPLIT
                    else f"split '{split}' has no rows; check the table or the rule that makes its split column"
                )

    def _with_target_means(
        self, table: Source, staged: Staged, fitted: FittedFeatures, scratch: StoragePath
    ) -> tuple[FittedFeatures, str]:
        """Sum the label over the training rows; return the features with its means, and a URI of those by fold."""
        files = tuple(file for file in staged.files if file.split == TRAIN_SPLIT)
        sums = TargetSums(fitted)
        task = TargetSumsTask(str(scratch / FEATURES_FOLDER), files, scratch)
        # In the order of the files, so that sums of fractions have the same last digits each time.
        for path in sorted(outcome["sums"] for outcome in _outcomes(table, task, len(files))):
            sums.merge(StoragePath.of(path).read_bytes())
        fitted, held_out = with_target_means(fitted, sums)
        fitted.save(self._own(FEATURES_FOLDER))
        path = scratch / _HELD_OUT_MEANS_FILE
        path.write_bytes(held_out.to_bytes())
        return FittedFeatures.load(self._own(FEATURES_FOLDER)), str(path)

    def _encode(self, table: Source, staged: Staged, held_out_means: str) -> list[ShardResult]:
        """Run one task per staged file; return their shards by split and number."""
        features = str(self._own(FEATURES_FOLDER))
        task = EncodeTask(self.job, features, staged.files, self.options.rows_per_block, held_out_means)
        # One result per file: superseded attempts are not among them, and their files stay behind.
        outcomes = _outcomes(table, task, len(staged.files))
        results = sorted(map(ShardResult.from_dict, outcomes), key=lambda result: (result.split, result.partition))
        written, wanted = sum(result.shard.rows for result in results), sum(file.rows for file in staged.files)
        if written != wanted:
            raise DatasetError(f"{written} rows were written of {wanted} that were staged; this is a bug: report it")
        return results

    def _page(
        self, manifest: Manifest, profile: DatasetProfile, report: Report, reference: DatasetProfile | None
    ) -> bytes:
        facts = PageFacts(
            title=self.job.target.name,
            written=datetime.now().astimezone().isoformat(" ", "seconds"),
            spec_hash=self.spec.hash,
            features_hash=manifest.features_hash,
            source=manifest.source,
            options=manifest.options,
            versions=manifest.versions,
        )
        return dataset_page(facts, profile, report, reference).encode()

    def _write_own_files(self, manifest: Manifest, last_rows: pa.Table, profile: DatasetProfile) -> None:
        example = pa.BufferOutputStream()
        pq.write_table(raw_columns.planned_inputs(last_rows.slice(0, EXAMPLE_ROWS), self.spec, self.plans), example)
        self._own(f"{FEATURES_FOLDER}/{EXAMPLE_FILE}").write_bytes(example.getvalue().to_pybytes())
        kept = pa.BufferOutputStream()
        pq.write_table(last_rows.slice(0, TEST_ROWS), kept)
        self._own(TEST_ROWS_FILE).write_bytes(kept.getvalue().to_pybytes())
        self._own(PROFILE_FILE).write_bytes(json.dumps(profile.to_dict(), allow_nan=False).encode())
        manifest.save(self._own(MANIFEST_FILE).parent)

    def _own(self, path: str) -> StoragePath:
        """Return the staged place of this process's file for ``path``."""
        return self.job.attempt_file(_DRIVER_ATTEMPT, path)

    def _own_files(self) -> list[WrittenFile]:
        root = self._own(MANIFEST_FILE).parent
        return [WrittenFile(_DRIVER_ATTEMPT, file.path.relative_to(root), 0, 0, file.bytes) for file in root.files()]


def _outcomes(table: Source, task: BatchFunction, count: int) -> list[dict[str, Any]]:
    """Return the outcomes of a task for some numbers.

    Raises:
        DatasetError: A task refused its rows.
    """
    outcomes = [json.loads(outcome) for outcome in table.outcomes(task, count)]
    for outcome in outcomes:
        if "refused" in outcome:
            raise DatasetError(outcome["refused"])
    return outcomes


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries whose behaviour the shards and the model depend on."""
    # `pyspark-client` has no distribution that is called pyspark.
    found = {"python": platform.python_version(), "mirrorspark": version("mirrorspark"), "pyspark": pyspark.__version__}
    return found | {package: version(package) for package in ("pyarrow", "numpy")}


def check_columns(
    table: DataFrame | Source, spec: FeatureSpec, *others: str, what: str = "the table"
) -> raw_columns.ColumnPlans:
    """Compare a table's names and types with a spec, before any task starts, and return the plans of the features.

    Args:
        table: The table.
        spec: The features.
        others: Columns that the table must have, too.
        what: Name of the table in a message.

    Raises:
        ColumnError: A column is missing, or has a type that its feature cannot take.
        LabelError: The label has a wrong type.
    """
    return _checked(table, spec, *others, what=what)[1]


def _checked(
    table: DataFrame | Source, spec: FeatureSpec, *others: str, what: str = "the table"
) -> tuple[FeatureSpec, raw_columns.ColumnPlans]:
    """Return the spec with the label as the table has it, and the plans; see :func:`check_columns`."""
    missing = [name for name in (*spec.columns, *others) if name not in table.columns]
    if missing:
        raise raw_columns.ColumnError(lacking(what, missing, table.columns))
    schema = source_of(table).without_rows(spec.columns).schema
    spec = candidate_lists.with_lists(spec, schema.field(spec.label.name).type)
    return spec, block_format.check_columns(candidate_lists.staged_schema(schema, spec).empty_table(), spec)


def _check_items(items: DataFrame | None, spec: FeatureSpec) -> None:
    """Compare the table of items with the spec before any task starts."""
    if (items is None) != (spec.items is None):
        raise raw_columns.ColumnError(
            "the spec has items, but no table of items is given: give it as items"
            if items is None
            else "a table of items is given, but the spec has no items: describe their features in the spec"
        )
    if items is None or spec.items is None:
        return
    check_columns(items, spec.items, what="the table of items")


def _check_embedder(embedder: Embedder | None, spec: FeatureSpec, table: Source) -> None:
    names = [feature.name for feature in spec.embedded]
    if names and not isinstance(table, SparkSource):
        raise raw_columns.ColumnError(f"the features {names} are embedded by Spark's tasks; give a Spark DataFrame")
    if names and embedder is None:
        raise raw_columns.ColumnError(
            f"the features {names} are texts or images to embed; give embedder=mirrorspark.Embedder()"
        )


def _embedded(
    df: DataFrame,
    items: DataFrame | None,
    spec: FeatureSpec,
    embedder: Embedder,
    dataset: Location,
    *,
    progress: bool,
) -> tuple[Source, DataFrame | None, FeatureSpec]:
    """Return the tables with embedded columns, and the spec that describes them."""
    df, spec = embedder.embedded(df, spec, dataset, progress=progress)
    if items is not None and spec.items is not None:
        items, of_items = embedder.embedded(items, spec.items, dataset, progress=progress)
        spec = replace(spec, items=of_items)
    return source_of(df), items, spec


def _refused_page(target: StoragePath) -> StoragePath:
    """Return the path for the page of a refused table, next to the dataset's path."""
    return target.parent / f"{target.name}.refused.html"
