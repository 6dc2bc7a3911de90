"""#53: a user's own models of Keras Recommenders, in the form of its public examples."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.models import catalog, own_model
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.keras3.loop import fit
from mirrorspark.models.keras3.retrieval import raw_retrieval
from mirrorspark.models.keras3.steps import share_steps
from mirrorspark.models.serving.export import RetrievalModule, build_indexes, candidate_embeddings
from mirrorspark.models.settings import ModelSettingsError
from mirrorspark.training.protocol.ring.strategy import RingStrategy
from tests.unit.models.test_own_recommender import CHOICE, MOVIES, RATED_CHOICE, RATING, rows
from tests.unit.training.test_function_rank import Twin

keras_rs = pytest.importorskip("keras_rs")


class Retrieval(keras.Model):
    """The user alone is the input, and the layer for retrieval shares the table of movies."""

    def __init__(self, movies: int) -> None:
        super().__init__()
        self.who, self.what = keras.layers.Embedding(5, 4), keras.layers.Embedding(movies, 4)
        self.best = keras_rs.layers.BruteForceRetrieval(k=2, return_scores=False)
        self.error = keras.losses.MeanSquaredError()

    def build(self, shape: Any) -> None:
        for table in (self.who, self.what):
            table.build(shape)
        self.best.candidate_embeddings = self.what.embeddings
        super().build(shape)

    def call(self, users: Any, training: bool = False) -> Any:
        vectors = self.who(users)
        return {"vectors": vectors} | ({} if training else {"predictions": self.best(vectors)})

    def compute_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool = True) -> Any:
        scores = ops.sum(y_pred["vectors"] * self.what(y["movie"]), axis=1, keepdims=True)
        return self.error(y["stars"][:, None], scores, sample_weight)


class Multitask(Retrieval):
    """Names are columns; the negatives of a row are the movies of the others, whose losses are summed."""

    def __init__(self, movies: int) -> None:
        super().__init__(movies)
        self.of_all = keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum")
        self.rate = keras.layers.Dense(1)

    def build(self, shapes: Any) -> None:
        self.rate.build((None, 8))
        super().build(shapes["user"])

    def call(self, inputs: Any, training: bool = False) -> Any:
        users, movies = self.who(inputs["user"]), self.what(inputs["movie"])
        found = {"vectors": users, "movies": movies, "stars": self.rate(ops.concatenate([users, movies], axis=1))}
        return found | ({} if training else {"predictions": self.best(users)})

    def compute_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool = True) -> Any:
        scores = ops.matmul(y_pred["vectors"], ops.transpose(y_pred["movies"]))
        retrieval = self.of_all(ops.eye(ops.shape(y)[0]), scores, sample_weight)
        return retrieval + self.error(y[:, None], y_pred["stars"], sample_weight)


class Towers(Retrieval):
    """Candidates are vectors of a tower, computed anew for each validation as in the deep example."""

    def __init__(self, movies: int) -> None:
        super().__init__(movies)
        self.what = keras.Sequential([keras.layers.Embedding(movies, 4), keras.layers.Dense(4)])
        self.update_candidates()

    def update_candidates(self) -> None:
        self.best.update_candidates(self.what.predict(np.arange(6), verbose=0))

    def build(self, shape: Any) -> None:
        self.who.build(shape)


class Unasked(Retrieval):
    """Leaves its layer for retrieval to the user."""

    def call(self, users: Any, training: bool = False) -> Any:
        return super().call(users, training=True)


class Normalized(keras.Model):
    """Has moving averages; its loss is a number, and that of no row is none."""

    def __init__(self) -> None:
        super().__init__()
        self.who, self.norm = keras.layers.Embedding(5, 4), keras.layers.BatchNormalization()
        self.rate = keras.layers.Dense(1)

    def build(self, shape: Any) -> None:
        self.who.build(shape)
        for layer in (self.norm, self.rate):
            layer.build((None, 4))

    def call(self, users: Any, training: bool = False) -> Any:
        return self.rate(self.norm(self.who(users), training=training))


def normalized(features: FittedFeatures) -> Any:
    model = Normalized()
    model.compile(keras.optimizers.SGD(0.1), lambda y, scores: ops.mean((y - scores[:, 0]) ** 2))
    return model, lambda columns: (columns["user"], columns["stars"])


def towers(features: FittedFeatures) -> Any:
    return compiled(Towers(features.id_count(features.spec["movie"]))), retrieval(features)[1]


def retrieval(features: FittedFeatures) -> Any:
    def form(columns: Any) -> Any:
        return columns["user"], {"movie": columns["movie"], "stars": columns["stars"]}

    return compiled(Retrieval(features.id_count(features.spec["movie"]))), form


def multitask(features: FittedFeatures) -> Any:
    def form(columns: Any) -> Any:
        return {name: columns[name] for name in ("user", "movie")}, columns["stars"]

    return Multitask(features.id_count(features.spec["movie"])), form


def compiled(model: Any) -> Any:
    model.compile(keras.optimizers.Adagrad(0.5))
    return model


def built(build: Callable[[FittedFeatures], Any], features: FittedFeatures) -> tuple[Any, Any]:
    given = own_model.own_model(build, features.spec.label.form)
    architecture = catalog.architecture(given["name"])
    keras.utils.set_random_seed(3)
    options = {name: value for name, value in given.items() if name != "name"}
    model = architecture.build(catalog.settings(given["name"], options), features, 1)
    if model.own_compilation:
        own_model.keep_compilation(model, 2)
    else:
        compile_model(model, architecture.TASK, keras.optimizers.Adagrad(0.1), 2)
    share_steps(model)
    return architecture, model


def trained(model: Any, batch: Any) -> Any:
    data = tf.data.Dataset.from_tensors(batch).repeat()
    of_fit = {"epochs": 10, "steps_per_epoch": 2, "validation_steps": 1, "callbacks": []}
    return fit(model, data, validation_data=data, **of_fit).history


@pytest.mark.parametrize(
    "build", [retrieval, *(pytest.param(one, marks=pytest.mark.full) for one in (multitask, towers))]
)
def test_it_learns_from_rows_without_padding_and_is_exported_with_its_retrieval(build: Any) -> None:
    losses = [trained(built(build, RATED_CHOICE)[1], batch)["loss"] for batch in (rows(6, 6), rows(10, 6))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < 0.7 * losses[0][0]
    architecture, model = built(build, RATED_CHOICE)
    trained(model, rows(4, 4))
    columns = dict(rows(4, 4).features)
    asked = {name: columns[name] for name in ("user", "watched")}
    queries = architecture.predict(model, asked).numpy()
    np.testing.assert_array_equal(queries, model.who(columns["user"]))
    np.testing.assert_allclose(candidate_embeddings(model), model.what(np.arange(6)), atol=1e-6)
    signatures = RetrievalModule(architecture, model, RATED_CHOICE, 2, build_indexes(model, 2)).functions()
    found = signatures["encoded"][0](asked)["candidates"]
    best = (queries @ candidate_embeddings(model)[2:].T).argsort(axis=1)[:, ::-1][:, :2]
    assert found.numpy().tolist() == [[MOVIES[place].encode() for place in row] for row in best]


def test_the_output_with_the_labels_name_is_the_score() -> None:
    architecture, model = built(multitask, RATING)
    inputs = dict(rows(4, 4).features)
    expected = model(inputs)["stars"][:, 0]
    np.testing.assert_array_equal(architecture.predict(model, inputs)["score"], expected)
    assert trained(model, rows(10, 6))["loss"][-1] < 10


def test_a_worker_without_a_row_adds_nothing_to_the_step() -> None:
    """Its share is padding, which the model does not see."""
    strategy, found = RingStrategy(Twin()), []  # type: ignore[arg-type]
    real = tf.data.Dataset.from_tensors(rows(4, 4))
    nothing = real.map(lambda batch: batch._replace(weight=tf.zeros_like(batch.weight), scale=2.0 * batch.scale))
    for data in (real, real.concatenate(nothing)):
        with strategy.scope():
            _, model = built(normalized, RATING)
            steps = {"steps_per_epoch": len(data), "validation_steps": len(data)}
            logs = fit(model, data.repeat(), validation_data=data.repeat(), epochs=2, callbacks=[], **steps).history
        assert np.isfinite([*logs["loss"], *logs["val_loss"]]).all()
        found.append(model.get_weights())
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("kind", "has_index"), [(Retrieval, True), (Unasked, False)])
def test_the_index_of_a_trained_model_is_the_layer_that_it_asks(kind: Any, has_index: bool) -> None:
    model = compiled(kind(6))
    share_steps(model)
    users = np.arange(4)
    model.fit(users, {"movie": users, "stars": users.astype(np.float32)}, verbose=0)
    assert (raw_retrieval(model) is not None) == has_index


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda _: compiled(keras.Sequential([keras.layers.Dense(1)])), "without a layer for retrieval"),
        (lambda _: (Retrieval(4), lambda columns: (columns["user"], columns["movie"])), "has 4 candidates, and it is"),
        (lambda _: (Retrieval(6), lambda columns: columns["user"]), r"return \(inputs, label\)"),
    ],
)
def test_a_model_without_the_labels_candidates_is_refused_in_a_line(build: Any, message: str) -> None:
    with pytest.raises(ModelSettingsError, match=message):
        built(build, CHOICE)
