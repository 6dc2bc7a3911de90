"""Recommendations on Spark: for every row the best candidates of a retrieval model, of those that are available."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame

from data_pipelines.feature_kinds import FIRST_VOCABULARY_ID
from data_pipelines.fitted import FittedFeatures
from data_pipelines.transform import Encoder
from models.ranked_lists import CANDIDATES, SCORES, is_filled
from scoring.bad_rows import BadRows
from scoring.batch import BatchTask, checked_table, scored_schema
from scoring.call import ScoringCall
from scoring.checks import ScoringError
from scoring.counters import Counters
from scoring.forms import AS_COLUMNS
from scoring.inputs import FeatureInputs
from scoring.loaded_model import DEFAULT_BATCH_SIZE, Search
from scoring.model_directory import ModelDescription, ModelDirectory
from scoring.model_uri import PinnedModel
from scoring.null_policy import NullPolicy, NullRule
from scoring.parquet_scan import Reader, map_rows
from scoring.scorer import OtherVersions, Settings

_LOGGER = logging.getLogger(__name__)

_NAMED_IN_MESSAGE = 5

Candidates = DataFrame | Iterable[str] | Iterable[int]
"""Candidates by their tokens: one after the other, or a table with a column of the name of the model's candidate."""


def recommend(
    df: DataFrame,
    model: str | Path | PinnedModel,
    *,
    keys: str | Sequence[str],
    k: int,
    index: str = "exact",
    available: Candidates | None = None,
    unavailable: Candidates | None = None,
    tracking_uri: str | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    with_version: bool = True,
    nulls: Mapping[str, NullRule] | None = None,
    bad_rows: BadRows = "fail",
    other_versions: OtherVersions = "refuse",
    reader: Reader = "auto",
    counters: Counters | None = None,
) -> DataFrame:
    """Return the keys of every row of ``df`` with its ``candidates`` and their ``scores``, best first.

    No row gets what it excludes itself (the model's column of candidates seen), nor what is not available. A list is
    shorter than ``k`` only where fewer candidates are left, whatever the index.

    Args:
        df: The table, with the keys and the model's raw columns.
        model: URI of the model, or what :func:`scoring.model_uri.resolve` made of it.
        keys: Columns that name a row; they pass through unchanged.
        k: Candidates per row; it may be another number than the model was exported with.
        index: ``exact``, or an approximate one that the model holds: ``cells`` or ``scann``.
        available: The candidates that may be recommended; None are all that the model knows.
        unavailable: Candidates that must not be recommended, available or not.
        tracking_uri: MLflow store of the URI; by default the one that MLflow is set to.
        batch_size: Rows per call of the model.
        with_version: Add the column ``model_version``.
        nulls: As for :func:`scoring.batch.score`, and so are the next four.
        bad_rows: Of a row that is marked, both lists are null.
        other_versions: What to do on executors of another TensorFlow.
        reader: Who reads plain Parquet files.
        counters: Collects what the tasks say of themselves.

    Raises:
        ModelNotFoundError: The URI leads to no model.
        ScoringError: The model recommends nothing or holds no such index; ``k`` is below 1 or above the number of
            candidates; no candidate is available; or as :func:`scoring.batch.score` raises it.
        ColumnError: As :func:`scoring.batch.score` raises it, and for the table of candidates.
    """
    settings = Settings(AS_COLUMNS, batch_size, with_version, NullPolicy(nulls or {}), bad_rows, other_versions)
    call = ScoringCall.of(model, tracking_uri, keys, settings)
    description = checked_index(call.directory, index)
    search = Search(index, k, unavailable_ids(call.directory.features, k, available, unavailable))
    table = checked_table(df, call)
    _LOGGER.info("index %s of %s, whose recall was %.3f", index, call.pinned.label, description.indexes[index])
    task = RecommendTask(BatchTask(call.keys, call.scorer(df.sparkSession, counters=counters, search=search)))
    return map_rows(table, task, scored_schema(table, call.keys, call.added), reader)


@dataclass(frozen=True)
class RecommendTask:
    """The body of one Spark task of :func:`recommend`: what is scored, without the places that no candidate fills."""

    scoring: BatchTask

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the rows in their order."""
        for batch in self.scoring(batches):
            yield without_empty_places(batch)


def checked_index(directory: ModelDirectory, index: str) -> ModelDescription:
    """Return the description of a model that holds ``index``.

    Raises:
        ScoringError: It recommends nothing, or does not hold it.
    """
    description = directory.description
    if not isinstance(description, ModelDescription) or description.task != "retrieval":
        raise ScoringError(
            f"the model in {directory.path} is no retrieval model, it has no candidates to recommend; use score"
        )
    if index not in description.indexes:
        raise ScoringError(
            f"the model in {directory.path} holds no index '{index}', it holds {sorted(description.indexes)}; use one "
            f"of these"
        )
    return description


def unavailable_ids(
    features: FittedFeatures, k: int, available: Candidates | None, unavailable: Candidates | None
) -> np.ndarray:
    """Return the ids of all candidates that no row may get: int64 ``[any]``, ascending.

    Args:
        features: Of the model.
        k: How many are wanted for every row.
        available: Those that may be recommended; None are all.
        unavailable: Those that may not, available or not.

    Raises:
        ScoringError: ``k`` is no number of candidates that the model has, or there is none left.
        ColumnError: The tokens are of another type than those of the model.
    """
    first, end = FIRST_VOCABULARY_ID, features.id_count(features.spec.candidate)
    if not 1 <= k <= end - first:
        raise ScoringError(f"k {k} cannot be met by the model's {end - first} candidates; use 1 to {end - first}")
    is_available = np.full(end, available is None)
    if available is not None:
        is_available[_candidate_ids(features, available, "available")] = True
    if unavailable is not None:
        is_available[_candidate_ids(features, unavailable, "unavailable")] = False
    left = np.count_nonzero(is_available[first:])
    if not left:
        raise ScoringError(
            f"none of the model's {end - first} candidates is available; check the tokens of available and unavailable"
        )
    if left < k:
        _LOGGER.warning("only %d candidates are available: no row gets the %d that are wanted", left, k)
    return np.flatnonzero(~is_available[first:]) + first


def _candidate_ids(features: FittedFeatures, given: Candidates, what: str) -> np.ndarray:
    """Return the ids of candidates, and say how many the model does not know: they have id 0 or 1."""
    candidate = features.spec.candidate
    if isinstance(given, str | bytes):
        raise ScoringError(f"the {what} candidates are {given!r}, one text; give a list of tokens, or a table")
    if isinstance(given, DataFrame):
        if candidate.name not in given.columns:
            raise ScoringError(
                f"the table of {what} candidates has the columns {given.columns}; name the one that holds them "
                f"'{candidate.name}'"
            )
        table = given.select(f"`{candidate.name}`").toArrow()
    else:
        table = pa.table({candidate.name: list(given)})
    FeatureInputs((candidate,), features.column_types).check(table.schema)
    ids = np.asarray(Encoder(features).encode(table, (candidate,))[candidate.name])
    unknown = table.column(0).filter(pa.array(ids < FIRST_VOCABULARY_ID))
    if len(unknown):
        some = unknown.slice(0, _NAMED_IN_MESSAGE).to_pylist()
        _LOGGER.warning("the model does not know %d of %d %s candidates: %s", len(unknown), len(ids), what, some)
    return ids


def without_empty_places(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return ``batch`` with ``candidates`` and ``scores`` that end where the candidates do."""
    candidates = batch.column(CANDIDATES)
    is_kept = is_filled(candidates.values)
    ends = np.cumsum(np.append(0, is_kept))[candidates.offsets].astype(np.int32)
    for name in (CANDIDATES, SCORES):
        values = batch.column(name).values.filter(is_kept)
        place = batch.schema.get_field_index(name)
        lists = pa.ListArray.from_arrays(pa.array(ends), values, mask=batch.column(name).is_null())
        batch = batch.set_column(place, name, lists)
    return batch
