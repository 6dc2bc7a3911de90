"""Recommendations on Spark: the best available candidates of a retrieval model for every row."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines import any_table, memory_tables, table_forms
from mirrorspark.data_pipelines.features import Encoder, FittedFeatures, item_rows, kinds
from mirrorspark.models.index import CANDIDATES, SCORES, is_filled
from mirrorspark.models.serving import signatures
from mirrorspark.recommending.candidate_types import as_tokens, candidate_type, common_type
from mirrorspark.recommending.routing import ROUTER, is_router, read_router
from mirrorspark.scoring import BatchTask, ScoringError, ScoringPlan, score_in_memory, session_to_score
from mirrorspark.scoring.input import NullRule, Reader, map_rows
from mirrorspark.scoring.model import Catalogue, warn_if_stale
from mirrorspark.scoring.model.folder import ModelDescription, ModelDirectory
from mirrorspark.scoring.model.loading import DEFAULT_BATCH_SIZE, Search
from mirrorspark.scoring.model.stored import PinnedModel
from mirrorspark.scoring.output import AS_COLUMNS, DEFAULT_COLUMNS, BadRows
from mirrorspark.scoring.task import Counters, OtherVersions, ScoringOptions
from mirrorspark.spark_session import naming_lost_session

_LOGGER = logging.getLogger(__name__)

_NAMED_IN_MESSAGE = 5

Candidates = DataFrame | Iterable[Any]
"""Texts or whole numbers, or a table, also of pandas or Polars, that has them in the column of the candidate's name."""


@naming_lost_session
def recommend(  # noqa: D417 - the others are those of score
    df: Any,
    model: str | Path | PinnedModel,
    *,
    keys: str | Sequence[str] = (),
    k: int,
    index: str = "exact",
    available: Candidates | None = None,
    unavailable: Candidates | None = None,
    tracking_uri: str | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    with_columns: str | Sequence[str] = DEFAULT_COLUMNS,
    nulls: Mapping[str, NullRule] | None = None,
    bad_rows: BadRows = "fail",
    other_versions: OtherVersions = "refuse",
    reader: Reader = "auto",
    counters: Counters | None = None,
    stale_after_days: float | None = None,
    trust: bool = False,
    spark: SparkSession | None = None,
) -> Any:
    """Return the keys of every row of a table with its ``candidates`` and their ``scores``, best first.

    Candidates that were whole numbers in the training are such numbers. The lists leave out the candidates that a row
    excludes itself (the model's column of seen candidates) and those that are unavailable. With every index, a list is
    shorter than ``k`` only if fewer candidates are left.

    Args:
        df: The table, with the keys and the model's raw columns, in any form that :func:`scoring.score` takes. A table
            in memory comes back in its form, and needs no keys.
        model: URI of a retrieval model or a router of such models, or the result of
            :func:`scoring.model.stored.resolve`.
        keys: Columns that identify a row; they pass through unchanged.
        k: Candidates per row; it may differ from the ``top_k`` of the export.
        index: ``exact``, or an approximate index of the model: ``ivf`` or ``scann``. Blends by ``cosine`` or ``dot``
            are always searched exactly.
        available: The candidates that may be recommended, as in the training or as texts; None means all that the model
            knows.
        unavailable: Candidates that must not be recommended; takes precedence over ``available``.
        bad_rows: See :func:`scoring.score`; both lists of a marked row are null.
        stale_after_days: Warn if the catalogue of a model with items is older than this; its age is logged in any case.
        trust: Whether Python code may run that a ranking model in a router's cascade brings.

    The other arguments are those of :func:`scoring.score`.

    Raises:
        ModelNotFoundError: The URI does not lead to a model.
        UntrustedModelError: A ranking model brings Python code, and ``trust`` is False.
        ScoringError: The model is neither a retrieval model nor a router of such models, or lacks the index; no list
            of a router would use the index; ``k`` is below 1 or above the number of candidates; no candidate is
            available; or for a reason of :func:`scoring.score`.
        ColumnError: As in :func:`scoring.score`, and for the tables of candidates.
        TableError: A table of candidates lacks the column of the candidate's name.
    """
    options = ScoringOptions.of(AS_COLUMNS, batch_size, with_columns, nulls, bad_rows, other_versions)
    plan = ScoringPlan.of(model, keys, options, tracking_uri, reader, trust=trust)
    wanted = _Wanted(k, index, available, unavailable, stale_after_days)
    search = _search(plan.directory, plan.pinned.label, wanted)
    type_ = _candidate_type(plan.directory)

    def by_tasks(rows: DataFrame, plan: ScoringPlan) -> DataFrame:
        table = plan.table(rows)
        task = RecommendTask(BatchTask(plan.keys, plan.scorer(rows.sparkSession, counters=counters, search=search)))
        lists = map_rows(table, task, plan.schema(table), plan.reader)
        return lists if type_ == "string" else lists.withColumn(CANDIDATES, F.col(CANDIDATES).cast(f"array<{type_}>"))

    if memory_tables.is_in_memory(df):
        return score_in_memory(df, plan, by_tasks, spark=spark, in_this_process=False)
    return by_tasks(df if hasattr(df, "sparkSession") else any_table.read_table(session_to_score(spark), df), plan)


@dataclass(frozen=True)
class RecommendTask:
    """Body of a Spark task of :func:`recommend`. It scores rows and removes the empty ends of their lists."""

    scoring: BatchTask

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the rows in their order."""
        for batch in self.scoring(batches):
            yield without_empty_places(batch)


@dataclass(frozen=True)
class _Wanted:
    """Request of a call of :func:`recommend`, to one model or to each model of a router."""

    k: int
    index: str
    available: Candidates | None
    unavailable: Candidates | None
    stale_after_days: float | None


def _search(directory: ModelDirectory, label: str, wanted: _Wanted) -> Search:
    """Return the search with a model or a router; messages name it by its ``label``."""
    if not is_router(directory):
        removed = _checked_index(directory, label, wanted)
        found = unavailable_ids(directory.features, wanted.k, wanted.available, wanted.unavailable, removed)
        return Search(wanted.index, wanted.k, found)
    router, folders = read_router(directory.path / ROUTER)
    if wanted.k < 1:
        raise ScoringError(f"k {wanted.k} is below 1")
    for cascade in router.cascades.values():
        cascade.rules(wanted.k)  # Raises for limits that do not fit this number.
    if wanted.index != signatures.EXACT and not router.listing:
        raise ScoringError(
            f"index '{wanted.index}' is of no use to {label}: a blend by '{router.fusion}' searches all candidates "
            f"exactly; leave index out"
        )
    searches, left = {}, 0
    for name in router.answering:
        model = ModelDirectory.open(folders[name])
        of_this = wanted if name in router.listing else replace(wanted, index=signatures.EXACT)
        removed = _checked_index(model, f"{name} of {label}", of_this)
        gone, of_model, own = _gone(model.features, wanted.available, wanted.unavailable, removed)
        searches[name], left = Search(of_this.index, of_model, gone), left + own
    if not left:
        raise ScoringError(
            f"none of the candidates of the models {sorted(searches)} is available; check the tokens of available and "
            f"unavailable"
        )
    return Search(wanted.index, wanted.k, np.zeros(0, np.int64), searches)


def _candidate_type(directory: ModelDirectory) -> str:
    """Return Spark's type of the candidates of a model or a router."""
    if not is_router(directory):
        return candidate_type(directory.features)
    if directory.hooks:  # They may change the lists.
        return "string"
    router, folders = read_router(directory.path / ROUTER)
    return common_type(candidate_type(ModelDirectory.open(folders[name]).features) for name in router.answering)


def _checked_index(directory: ModelDirectory, label: str, wanted: _Wanted) -> np.ndarray | None:
    """Check the model's index, log its recall, warn of a stale catalogue, and return the ids without an item."""
    description = checked_index(directory, wanted.index)
    _LOGGER.info("index %s of %s, whose recall was %.3f", wanted.index, label, description.indexes[wanted.index])
    catalogue = Catalogue.of_description(description.catalogue)
    if catalogue is None:
        return None
    warn_if_stale(catalogue, label, datetime.now(UTC), wanted.stale_after_days)
    return item_rows.ids_without_item(directory.features) if catalogue.refreshed_from else None


def checked_index(directory: ModelDirectory, index: str) -> ModelDescription:
    """Return the description of a model after checking that the model has ``index``.

    Raises:
        ScoringError: It is not a retrieval model, or lacks the index.
    """
    description = directory.description
    if not isinstance(description, ModelDescription) or description.task != "retrieval":
        raise ScoringError(
            f"the model in {directory.path} is not a retrieval model, it has no candidates to recommend; use score"
        )
    if index not in description.indexes:
        raise ScoringError(
            f"the model in {directory.path} holds no index '{index}', it holds {sorted(description.indexes)}; use one "
            f"of these"
        )
    return description


def unavailable_ids(
    features: FittedFeatures,
    k: int,
    available: Candidates | None,
    unavailable: Candidates | None,
    removed: np.ndarray | None = None,
) -> np.ndarray:
    """Return the ids of all candidates that must not be recommended: int64 ``[any]``, ascending.

    Args:
        features: The model's features.
        k: Candidates per row.
        available: Candidates that may be recommended; None means all.
        unavailable: Candidates that must not be recommended; takes precedence.
        removed: int64 ``[any]``, ids that are not candidates any more.

    Raises:
        ScoringError: ``k`` is below 1 or above the number of candidates, or no candidate is left.
        ColumnError: The tokens are neither texts nor whole numbers.
    """
    found, candidates, left = _gone(features, available, unavailable, removed)
    if not 1 <= k <= candidates:
        raise ScoringError(f"k {k} cannot be met by the model's {candidates} candidates; use 1 to {candidates}")
    if not left:
        raise ScoringError(
            f"none of the model's {candidates} candidates is available; check the tokens of available and unavailable"
        )
    if left < k:
        _LOGGER.warning("only %d candidates are available: no row gets the %d that are wanted", left, k)
    return found


def _gone(
    features: FittedFeatures,
    available: Candidates | None,
    unavailable: Candidates | None,
    removed: np.ndarray | None,
) -> tuple[np.ndarray, int, int]:
    """Return the ids that must not be recommended, the number of candidates, and how many are left of these."""
    first, end = kinds.FIRST_VOCABULARY_ID, features.id_count(features.spec.candidate)
    gone = np.zeros(0, np.int64) if removed is None else removed
    is_available = np.full(end, available is None)
    if available is not None:
        is_available[_candidate_ids(features, available, "available")] = True
    if unavailable is not None:
        is_available[_candidate_ids(features, unavailable, "unavailable")] = False
    is_available[gone] = False
    found = np.flatnonzero(~is_available[first:]) + first
    return found, end - first - len(gone), end - first - len(found)


def _candidate_ids(features: FittedFeatures, given: Candidates, what: str) -> np.ndarray:
    """Return the ids of candidates and log how many are unknown to the model; unknown ones have id 0 or 1."""
    candidate = features.spec.candidate
    if isinstance(given, str | bytes):
        raise ScoringError(f"the {what} candidates are {given!r}, one text; give a list of tokens, or a table")
    if isinstance(given, DataFrame) or table_forms.is_table(given):
        table = any_table.as_arrow(given, [candidate.name], f"the table of {what} candidates")
    else:
        try:
            table = pa.table({candidate.name: list(given)})
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ScoringError(
                f"the {what} candidates are of several types ({error}); give texts or whole numbers"
            ) from error
    table = as_tokens(features, table)
    ids = np.asarray(Encoder(features).encode(table, (candidate,))[candidate.name])
    unknown = table.column(0).filter(pa.array(ids < kinds.FIRST_VOCABULARY_ID))
    if len(unknown):
        order = pc.sort_indices(unknown.cast(pa.string()))  # of a table Spark gives them in any
        some = unknown.take(order).slice(0, _NAMED_IN_MESSAGE).to_pylist()
        _LOGGER.warning("the model does not know %d of %d %s candidates: %s", len(unknown), len(ids), what, some)
    return ids


def without_empty_places(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return ``batch`` without the empty ends of the lists ``candidates`` and ``scores``."""
    candidates = batch.column(CANDIDATES)
    is_candidate = is_filled(candidates.values)
    ends = np.cumsum(np.append(0, is_candidate))[candidates.offsets].astype(np.int32)
    for name in (CANDIDATES, SCORES):
        values = batch.column(name).values.filter(is_candidate)
        place = batch.schema.get_field_index(name)
        lists = pa.ListArray.from_arrays(pa.array(ends), values, mask=batch.column(name).is_null())
        batch = batch.set_column(place, name, lists)
    return batch
