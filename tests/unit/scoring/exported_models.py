"""Small exported models for the tests of scoring, and an MLflow store that holds them."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.kinds import (
    Bucketed,
    Categorical,
    Date,
    Feature,
    ImageEmbedding,
    Label,
    MultiValued,
    Numeric,
    Ordinal,
    Sequence,
    Sparse,
    Text,
    TextEmbedding,
    Vector,
)
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.scoring.embedding.model_encoders import encoder_versions, graph_encoders, save_features
from mirrorspark.scoring.model.folder.directory import (
    FEATURES_FOLDER,
    OUTPUTS,
    SAVED_MODEL_FOLDER,
    ModelDescription,
    Task,
)

TAGS = Label("tags", "multi_label")

# Every kind of feature, and every kind of missing value: null, "", NaN, an empty list, a null list, a null in a list.
FLIGHTS = pa.table(
    {
        "flight_id": pa.array(["f0", "f1", "f2", "f3", "f4", "f5"]),
        "carrier": pa.array(["UA", "AA", "", None, "unseen", "DL"]),
        "hour": pa.array([5, 6, None, 23, 7, 5], pa.int32()),
        "stops": pa.array([["EWR", "JFK"], [], None, ["LGA", None, ""], ["a", "EWR", "JFK", "LGA"], ["JFK"]]),
        "distance": pa.array([100.0, 2_500.0, None, float("nan"), -3.5, 1_000.0]),
        "unused": pa.array(range(6)),
    }
)
FLIGHTS_DDL = "flight_id string, carrier string, hour int, stops array<string>, distance double, unused bigint"


ORDERS = pa.table(
    {
        "order_id": pa.array([1, 2, 3]),
        "amount": pa.array([9.5, None, 1e4]),
        "age": pa.array([31, None, 17], pa.int32()),
        "customer": pa.array(["ann", None, "bob"]),
        "viewed": pa.array([["x", "y"], None, ["z"]]),
        "viewed_at": pa.array([[7_000_000, None], None, [5]], pa.list_(pa.timestamp("us", "UTC"))),
        "review": pa.array(["Gro\u00df, ODER klein?", None, ""]),
        "basket": pa.array([[(7, 2.0), (1, None)], None, []], pa.map_(pa.int32(), pa.float64())),
        "click_ids": pa.array([[3, 1], None, [999]], pa.list_(pa.int64())),
        "clicks": pa.array([[1.0, 2.0], None, [0.5]], pa.list_(pa.float32())),
        "picture": pa.array([[0.25, -1.0], None, [float("nan"), 3.5]], pa.list_(pa.float32())),
    }
)
ORDERS_DDL = (
    "order_id bigint, amount double, age int, customer string, viewed array<string>, viewed_at array<timestamp>, "
    "review string, basket map<int, double>, click_ids array<bigint>, clicks array<float>, picture array<float>"
)


def orders_features() -> FittedFeatures:
    """Return features of every other kind, of a binary model."""
    spec = FeatureSpec(
        features=(
            Numeric("amount", log=True),
            Bucketed("age", buckets=2),
            Categorical("customer", hash_buckets=100),
            Sequence("viewed", time="viewed_at", max_length=2, hash_buckets=50),
            Text("review", max_length=12, hash_buckets=50, ngrams=(3, 4)),
            Sparse("basket", size=10),
            Sparse("clicked", size=1000, indices="click_ids", values="clicks"),
            Vector("picture", size=2),
        ),
        label=Label("again"),
        keys=("order_id",),
    )
    return FittedFeatures(spec, {}, {"amount": NumericStatistics(2.0, 1.5, 0.0, 9.0, 3)}, {"age": (30.0,)})


def export_orders(folder: Path, names: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Export an untrained binary model of :func:`orders_features`, some of whose columns have other names."""
    fitted = orders_features()

    def renamed(feature: Feature) -> Feature:
        given = {part: getattr(feature, part, None) for part in ("name", "time", "indices", "values")}
        return replace(feature, **{part: names.get(name, name) for part, name in given.items() if name is not None})

    return _export_binary(
        folder,
        replace(
            fitted,
            spec=replace(fitted.spec, features=tuple(map(renamed, fitted.spec.features))),
            statistics={names.get(name, name): one for name, one in fitted.statistics.items()},
            quantiles={names.get(name, name): one for name, one in fitted.quantiles.items()},
        ),
        seed=5,
    )


REVIEWS = pa.table(
    {
        "id": pa.array(range(7)),
        "review": pa.array(["Toy Story", " Toy\u00a0 Story ", None, "unseen 2", " ", "toy " * 40, "story"]),
        "stars": pa.array([5.0, 1.0, None, 2.0, 4.0, 3.0, 3.0]),
    }
)


def export_reviews(folder: Path, review: TextEmbedding) -> Path:
    """Export an untrained binary model of :data:`REVIEWS`, whose ``review`` is as a conversion has recorded it."""
    fitted = FittedFeatures(
        FeatureSpec((review, Numeric("stars")), Label("good"), ("id",)),
        {},
        {"stars": NumericStatistics(mean=3.0, standard_deviation=1.5, minimum=1.0, maximum=5.0, count=6)},
        column_types={"review": "string", "stars": "double"},
    )
    return _export_binary(folder, fitted, seed=5)


def export_photos(folder: Path, photo: ImageEmbedding) -> Path:
    """Export an untrained binary model of a column ``photo`` of images and a number, ``stars``."""
    fitted = FittedFeatures(
        FeatureSpec((photo, Numeric("stars")), Label("good"), ("id",)),
        {},
        {"stars": NumericStatistics(mean=3.0, standard_deviation=1.5, minimum=1.0, maximum=5.0, count=6)},
        column_types={"photo": "binary", "stars": "double"},
    )
    return _export_binary(folder, fitted, seed=5)


MEMBERS = pa.table(
    {
        "id": pa.array([0, 1, 2, 3, 4]),
        "member": pa.array([True, False, None, True, False]),
        "flags": pa.array([[True], [False, True, True], [], [False], []]),
    }
)
MEMBERS_DDL = "id bigint, member boolean, flags array<boolean>"


def export_members(folder: Path) -> Path:
    """Export an untrained binary model of tokens that are booleans, whose types were recorded."""
    fitted = FittedFeatures(
        FeatureSpec((Categorical("member"), MultiValued("flags", max_length=3)), Label("late"), ("id",)),
        {"member": _vocabulary("true", "false"), "flags": _vocabulary("false", "true")},
        {},
        column_types={name: str(MEMBERS.schema.field(name).type) for name in ("member", "flags")},
    )
    return _export_binary(folder, fitted, seed=7)


TYPES = pa.table(
    {
        "id": pa.array(range(5)),
        "store": pa.array([1, 2, None, 3, 2], pa.int32()),
        "visits": pa.array([400, None, 3, 17, 25]),
        "amount": pa.array([0.5, None, -2.0, 3.0, 1.0]),
        "price": pa.array([Decimal("9.50"), None, Decimal("0.25"), Decimal("3.00"), Decimal("1.75")]),
        "member": pa.array([True, None, False, True, False]),
        "shop": pa.array(["a", "b", None, "a", "c"]),
        "size": pa.array(["S", "L", None, "M", "XXL"]),
        "mood": pa.array(["low", "high", "", "unseen", "low"]),
        "joined": pa.array(["29.02.2024", "1.1.2024", None, "unknown", "31 Dec 2023"]),
        "day": pa.array([date(2024, 2, 29), None, date(1970, 1, 1), date(2024, 1, 1), date(2023, 12, 31)]),
        "when": pa.array([datetime(2024, 2, 29, 12), None, datetime(2024, 1, 1), datetime(2023, 1, 1), None])
        .cast(pa.timestamp("us"))
        .cast(pa.timestamp("us", "UTC")),
        "codes": pa.array([[1, 2], None, [], [3, None], [2]], pa.list_(pa.int64())),
    }
)


def export_types(folder: Path) -> Path:
    """Export an untrained binary model of columns of many types, which were recorded; ``shop`` was a categorical."""
    spec = FeatureSpec(
        features=(
            Categorical("store"),
            Numeric("visits"),
            Numeric("amount"),
            Numeric("price"),
            Categorical("member"),
            Categorical("shop"),
            Ordinal("size", order=("S", "M", "L")),
            Ordinal("mood", order=("low", "high")),
            Date("joined", order="dmy"),
            Date("day"),
            Date("when"),
            MultiValued("codes", max_length=2),
        ),
        label=Label("again"),
        keys=("id",),
    )
    days = NumericStatistics(mean=19_700.0, standard_deviation=50.0, minimum=0.0, maximum=19_800.0, count=4)
    fitted = FittedFeatures(
        spec,
        {
            "store": _vocabulary("2", "1", "3"),
            "member": _vocabulary("true", "false"),
            "shop": _vocabulary("a", "b", "c"),
            "codes": _vocabulary("2", "1", "3"),
        },
        {one.name: days if isinstance(one, Date) else NumericStatistics(1.0, 2.0, 0, 9, 4) for one in spec.numeric},
        column_types={name: str(TYPES.schema.field(name).type) for name in TYPES.column_names if name != "id"},
        categories=("shop", "size"),
    )
    return _export_binary(folder, fitted, seed=7)


def export_vectors(folder: Path) -> Path:
    """Export an untrained binary model whose one input is a vector of three."""
    spec = FeatureSpec((Sparse("vector", size=3),), Label("late"), ("id",))
    return _export_binary(folder, FittedFeatures(spec, {}, {}), seed=7)


BASKETS = pa.table(
    {
        "id": pa.array([0, 1, 2, 3]),
        "products": pa.array([[3, 1], [], None, [999, 3, 3]], pa.list_(pa.int64())),
        "counts": pa.array([[1.0, 2.0], [], None, [0.5, 1.0, 1.0]], pa.list_(pa.float32())),
    }
)


BASKET_TAGS = ("tea", "milk", "ü")


def baskets_features(label: Label, tags: Iterable[str] = BASKET_TAGS) -> FittedFeatures:
    """Return features of a multi-label model of one sparse vector; a label of tokens has ``tags``."""
    spec = FeatureSpec((Sparse("basket", size=1000, indices="products", values="counts"),), label, ("id",))
    vocabularies = {label.name: _vocabulary(*tags)} if label.classes is None else {}
    return FittedFeatures(spec, vocabularies, {})


def export_baskets(
    folder: Path, label: Label = TAGS, *, heads: str = "sigmoid", tags: Iterable[str] = BASKET_TAGS
) -> Path:
    """Export an untrained multi-label model of :func:`baskets_features`."""
    from mirrorspark.models import multi_label
    from mirrorspark.models.serving.export import ScoringModule, save

    fitted = baskets_features(label, tags)
    settings = multi_label.Settings(embedding_dim=4, hidden_units=(8,), heads=heads)
    model = _built(multi_label, settings, fitted, seed=9)
    save(ScoringModule(multi_label, model, fitted), folder / SAVED_MODEL_FOLDER)
    return described(folder, "multi_label", fitted, "multi_label")


def flights_features() -> FittedFeatures:
    """Return features of a binary model, fitted by hand."""
    spec = FeatureSpec(
        features=(Categorical("carrier"), Categorical("hour"), MultiValued("stops", max_length=3), Numeric("distance")),
        label=Label("late"),
        keys=("flight_id",),
    )
    return FittedFeatures(
        spec,
        {
            "carrier": _vocabulary("UA", "AA", "DL"),
            "hour": _vocabulary("5", "6", "7"),
            "stops": _vocabulary("EWR", "JFK", "LGA"),
        },
        {"distance": NumericStatistics(mean=900.0, standard_deviation=400.0, minimum=0.0, maximum=3_000.0, count=6)},
        column_types={name: str(FLIGHTS.schema.field(name).type) for name in ("carrier", "hour", "stops", "distance")},
    )


def movies_features(prefix: str = "m") -> FittedFeatures:
    """Return features of a retrieval model with exclusions, fitted by hand; tokens are numbers after ``prefix``.

    Without a prefix the candidates were whole numbers in training.
    """
    spec = FeatureSpec(
        features=(
            Categorical("user"),
            MultiValued("history", max_length=2, vocabulary_of="movie"),
            Categorical("movie"),
        ),
        label=Label("movie", kind="candidate"),
        keys=("user",),
        exclude="seen",
    )
    movies = _vocabulary(*(f"{prefix}{number}" for number in range(40)))
    types = {"movie": "string" if prefix else "int32"}
    return FittedFeatures(spec, {"user": _vocabulary("u0", "u1"), "movie": movies}, {}, column_types=types)


def export_flights(folder: Path, seed: int, *, weights: float | None = None) -> Path:
    """Export an untrained binary model, whose weights follow from ``seed``, or are all ``weights``."""
    return _export_binary(folder, flights_features(), seed, weights)


def export_movies(folder: Path, *, scann: bool, prefix: str = "m") -> Path:
    """Export an untrained retrieval model that recommends three candidates, by the exact index and by IVF."""
    from mirrorspark.models import two_tower
    from mirrorspark.models.serving.export import build_indexes, recalls, save_retrieval

    fitted = movies_features(prefix)
    model = _built(two_tower, two_tower.Settings(embedding_dim=4, hidden_units=(8,)), fitted, seed=3)
    sample = np.random.default_rng(3).normal(size=(50, 4)).astype(np.float32)
    indexes = build_indexes(model, 3, scann=scann, sample=sample)
    save_retrieval(two_tower, model, fitted, 3, indexes, folder / SAVED_MODEL_FOLDER)
    return described(folder, "two_tower", fitted, "retrieval", indexes=recalls(indexes, 3, sample))


def export_als(folder: Path, movies: Iterable[str]) -> Path:
    """Export ALS, with factors drawn at random, for rows with a history and what they have seen; lists of three."""
    from mirrorspark.models import catalog
    from mirrorspark.models.serving.export import RetrievalModule, save

    spec = movies_features("m").spec
    features = tuple(one for one in spec.features if one.name in ("history", "movie"))
    fitted = FittedFeatures(
        FeatureSpec(features, spec.label, spec.keys, exclude=spec.exclude), {"movie": _vocabulary(*movies)}, {}
    )
    architecture: Any = catalog.architecture("als")
    tokens = fitted.vocabulary(spec.candidate).tokens
    factors = np.random.default_rng(5).normal(size=(len(tokens), 4)).astype(np.float32)
    model = architecture.build(catalog.settings("als", {"rank": 4}), fitted, {"factors": factors})
    save(RetrievalModule(architecture, model, fitted, 3, {"exact": model.index}), folder / SAVED_MODEL_FOLDER)
    return described(folder, "als", fitted, "retrieval", indexes={"exact": 1.0})


def export_watches(folder: Path) -> Path:
    """Export an untrained binary model of movies, which were integers in training, and of rebates."""
    fitted = FittedFeatures(
        FeatureSpec((Categorical("movie"), Numeric("rebate")), Label("watched"), ("id",)),
        {"movie": _vocabulary(*map(str, range(40)))},
        {"rebate": NumericStatistics(mean=0.5, standard_deviation=0.5, minimum=0.0, maximum=1.0, count=4)},
        column_types={"movie": "int64", "rebate": "double"},
    )
    return _export_binary(folder, fitted, seed=9)


HISTORIES = pa.table(
    {
        "user": pa.array([0, 1, 2, 3, 4, 5]),
        "watched": pa.array([[], ["m3"], ["m0", "m1", "m2", "m3", "m0", "m4"], None, ["m7", None, "m2"], ["m5"] * 9]),
    }
)


def export_histories(folder: Path) -> Path:
    """Export an untrained retrieval model that reads up to six movies in their order and recommends five."""
    from mirrorspark.models import lstm_retrieval
    from mirrorspark.models.serving.export import build_indexes, save_retrieval

    history = MultiValued("watched", max_length=6, vocabulary_of="movie")
    spec = FeatureSpec((history, Categorical("movie")), Label("movie", kind="candidate"), ("user",))
    fitted = FittedFeatures(spec, {"movie": _vocabulary(*(f"m{number}" for number in range(40)))}, {})
    settings = lstm_retrieval.Settings(embedding_dim=4, hidden_units=(8,), lstm_units=5)
    model = _built(lstm_retrieval, settings, fitted, seed=11)
    # As drawn they are so small that a step too many would hardly be seen.
    for tower in (model.query_tower, model.candidate_tower):
        tower.set_weights([weight * 5 for weight in tower.get_weights()])
    indexes = build_indexes(model, 5)
    save_retrieval(lstm_retrieval, model, fitted, 5, indexes, folder / SAVED_MODEL_FOLDER)
    return described(folder, "lstm_retrieval", fitted, "retrieval", indexes={"exact": 1.0})


def log_flights(store_uri: str, artifacts: Path, model: Path, name: str = "flights") -> Any:
    """Log an exported model to MLflow as training does, register it, and return what MLflow says of it."""
    import mlflow

    from mirrorspark.scoring.model import mirrorspark_pyfunc

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store_uri)
    try:
        experiment = mlflow.get_experiment_by_name("scoring")
        experiment_id = (
            experiment.experiment_id if experiment else mlflow.create_experiment("scoring", artifacts.as_uri())
        )
        with mlflow.start_run(experiment_id=experiment_id):
            return mlflow.pyfunc.log_model(
                name="model",
                loader_module="mirrorspark_pyfunc",
                data_path=str(model),
                code_paths=[str(mirrorspark_pyfunc.__file__)],
                pip_requirements=[],
                registered_model_name=name,
            )
    finally:
        mlflow.set_tracking_uri(before)


def _vocabulary(*tokens: str) -> Vocabulary:
    return Vocabulary(pa.array(tokens), pa.array(range(len(tokens), 0, -1), pa.int64()))


def _export_binary(folder: Path, fitted: FittedFeatures, seed: int, weights: float | None = None) -> Path:
    from mirrorspark.models import multi_field
    from mirrorspark.models.serving.export import ScoringModule, save

    model = _built(multi_field, multi_field.Settings(embedding_dim=4, hidden_units=(8,)), fitted, seed)
    if weights is not None:
        model.set_weights([np.full_like(values, weights) for values in model.get_weights()])
    save_features(fitted, folder)
    texts = graph_encoders(folder, fitted.spec.query_features)
    save(ScoringModule(multi_field, model, fitted, texts), folder / SAVED_MODEL_FOLDER)
    return described(folder, "multi_field", fitted, "binary")


def _built(architecture: ModuleType, settings: Any, fitted: FittedFeatures, seed: int) -> Any:
    import tf_keras

    tf_keras.utils.set_random_seed(seed)
    return architecture.build(settings, fitted, seed)


def described(
    folder: Path,
    architecture: str,
    fitted: FittedFeatures,
    task: Task,
    indexes: Mapping[str, float] | None = None,
) -> Path:
    """Write what belongs to a SavedModel, and return the folder."""
    fitted.save(folder / FEATURES_FOLDER)
    ModelDescription(
        task=task,
        architecture=architecture,
        features_hash=fitted.hash,
        outputs=OUTPUTS[task],
        versions={**encoder_versions(folder, fitted.spec.embedded), "tensorflow": version("tensorflow")},
        indexes=indexes or {},
    ).with_columns(fitted, folder).save(folder)
    return folder
