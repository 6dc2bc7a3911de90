"""The export of the best checkpoint: a model, its reference predictions and a registered version.

It runs in a separate process on the driver (``python -m mirrorspark.training.results.export``), because TensorFlow must
not be loaded into the driver: Spark forks it, and a notebook's driver lives for days. Imports take half of its time, so
it may be started before its plan is known.
"""

import dataclasses
import gc
import importlib
import json
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines import library_versions
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.distributions import library_version
from mirrorspark.models import ProbabilisticArchitecture, catalog, classical, decisions
from mirrorspark.models.serving import signatures
from mirrorspark.scoring.embedding import encoder_versions, graph_encoders, save_features
from mirrorspark.scoring.model import SAMPLE_FILE, TOWERS_FOLDER, Catalogue
from mirrorspark.scoring.model.folder import OUTPUTS, QUANTILES, SAVED_MODEL_FOLDER, ModelDescription
from mirrorspark.storage import atomic_file, one_line
from mirrorspark.training.executor import OnProgress, Tail, child_process
from mirrorspark.training.results.best_model import best_model
from mirrorspark.training.results.best_recommender import best_recommender
from mirrorspark.training.results.decide import fitted_decisions
from mirrorspark.training.results.export_plan import ExportPlan, ExportResult
from mirrorspark.training.results.predictions import all_predictions, of_raw_rows, traced
from mirrorspark.training.results.registration import register

# This many queries estimate the recall of 20 candidates to half a percent.
_SAMPLED_QUERIES = 1_000

logger = logging.getLogger(__name__)

# Libraries of every export, whose imports take seconds; functions import them again, which costs nothing.
_LIBRARIES = (
    "tensorflow",
    "mirrorspark.callbacks.backup",
    "mirrorspark.models.serving.export",
    "mlflow.pyfunc",
    "mlflow.pyfunc.scoring_server",
)


class ExportFailedError(ClearError, RuntimeError):
    """The model could not be exported; the message is the first error of the export process."""


class ExportProcess:
    """An export process, which loads its libraries from its start on and then waits for its plan."""

    def __init__(self, threads: int, *, verbose: bool = False) -> None:
        """Start the process.

        Args:
            threads: TensorFlow threads.
            verbose: Show its output.
        """
        environment = child_process.tensorflow_environment(threads, verbose=verbose) | {
            "CUDA_VISIBLE_DEVICES": "-1",
            # MLflow would send telemetry about each call, and wait for an answer at the end.
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        self._process = child_process.start("mirrorspark.training.results.export", environment)
        self._tail = Tail(self._process.stderr, echo=verbose)

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()

    @property
    def is_alive(self) -> bool:
        """Return True if it can still take a plan."""
        return self._process.poll() is None

    def export(self, plan: ExportPlan, on_progress: OnProgress = lambda doing, done=0, total=0: None) -> ExportResult:
        """Export by ``plan``; to be called once.

        Args:
            plan: The plan of the export.
            on_progress: Gets the progress of the export.

        Raises:
            ExportFailedError: The export failed; the message has the last line of its output.
        """
        child_process.send(self._process, json.dumps(dataclasses.asdict(plan)))
        answer = child_process.answer(self._process, on_progress)
        if status := self._process.wait():
            raise ExportFailedError(f"export failed: {child_process.why_it_failed(status, self._tail)}")
        return ExportResult(**answer)

    def close(self) -> None:
        """End the process in any state."""
        child_process.end(self._process, self._tail)


def export_once(
    plan: ExportPlan,
    kept: Path,
    *,
    verbose: bool = False,
    process: ExportProcess | None = None,
    on_progress: OnProgress = lambda doing, done=0, total=0: None,
) -> ExportResult:
    """Return an earlier driver's export by the same plan if it is complete; otherwise export.

    Args:
        plan: The plan of the export.
        kept: File with the result of the earlier export.
        verbose: Show the process's output.
        process: The export process, if it has been started; the caller ends it.
        on_progress: Gets the progress of the export.

    Raises:
        ExportFailedError: The export failed; the message has the last line of its output.
    """
    known = _kept(plan, kept)
    if known is not None:
        return known
    # The record of the files is not valid while they are being rewritten.
    kept.unlink(missing_ok=True)
    result = export(plan, verbose=verbose, process=process, on_progress=on_progress)
    document = {"plan": plan.identity, "result": dataclasses.asdict(result), "files": _files(plan)}
    atomic_file.write_atomically(kept, json.dumps(document, indent=2))
    return result


def _kept(plan: ExportPlan, kept: Path) -> ExportResult | None:
    try:
        document = json.loads(kept.read_text(encoding="utf-8"))
        is_whole = document["plan"] == plan.identity and document["files"] == _files(plan)
        return ExportResult(**document["result"]) if is_whole else None
    except (OSError, ValueError, TypeError, LookupError):
        return None


def _files(plan: ExportPlan) -> dict[str, int]:
    """Return the files of the exported model and of the predictions with their sizes."""
    folders = (Path(plan.folder), Path(plan.predictions))
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {str(path): path.stat().st_size for path in files}


def export(
    plan: ExportPlan,
    *,
    verbose: bool = False,
    process: ExportProcess | None = None,
    on_progress: OnProgress = lambda doing, done=0, total=0: None,
) -> ExportResult:
    """Run the export in ``process``, or in a new one.

    Raises:
        ExportFailedError: With the last line of the process's output.
    """
    if process is not None and process.is_alive:
        return process.export(plan, on_progress)
    with ExportProcess(plan.threads, verbose=verbose) as new:
        return new.export(plan, on_progress)


def main() -> int:
    """Export by the plan on standard input; print a JSON line per step, and one with the result."""
    line, answer = child_process.take_over(prepare=_load_libraries)
    on_progress = child_process.progress_reporter(answer)
    plan = ExportPlan(**json.loads(line))
    dataset = Dataset.open(plan.dataset)
    Path(plan.predictions).mkdir(parents=True, exist_ok=True)
    on_progress("restoring the best epoch")
    trained = _Exported(plan.model, plan.model, catalog.architecture(plan.model), _restored_model(plan, dataset))
    chosen = _chosen(plan, dataset, trained, on_progress)
    calibrated = _calibrated(plan, dataset, chosen, on_progress)
    predictions = calibrated.predictions or _predictions(plan, dataset, calibrated, on_progress)
    final = _deciding(plan, dataset, calibrated, predictions)
    on_progress("building the index" if trained.is_retrieval else "writing the model")
    _write_model(plan, dataset, final.name, final.architecture, final.model, final.rule, on_progress)
    for split, table in predictions.tables.items():
        pq.write_table(table, Path(plan.predictions) / f"{split}.parquet")
    on_progress("registering")
    result = register(plan, dataset, final.registered)
    on_progress("explaining the predictions")
    _explain(plan, dataset, predictions.predict)
    print(json.dumps(dataclasses.asdict(result)), file=answer, flush=True)
    # Skips the garbage collection of all libraries at Python's exit: 2 of 10 seconds.
    gc.freeze()
    return 0


@dataclass(frozen=True)
class _Predictions:
    """A model's prediction as a graph, and its predictions of the evaluated splits."""

    predict: Callable[[Any], Any]
    tables: Mapping[str, pa.Table]


@dataclass(frozen=True)
class _Exported:
    """The model that is exported, after one of the steps that make it.

    Attributes:
        registered: Its name in the registry's tag: its architecture, of some recommenders with their settings.
        name: The name of its architecture.
        predictions: Its predictions, if a step has needed them already.
        rule: Its rule of decisions by cost, if it has one.
    """

    registered: str
    name: str
    architecture: Any
    model: Any
    predictions: _Predictions | None = None
    rule: decisions.Decisions | None = None

    @property
    def is_retrieval(self) -> bool:
        return bool(self.architecture.TASK == "retrieval")


def _chosen(plan: ExportPlan, dataset: Dataset, trained: _Exported, on_progress: OnProgress) -> _Exported:
    """Return the trained model, or where the plan says so the best of it and others, which are fitted here."""
    if plan.register != "better":
        return trained
    if trained.is_retrieval:
        return _Exported(*best_recommender(plan, dataset, trained.architecture, trained.model, on_progress))
    known = _predictions(plan, dataset, trained, on_progress)
    on_progress("fitting the other models")
    name, tables, (architecture, model), predict = best_model(
        plan, dataset, (trained.architecture, trained.model), known.tables, known.predict, on_progress
    )
    return _Exported(name, name, architecture, model, _Predictions(predict, tables))


def _calibrated(plan: ExportPlan, dataset: Dataset, chosen: _Exported, on_progress: OnProgress) -> _Exported:
    """Return the model with calibrated probabilities, if the plan asks for them."""
    if plan.calibration == "none":
        return chosen
    from mirrorspark.training.results.calibrate import calibrate

    architecture = chosen.architecture
    if chosen.registered != plan.model:
        architecture = ProbabilisticArchitecture(catalog.architecture(plan.model), architecture)
    architecture = calibrate(architecture, chosen.model, dataset, plan.calibration, Path(plan.folder), on_progress)
    # Calibration changes the predictions.
    return dataclasses.replace(chosen, architecture=architecture, predictions=None)


def _predictions(plan: ExportPlan, dataset: Dataset, exported: _Exported, on_progress: OnProgress) -> _Predictions:
    architecture, model = exported.architecture, exported.model
    predict, on_rows = traced(architecture, model), partial(on_progress, "rows predicted")
    return _Predictions(predict, all_predictions(architecture, model, predict, dataset, plan.top_k, on_rows))


def _deciding(plan: ExportPlan, dataset: Dataset, calibrated: _Exported, predictions: _Predictions) -> _Exported:
    """Return the model with decisions, if the plan has costs of mistakes."""
    if not plan.costs:
        return calibrated
    rule = fitted_decisions(plan.costs, dataset, predictions.tables["validation"])
    architecture = decisions.DecidingArchitecture(calibrated.architecture, rule)
    return dataclasses.replace(calibrated, architecture=architecture, rule=rule)


def _load_libraries() -> None:
    """Import the libraries of every export without garbage collection, which would take 1 of 4 seconds in vain."""
    gc.disable()
    for name in _LIBRARIES:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()


def _restored_model(plan: ExportPlan, dataset: Dataset) -> Any:
    from mirrorspark.callbacks import restore_weights
    from mirrorspark.callbacks.checkpoints import read_committed

    architecture = catalog.architecture(plan.model)
    if isinstance(architecture, classical.FittedArchitecture):
        from mirrorspark.training.programs.recommenders import load

        settings = catalog.settings(plan.model, plan.model_options)
        return architecture.build(settings, dataset.features, load(Path(plan.checkpoint)))
    model = architecture.build(catalog.settings(plan.model, plan.model_options), dataset.features, plan.seed)
    restore_weights(model, read_committed(Path(plan.checkpoint)))
    return model


def _explain(plan: ExportPlan, dataset: Dataset, predict: Callable[[Any], Any]) -> None:
    """Write an explanation of the predictions next to them, if they can be explained quickly."""
    from mirrorspark.training.results.evaluation import EXPLANATION_FILE, explain_on_kept_rows

    path = Path(plan.predictions) / EXPLANATION_FILE
    path.unlink(missing_ok=True)  # of a model that was exported before
    if not plan.explain:
        return
    try:
        found = explain_on_kept_rows(dataset.kept_test_rows(), dataset.features, of_raw_rows(predict, dataset.features))
    except Exception as error:
        # The model is registered already: a run does not fail for a section of its report.
        logger.warning("the predictions cannot be explained: %s", one_line(error))
        return
    if found is not None:
        found.save(path)


def _write_model(
    plan: ExportPlan,
    dataset: Dataset,
    name: str,
    architecture: Any,
    model: Any,
    rule: decisions.Decisions | None,
    on_progress: OnProgress,
) -> None:
    from mirrorspark.models.serving import export as serving

    folder = Path(plan.folder)
    task: Any = catalog.architecture(plan.model).TASK
    save_features(dataset.features, folder)
    encoders = graph_encoders(folder, dataset.spec.query_features)
    indexes: Mapping[str, float] = {}
    catalogue: Mapping[str, Any] = {}
    if task == "retrieval":
        indexes, catalogue = _save_retrieval(plan, dataset, architecture, model, encoders, on_progress)
    else:
        module = serving.ScoringModule(architecture, model, dataset.features, encoders)
        serving.save(module, folder / SAVED_MODEL_FOLDER)
    outputs = {**OUTPUTS[task], **(QUANTILES if getattr(model, "has_quantiles", False) else {})}
    if rule is not None:
        rule.save(folder)
        outputs[decisions.DECISION] = rule.output_type
    # Trees and linear models are rebuilt from private attributes of scikit-learn's, so its version is recorded.
    libraries = ("tensorflow",) if name == plan.model or task == "retrieval" else ("tensorflow", "scikit-learn")
    ModelDescription(
        task=task,
        architecture=name,
        features_hash=dataset.features.hash,
        outputs=outputs,
        versions=encoder_versions(folder, dataset.spec.embedded)
        | library_versions()
        | {library: library_version(library) for library in libraries},
        indexes=indexes,
        catalogue=catalogue,
    ).with_columns(dataset.features, folder).save(folder)


def _save_retrieval(
    plan: ExportPlan, dataset: Dataset, architecture: Any, model: Any, encoders: Any, on_progress: OnProgress
) -> tuple[Mapping[str, float], Mapping[str, Any]]:
    """Write a retrieval model; return the recalls of its indexes, and its catalogue if it has a tower of items."""
    # With TensorFlow Recommenders, which other models do without.
    from mirrorspark.models.retrieval import BlendedRecommender, FittedRecommender, saved_towers
    from mirrorspark.models.serving import export as serving

    folder, saved = Path(plan.folder), Path(plan.folder) / SAVED_MODEL_FOLDER
    if isinstance(model, FittedRecommender | BlendedRecommender):
        # Only vectors have approximate indexes.
        exact = {signatures.EXACT: model.index}
        serving.save_retrieval(architecture, model, dataset.features, plan.top_k, exact, saved, encoders)
        return {signatures.EXACT: 1.0}, {}
    sample = _sample_queries(architecture, model, dataset)
    built = serving.build_indexes(model, plan.top_k, scann=has_scann(), sample=sample, on_progress=on_progress)
    indexes = serving.recalls(built, plan.top_k, sample)
    serving.save_retrieval(architecture, model, dataset.features, plan.top_k, built, saved, encoders)
    if not saved_towers.has_item_tower(model):
        return indexes, {}
    saved_towers.save_towers(architecture, model, dataset.features, folder / TOWERS_FOLDER)
    np.save(folder / SAMPLE_FILE, sample)
    return indexes, dataclasses.asdict(Catalogue.of_training(dataset.features, plan.top_k, datetime.now(UTC)))


def _sample_queries(architecture: Any, model: Any, dataset: Dataset) -> np.ndarray:
    """Return the queries of the first rows of the validation split, float32 ``[queries, dim]``."""
    from mirrorspark.models.serving import input_tensors

    parts: list[np.ndarray] = []
    for block in dataset.blocks("validation"):
        parts.append(architecture.predict(model, input_tensors(dataset.spec.query_features, block.features)).numpy())
        if sum(map(len, parts)) >= _SAMPLED_QUERIES:
            break
    return np.concatenate(parts)[:_SAMPLED_QUERIES]


def has_scann() -> bool:
    """Return whether ScaNN is installed here, and built for this TensorFlow."""
    import tensorflow as tf

    try:
        import scann  # noqa: F401
    except (ImportError, tf.errors.NotFoundError):
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
