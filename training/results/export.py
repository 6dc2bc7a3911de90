"""The export of the best checkpoint: a model, its reference predictions and a registered version.

It runs in a separate process on the driver (``python -m mirrorspark.training.results.export``), because TensorFlow must
not be loaded into the driver: Spark forks it, and a notebook's driver lives for days. Imports take half of its time, so
it may be started before its plan is known.
"""

import dataclasses
import gc
import hashlib
import importlib
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow.parquet as pq

from mirrorspark.callbacks.mlflow import tracking_store
from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines import EXAMPLE_FILE, library_versions
from mirrorspark.data_pipelines.dataset import FEATURES_FOLDER
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.distributions import library_version
from mirrorspark.models import catalog, classical, own_model
from mirrorspark.models.serving import signatures
from mirrorspark.scoring.embedding import encoder_versions, graph_encoders, save_features
from mirrorspark.scoring.model import SAMPLE_FILE, TOWERS_FOLDER, Catalogue, input_example, mlflow_flavour
from mirrorspark.scoring.model.folder import OUTPUTS, QUANTILES, SAVED_MODEL_FOLDER, ModelDescription, ModelDirectory
from mirrorspark.storage import atomic_file, clean, one_line
from mirrorspark.training.executor import OnProgress, Tail, child_process
from mirrorspark.training.results.best_model import best_model
from mirrorspark.training.results.best_recommender import best_recommender
from mirrorspark.training.results.decide import add_decisions
from mirrorspark.training.results.evaluation import CHOICE_FILE
from mirrorspark.training.results.predictions import all_predictions, of_raw_rows, traced

# Tags of a registered version: the checkpoint of the run's best epoch, and the parts that were registered after it.
CHECKPOINT_TAG = "checkpoint"
ARCHITECTURE_TAG = "architecture"
CHOICE_TAG = "choice"

# Begins the source of a version that is a logged model.
_LOGGED = "models:/m-"

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


@dataclass(frozen=True)
class ExportPlan:
    """The plan of an export.

    Attributes:
        dataset: Dataset directory.
        checkpoint: Committed checkpoint of the best epoch, or the file of a model that was fitted.
        model: Name of the architecture.
        model_options: The architecture's settings.
        top_k: Candidates per row of a retrieval model.
        folder: Folder for the exported model.
        predictions: Folder for the reference predictions, one Parquet file per evaluated split.
        tracking_uri: MLflow store.
        registry_uri: MLflow's registry of models.
        mlflow_run_id: Run that the model belongs to.
        model_name: Name of the logged model.
        registered_model: Name in the model registry.
        model_tags: Tags of the registered version and of the logged model.
        threads: TensorFlow threads.
        monitor: Metric that chooses between the model, baselines and their blend.
        register: ``model``, or ``better`` to register the best of them.
        baselines: Name and settings of each baseline to choose from.
        recommenders: The same of a retrieval model.
        calibration: Kind of the calibration of the predictions.
        explain: Explain the registered one's predictions of the test rows that the dataset has kept.
        class_weights: Factors of rows' weights by class, for the fit of gradient boosting.
        costs: Cost of each decision, by the actual class and the one decided for; empty for a model without decisions.
        monotone: Directions of features that the registered one must hold.
    """

    dataset: str
    checkpoint: str
    model: str
    model_options: dict[str, Any]
    seed: int
    top_k: int
    folder: str
    predictions: str
    tracking_uri: str
    registry_uri: str
    mlflow_run_id: str
    model_name: str
    registered_model: str
    model_tags: dict[str, str]
    threads: int
    monitor: str = ""
    register: str = "model"
    baselines: list[dict[str, Any]] = field(default_factory=list)
    recommenders: list[dict[str, Any]] = field(default_factory=list)
    calibration: str = "none"
    explain: bool = False
    class_weights: Sequence[float] = ()
    costs: Sequence[Sequence[float]] = ()
    monotone: Mapping[str, str] | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """The part of the plan that two exports with the same result share."""
        # It is written to a file, which must have neither a server's password nor the values of a notebook's function.
        options = own_model.without_code({"name": self.model, **self.model_options})
        document = clean(dataclasses.asdict(self) | {"model_options": options})
        return {name: value for name, value in document.items() if name != "threads"}


@dataclass(frozen=True)
class ExportResult:
    """The model in MLflow: its URI and its version in the registry."""

    model_uri: str
    model_version: str


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
    architecture: Any = catalog.architecture(plan.model)
    on_progress("restoring the best epoch")
    model = _restored_model(plan, dataset)
    if plan.calibration != "none":
        from mirrorspark.training.results.calibrate import calibrate

        architecture = calibrate(architecture, model, dataset, plan.calibration, Path(plan.folder), on_progress)
    registered = name = plan.model
    is_retrieval = architecture.TASK == "retrieval"
    if is_retrieval and plan.register == "better":
        registered, name, architecture, model = best_recommender(plan, dataset, architecture, model, on_progress)
    on_progress("building the index" if is_retrieval else "writing the model")
    _write_model(plan, dataset, name, architecture, model, on_progress)
    scorer, predict = (architecture, model), traced(architecture, model)
    tables = all_predictions(architecture, model, predict, dataset, plan.top_k, partial(on_progress, "rows predicted"))
    Path(plan.predictions).mkdir(parents=True, exist_ok=True)
    if plan.register == "better" and not is_retrieval:
        on_progress("fitting the other models")
        registered, tables, scorer, predict = best_model(plan, dataset, scorer, tables, predict, on_progress)
    if plan.costs:
        on_progress("fitting the decisions")
        add_decisions(plan.costs, dataset, tables["validation"], *scorer, Path(plan.folder))
    for split, table in tables.items():
        pq.write_table(table, Path(plan.predictions) / f"{split}.parquet")
    on_progress("registering")
    result = _register(plan, dataset, registered)
    on_progress("explaining the predictions")
    _explain(plan, dataset, predict)
    print(json.dumps(dataclasses.asdict(result)), file=answer, flush=True)
    # Skips the garbage collection of all libraries at Python's exit: 2 of 10 seconds.
    gc.freeze()
    return 0


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
    plan: ExportPlan, dataset: Dataset, name: str, architecture: Any, model: Any, on_progress: OnProgress
) -> None:
    from mirrorspark.models.retrieval import BlendedRecommender, FittedRecommender, saved_towers
    from mirrorspark.models.serving import export as serving

    folder, saved = Path(plan.folder), Path(plan.folder) / SAVED_MODEL_FOLDER
    save_features(dataset.features, folder)
    encoders = graph_encoders(folder, dataset.spec.query_features)
    indexes: dict[str, float] = {}
    catalogue: Mapping[str, Any] = {}
    if isinstance(model, FittedRecommender | BlendedRecommender):
        # Only vectors have approximate indexes.
        indexes, exact = {signatures.EXACT: 1.0}, {signatures.EXACT: model.index}
        serving.save_retrieval(architecture, model, dataset.features, plan.top_k, exact, saved, encoders)
    elif architecture.TASK == "retrieval":
        sample = _sample_queries(architecture, model, dataset)
        built = serving.build_indexes(model, plan.top_k, scann=has_scann(), sample=sample, on_progress=on_progress)
        indexes = serving.recalls(built, plan.top_k, sample)
        serving.save_retrieval(architecture, model, dataset.features, plan.top_k, built, saved, encoders)
        if saved_towers.has_item_tower(model):
            saved_towers.save_towers(architecture, model, dataset.features, folder / TOWERS_FOLDER)
            np.save(folder / SAMPLE_FILE, sample)
            catalogue = dataclasses.asdict(Catalogue.of_training(dataset.features, plan.top_k, datetime.now(UTC)))
    else:
        serving.save(serving.ScoringModule(architecture, model, dataset.features, encoders), saved)
    ModelDescription(
        task=architecture.TASK,
        architecture=name,
        features_hash=dataset.features.hash,
        outputs={**OUTPUTS[architecture.TASK], **(QUANTILES if getattr(model, "has_quantiles", False) else {})},
        versions=encoder_versions(folder, dataset.spec.embedded)
        | library_versions()
        | {"tensorflow": library_version("tensorflow")},
        indexes=indexes,
        catalogue=catalogue,
    ).with_columns(dataset.features, folder).save(folder)


def _sample_queries(architecture: Any, model: Any, dataset: Dataset) -> np.ndarray:
    """Return the queries of the first rows of the validation split, float32 ``[queries, dim]``."""
    from mirrorspark.models.serving import input_tensors

    parts: list[np.ndarray] = []
    for block in dataset.blocks("validation"):
        parts.append(architecture.predict(model, input_tensors(dataset.spec.query_features, block.features)).numpy())
        if sum(map(len, parts)) >= _SAMPLED_QUERIES:
            break
    return np.concatenate(parts)[:_SAMPLED_QUERIES]


def _register(plan: ExportPlan, dataset: Dataset, architecture: str) -> ExportResult:
    import mlflow

    mlflow.set_tracking_uri(plan.tracking_uri)  # For this process alone, like the registry.
    mlflow.set_registry_uri(plan.registry_uri)
    client = tracking_store.store_client(plan.tracking_uri, plan.registry_uri)
    known = registered_before(client, plan, architecture)
    if known is not None:
        return known
    delete_unregistered(client, plan)
    folder = Path(plan.folder)
    example = input_example(dataset.path / FEATURES_FOLDER / EXAMPLE_FILE, folder)
    # System metrics are off in any environment, since they would be those of the export.
    mlflow.start_run(run_id=plan.mlflow_run_id, log_system_metrics=False)
    try:
        flavour = mlflow_flavour(ModelDirectory.open(folder))
        flavour["metadata"] |= {"dataset": Path(plan.dataset).name}
        info = mlflow.pyfunc.log_model(
            name=plan.model_name,
            data_path=plan.folder,
            **flavour,
            input_example=example,
            registered_model_name=plan.registered_model,
            # The registered version gets these tags, too, in the request that creates it.
            tags=plan.model_tags
            | {CHECKPOINT_TAG: Path(plan.checkpoint).name, ARCHITECTURE_TAG: architecture}
            | {CHOICE_TAG: choice_digest(plan)},
        )
    finally:
        # The driver ends the run, after scoring and parity.
        mlflow.end_run(status="RUNNING")
    version = str(info.registered_model_version)
    return ExportResult(model_uri=info.model_uri, model_version=version)


def choice_digest(plan: ExportPlan) -> str:
    """Return a digest of the models that one was chosen from and of their shares in a blend; empty without a choice.

    A repeated export may have been given other models, or less time for their fits.
    """
    if plan.register != "better":
        return ""
    choice = json.loads((Path(plan.predictions) / CHOICE_FILE).read_text(encoding="utf-8"))
    decided = [choice["registered"], sorted(choice["values"]), sorted(choice["weights"].items())]
    return hashlib.sha256(json.dumps(decided).encode()).hexdigest()[:12]


def registered_before(client: Any, plan: ExportPlan, architecture: str) -> ExportResult | None:
    """Return the version of ``architecture`` that an earlier export of this run's checkpoint has registered, or None.

    A repeated delivery must not register a second version of the same weights.
    """
    found = client.search_model_versions(f"run_id = '{plan.mlflow_run_id}'")
    for known in sorted(found, key=lambda known: int(known.version), reverse=True):
        if known.name != plan.registered_model:
            continue
        # Model versions that are older than the setting register lack the second tag.
        wanted = (Path(plan.checkpoint).name, architecture, choice_digest(plan))
        tags = (
            known.tags.get(CHECKPOINT_TAG),
            known.tags.get(ARCHITECTURE_TAG, plan.model),
            known.tags.get(CHOICE_TAG, ""),
        )
        if known.status == "READY" and tags == wanted:
            return ExportResult(known.source, str(known.version))
    return None


def delete_unregistered(client: Any, plan: ExportPlan) -> None:
    """Delete the run's logged models of this name without a version: an earlier export was killed at its registration.

    ``mlflow gc`` removes their files.
    """
    from mlflow.entities import LoggedModelStatus

    run = client.get_run(plan.mlflow_run_id).info
    sources = {known.source for known in client.search_model_versions(f"run_id = '{run.run_id}'")}
    of_run = f"source_run_id = '{run.run_id}'"
    for model in client.search_logged_models([run.experiment_id], filter_string=of_run):
        # A registry that copies models does not show which of them became a version.
        is_left = model.model_uri not in sources and all(source.startswith(_LOGGED) for source in sources)
        if model.name == plan.model_name and (is_left or model.status != LoggedModelStatus.READY):
            client.delete_logged_model(model.model_id)


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
