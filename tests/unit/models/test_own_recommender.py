"""#53: a user's own models of TensorFlow Recommenders, of all kinds, whose towers have any name."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.reading.padding import PaddedBatch
from mirrorspark.models import catalog, own_model
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.step_loop import use_step_loop
from mirrorspark.models.index.exact import ExactTopK
from mirrorspark.models.serving.export import RetrievalModule, build_indexes, candidate_embeddings
from mirrorspark.models.serving.saved_functions import concrete, save_functions
from mirrorspark.models.settings import ModelSettingsError
from mirrorspark.training.protocol.ring.losses import mean_losses
from mirrorspark.training.protocol.ring.strategy import RingStrategy
from tests.conftest import PATIENCE
from tests.unit.models.conftest import vocabulary
from tests.unit.training.test_function_rank import Twin

MOVIES = ("m0", "m1", "m2", "m3")
FEATURES = {
    "user": {"kind": "categorical"},
    "movie": {"kind": "categorical"},
    "watched": {"kind": "multi_valued", "max_length": 3, "vocabulary_of": "movie"},
}
VOCABULARIES = {"user": vocabulary(["u0", "u1", "u2"]), "movie": vocabulary(MOVIES)}
STATISTICS = {"stars": NumericStatistics(3.0, 1.0, 1.0, 5.0, 10)}


def fitted(label: Any) -> FittedFeatures:
    spec = FeatureSpec.from_dict({"label": label, "keys": "row", "features": FEATURES})
    return FittedFeatures(spec, VOCABULARIES, STATISTICS)


CHOICE = fitted({"name": "movie", "kind": "candidate"})
RATED_CHOICE = fitted({"name": "movie", "kind": "candidate", "rating": "stars"})
RATING = fitted({"name": "stars", "kind": "numeric"})


class Retrieval(tfrs.Model):
    """Two towers with names of their own, and the metric over all candidates."""

    def __init__(self, features: FittedFeatures) -> None:
        super().__init__()
        movies = features.id_count(features.spec.candidate)
        self.who = tf_keras.layers.Embedding(5, 4)
        self.what = tf_keras.layers.Embedding(movies, 4)
        self.task = tfrs.tasks.Retrieval(
            metrics=tfrs.metrics.FactorizedTopK(
                tf.data.Dataset.range(2, movies).batch(2).map(lambda ids: self.what(ids)), ks=(1, 3)
            )
        )

    def query(self, inputs: Any) -> tf.Tensor:
        return self.who(inputs["user"])

    def compute_loss(self, inputs: Any, training: bool = False) -> tf.Tensor:
        return self.task(self.query(inputs), self.what(inputs["movie"]), compute_metrics=not training)


class Sequential(Retrieval):
    """A query by the order of the watched movies."""

    def __init__(self, features: FittedFeatures) -> None:
        super().__init__(features)
        self.order = tf_keras.layers.GRU(4)

    def query(self, inputs: Any) -> tf.Tensor:
        return self.order(self.what(inputs["watched"]))


class Multitask(Retrieval):
    """Retrieval and ratings, whose loss has the default reduction; the label is taken out of the inputs."""

    def __init__(self, features: FittedFeatures) -> None:
        super().__init__(features)
        self.stars = tf_keras.layers.Dense(1)
        self.rating_task = tfrs.tasks.Ranking(tf_keras.losses.MeanSquaredError())

    def compute_loss(self, inputs: Any, training: bool = False) -> tf.Tensor:
        stars = inputs.pop("stars")
        queries, movies = self.query(inputs), self.what(inputs["movie"])
        rated = self.rating_task(labels=stars, predictions=self.stars(tf.concat([queries, movies], axis=1)))
        return rated + self.task(queries, movies, compute_metrics=not training)


class Crossed(tfrs.Model):
    """DCN; it has no call."""

    def __init__(self, features: FittedFeatures) -> None:
        super().__init__()
        self.tables = [tf_keras.layers.Embedding(8, 4) for _ in range(2)]
        self.cross, self.out = tfrs.layers.dcn.Cross(), tf_keras.layers.Dense(1)
        self.task = tfrs.tasks.Ranking(
            tf_keras.losses.MeanSquaredError(), metrics=[tf_keras.metrics.RootMeanSquaredError("RMSE")]
        )

    def compute_loss(self, inputs: Any, training: bool = False) -> tf.Tensor:
        joined = tf.concat([self.tables[0](inputs["user"]), self.tables[1](inputs["movie"])], axis=1)
        return self.task(labels=inputs["stars"], predictions=self.out(self.cross(joined)))


class OwnStep(Crossed):
    """A step of its own, which returns a value of its own."""

    def train_step(self, inputs: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = self.compute_loss(inputs, training=True)
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        return {"loss": loss, "rows": tf.shape(inputs["user"])[0]}


def built(build: Callable[[FittedFeatures], Any], features: FittedFeatures) -> tuple[Any, Any]:
    given = own_model.own_model(build, features.spec.label.form)
    architecture = catalog.architecture(given["name"])
    options = {name: value for name, value in given.items() if name != "name"}
    tf_keras.utils.set_random_seed(3)
    model = architecture.build(catalog.settings(given["name"], options), features, 1)
    if not model.own_compilation:
        compile_model(model, architecture.TASK, tf_keras.optimizers.Adagrad(0.5), 2)
    use_step_loop(model)
    return architecture, model


def rows(count: int, real: int) -> PaddedBatch:
    """Return rows of users who watch the movie of their number, in two lanes, each with its padding at its end."""
    lanes = [[2 + row % 3 for row in range(lane, real, 2)] for lane in range(2)]
    users = [user for lane in lanes for user in (*lane, *[0] * (count // 2 - len(lane)))]
    ids = tf.constant(users, tf.int64)
    watched = tf.stack([ids, tf.zeros_like(ids), tf.zeros_like(ids)], axis=1)
    weight = tf.constant([float(user > 0) for user in users])
    features = {"user": ids, "movie": ids, "watched": watched}
    return PaddedBatch(features, tf.cast(ids, tf.float32), weight, tf.constant(count / real))


KINDS = pytest.mark.parametrize(
    ("build", "features"),
    [(Retrieval, CHOICE), (Sequential, CHOICE), (Multitask, RATED_CHOICE), (Crossed, RATING), (OwnStep, RATING)],
)


class OwnMean(Crossed):
    """Computes a mean that is 0/0 of no row, and has a metric of it."""

    def __init__(self, features: FittedFeatures) -> None:
        super().__init__(features)
        self.tracker = tf_keras.metrics.Mean(name="error")

    def compute_loss(self, inputs: Any, training: bool = False) -> tf.Tensor:
        super().compute_loss(inputs)  # whose task says which predictions are scores
        joined = tf.concat([self.tables[0](inputs["user"]), self.tables[1](inputs["movie"])], axis=1)
        loss = tf.reduce_mean((inputs["stars"] - self.out(self.cross(joined))[:, 0]) ** 2)
        self.tracker.update_state(loss)
        return loss


def test_a_worker_without_a_row_adds_nothing_to_the_step() -> None:
    strategy = RingStrategy(Twin())  # type: ignore[arg-type]
    with strategy.scope(), mean_losses(strategy):
        _, model = built(OwnMean, RATING)
        before = [weight.numpy() for weight in model.trainable_weights]
        nothing = rows(4, 1)._replace(weight=tf.zeros([4]), scale=tf.constant(8.0))
        for step in (model.train_step, model.test_step):
            logs = tf.function(lambda step=step: strategy.run(step, args=(nothing,)), autograph=False)()
            assert {name: float(value) for name, value in logs.items()} == dict.fromkeys(logs, 0.0)
        assert float(model.tracker.count.read_value()) == 0
        for weight, value in zip(model.trainable_weights, before, strict=True):
            np.testing.assert_array_equal(weight.numpy(), value)


@KINDS
def test_every_kind_trains_on_rows_without_their_padding(build: Any, features: FittedFeatures) -> None:
    """The loss of padded rows is that of the rows alone, as their metrics are."""
    _, model = built(build, features)
    found = []
    for batch in (rows(6, 6), rows(10, 6)):
        data = tf.data.Dataset.from_tensors(batch)
        found.append(model.evaluate(data.repeat(2), steps=2, return_dict=True, verbose=0))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    history = model.fit(tf.data.Dataset.from_tensors(rows(10, 6)).repeat(), epochs=20, steps_per_epoch=2, verbose=0)
    assert history.history["loss"][-1] < 0.7 * history.history["loss"][0]


@pytest.mark.parametrize(("build", "features"), [(Retrieval, CHOICE), (Sequential, CHOICE), (Multitask, RATED_CHOICE)])
def test_vectors_of_both_sides_are_found_by_what_the_task_is_given(build: Any, features: FittedFeatures) -> None:
    architecture, model = built(build, features)
    model.fit(tf.data.Dataset.from_tensors(rows(6, 6)).repeat(), epochs=1, steps_per_epoch=2, verbose=0)
    inputs = dict(rows(4, 4).features)
    asked = {name: inputs[name] for name in ("user", "watched")}
    queries = architecture.predict(model, asked).numpy()
    np.testing.assert_array_equal(queries, model.query(inputs).numpy())
    candidates = candidate_embeddings(model)
    np.testing.assert_array_equal(candidates, model.what.get_weights()[0])
    indexes = build_indexes(model, 2)
    assert isinstance(indexes["exact"], ExactTopK)
    signatures = RetrievalModule(architecture, model, features, 2, indexes).functions()
    found = signatures["encoded"][0](asked)["candidates"]
    best = (queries @ candidates[2:].T).argsort(axis=1)[:, ::-1][:, :2]
    assert found.numpy().tolist() == [[MOVIES[place].encode() for place in row] for row in best]


@pytest.mark.parametrize("build", [Crossed, OwnStep])
def test_predictions_are_those_that_a_ranking_task_is_given(build: Any) -> None:
    architecture, model = built(build, RATING)
    inputs = dict(rows(4, 4).features)
    joined = tf.concat([model.tables[0](inputs["user"]), model.tables[1](inputs["movie"])], axis=1)
    expected = model.out(model.cross(joined))[:, 0]
    np.testing.assert_array_equal(architecture.predict(model, inputs)["score"], expected)


def test_a_model_that_does_not_go_with_the_label_or_the_precision_is_refused_in_a_line() -> None:
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        with pytest.raises(ModelSettingsError, match="mixed_float16 needs its losses scaled"):
            built(Crossed, RATING)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    with pytest.raises(ModelSettingsError, match=r"calls no tfrs\.tasks\.Ranking, which the label 'stars'"):
        built(lambda _: Retrieval(CHOICE), RATING)
    with pytest.raises(ModelSettingsError, match=r"calls no tfrs\.tasks\.Retrieval, which the label 'movie'"):
        built(lambda _: WithoutTask(), CHOICE)
    with pytest.raises(ModelSettingsError, match=r"whose ScaNN index has candidates before the training, those of"):
        built(with_index("ScaNN", is_filled=True), CHOICE)
    with pytest.raises(ModelSettingsError, match=r"returns Sequential, and a label of kind candidate needs a model of"):
        built(lambda _: tf_keras.Sequential([tf_keras.layers.Dense(1)]), CHOICE)


def with_index(kind: str, *, is_filled: bool) -> Callable[..., Any]:
    """Return a function that builds a model with an index of its own."""

    def build(features: FittedFeatures) -> Any:
        model: Any = Retrieval(features)
        options = {"num_leaves": 1, "num_leaves_to_search": 1} if kind == "ScaNN" else {}
        model.index = getattr(tfrs.layers.factorized_top_k, kind)(model.who, k=2, **options)
        if is_filled:
            ids = tf.data.Dataset.range(2, 6).batch(4).repeat(10)  # which ScaNN needs for its clusters
            model.index.index_from_dataset(ids.map(lambda some: (some, model.what(some))))
        return model

    return build


@pytest.mark.parametrize(
    ("kind", "is_filled"), [("BruteForce", True), ("Streaming", True), ("ScaNN", False)], ids=lambda given: str(given)
)
def test_an_index_of_the_model_is_left_alone_and_the_exported_one_has_the_trained_candidates(
    kind: str, is_filled: bool, tmp_path: Path
) -> None:
    architecture, model = built(with_index(kind, is_filled=is_filled), CHOICE)
    model.fit(tf.data.Dataset.from_tensors(rows(6, 6)).repeat(), epochs=1, steps_per_epoch=2, verbose=0)
    module = RetrievalModule(architecture, model, CHOICE, 2, build_indexes(model, 2))
    function, specs = module.functions()["encoded"]
    save_functions(module, {"encoded": concrete(function, specs)}, tmp_path)
    inputs = {name: rows(4, 4).features[name] for name in ("user", "watched")}
    found = tf.saved_model.load(str(tmp_path)).signatures["encoded"](**inputs)["candidates"]
    best = (model.query(inputs).numpy() @ model.what.get_weights()[0][2:].T).argsort(axis=1)[:, ::-1][:, :2]
    assert found.numpy().tolist() == [[MOVIES[place].encode() for place in row] for row in best]


class WithoutTask(tfrs.Model):
    def compute_loss(self, inputs: Any, training: bool = False) -> tf.Tensor:
        return tf.zeros([])


@pytest.mark.full
@pytest.mark.process
def test_nothing_but_retrieval_models_imports_the_package() -> None:
    """#53: the export of other models, their training, scoring and classical files do without."""
    modules = ("training.programs.keras_fit.fit", "training.programs.user_functions.worker", "training.results.export")
    modules += ("training.results.predictions", "models.serving.export", "recommending.recommendations", "scoring.plan")
    lines = ["import sys", "sys.modules['tensorflow_recommenders'] = None"]
    lines += [f"import mirrorspark.{module}" for module in modules]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE * 200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
