"""The building of a model's indexes for a new table of items.

It runs in a process of its own (``python -m mirrorspark.recommending.item_index.build``), because TensorFlow must not
be loaded into the driver.
"""

import dataclasses
import gc
import json
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.features import FittedFeatures, item_rows
from mirrorspark.scoring.embedding import graph_encoders
from mirrorspark.scoring.model import SAMPLE_FILE, TOWERS_FOLDER
from mirrorspark.scoring.model.folder import FEATURES_FOLDER, SAVED_MODEL_FOLDER
from mirrorspark.training.executor import OnProgress, Tail, child_process
from mirrorspark.training.results import has_scann

if TYPE_CHECKING:  # it needs TensorFlow
    from mirrorspark.models.retrieval.saved_towers import KnownVectors


class RefreshError(ClearError, ValueError):
    """A catalogue without a usable index; the message has the reason and the remedy."""


@dataclass(frozen=True)
class BuildPlan:
    """A model folder that has features, towers and sample queries, and lacks the SavedModel.

    Attributes:
        top_k: Usual number of candidates per query.
        threads: TensorFlow threads.
        earlier: Folder of the model with the catalogue before, some of whose vectors stay; None to embed all items.
        kept: File of :attr:`data_pipelines.features.item_rows.ComparedItems.kept`; given with ``earlier``.
    """

    folder: str
    top_k: int
    threads: int
    earlier: str | None = None
    kept: str | None = None


@contextmanager
def build_plan(folder: Path, top_k: int, threads: int, earlier: Path, kept: np.ndarray | None) -> Generator[BuildPlan]:
    """Yield the plan to build the indexes in ``folder``, whose file of kept ids lives as long as this context."""
    if kept is None:
        yield BuildPlan(str(folder), top_k, threads)
        return
    with tempfile.TemporaryDirectory(prefix="mirrorspark-kept-") as scratch:
        file = Path(scratch) / "kept.npy"
        np.save(file, kept)
        yield BuildPlan(str(folder), top_k, threads, str(earlier), str(file))


def build(
    plan: BuildPlan,
    *,
    verbose: bool = False,
    on_progress: Callable[[str, int, int], None] = lambda doing, done, total: None,
) -> dict[str, float]:
    """Write the SavedModel into the model folder of ``plan``, and return the recall of each of its indexes.

    Args:
        plan: The plan.
        verbose: Show the process's output.
        on_progress: Gets the progress of the process.

    Raises:
        RefreshError: It failed; the message has the last line of the process's output.
    """
    return answered(
        "build", dataclasses.asdict(plan), "the index cannot be built", verbose=verbose, on_progress=on_progress
    )


def answered(
    module: str,
    plan: Mapping[str, Any],
    failure: str,
    *,
    verbose: bool = False,
    on_progress: Callable[[str, int, int], None] = lambda doing, done, total: None,
) -> dict[str, Any]:
    """Run a module of this folder in a process of its own, and return its answer.

    Args:
        module: Its name.
        plan: Its plan, with the ``threads`` of TensorFlow.
        failure: Begins the message of an error.
        verbose: Show the process's output.
        on_progress: Gets the progress of the process.

    Raises:
        RefreshError: It failed; the message has the last line of the process's output.
    """
    threads = child_process.tensorflow_environment(plan["threads"], verbose=verbose)
    environment = threads | {"CUDA_VISIBLE_DEVICES": "-1"}
    process = child_process.start(f"mirrorspark.recommending.item_index.{module}", environment)
    tail = Tail(process.stderr, echo=verbose)
    try:
        child_process.send(process, json.dumps(plan))
        answer = child_process.answer(process, on_progress)
        if status := process.wait():
            raise RefreshError(f"{failure}: {child_process.why_it_failed(status, tail)}")
        return answer
    finally:
        child_process.end(process, tail)


def main() -> int:
    """Build by the plan on standard input; print the recalls."""
    line, answer = child_process.take_over()
    plan = BuildPlan(**json.loads(line))
    recalls = write_indexes(plan, child_process.progress_reporter(answer))
    print(json.dumps(recalls), file=answer, flush=True)
    # Skips the garbage collection of all libraries at Python's exit.
    gc.freeze()
    return 0


def write_indexes(plan: BuildPlan, on_progress: OnProgress = lambda doing, done=0, total=0: None) -> dict[str, float]:
    """Write the SavedModel; return the recalls. Imports TensorFlow.

    Raises:
        ValueError: The vector of an item is not finite.
    """
    from mirrorspark.models.retrieval import saved_towers
    from mirrorspark.models.serving import export as serving

    folder = Path(plan.folder)
    fitted = FittedFeatures.load(folder / FEATURES_FOLDER)
    sample = np.load(folder / SAMPLE_FILE)
    towers = saved_towers.SavedTowers(folder / TOWERS_FOLDER, fitted, _known_vectors(plan))
    removed = item_rows.ids_without_item(fitted)
    indexes = serving.build_indexes(
        towers, plan.top_k, scann=has_scann(), sample=sample, removed=removed, on_progress=on_progress
    )
    on_progress("measuring the recall, writing the model", 0, 0)
    found = serving.recalls(indexes, plan.top_k, sample)
    # The module is its own architecture: its `predict` calls the saved query tower.
    encoders, saved = graph_encoders(folder, fitted.spec.query_features), folder / SAVED_MODEL_FOLDER
    serving.save_retrieval(saved_towers, towers, fitted, plan.top_k, indexes, saved, encoders)
    return found


def _known_vectors(plan: BuildPlan) -> "KnownVectors | None":
    from mirrorspark.models.retrieval import saved_towers
    from mirrorspark.models.serving import export as serving

    if plan.earlier is None or plan.kept is None:
        return None
    before, after = np.load(plan.kept)
    vectors = serving.saved_candidate_embeddings(Path(plan.earlier) / SAVED_MODEL_FOLDER)
    return saved_towers.KnownVectors(after, vectors[before])


if __name__ == "__main__":
    sys.exit(main())
