"""``train_fleet``: from a table with many targets to a fleet and a report, as one job of stacked models."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow.exceptions import MlflowException
from pyspark.sql import SparkSession

from mirrorspark.callbacks.mlflow import tracking_store
from mirrorspark.data_pipelines.dataset import SPLITS
from mirrorspark.data_pipelines.features import fitting
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.fleet.columns import FleetError, some
from mirrorspark.fleet.training.declared import declared_models
from mirrorspark.fleet.training.inputs import StackInput, inputs_of
from mirrorspark.fleet.training.plan import StackMember, StackPlan, StackSettings, train_stack
from mirrorspark.fleet.training.rows import FleetRows, converted, split_rows
from mirrorspark.fleet.training.targets import TargetSums
from mirrorspark.fleet.training.trained import TrainedFleet, fleet_of, report_of, summary
from mirrorspark.spark_session import MOST_LOCAL_SLOTS, open_session, session_of
from mirrorspark.storage import atomic_file, without_credentials
from mirrorspark.training.configuration import (
    ConfigError,
    check_experiment,
    check_name,
    check_output,
    default_batch_size,
    default_workers,
)
from mirrorspark.training.entry_points import (
    Launched,
    check_session,
    run_train_fn,
)
from mirrorspark.training.protocol import Elastic, parse_workers
from mirrorspark.training.run_records.live import LiveView

FLEET_FOLDER, REPORT_NAME = "fleet", "models"

_TRAIN = SPLITS[0]

_LOGGER = logging.getLogger(__name__)


def train_fleet(
    table: Any,
    models: Any,
    *,
    columns: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    keys: str | Sequence[str] | None = None,
    link: str = "logit",
    penalty: float = 0.0,
    hidden: int | Sequence[int] = (),
    activation: str = StackSettings.activation,
    epochs: int = StackSettings.epochs,
    patience: int = StackSettings.patience,
    learning_rate: float = StackSettings.learning_rate,
    global_batch_size: int | None = None,
    seed: int = StackSettings.seed,
    workers: int | None = None,
    name: str = "fleet",
    output: str | Path = tracking_store.DEFAULT_OUTPUT,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    resume: bool = True,
    spark: SparkSession | None = None,
    verbose: bool = False,
) -> TrainedFleet:
    """Train a model for each of many targets over one table, all in one pass, and return them as a fleet.

    The weights of all models are stacked, so that a layer of all of them is one product, on one or several workers
    under supervision (:func:`training.entry_points.run_train_fn`). Each model is what it would be on its own
    with the same batches: it learns from the rows that have a label of its target, has its own penalty, and stops by
    its own validation loss, with the weights of its best epoch. Linear models begin with zeros and the intercept of the
    mean label. The same call goes on with a training that did not finish.

    Numbers are standardised, and a missing one is replaced by the mean. The categories of a column of texts are inputs
    of 0 and 1, all of them 0 for a missing text and for one that is not among the 100 most frequent. Targets of the
    link ``identity`` are standardised, too. Penalties apply to these units; the fleet reads the columns as they are.

    The table of models has ``model`` and, as needed, ``target`` (a column of numbers or booleans, null for no label; by
    default the model's name), ``link``, ``penalty``, ``columns`` (those of ``columns`` that the model reads; a CSV file
    has spaces between them), and ``group``, ``threshold`` and ``cut_points`` as in
    :func:`fleet.fleet_from_coefficients`.

    Args:
        table: A Spark, pandas or Polars DataFrame, a PyArrow table, the name of a table, or the path of Parquet, CSV or
            JSON files. If it has a column ``split`` (``train``, ``validation``, ``test``), that is the split; else a
            hash of the keys puts 80 %, 10 % and 10 % of the rows there.
        models: A list of the targets, each of which becomes a model, or a table of models, or the path of its file.
        columns: The columns that models read, or the options of a ``numeric`` or ``categorical`` feature by column:
            ``{"income": {"kind": "numeric", "log": True}}``. By default all columns of numbers that have no other use.
        keys: Columns that identify a row; by default the row's number in a table in memory.
        link: Link of models that have none: ``logit`` (logistic regression), ``identity`` or ``log`` (Poisson).
        penalty: Penalty of models that have none: half of it times the sum of the squared weights is added to the loss.
        hidden: Units of the hidden layers; by default none: the models are linear.
        activation: Activation of the hidden layers.
        epochs: Most passes over the training rows.
        patience: Epochs without a lower validation loss after which a model stops.
        learning_rate: Step size of Adam.
        global_batch_size: Rows of one update, over all workers; by default a hundredth of the training rows, from 64 to
            4,096.
        seed: Fixes the split, the order of the rows and the initial weights of networks.
        workers: Workers that train side by side, on CPUs; by default as the session has slots, at most one per
            20,000 training rows.
        name: Names the run, the dataset and, by default, the MLflow experiment.
        output: Folder for datasets, runs and the MLflow store by default; driver and workers share it.
        tracking_uri: MLflow tracking server or store.
        experiment: MLflow experiment; by default ``name``.
        resume: Continue an unfinished run of the same call.
        spark: The session; by default the active one, or a local one.
        verbose: Show the logs of Spark and TensorFlow.

    Raises:
        TableError: ``table`` is not a table, or has no keys.
        FleetError: A model, a target or a column cannot be used; the message names it. Or no model has converged.
        ConfigError: A setting has an invalid value.
        Exception: See :func:`data_pipelines.convert` and :func:`training.entry_points.run_train_fn`.
    """
    check_name(name)
    check_output(str(output))
    check_experiment(experiment)
    output = Path(output).absolute()
    layers = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    settings = StackSettings(layers, activation, epochs, patience, learning_rate, global_batch_size, seed)
    _check_workers(1 if workers is None else workers, global_batch_size)
    declared = declared_models(models, link=link, penalty=penalty)
    check_session(spark or SparkSession.getActiveSession(), workers)
    spark = spark or open_session(None, workers or MOST_LOCAL_SLOTS, verbose=verbose)
    view = LiveView(epochs=0)
    with view.stage("check", spark=spark) as stage:
        rows = split_rows(table, declared, columns, keys, seed, spark)
        stage.note = f"{declared.num_rows:,} models, {len(rows.features):,} columns"
    with view.stage("convert", spark=spark) as stage:
        dataset = converted(rows, output / "datasets", name)
        counts = {split: dataset.manifest.rows(split) for split in SPLITS}
        stage.note = ", ".join(f"{count:,} {split}" for split, count in counts.items()) + " rows"
    workers = default_workers(counts[_TRAIN], session_of(spark).task_slots()) if workers is None else workers
    plan = _plan(declared, settings, rows, dataset, workers)
    launched = run_train_fn(
        train_stack,
        workers,
        name=name,
        kwargs={"plan": plan.to_json()},
        output=output,
        tracking_uri=tracking_uri,
        experiment=experiment,
        resume=resume,
        strategy="ring",
        spark=spark,
        verbose=verbose,
    )
    return _trained(launched, declared, plan, inputs_of(dataset.features), rows.of_models)


def _plan(declared: pa.Table, settings: StackSettings, rows: FleetRows, dataset: Dataset, workers: int) -> StackPlan:
    count = dataset.manifest.rows(_TRAIN)
    _check_workers(workers, settings.global_batch_size)
    size = settings.global_batch_size or default_batch_size(count, workers)
    return StackPlan(
        dataset=str(dataset.path),
        settings=settings,
        global_batch_size=size,
        targets=len(rows.targets),
        has_missing=rows.has_missing,
        members=_members(declared, rows.places, rows.of_models[_TRAIN], count, inputs_of(dataset.features)),
    )


def _check_workers(workers: int, global_batch_size: int | None) -> None:
    try:
        Elastic(parse_workers(workers), global_batch_size or workers)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _members(
    declared: pa.Table, places: np.ndarray, sums: TargetSums, rows: int, inputs: Sequence[StackInput]
) -> tuple[StackMember, ...]:
    """Return the declared models, whose targets are at ``places`` and have ``sums`` over the ``rows`` of training."""
    means = sums.total / sums.labels
    spreads = np.sqrt(np.maximum(sums.squares / sums.labels - means**2, 0))
    by_column: dict[str, list[int]] = {}
    for place, one in enumerate(inputs):
        by_column.setdefault(one.column, []).append(place)
    members = []
    for model, row in enumerate(declared.to_pylist()):
        mean, is_identity = float(means[model]), row["link"] == "identity"
        odds = mean / (1 - mean) if row["link"] == "logit" else mean
        members.append(
            StackMember(
                name=row["model"],
                target=int(places[model]),
                link=row["link"],
                penalty=row["penalty"],
                share=float(sums.labels[model]) / rows,
                start=0.0 if is_identity else fitting.rounded(np.log(odds)),
                mean=fitting.rounded(mean) if is_identity else 0.0,
                scale=(fitting.rounded(spreads[model]) or 1.0) if is_identity else 1.0,
                inputs=None
                if row["columns"] is None
                else tuple(place for column in dict.fromkeys(row["columns"]) for place in by_column.get(column, ())),
            )
        )
    return tuple(members)


def _trained(
    launched: Launched,
    declared: pa.Table,
    plan: StackPlan,
    inputs: Sequence[StackInput],
    sums: Mapping[str, TargetSums],
) -> TrainedFleet:
    """Save the fleet and the report in the run's folder and in MLflow, and return them."""
    with np.load(launched.result, allow_pickle=False) as weights:
        arrays = dict(weights)
    report = report_of(declared, plan, arrays, sums)
    diverged = report.filter(report["diverged"])["model"].to_pylist()
    if len(diverged) == declared.num_rows:
        raise FleetError("no model has converged: every validation loss is infinite or NaN; lower learning_rate")
    if diverged:
        _LOGGER.warning(
            "%d models have diverged (%s) and are left out; lower learning_rate", len(diverged), some(diverged)
        )
    fleet = fleet_of(declared, plan, inputs, arrays, np.flatnonzero(~report["diverged"].to_numpy()))
    folder = launched.run_folder / FLEET_FOLDER
    fleet.save(folder)
    with atomic_file.replaced(launched.run_folder / f"{REPORT_NAME}.parquet") as file:
        pq.write_table(report, file)
    trained = TrainedFleet(fleet, report, folder, launched.run_id, launched.tracking_uri, Path(plan.dataset))
    _log(trained, plan.settings)
    return trained


def _log(trained: TrainedFleet, settings: StackSettings) -> None:
    """Log settings, the report as a table and its summary, and the fleet; a failure is only a warning."""
    if trained.run_id is None:
        _LOGGER.warning("MLflow has not got the report and the fleet, which are in %s", trained.folder.parent)
        return
    try:
        client = tracking_store.store_client(trained.tracking_uri)
        for name, value in summary(trained.report).items():
            client.log_metric(trained.run_id, name, value)
        client.log_table(trained.run_id, trained.report.to_pandas(), f"{REPORT_NAME}.json")
        client.log_artifacts(trained.run_id, str(trained.folder), FLEET_FOLDER)
        # Last, because MLflow refuses them if the user's own run has other values of these names.
        for name, value in vars(settings).items():
            client.log_param(trained.run_id, name, value)
    except (MlflowException, OSError) as error:
        _LOGGER.warning("MLflow has not got all of the fleet: %s", without_credentials(str(error)))
