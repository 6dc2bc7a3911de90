"""``train_fleet``: from a table with many targets to a fleet and a report, as one job of stacked models."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from mlflow.exceptions import MlflowException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import BooleanType, DataType, NumericType, StringType

from mirrorspark.callbacks.mlflow.store import DEFAULT_OUTPUT, store_client
from mirrorspark.data_pipelines.any_table import ROW_NUMBER, TableError, as_dataframe, is_in_memory, numbered
from mirrorspark.data_pipelines.convert import ConversionOptions
from mirrorspark.data_pipelines.convert_once import convert_once, quoted
from mirrorspark.data_pipelines.dataset.manifest import SPLITS
from mirrorspark.data_pipelines.features.fitting import rounded
from mirrorspark.data_pipelines.features.raw_columns import meant
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.quality.splits import SPLIT_COLUMN, default_split
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.scoring.fleet.columns import FleetError, some
from mirrorspark.storage.atomic_file import replaced
from mirrorspark.storage.credentials import without_credentials
from mirrorspark.training.fit import MOST_LOCAL_WORKERS, default_batch_size, default_workers
from mirrorspark.training.fleet.declared import check_columns, declared_models
from mirrorspark.training.fleet.inputs import Input, inputs_of
from mirrorspark.training.fleet.plan import TARGETS, StackMember, StackPlan, StackSettings, train_stack
from mirrorspark.training.fleet.targets import TargetSums, check_targets, labels_of, measure_targets
from mirrorspark.training.fleet.trained import TrainedFleet, fleet_of, report_of, summary
from mirrorspark.training.launch import Launched, run_train_fn
from mirrorspark.training.live.view import LiveView
from mirrorspark.training.protocol.elastic import Elastic, parse_workers
from mirrorspark.training.protocol.names import is_name
from mirrorspark.training.settings import ConfigError
from mirrorspark.training.spark_session import open_session, task_slots

FLEET_FOLDER, REPORT_NAME = "fleet", "models"

_LABELS = "fleet_labels"
_TRAIN = SPLITS[0]
# Rarer ones would have too few rows to learn from.
_MOST_CATEGORIES = 100

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
    output: str | Path = DEFAULT_OUTPUT,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    resume: bool = True,
    spark: SparkSession | None = None,
    verbose: bool = False,
) -> TrainedFleet:
    """Train a model for each of many targets over one table, all in one pass, and return them as a fleet.

    The weights of all models are stacked, so that a layer of all of them is one product, on one or several workers
    under supervision (:func:`training.launch.run_train_fn`). Each model is what it would be on its own with the same
    batches: it learns from the rows that have a label of its target, has its own penalty, and stops by its own
    validation loss, with the weights of its best epoch. Linear models begin with zeros and the intercept of the mean
    label. The same call goes on with a training that did not finish.

    Numbers are standardised, and a missing one is replaced by the mean. The categories of a column of texts are inputs
    of 0 and 1, all of them 0 for a missing text and for one that is not among the 100 most frequent. Targets of the
    link ``identity`` are standardised, too. Penalties apply to these units; the fleet reads the columns as they are.

    The table of models has ``model`` and, as needed, ``target`` (a column of numbers or booleans, null for no label; by
    default the model's name), ``link``, ``penalty``, ``columns`` (those of ``columns`` that the model reads; a CSV file
    has spaces between them), and ``group``, ``threshold`` and ``cut_points`` as for
    :func:`scoring.fleet.coefficients.fleet_from_coefficients`.

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
        workers: Workers that train side by side, on CPUs; by default as many as the session has slots, at most one per
            20,000 training rows.
        name: Names the run, the dataset and, by default, the MLflow experiment.
        output: Folder for datasets, runs and the MLflow store by default; driver and workers share it.
        tracking_uri: MLflow tracking server or store.
        experiment: MLflow experiment; by default ``name``.
        resume: Continue an unfinished run of the same call.
        spark: The session; by default the active one, or a local one.
        verbose: Show what Spark and TensorFlow log.

    Raises:
        TableError: ``table`` is no table, or has no keys.
        FleetError: A model, a target or a column cannot be used; the message names it. Or no model has converged.
        ConfigError: A setting has an invalid value.
        Exception: As :func:`data_pipelines.convert.convert` and :func:`training.launch.run_train_fn` say.
    """
    if not is_name(name):
        raise ConfigError(f"name '{name}' must be letters, digits, '.', '_' or '-': it names folders")
    if "://" in str(output):
        raise ConfigError(f"output '{output}' is on another store; give a folder that driver and workers share")
    output = Path(output).absolute()
    layers = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    settings = StackSettings(layers, activation, epochs, patience, learning_rate, global_batch_size, seed)
    _check_workers(1 if workers is None else workers, global_batch_size)
    declared = declared_models(models, link=link, penalty=penalty)
    spark = spark or open_session(None, workers or MOST_LOCAL_WORKERS, verbose=verbose)
    view = LiveView(epochs=0)
    with view.stage("check", spark=spark) as stage:
        rows = _split_rows(table, declared, columns, keys, seed, spark)
        stage.note = f"{declared.num_rows:,} models, {len(rows.features):,} columns"
    with view.stage("convert", spark=spark) as stage:
        dataset = _converted(rows, output / "datasets", name)
        counts = {split: dataset.manifest.rows(split) for split in SPLITS}
        stage.note = ", ".join(f"{count:,} {split}" for split, count in counts.items()) + " rows"
    workers = default_workers(counts[_TRAIN], task_slots(spark)) if workers is None else workers
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


@dataclass(frozen=True)
class _Rows:
    """The checked rows.

    Attributes:
        table: The rows, with their split.
        features: The columns that models read, with the options of their features.
        targets: The targets, without repetition.
        places: int32 ``[models]``: the target of each model.
        of_models: By split, the sums of the models' targets.
        has_missing: Whether some row has a label of one target and none of another.
    """

    table: DataFrame
    keys: tuple[str, ...]
    features: Mapping[str, dict[str, Any]]
    targets: tuple[str, ...]
    places: np.ndarray
    of_models: Mapping[str, TargetSums]
    has_missing: bool


def _split_rows(
    table: Any,
    declared: pa.Table,
    columns: Sequence[str] | Mapping[str, Mapping[str, Any]] | None,
    keys: str | Sequence[str] | None,
    seed: int,
    spark: SparkSession,
) -> _Rows:
    """Check table and models against each other, and split the rows; arguments and errors as :func:`train_fleet`."""
    rows, keys = _with_keys(table, keys, spark)
    features = _features(rows, declared, columns, keys)
    check_columns(declared, list(features))
    rows = default_split(rows, keys, seed=seed)
    targets = declared["target"].unique()
    sums = measure_targets(rows, targets.to_pylist())
    places = pc.index_in(declared["target"], value_set=targets).to_numpy()
    of_models = {split: of.at(places) for split, of in sums.items()}
    check_targets(of_models, declared["link"].to_pylist(), declared["model"].to_pylist())
    has_missing = any(bool((of.labels < of.rows).any()) for of in sums.values())
    return _Rows(rows, keys, features, tuple(targets.to_pylist()), places, of_models, has_missing)


def _with_keys(table: Any, keys: str | Sequence[str] | None, spark: SparkSession) -> tuple[DataFrame, tuple[str, ...]]:
    """Return the table with columns that identify its rows, and their names."""
    if keys is None and is_in_memory(table):
        return as_dataframe(numbered(table), spark), (ROW_NUMBER,)
    rows = as_dataframe(table, spark)
    if not keys:
        raise TableError(
            f"the rows of a stored table have no numbers; give keys=, columns that identify one, of {rows.columns[:20]}"
        )
    return rows, (keys,) if isinstance(keys, str) else tuple(keys)


def _features(
    rows: DataFrame,
    declared: pa.Table,
    columns: Sequence[str] | Mapping[str, Mapping[str, Any]] | None,
    keys: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Return the columns that models read, with the options of their features.

    Raises:
        FleetError: There is no such column, target or key, or it has a type that cannot be used.
    """
    types: dict[str, DataType] = {one.name: one.dataType for one in rows.schema}
    numbers = {name for name, kind in types.items() if isinstance(kind, NumericType | BooleanType)}
    targets = dict.fromkeys(declared["target"].to_pylist())
    if columns is None:
        usable = numbers - {*keys, *targets, SPLIT_COLUMN}
        columns = [name for name in types if name in usable]
    columns = (columns,) if isinstance(columns, str) else columns
    for what, names in (("column", columns), ("target", targets), ("key", keys)):
        if unknown := [name for name in names if name not in types]:
            hint = meant(str(unknown[0]), types)
            raise FleetError(
                f"the table has no column {some(map(str, unknown))} ({what}){hint}; it has {list(types)[:20]}"
            )
    if odd := [name for name in targets if name not in numbers]:
        raise FleetError(f"target {some(odd)} has type {types[odd[0]].simpleString()}; a target is a number or boolean")
    if not columns:
        raise FleetError("there is no column to learn from; name some as columns=")
    if not isinstance(columns, Mapping):
        return {name: _options(name, types[name]) for name in columns}
    for name, options in columns.items():
        kind = options.get("kind") if isinstance(options, Mapping) else None
        if kind not in ("numeric", "categorical") or options.get("hash_buckets"):
            raise FleetError(
                f"column '{name}' has the options {options}; a fleet reads the kinds numeric and categorical"
            )
    return {name: dict(options) for name, options in columns.items()}


def _options(name: str, kind: DataType) -> dict[str, Any]:
    if isinstance(kind, NumericType | BooleanType):
        return {"kind": "numeric"}
    if isinstance(kind, StringType):
        return {"kind": "categorical", "max_size": _MOST_CATEGORIES}
    raise FleetError(f"column '{name}' has type {kind.simpleString()}; a fleet reads numbers and texts: cast it")


def _converted(rows: _Rows, folder: Path, name: str) -> Dataset:
    """Return the dataset of the rows that have a label, with all labels of a row as one vector."""
    spec = FeatureSpec.from_dict(
        {
            "features": {
                **rows.features,
                TARGETS: {"kind": "vector", "size": (1 + rows.has_missing) * len(rows.targets)},
            },
            # A dataset needs a label; this one is not learnt, because the vector has those of the targets.
            "label": {"name": _LABELS, "kind": "number"},
            "keys": list(rows.keys),
        }
    )
    labels = labels_of(rows.targets)
    is_label = F.transform(labels, lambda label: F.when(label.isNotNull(), 1.0).otherwise(0.0))
    vector = F.concat(labels, is_label) if rows.has_missing else labels
    count = F.size(F.filter(labels, lambda label: label.isNotNull())).cast("double")
    kept = dict.fromkeys((*rows.keys, *rows.features, SPLIT_COLUMN))
    chosen = rows.table.select(
        *map(quoted, kept), vector.cast("array<float>").alias(TARGETS), count.alias(_LABELS)
    ).where(F.col(_LABELS) > 0)
    return convert_once(chosen, spec, folder, name, options=ConversionOptions())


def _plan(declared: pa.Table, settings: StackSettings, rows: _Rows, dataset: Dataset, workers: int) -> StackPlan:
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
    declared: pa.Table, places: np.ndarray, sums: TargetSums, rows: int, inputs: Sequence[Input]
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
                start=0.0 if is_identity else rounded(np.log(odds)),
                mean=rounded(mean) if is_identity else 0.0,
                scale=(rounded(spreads[model]) or 1.0) if is_identity else 1.0,
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
    inputs: Sequence[Input],
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
    with replaced(launched.run_folder / f"{REPORT_NAME}.parquet") as file:
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
        client = store_client(trained.tracking_uri)
        for name, value in summary(trained.report).items():
            client.log_metric(trained.run_id, name, value)
        client.log_table(trained.run_id, trained.report.to_pandas(), f"{REPORT_NAME}.json")
        client.log_artifacts(trained.run_id, str(trained.folder), FLEET_FOLDER)
        # Last, because MLflow refuses them if the user's own run has other values of these names.
        for name, value in vars(settings).items():
            client.log_param(trained.run_id, name, value)
    except (MlflowException, OSError) as error:
        _LOGGER.warning("MLflow has not got all of the fleet: %s", without_credentials(str(error)))
