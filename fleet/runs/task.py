"""Tasks of a microbatch: they write files of fixed names, and report the models that fail instead of failing."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from mirrorspark.clear_error import ClearError
from mirrorspark.fleet.bins import BINS
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.runs.failures import NOT_OF_A_MODEL, ModelFailure, failing, without_outputs
from mirrorspark.fleet.scorer import FleetScorer
from mirrorspark.fleet.task import FleetCounts, FleetWriter, cached_scorer, load_scorer
from mirrorspark.scoring import file_job
from mirrorspark.storage.publish import WrittenFile


class FailedModelsError(ClearError, RuntimeError):
    """Raised for models that failed in a microbatch, whose rows are then scored again without them."""

    def __init__(self, failures: Sequence[ModelFailure]) -> None:
        super().__init__(f"{len(failures):,} models failed, {failures[0].model} with {failures[0].message}")
        self.failures = tuple(failures)

    def __reduce__(self) -> tuple[type["FailedModelsError"], tuple[tuple[ModelFailure, ...]]]:
        """Pickle by the failures: the message alone does not rebuild the error."""
        return FailedModelsError, (self.failures,)


def brief(seconds: Iterable[float]) -> list[float]:
    """Return seconds rounded to four digits: clocks are no more precise, and as JSON they stay short."""
    return [float(f"{value:.4g}") for value in seconds]


@dataclass(frozen=True)
class Selection:
    """The models of a microbatch; those that have failed in it have no outputs."""

    models: tuple[str, ...]
    failed: tuple[str, ...] = ()

    def __call__(self, fleet: Fleet) -> Fleet:
        """Return these models of the fleet of a run."""
        chosen = fleet.select(self.models)
        return Fleet(without_outputs(chosen.table, self.failed), chosen.digests)


@dataclass(frozen=True)
class MicrobatchWriter(FleetWriter):
    """Scores rows with some models of a fleet, and writes the outputs into a file whose bytes depend on nothing else.

    An error of a model is reported. If it were raised, Spark would try the task three times more, and give up the job.

    Attributes:
        selection: The models.
        model_seconds: The most seconds of a task that one model may take; None for no limit.
    """

    selection: Selection
    model_seconds: float | None = None

    def scorer(self) -> FleetScorer:
        """Return the scorer of the rows, from the cache of this process or from the fleet's files.

        Raises:
            FailedModelsError: Models cannot be prepared.
        """
        with self._blaming_models(lambda _: None):
            return cached_scorer(self.fleet.folder(), self.fleet.digest, self.layout, self.outputs, self.selection)

    def path(self, number: int, attempt: str) -> str:
        """Return the name of the file of a share, the same in every attempt."""
        return f"part-{number:05d}.parquet"

    def scored(self, scorer: FleetScorer, rows: pa.RecordBatch, counts: FleetCounts) -> Iterator[pa.RecordBatch]:
        """Yield keys and outputs of some rows, and count the rows and the outputs.

        Raises:
            FailedModelsError: Models raise an error for these rows, or have taken too long.
        """
        if counts.by_bin is None:
            counts.by_bin = np.zeros((len(self.selection.models), BINS), np.int32)
        with self._blaming_models(lambda some: deque(some.batches(rows, self.keys.names), maxlen=0)):
            yield from super().scored(scorer, rows, counts)
        if self.model_seconds is None:
            return
        models = zip(scorer.layout.models, scorer.seconds, strict=True)
        if slow := [name for name, took in models if took > self.model_seconds and name not in self.selection.failed]:
            # The same message each time, since the manifest has it.
            message = f"it takes more than {self.model_seconds:g} s of a task; make it smaller, or raise model_seconds"
            raise FailedModelsError([ModelFailure(name, "score", "ModelTimeError", message) for name in slow])

    def write_share(self, number: int, read: file_job.Read, counts: FleetCounts) -> list[WrittenFile]:
        """Score and write a share; return its files, or none if models have failed."""
        try:
            self.scorer().seconds.fill(0)  # the same scorer has served other tasks of this process
            files = super().write_share(number, read, counts)
        except FailedModelsError as error:
            counts.failures = [asdict(replace(one, partition=number)) for one in error.failures]
            return []
        counts.model_seconds = brief(self.scorer().seconds.tolist())
        for file in files:
            with self.job.attempt_file(file.attempt, file.path).open_stream() as written:
                counts.digests[file.path] = hashlib.file_digest(written, "sha256").hexdigest()
        return files

    @contextmanager
    def _blaming_models(self, score: Callable[[FleetScorer], Any]) -> Iterator[None]:
        """Find the models that cause an error in the block: those for which ``score`` raises one, too."""
        try:
            yield
        except NOT_OF_A_MODEL:
            raise
        except Exception as error:
            models = self.selection.models
            found = failing(models, lambda some: score(self._scorer_of(tuple(some))))
            # An error that all models share is not their fault.
            if not found or (len(found) == len(models) > 1):
                raise
            failures = [ModelFailure.of(model, "score", cause) for model, cause in found.items()]
            raise FailedModelsError(failures) from error

    def _scorer_of(self, models: tuple[str, ...]) -> FleetScorer:
        selection = Selection(models, self.selection.failed)
        return load_scorer(self.fleet.folder(), self.fleet.digest, self.layout, self.outputs, selection)
