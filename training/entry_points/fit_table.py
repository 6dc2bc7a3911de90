"""``fit``: from any table to a trained, evaluated and registered model."""

import contextlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from pyspark.sql import DataFrame, SparkSession

from mirrorspark.callbacks.checkpoints import Mode
from mirrorspark.data_pipelines import memory_tables
from mirrorspark.data_pipelines.features import (
    FeatureSpec,
    FittedFeatures,
    encoded_spec,
    plain_name,
)
from mirrorspark.data_pipelines.quality import default_split, without_null_labels
from mirrorspark.data_pipelines.sources import MemorySource
from mirrorspark.models import classical, own_model
from mirrorspark.spark_session import SessionAhead, local_slots, on_running_session
from mirrorspark.training.configuration import (
    ROWS_PER_WORKER,
    BaselineName,
    Classes,
    ConfigError,
    FurtherSettings,
    NullLabels,
    Optimizer,
    Presets,
    Registered,
    TrainingConfig,
    TrainingSettings,
    check_presets,
    default_register,
    default_workers,
    defaults_of_label,
    defaults_of_presets,
    defaults_of_recommender,
    is_name,
)
from mirrorspark.training.entry_points import early_checks, fit_rows
from mirrorspark.training.executor import started_ahead_on_driver

if TYPE_CHECKING:
    from mirrorspark.data_pipelines.reading import Dataset
    from mirrorspark.training.results import FitResult
    from mirrorspark.training.run_records import Tracking
    from mirrorspark.training.run_records.live import LiveView

# Settings that ask for tasks of a session, or for its resources.
_OF_CLUSTERS = frozenset({"parameter_servers", "gpus_per_worker", "strategy", "events", "local_mode"})


@on_running_session
def fit(
    table: Any,
    label: str | Mapping[str, Any],
    *,
    keys: str | Sequence[str] | None = None,
    time: str | None = None,
    exclude: str | Sequence[str] = (),
    spec: FeatureSpec | str | Path | None = None,
    items: Any = None,
    user: str | None = None,
    accept_data_errors: bool = False,
    null_labels: NullLabels = "refuse",
    presets: Presets = "fast",
    model: Callable[[FittedFeatures], Any] | str | Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
    spark: SparkSession | None = None,
    name: str | None = None,
    epochs: int | None = None,
    time_limit: float | None = None,
    patience: int | None = None,
    monitor: str | None = None,
    mode: Mode | None = None,
    global_batch_size: int | None = None,
    learning_rate: float | None = None,
    optimizer: Optimizer | None = None,
    workers: int | str | None = None,
    seed: int | None = None,
    baseline: BaselineName | dict[str, Any] | list[Any] | None = None,
    register: Registered | None = None,
    warm_start: str | PathLike[str] | None = None,
    output: str | PathLike[str] | None = None,
    experiment: str | None = None,
    **further: Unpack[FurtherSettings],
) -> "FitResult":
    """Train a model of ``label`` on a table, compare it with a baseline, register it, and return the results.

    Missing arguments have defaults: the spec is inferred (:func:`training.entry_points.default_spec`), the rows are
    split (:func:`data_pipelines.quality.default_split`), and the configuration fits the label and the size of the table
    (:func:`default_config`). The same call on the same rows converts them only once, and goes on with a training
    that did not finish.

    Args:
        table: A Spark, pandas or Polars DataFrame, a PyArrow table, the name of a table, or the path of Parquet, CSV or
            JSON files. With a column ``split`` (``train``, ``validation``, ``test``), it decides about the split.
        label: The column to learn, or its name and kind: ``{"name": "stars", "kind": "multi_class"}``, ``{"name":
            "size", "kind": "ordinal", "classes": ["S", "M", "L"]}``. With a ``spec`` the name of its label.
        keys: Columns that identify a row; by default inferred, or the row's number in a table in memory.
        time: Column with the time of a row: the newest rows are for validation and test. It is not a feature. Of a
            recommender, it orders the interactions of each user.
        exclude: Column, or columns, that are not features; with ``items`` those of the items.
        spec: The feature specification, or its YAML file; by default inferred. ``label``, ``keys`` and ``exclude`` are
            then its own.
        items: A table of the items that users chose, in any form of ``table``, for a recommender: ``table`` then has a
            row per user and item, or lists of items, and ``label`` is the item's column in both
            (:mod:`training.entry_points.fit_items`). Without it a ``label`` of kind candidate makes a recommender, too,
            if one column is named like a user and no other has lists, unless ``keys`` or a ``model`` of your own are
            given.
        user: The column of the users of a recommender; by default the one that is named like it, such as ``user_id``.
        accept_data_errors: Train even where validation finds errors in the data.
        null_labels: ``"refuse"`` rows without a label, or ``"drop"`` them and say how many.
        presets: ``"fast"``; ``"good"`` fits gradient boosting with four settings, for the choice and the blend; and
            ``"best"`` has a network of 32 members in addition. They take several times as long.
        model: A function or Keras class of your own that builds the model (:func:`models.own_model.own_model`), or
            the name of an architecture, or its name and settings; by default one that fits the label.
        callbacks: Keras callbacks of your own for each worker, with a model of your own.
        spark: The session; by default the active one, or a local one.
        name: Name of the registered model, the experiment and the folders; by default the label's.
        epochs: Most passes over the training rows; by default 200 for the default model of a table, else 40, and with a
            ``time_limit`` 1,000.
        time_limit: Seconds of all epochs together. The second epoch is measured, and the number of epochs that fit is
            settled then: restarts keep it, and ``epochs`` repeats it to the bit.
        patience: Epochs without a better ``monitor`` after which the training stops; 0 trains all epochs.
        monitor: Validation metric that picks the best epoch, such as ``val_auc``; by default that of the label's kind.
        mode: Direction of a ``monitor`` of your own: ``max`` or ``min``.
        global_batch_size: Rows of an update, over all workers; by default by the size of the table.
        learning_rate: Step size of the optimizer; by default 0.001.
        optimizer: Rule of the update; by default ``adamw`` for tables.
        workers: Workers that train side by side, or ``"2:4"`` for a range; by default by the size of the table.
        seed: Fixes the split, initial weights, data order and dropout.
        baseline: Model to compare with, as a name or with its settings (``{"name": "lightgbm", "num_leaves": 63}``), a
            list of several, or ``"none"``.
        register: ``"better"`` for the best one, on the validation rows, of the model, its baselines and their blend,
            the default where ``model`` is left out; ``"model"``; ``"always"``, the model with an alias even if
            something is better.
        warm_start: Model to begin from: ``models:/NAME@ALIAS``, ``runs:/ID`` or a folder.
        output: Folder of datasets, runs and models, which all machines share; by default ``mirrorspark-output``.
        experiment: MLflow experiment; by default the one that MLflow is set to, or the name.
        further: The other fields of :class:`training.configuration.TrainingConfig`. None of an argument above leaves
            its default, which :func:`default_config` chooses for the label and the size of the table.

    Raises:
        TableError: ``table`` is not a table.
        FeatureSpecError: The spec cannot be inferred or does not fit: the message says which column and why.
        SplitError: The rows cannot be split.
        ConfigError: A setting has an invalid value.
        Exception: See :func:`data_pipelines.convert` and :func:`training.entry_points.train`.
    """
    settings: dict[str, Any] = dict(further) | _given(
        name=name,
        epochs=epochs,
        time_limit=time_limit,
        patience=patience,
        monitor=monitor,
        mode=mode,
        global_batch_size=global_batch_size,
        learning_rate=learning_rate,
        optimizer=optimizer,
        workers=workers,
        seed=seed,
        baseline=baseline,
        register=register,
        warm_start=warm_start,
        output=output,
        experiment=experiment,
    )
    spec = FeatureSpec.load(spec) if isinstance(spec, str | Path) else spec
    check_presets(presets)
    early_checks.check_arguments(
        table, label, spec, model, callbacks, settings, null_labels=null_labels, known=inspect.signature(fit).parameters
    )
    early_checks.check_items(table, label, items, user, keys, spec)
    asked = fit_rows.Columns(label, _names(keys), time, _names(exclude), user)
    if memory_tables.is_in_memory(table):
        # Of a recommender, columns to exclude are those of the items, and interactions without an item are left out.
        early_checks.check_columns(
            *(table, fit_rows.name_of(label), asked.keys, time, asked.exclude if items is None else (), spec),
            null_labels="drop" if fit_rows.is_of_interactions(table, asked, spec, items, model) else null_labels,
        )
    session = SessionAhead(spark, _local_workers(settings), verbose=bool(settings.get("verbose")))
    if not settings.get("local_mode"):
        early_checks.check_session(session.known, workers)
    # These imports, and those below, take seconds, by which the errors above would be late.
    from mirrorspark.training.run_records.live import LiveView

    view = LiveView(epochs=1)
    found = _infer(
        *(view, session, table, asked, spec, items, model),
        has_null_labels=null_labels == "drop",
        seed=settings.get("seed", 0),
    )
    settings |= _model_settings(model, found.spec, callbacks, settings) | {"presets": presets}
    name = settings.pop("name", None) or default_name(found.spec)
    needs_session = _needs_session(session, found, settings)
    # While Spark starts, or a worker imports TensorFlow, this process imports MLflow and scikit-learn, which takes
    # seconds.
    with _begin(session, settings, needs_session=needs_session):
        from mirrorspark.training.entry_points.train_dataset import train_in_view
        from mirrorspark.training.results import FitResult, RecommenderResult

        tracking = _require_valid(found.spec, session.slots, found.rows, name=name, **settings)
        dataset = _convert(view, session, tracking, found, settings, accept_data_errors=accept_data_errors)
        of_candidates = found.spec.candidate if found.spec.label.kind == "candidate" else None
        config = default_config(
            found.spec,
            rows=dataset.manifest.rows("train"),
            slots=session.slots,
            candidates=len(dataset.features.vocabulary(of_candidates)) if of_candidates else 0,
            name=name,
            **settings,
        )
        spark = session.get() if needs_session else None
        trained = train_in_view(view, dataset, config, spark, needs_session=needs_session)
    result = FitResult.of(trained, dataset, config, found.rows, spark, found.spec.reasons)
    if (of_users := found.interactions) is None:
        return result
    return RecommenderResult.of_interactions(result, of_users.given, of_users.columns, of_users.form)


def _infer(
    view: "LiveView",
    session: SessionAhead,
    table: Any,
    asked: fit_rows.Columns,
    spec: FeatureSpec | None,
    items: Any,
    model: Any,
    *,
    has_null_labels: bool,
    seed: int,
) -> fit_rows.TableToLearn:
    """Return the rows to learn from, which are split, and their spec."""
    from mirrorspark.data_pipelines import check_columns
    from mirrorspark.training.run_records.live import showing_warnings, spec_details

    with view.stage("infer", spark=session.known) as stage, showing_warnings(stage):
        found = fit_rows.table_to_learn(table, asked, spec, items, session, model)
        rows, inferred = found.rows, found.spec
        if has_null_labels:
            rows = without_null_labels(rows, inferred.label)
        check_columns(rows, inferred)
        rows = default_split(rows, inferred.keys, time=asked.time, label=_stratified(inferred), seed=seed)
        if spec is None and not callable(model):  # a model of one's own has its inputs for the columns themselves
            inferred = encoded_spec(rows, inferred)
        stage.note = found.interactions.in_words() if found.interactions else _in_words(inferred)
        stage.details = spec_details(inferred)
    return replace(found, rows=rows, spec=inferred)


def _needs_session(session: SessionAhead, found: fit_rows.TableToLearn, settings: Mapping[str, Any]) -> bool:
    """Return False where this process converts the rows, one worker trains on them, and no session is there.

    To start one would take longer than the training.
    """
    if not (session.is_needless and isinstance(found.rows, MemorySource)) or found.spec.label.kind == "candidate":
        return True
    workers = settings.get("workers", default_workers(found.rows.rows.num_rows, session.slots))
    return workers != 1 or bool(_OF_CLUSTERS & settings.keys())


def _begin(
    session: SessionAhead, settings: Mapping[str, Any], *, needs_session: bool
) -> contextlib.AbstractContextManager[None]:
    """Start the session, or without one the process of the worker, in the background."""
    if needs_session:
        session.begin()
        return contextlib.nullcontext()
    return started_ahead_on_driver(settings.get("threads_per_worker"), verbose=bool(settings.get("verbose")))


def _model_settings(
    model: Any, spec: FeatureSpec, callbacks: Sequence[Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of a model that is named or of one's own; none for the default."""
    if model is None:
        return {}
    if isinstance(model, str | Mapping):
        return {"model": {"name": model} if isinstance(model, str) else dict(model)}
    own = own_model.own_model(model, spec.label.form, callbacks)
    return {"model": own, "monitor": settings.get("monitor", "val_loss")}  # which every model has


def _convert(
    view: "LiveView",
    session: SessionAhead,
    tracking: "Tracking",
    found: fit_rows.TableToLearn,
    settings: Mapping[str, Any],
    *,
    accept_data_errors: bool,
) -> "Dataset":
    """Return the dataset of the rows, which may be there already, once a session that starts is there, too."""
    from mirrorspark.data_pipelines import ConversionOptions, convert_once
    from mirrorspark.scoring.embedding import Embedder
    from mirrorspark.training.run_records.live import add_findings

    with view.stage("convert", spark=session.known) as stage:
        folder = Path(settings.get("output", TrainingConfig.output)).absolute() / "datasets"
        dataset = convert_once(
            *(found.rows, found.spec, folder, default_name(found.spec)),  # runs of any name share it
            options=ConversionOptions(accept_errors=accept_data_errors),
            embedder=Embedder(tracking_uri=settings.get("tracking_uri")),
            source=found.interactions.source if found.interactions else None,
            items=found.items,
        )
        counts = {split: dataset.manifest.rows(split) for split in dataset.manifest.splits}
        stage.note = ", ".join(f"{count:,} {split}" for split, count in counts.items()) + " rows"
        add_findings(stage, dataset)
        tracking.open_ahead()
        if session.is_starting:
            session.get()
    return dataset


def _given(**settings: Any) -> dict[str, Any]:
    """Return the settings that a caller gave."""
    return {name: value for name, value in settings.items() if value is not None}


def default_name(spec: FeatureSpec) -> str:
    """Return the name of the registered model, of the experiment and of the folders: that of the label.

    Characters that a folder may not have become dashes. A label that makes no name has one with a digest.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", spec.label.name).strip("-.")
    candidates = (name, plain_name(spec.label.name), f"label-{plain_name(spec.label.name)}")
    return next(filter(is_name, candidates))


def default_config(
    spec: FeatureSpec,
    *,
    rows: int,
    slots: int,
    candidates: int = 0,
    presets: Presets = "fast",
    **settings: Unpack[TrainingSettings],
) -> TrainingConfig:
    """Return the configuration of a training that fits the label and the size of the table.

    Its defaults are those of ``default_workers``, ``default_batch_size``, ``defaults_of_presets``, ``default_register``
    and, where no model is named, ``default_model`` with its epochs, optimizer and patience, all in
    :mod:`training.configuration.defaults`.

    Args:
        spec: The feature specification.
        rows: Training rows.
        slots: Slots of the session.
        candidates: Candidates of a label of that kind, as far as they are known.
        presets: See :func:`fit`.
        settings: Fields of :class:`training.configuration.TrainingConfig` that differ from these.

    Raises:
        ConfigError: A setting has an invalid value.
    """
    workers = default_workers(rows, 1 if settings.get("local_mode") else slots)
    of_presets = defaults_of_presets(presets, spec, settings, candidates)
    chosen: dict[str, Any] = {"workers": workers, **settings, **of_presets}
    is_candidate = spec.label.kind == "candidate" and spec.label.rating is None
    has_recommenders = is_candidate and classical.history_of(spec) is not None
    asked = {**settings, "baseline": chosen["baseline"]}
    chosen.setdefault("register", default_register(spec.label.kind, asked, has_recommenders=has_recommenders))
    is_unnamed = "name" not in (settings.get("model") or {})
    if spec.items is not None or (spec.user is not None and spec.histories and is_unnamed):
        chosen |= defaults_of_recommender(spec, settings)
    return TrainingConfig(**chosen | defaults_of_label(spec.label.kind, chosen, spec)).fitted_to(rows)


def _require_valid(
    spec: FeatureSpec, slots: int, rows: DataFrame | MemorySource | None = None, **settings: Any
) -> "Tracking":
    """Return the training's place in MLflow.

    Raises:
        ConfigError: A setting is wrong with one worker and with many: found before rows are converted.
        PreflightError: MLflow's store cannot be used.
    """
    # Both import MLflow, which takes a second.
    from mirrorspark.training.job.readiness import preflight
    from mirrorspark.training.run_records import Tracking, store_of

    try:
        config = default_config(spec, rows=0, slots=slots, **settings)
    except ConfigError:
        config = default_config(spec, rows=slots * ROWS_PER_WORKER, slots=slots, **settings)
    config.require_features(spec)
    # Of a table in memory alone the label's values are known at once.
    if isinstance(rows, MemorySource) and (config.class_weights or config.costs):
        values = rows.rows[spec.label.name].unique().drop_null().to_pylist()
        config.require_classes(Classes.of_values(spec.label, values))
    preflight.require([preflight.check_tracking(store_of(config))])
    tracking = Tracking.find(config)
    tracking.require_names(config.registry_name)
    return tracking


def _names(given: str | Sequence[str] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())


def _in_words(spec: FeatureSpec) -> str:
    return f"label '{spec.label.name}' of kind {spec.label.kind}; {len(spec.features)} features"


def _stratified(spec: FeatureSpec) -> str | None:
    return spec.label.name if spec.label.form in ("binary", "multi_class") else None


def _local_workers(settings: Mapping[str, Any]) -> int:
    """Return the slots of a session that is started here."""
    workers = settings.get("workers")
    return workers if isinstance(workers, int) else local_slots()
