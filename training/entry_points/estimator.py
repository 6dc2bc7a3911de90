"""Training and scoring as stages of a Spark ML pipeline: ``fit(df)`` trains, ``transform(df)`` adds the scores."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from pyspark.ml import Estimator, Model
from pyspark.ml.functions import array_to_vector
from pyspark.ml.param import Param, Params
from pyspark.ml.param.shared import HasPredictionCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable, DefaultParamsWriter, MLWriter
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import FloatType, StructField

from mirrorspark.data_pipelines import ConversionOptions, check_columns, convert_once, quoted
from mirrorspark.data_pipelines.features import FeatureSpec, kinds
from mirrorspark.data_pipelines.quality import SPLIT_COLUMN, random_split
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.scoring import ScoringError, scorer_udf
from mirrorspark.scoring.embedding import Embedder
from mirrorspark.scoring.model.folder import ModelDirectory
from mirrorspark.scoring.model.loading import DEFAULT_BATCH_SIZE
from mirrorspark.scoring.model.stored import PinnedModel, resolve
from mirrorspark.scoring.output import DEFAULT_COLUMNS
from mirrorspark.spark_session import session_of
from mirrorspark.storage import clean
from mirrorspark.training.configuration import TrainingConfig
from mirrorspark.training.entry_points import early_checks
from mirrorspark.training.entry_points.fit_rows import default_spec
from mirrorspark.training.entry_points.fit_table import default_config, default_name
from mirrorspark.training.entry_points.train_dataset import Trained, train
from mirrorspark.training.run_records import Tracking

_TABLE_PARAMS: Mapping[str, tuple[Any, str]] = {
    "features": (None, "per feature its kind and options"),
    "label": (None, "the label column, or its name and kind"),
    "keys": (None, "the columns that name a row"),
    "weight": (None, "column of training weights"),
    "exclude": (None, "list column of candidates that are not recommended for the row"),
    "user": (None, "feature whose values are the users, where its name does not say so"),
    "split_column": (SPLIT_COLUMN, "says which rows are for training, validation and test; made where it is absent"),
    "split_shares": (None, "share of each split where the column is made; by default 80, 10 and 10 percent"),
    "shards": (ConversionOptions.shards, "TFRecord files per split"),
    "accept_data_errors": (False, "train even where validation finds errors in the data"),
}
_SETTINGS = {each.name: each for each in dataclasses.fields(TrainingConfig)}
_SCORED = "_mirrorspark_scored"


def _as_it_is(value: Any) -> Any:
    """Return the value unconverted: the configuration checks its settings itself, with better messages."""
    if isinstance(value, date):  # a stage is saved as JSON, which has no days
        return f"{value:%Y-%m-%d}"
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class _SettingParams(Params):
    """Params with the names and defaults of the settings behind them."""

    def getParams(self) -> dict[str, Any]:  # noqa: N802 - next to Spark's own setParams
        """Return the values of all params by name."""
        return {param.name: self.getOrDefault(param) for param in self.params if self.isDefined(param)}

    def setParams(self, **values: Any) -> Any:  # noqa: N802 - Spark's name
        """Set params by their names; return this stage.

        Raises:
            ValueError: There is no such param.
        """
        unknown = sorted(name for name in values if not self.hasParam(name))
        if unknown:
            raise ValueError(f"params {unknown} are unknown; use some of {[param.name for param in self.params]}")
        return self._set(**values)

    def write(self) -> MLWriter:
        """Return Spark's writer of stages; passwords are removed from every param."""
        public = self.copy()
        for name, value in self.getParams().items():
            if (cleaned := clean({name: value})[name]) != value:
                public._set(**{name: cleaned})
        return DefaultParamsWriter(public)


class TrainedModel(
    _SettingParams, Model, HasPredictionCol, DefaultParamsWritable, DefaultParamsReadable["TrainedModel"]
):
    """A transformer that adds a registered model's scores to a table and keeps all its columns.

    The columns are as Spark ML's evaluators expect: numbers are doubles; of several classes, ``scores`` is a vector of
    probabilities, and ``predictionCol`` the number of the likeliest one in :attr:`classes`, as a double.

    It is saved as the URI of the model's version; the model itself stays in the registry.

    Args:
        values: ``model_uri``, ``tracking_uri`` (its MLflow store; a password is not saved, so after loading it must be
            in the environment), ``keys``, ``batch_size`` (rows per call of the model), ``with_columns`` (columns
            after the scores, by default ``model_version``), ``predictionCol`` (by default ``prediction``).

    Attributes:
        trained: The training's results; None for a loaded model. It does not follow a later change of ``model_uri``.
    """

    model_uri: Param[str] = Param(Params._dummy(), "model_uri", "version of a registered model", _as_it_is)
    tracking_uri: Param[str] = Param(Params._dummy(), "tracking_uri", "MLflow store of the model", _as_it_is)
    keys: Param[list[str]] = Param(Params._dummy(), "keys", "columns that name a row", _as_it_is)
    batch_size: Param[int] = Param(Params._dummy(), "batch_size", "rows per call of the model", _as_it_is)
    with_columns: Param[list[str]] = Param(Params._dummy(), "with_columns", "columns after the scores", _as_it_is)

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self._setDefault(tracking_uri=None, keys=[], batch_size=DEFAULT_BATCH_SIZE, with_columns=list(DEFAULT_COLUMNS))
        self.setParams(**values)
        self.trained: Trained | None = None
        self._fetched: tuple[tuple[str, str], PinnedModel] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the scores; empty for a model without classes."""
        return tuple(ModelDirectory.open(self.pinned().path).labels.get("scores", ()))

    def pinned(self) -> PinnedModel:
        """Return the model, downloaded if it is on another machine.

        Raises:
            ModelNotFoundError: The version does not exist, or no longer.
        """
        uri, tracking_uri = self.getOrDefault(self.model_uri), self.getOrDefault(self.tracking_uri)
        # A copy with other params keeps it: `transform(df, {model.model_uri: ...})` is one.
        if self.trained is not None and (uri, tracking_uri) == (self.trained.version_uri, self.trained.tracking_uri):
            return self.trained.model
        # A folder may be written anew, and an alias moved to another version.
        if not uri.startswith(("models:", "runs:")) or "@" in uri:
            return resolve(uri, tracking_uri)
        where = uri, tracking_uri or _mlflow_store()
        if self._fetched is None or self._fetched[0] != where:
            # A downloaded copy stays until this process ends, so it is resolved once.
            self._fetched = where, resolve(uri, tracking_uri)
        return self._fetched[1]

    def _transform(self, dataset: DataFrame) -> DataFrame:
        """Return the table with the model's outputs as columns.

        Raises:
            ScoringError: A column that the model reads is missing, or the table already has an output's column.
        """
        pinned = self.pinned()
        directory = ModelDirectory.open(pinned.path)
        names = list(directory.inputs.columns)
        is_multi_class = getattr(directory.description, "task", None) == "multi_class"
        missing = [name for name in names if name not in dataset.columns]
        if missing:
            raise ScoringError(
                f"the table lacks the columns {missing} that {pinned.label} reads; it has {dataset.columns}"
            )
        score = scorer_udf(
            dataset.sparkSession,
            pinned,
            inputs=names,
            batch_size=self.getOrDefault(self.batch_size),
            with_columns=self.getOrDefault(self.with_columns),
        )
        scored = dataset.withColumn(_SCORED, score(*(F.col(quoted(name)) for name in names)))
        schema = scored.select(f"{_SCORED}.*").schema
        prediction = self.getPredictionCol()
        if is_multi_class and prediction in (*dataset.columns, *schema.names):
            raise ScoringError(
                f"there is a column '{prediction}' already, in the table or among {schema.names}, which {pinned.label} "
                f"adds: set predictionCol to another name for the likeliest class"
            )
        if taken := sorted(set(schema.names) & set(dataset.columns)):
            raise ScoringError(f"the table has the columns {taken} already, which {pinned.label} adds; rename them")
        added = [
            _for_spark_ml(F.col(f"{_SCORED}.{quoted(field.name)}"), field, is_multi_class=is_multi_class)
            for field in schema
        ]
        if is_multi_class:
            scores = F.col(f"{_SCORED}.scores")
            added.append((F.array_position(scores, F.array_max(scores)) - 1).cast("double").alias(prediction))
        return scored.select(*(F.col(quoted(name)) for name in dataset.columns), *added)


def _for_spark_ml(column: Column, field: StructField, *, is_multi_class: bool) -> Column:
    """Return an output in the type that Spark ML's evaluators take: a double; a vector of probabilities."""
    if isinstance(field.dataType, FloatType):
        column = column.cast("double")
    elif is_multi_class and field.name == "scores":
        column = array_to_vector(column.cast("array<double>"))
    return column.alias(field.name)


def _mlflow_store() -> str:
    """Return MLflow's current store."""
    import mlflow  # Takes seconds, and is not needed where a store is named.

    return str(mlflow.get_tracking_uri())


class TrainingEstimator(
    _SettingParams,
    Estimator[TrainedModel],
    HasPredictionCol,
    DefaultParamsWritable,
    DefaultParamsReadable["TrainingEstimator"],
):
    """An estimator that converts a table, trains on it and registers the model, as ``mirrorspark train`` does.

    Without ``features`` the specification is inferred from the table, and the model, the baseline, the batch and the
    number of workers fit the label and the table, as those of :func:`training.entry_points.fit` do, unless they
    are given.

    The dataset's folder is named by a hash of the rows: a second fit of the same rows, after a crash for example,
    reuses the dataset and continues the training. The rows are therefore read twice.

    Args:
        features: Per feature its kind and options, as in a recipe: ``{"town": {"kind": "categorical"}}``.
        label: The label column, or its name and kind.
        keys: The columns that name a row; where the features are inferred, by default as in
            :func:`data_pipelines.features.infer_spec`.
        values: Any other param: ``weight``, ``exclude``, ``split_column``, ``split_shares``, ``shards``,
            ``accept_data_errors``, ``predictionCol`` (that of the fitted model), and every field of
            :class:`training.configuration.TrainingConfig`. ``name`` is the label's by default.
    """

    def __init__(
        self,
        features: Mapping[str, Mapping[str, Any]] | None = None,
        label: str | Mapping[str, Any] | None = None,
        keys: str | Sequence[str] | None = None,
        **values: Any,
    ) -> None:
        super().__init__()
        self._setDefault(**{name: default for name, (default, _) in _TABLE_PARAMS.items()})
        self._setDefault(
            **{
                name: each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
                for name, each in _SETTINGS.items()
            }
        )
        given = {"features": features, "label": label, "keys": keys}  # All None when Spark loads a saved stage.
        self.setParams(**{name: value for name, value in given.items() if value is not None} | values)

    @property
    def spec(self) -> FeatureSpec:
        """Return the feature specification that the params give.

        Raises:
            FeatureSpecError: The parts contradict each other, or one is missing.
        """
        parts = ("features", "label", "keys", "weight", "exclude", "user")
        return FeatureSpec.from_dict({name: self.getOrDefault(name) for name in parts})

    @property
    def config(self) -> TrainingConfig:
        """Return the training's configuration.

        Raises:
            ConfigError: A setting has an invalid value.
        """
        settings = {name: self.getOrDefault(name) for name in _SETTINGS}
        return TrainingConfig(**settings | {"name": settings["name"] or default_name(self.spec)})

    def _fit(self, dataset: DataFrame) -> TrainedModel:
        """Train on the table and return the model.

        Raises:
            Exception: See :func:`data_pipelines.convert` and :func:`training.entry_points.train`.
        """
        spark = dataset.sparkSession
        if not self.getOrDefault("local_mode"):
            early_checks.check_session(spark, self.getOrDefault("workers"))
        if self.getOrDefault("features") is None:
            spec = self._inferred(dataset)
            given = {name: self.getOrDefault(name) for name in _SETTINGS if self.isSet(name)}
            given["name"] = given.get("name") or default_name(spec)
            config = TrainingConfig(**given)
            Tracking.find(config).require_names(config.registry_name)
            converted = self._converted(dataset, spec, config)
            slots = session_of(spark).task_slots()
            config = default_config(spec, rows=converted.manifest.rows("train"), slots=slots, **given)
        else:
            spec, config = self.spec, self.config
            config.require_features(spec)
            Tracking.find(config).require_names(config.registry_name)
            converted = self._converted(dataset, spec, config)
        trained = train(converted, config, spark)
        model = TrainedModel(
            model_uri=trained.version_uri,
            tracking_uri=trained.tracking_uri,
            keys=list(spec.keys),
            predictionCol=self.getPredictionCol(),
        )
        model.trained = trained
        return model

    def _inferred(self, table: DataFrame) -> FeatureSpec:
        """Return the spec of a table; the params that name other columns than features stay as they are.

        Raises:
            FeatureSpecError: There is no label, or the table has no features for it.
        """
        named = {name: self.getOrDefault(name) for name in ("weight", "exclude") if self.getOrDefault(name)}
        user = {"user": self.getOrDefault("user")} if self.getOrDefault("user") else {}
        label, keys = self.getOrDefault("label"), self.getOrDefault("keys") or ()
        if label is None:
            raise kinds.FeatureSpecError("the estimator has no label; give the name of the column to learn")
        others = (self.getOrDefault("split_column"), *named.values())
        spec = default_spec(table, label, keys=(keys,) if isinstance(keys, str) else tuple(keys), exclude=others)
        return FeatureSpec.from_dict(spec.to_dict() | named | user)

    def _converted(self, table: DataFrame, spec: FeatureSpec, config: TrainingConfig) -> Dataset:
        options = ConversionOptions(
            split_column=self.getOrDefault("split_column"),
            shards=self.getOrDefault("shards"),
            accept_errors=self.getOrDefault("accept_data_errors"),
        )
        check_columns(table, spec)
        if options.split_column not in table.columns:
            shares = self.getOrDefault("split_shares")
            table = random_split(table, spec.keys, shares=shares, seed=config.seed, split_column=options.split_column)
        folder = Path(config.output).absolute() / "datasets"
        embedder = Embedder(tracking_uri=config.tracking_uri)
        return convert_once(table, spec, folder, default_name(spec), options=options, embedder=embedder)


for _name, (_, _doc) in _TABLE_PARAMS.items():
    setattr(TrainingEstimator, _name, Param(Params._dummy(), _name, _doc, _as_it_is))
for _name in _SETTINGS:
    setattr(TrainingEstimator, _name, Param(Params._dummy(), _name, "see TrainingConfig", _as_it_is))
