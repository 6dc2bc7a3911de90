"""#53: the tutorials of TensorFlow Recommenders, their own code unchanged, on two workers of a real session.

They are read from the folder of the fixture ``peers``, whose ``run.py`` replaces the data that they download.
TensorFlow Ranking, which one of them imports, needs a TensorFlow before 2.16: its three names have stand-ins.
"""

import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from mirrorspark.training.entry_points.launch import run_train_fn

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]

# The fits of each, and a metric of the last one, with its range on two workers after two epochs at most.
TUTORIALS = {
    "basic_retrieval": (1, "factorized_top_k/top_100_categorical_accuracy"),
    "basic_ranking": (1, "root_mean_squared_error"),
    "context_features": (2, "factorized_top_k/top_100_categorical_accuracy"),
    "dcn": (17, "RMSE"),
    "deep_recommenders": (3, "loss"),
    "efficient_serving": (1, "loss"),
    "listwise_ranking": (3, "ndcg_metric"),
    "multitask": (3, "root_mean_squared_error"),
    "quickstart": (1, "factorized_top_k/top_100_categorical_accuracy"),
    "sequential_retrieval": (1, "loss"),
}


def with_stand_ins() -> Callable[..., Any]:
    """Return a function that runs a tutorial after it has made the files and the module that the tutorial expects."""

    def sequences(data: str) -> None:
        """Write the examples that a program of the tutorial would download and make: ten movies and the next."""
        from pathlib import Path

        import pandas as pd
        import tensorflow as tf

        folder = Path("data/examples")
        folder.mkdir(parents=True)
        rated = pd.read_csv(f"{data}/ratings.csv").sort_values(["userId", "timestamp"])
        rated = rated[rated.movieId.isin(rated.movieId.value_counts().index[:1000])]
        files = {
            name: tf.io.TFRecordWriter(f"data/examples/{name}_movielens_1m.tfrecord") for name in ("train", "test")
        }
        for user, movies in rated.groupby("userId").movieId:
            ids = movies.tolist()
            for place in range(1, min(len(ids), 40)):
                before = ids[max(0, place - 10) : place]
                lists = {"context_movie_id": before + [0] * (10 - len(before)), "label_movie_id": [ids[place]]}
                features = {
                    name: tf.train.Feature(int64_list=tf.train.Int64List(value=of)) for name, of in lists.items()
                }
                example = tf.train.Example(features=tf.train.Features(feature=features))
                files["test" if user % 10 == 0 else "train"].write(example.SerializeToString())
        for file in files.values():
            file.close()

    def ranking() -> None:
        """Replace TensorFlow Ranking: a pairwise hinge loss, ListMLE and NDCG."""
        import sys
        import types

        import tensorflow as tf

        class PairwiseHingeLoss(tf.keras.losses.Loss):
            def call(self, y_true: Any, y_pred: Any) -> Any:
                better = tf.cast(y_true[:, :, None] > y_true[:, None, :], y_pred.dtype)
                margins = tf.nn.relu(1.0 - y_pred[:, :, None] + y_pred[:, None, :])
                return tf.reduce_sum(better * margins, axis=2)

        class ListMLELoss(tf.keras.losses.Loss):
            def call(self, y_true: Any, y_pred: Any) -> Any:
                ranked = tf.gather(y_pred, tf.argsort(y_true, direction="DESCENDING"), batch_dims=1)
                total = tf.math.cumulative_logsumexp(ranked, axis=1, reverse=True)
                return tf.reduce_sum(total - ranked, axis=1, keepdims=True)

        class NDCGMetric(tf.keras.metrics.Mean):
            def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
                discounts = 1.0 / tf.math.log(tf.range(2.0, 2.0 + tf.cast(tf.shape(y_true)[1], tf.float32)))

                def gain(by: Any) -> Any:
                    found = tf.gather(y_true, tf.argsort(by, direction="DESCENDING"), batch_dims=1)
                    return tf.reduce_sum((2.0**found - 1.0) * discounts, axis=1)

                return super().update_state(gain(y_pred) / gain(y_true))

        losses = types.SimpleNamespace(PairwiseHingeLoss=PairwiseHingeLoss, ListMLELoss=ListMLELoss)
        module: Any = types.ModuleType("tensorflow_ranking")
        module.keras = types.SimpleNamespace(losses=losses, metrics=types.SimpleNamespace(NDCGMetric=NDCGMetric))
        sys.modules["tensorflow_ranking"] = module

    def mend() -> None:
        """Let a task take one metric, which the setter of TensorFlow Recommenders 0.7.7 replaces by none."""
        import tensorflow_recommenders as tfrs

        task = tfrs.tasks.Retrieval
        task.factorized_metrics = task.factorized_metrics.setter(
            lambda task, metric: setattr(task, "_factorized_metrics", [metric])
        )

    def train(run: Callable[..., Any], path: str, data: str, folder: str) -> Any:
        import tempfile

        # Each rank writes what the tutorial exports.
        os.chdir(tempfile.mkdtemp(dir=folder))
        ranking()
        mend()
        if "sequential" in path:
            sequences(data)
        return run(path, data)

    return train


@pytest.fixture(scope="module")
def few_movies(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ratings with 150 movies: a tutorial repeats each of its movies a thousand times."""
    folder = tmp_path_factory.mktemp("few")
    ratings = pd.read_csv(shared_data / "ml_latest_small" / "ratings.csv")
    often = ratings.movieId.value_counts().index.to_numpy()
    ratings["movieId"] = ratings.movieId.map(
        dict(zip(often, often[[place % 150 for place in range(len(often))]], strict=True))
    )
    ratings.to_csv(folder / "ratings.csv", index=False)
    shutil.copy(shared_data / "ml_latest_small" / "movies.csv", folder)
    return folder


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_runs_on_two_workers(
    name: str,
    spark: "SparkSession",
    run_one: Callable[..., Any],
    peers: Path,
    shared_data: Path,
    few_movies: Path,
    tmp_path: Path,
) -> None:
    data = few_movies if name == "efficient_serving" else shared_data / "ml_latest_small"
    file = tmp_path / f"{name}.py"
    # Lines of notebooks are commented out there; one of these makes a value that is read later.
    file.write_text(re.sub(r"^# %time ", "", (peers / "tfrs" / file.name).read_text(), flags=re.MULTILINE))
    arguments = {"run": run_one, "path": str(file), "data": str(data), "folder": str(tmp_path)}
    done = run_train_fn(
        with_stand_ins(), kwargs=arguments, spark=spark, name=name, output=tmp_path, strategy="ring", resume=False
    )
    fits, metric = TUTORIALS[name]
    print(name, done.result)
    assert len(done.result) == fits
    assert all(math.isfinite(value) for fit in done.result for value in fit.values())
    assert metric in done.result[-1]
