"""Rows chosen by the outputs of some models, and ranks over all rows, from the scores of a fleet."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import reduce
from operator import and_

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines.features import quoted, raw_columns
from mirrorspark.data_pipelines.spark import map_batches
from mirrorspark.fleet.layout import MODEL_COLUMN, OUTPUTS
from mirrorspark.fleet.runs.microbatch import published_manifests
from mirrorspark.fleet.runs.plan import RunPlan
from mirrorspark.fleet.score import session_for
from mirrorspark.fleet.task import MODELS_KEY
from mirrorspark.scoring import ScoringError
from mirrorspark.spark_session import on_running_session
from mirrorspark.storage import Location, StoragePath, hadoop_path, hadoop_uri, listing

_WORDS = re.compile(r"`((?:[^`]|``)+)`|([A-Za-z_]\w*)")
_MODELS_PER_JOB = 100
_BEST_ACCURACY = 2**31 - 1


@dataclass(frozen=True)
class _Table:
    """Scores of some models.

    Attributes:
        frame: The table.
        models: In the order of packed lists.
        outputs: By the name of a wide column: model and output.
    """

    frame: DataFrame
    models: tuple[str, ...]
    outputs: Mapping[str, tuple[str, str]]

    @property
    def is_packed(self) -> bool:
        return any(field.name in OUTPUTS and field.dataType.typeName() == "array" for field in self.frame.schema)

    @property
    def keys(self) -> list[str]:
        lists, own = OUTPUTS if self.is_packed else (), {name.lower() for name in self.outputs}
        return [name for name in self.frame.columns if name not in lists and name.lower() not in own]

    def column(self, model: str, output: str) -> Column:
        name = f"{model}_{output}"
        if self.is_packed:
            return F.get(F.col(output), self.models.index(model)).alias(name)
        return quoted(name)


@on_running_session
def select_scores(
    scores: DataFrame | Location,
    condition: str,
    *,
    models: Sequence[str] | None = None,
    spark: SparkSession | None = None,
) -> DataFrame:
    """Return the keys of the rows for which an SQL condition on outputs is true, and the outputs that it names.

    Of packed lists only the elements that the condition names are read; of a run, only the steps that have them. Models
    of several steps are joined by the keys, which must then be unique; a null is a key like others.

    Args:
        scores: Output of ``run_fleet`` or ``score_fleet``, wide or packed, or such a table.
        condition: SQL with names as in the layout ``wide``: ``modelX_Rank <= 10 and modelY_binary = 1``. Keys may occur
            in it; other names than plain words are in backticks. Upper and lower case matter only for models that
            differ in nothing else.
        models: The models of a table, in the order of its lists; by default those that the files name.
        spark: The session; by default the active one.

    Raises:
        ScoringError: The condition is not SQL, or names no output, an unknown one, or two that Spark confuses;
            microbatches of the steps are not published; the layout is long.
        FileNotFoundError: There are no scores.
    """
    words = {in_quotes.replace("``", "`") or word for in_quotes, word in _WORDS.findall(condition)}
    tables = _tables(scores, models, session_for(scores, spark), words)
    named = _named_outputs(words, [model for one in tables for model in one.models])
    tables = [one for one in tables if named & one.outputs.keys()]
    if not tables:
        raise ScoringError(
            f"the condition '{condition}' names no output of a model; write for example modelX_Rank <= 10"
        )
    keys, chosen = tables[0].keys, []
    for table in tables:
        own = sorted(named & table.outputs.keys(), key=str.lower)
        columns = [table.column(*table.outputs[name]) for name in own]
        chosen.append(table.frame.select(*map(quoted, keys), *columns))
    found = reduce(lambda one, other: _joined(one, other, keys), chosen)
    try:
        return found.where(condition)
    except ParseException as error:
        raise ScoringError(
            f"the condition '{condition}' is not valid SQL: {str(error).strip().splitlines()[0]}"
        ) from error
    except AnalysisException as error:
        known = [*found.columns, *(name for one in tables for name in one.outputs)]
        # Spark names columns that there are, too, as suggestions.
        present = {name.lower() for name in found.columns}
        unknown = next((one for one in sorted(words) if f"`{one}`" in str(error) and one.lower() not in present), "")
        raise ScoringError(
            f"the condition '{condition}' does not fit the scores: {str(error).strip().splitlines()[0]}"
            f"{raw_columns.meant(unknown, known)}"
        ) from error


@on_running_session
def rank_scores(
    scores: DataFrame | Location,
    *,
    ranks: int = 10,
    error: float = 1e-4,
    models: Sequence[str] | None = None,
    spark: SparkSession | None = None,
) -> DataFrame:
    """Return the keys and, in lists with an element per model, the rank of each score among those of all rows.

    Rank 1 is the best ``1 / ranks`` of the rows that have a score; equal scores have one rank, the worse one. The
    cut-points are found by ``percentile_approx`` of Spark in a pass of its own.

    Args:
        scores: Packed output with scores, of ``score_fleet`` or of a run of ``run_fleet`` whose models are one step; or
            such a table.
        ranks: Number of ranks.
        error: Largest share of the rows by which a cut-point is misplaced; 0 for exact ranks of up to a billion rows,
            for which one task keeps all scores of 100 models in memory.
        models: The models of a table, in the order of its lists; by default those that the files name.
        spark: The session; by default the active one.

    Raises:
        ScoringError: There are no packed scores, or those of several steps; microbatches are not published; or
            ``ranks`` or ``error`` is out of range.
        FileNotFoundError: There are no scores.
    """
    if ranks < 2:
        raise ScoringError(f"ranks {ranks} is below 2; use 10 for deciles")
    if not 0 <= error < 0.5:
        raise ScoringError(f"error {error} is not a small share of the rows; use 0.0001, or 0 for exact ranks")
    steps = _tables(scores, models, session_for(scores, spark))
    if len(steps) > 1:
        raise ScoringError(
            f"the run {scores} has {len(steps):,} steps, which are tables of their own; rank the output of "
            f"score_fleet, or of a run of one group with all of its models in a microbatch"
        )
    (table,) = steps
    if not table.is_packed or "score" not in table.frame.columns:
        raise ScoringError("the scores have no lists of scores; write them with layout='packed', outputs='score'")
    # Beyond twice the rows, the sketch of Spark merges none of its values.
    accuracy = round(1 / error) if error else 2 * table.frame.count()
    shares = [number / ranks for number in range(1, ranks)]
    cuts = []
    for first in range(0, len(table.models), _MODELS_PER_JOB):
        places = range(first, min(first + _MODELS_PER_JOB, len(table.models)))
        found = [
            F.percentile_approx(F.get("score", place), shares, min(max(accuracy, 1), _BEST_ACCURACY))
            for place in places
        ]
        row = table.frame.agg(*found).first()
        # A model without a score has no cut-points, and ranks nothing.
        cuts += [values or [np.nan] * len(shares) for values in row or []]
    fields = ", ".join(
        f"`{field.name}` {field.dataType.simpleString()}" for field in table.frame.select(table.keys).schema
    )
    task = _Ranks(tuple(table.keys), np.array(cuts, np.float32).T.copy())
    return map_batches(table.frame.select(*table.keys, "score"), task, f"{fields}, Rank array<smallint>")


@dataclass(frozen=True, eq=False)
class _Ranks:
    """Body of a task that ranks scores.

    Attributes:
        cuts: float32 ``[ranks - 1, models]``, ascending.
    """

    keys: tuple[str, ...]
    cuts: np.ndarray

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield keys and ranks."""
        models = self.cuts.shape[1]
        for batch in batches:
            flat = batch.column("score").flatten()
            values = flat.to_numpy(zero_copy_only=False).reshape(-1, models)
            found = np.ones(values.shape, np.int16)
            for cut in self.cuts:
                found += values <= cut
            elements = pa.array(found.ravel(), mask=np.isnan(values).ravel())
            lists = pa.ListArray.from_arrays(np.arange(len(values) + 1, dtype=np.int32) * models, elements)
            columns = [batch.column(key) for key in self.keys]
            yield pa.RecordBatch.from_arrays([*columns, lists], [*self.keys, "Rank"])


def _tables(
    scores: DataFrame | Location, models: Sequence[str] | None, spark: SparkSession, words: Set[str] | None = None
) -> list[_Table]:
    """Return the tables that the scores consist of: of a run, those of the steps whose outputs the words name."""
    if isinstance(scores, DataFrame):
        return [_table(scores, models or _named_models([hadoop_path(uri) for uri in scores.inputFiles()]))]
    folder = StoragePath.of(scores)
    if not RunPlan.is_in(folder):
        files = [file.path for file in listing.list_files(folder) if file.path.name.endswith(".parquet")]
        frame = spark.read.parquet(hadoop_uri(folder, scores))
        return [_table(frame, models or _named_models(files))]
    plan = RunPlan.load(folder)
    published, tables = published_manifests(plan, folder), []
    named = None if words is None else _named_outputs(words, plan.models)
    for step in plan.steps:
        if named is not None and not named & _outputs_of(step.digests).keys():
            continue
        own = [one for one in plan.microbatches if one.step is step]
        if left := [one.number for one in own if one.number not in published]:
            raise ScoringError(
                f"{len(left):,} of the {len(own):,} microbatches of step {step.number} of the group '{step.group}' of "
                f"{plan.run} are not published; resume the run"
            )
        paths = [hadoop_uri(folder / one.folder, scores) for one in own]
        tables.append(_table(spark.read.parquet(*paths), tuple(step.digests)))
    return tables


def _table(frame: DataFrame, models: Sequence[str]) -> _Table:
    if MODEL_COLUMN in frame.columns and MODEL_COLUMN not in models:
        raise ScoringError("the scores are in the layout long; filter them by the column model, or write them packed")
    packed = _Table(frame, tuple(models), {}).is_packed
    present = {name.lower() for name in frame.columns}
    # A key of wide outputs may be called score.
    outputs = {name: of for name, of in _outputs_of(models).items() if (of[1] if packed else name).lower() in present}
    return _Table(frame, tuple(models), outputs)


def _outputs_of(models: Iterable[str]) -> dict[str, tuple[str, str]]:
    return {f"{model}_{output}": (model, output) for model in models for output in OUTPUTS}


def _named_outputs(words: Set[str], models: Iterable[str]) -> set[str]:
    """Return the outputs that the words of a condition name: the one of exactly that spelling, else in another case.

    Raises:
        ScoringError: Two of them differ only in case.
    """
    outputs, spellings = _outputs_of(models), defaultdict[str, set[str]](set)
    for name in outputs:
        spellings[name.lower()].add(name)
    named = {name for word in words for name in ({word} & outputs.keys() or spellings[word.lower()])}
    for name in sorted(named):
        # Spark ignores case, and could not distinguish two such columns.
        if len(both := sorted(spellings[name.lower()] & named)) > 1:
            raise ScoringError(
                f"the condition may mean {' and '.join(map(repr, both))}, which differ only in case; name one of them, "
                f"exactly so, and the other one in a selection of its own"
            )
    return named


def _joined(one: DataFrame, other: DataFrame, keys: Sequence[str]) -> DataFrame:
    key_names = [f"`{key}`" for key in keys]
    is_same = reduce(and_, (one[key].eqNullSafe(other[key]) for key in key_names))
    return one.join(other, is_same).drop(*(other[key] for key in key_names))


def _named_models(files: Sequence[StoragePath]) -> tuple[str, ...]:
    """Return the models that files of scores name."""
    for file in files[:1]:
        with file.open_read() as source:
            named = (pq.read_metadata(source).metadata or {}).get(MODELS_KEY.encode())
        if named is not None:
            return tuple(json.loads(named))
    raise ScoringError("the scores do not name their models; give them as models=, in the order of the lists")
