"""Quality of rating prediction on MovieLens ``ml-latest-small``: RMSE over five random folds.

``python -m benchmarks.quality_ratings FOLDER`` trains the ``regression`` model on four folds and measures the fifth,
five times, and prints a row of ``docs/quality.md``. ``--choose`` looks at no test row: it trains on nine tenths of the
first fold's training rows and prints the RMSE of the last tenth by epoch, for the choice of options and epochs.
"""

import argparse
import ast
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import tensorflow as tf
import tf_keras

from benchmarks.quality_tables import Rows, statistics_of, vocabulary_of
from benchmarks.report import print_cells, print_titles
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, MultiValued
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.models import regression
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer

FOLDS = 5
LONGEST_LIST = 50
_STARS = (0.5, 5.0)
OPTIONS: Mapping[str, Any] = {
    "embedding_dim": 8,
    "hidden_units": (64,),
    "dropout": 0.2,
    "factor_dim": 16,
    "members": 8,
}


def read_ratings(folder: Path) -> pd.DataFrame:
    """Return the ratings with the genres and the year of their movies, in the order of their times."""
    ratings, movies = pd.read_csv(folder / "ratings.csv"), pd.read_csv(folder / "movies.csv")
    movies["genres"] = movies["genres"].str.split("|")
    movies["year"] = movies["title"].str.extract(r"\((\d{4})\)\s*$")[0]
    return ratings.merge(movies[["movieId", "genres", "year"]]).sort_values("timestamp", ignore_index=True)


def fitted_rows(train: pd.DataFrame, others: pd.DataFrame) -> tuple[FittedFeatures, Rows, Rows]:
    """Return the features, fitted on the training ratings, and the rows of both tables.

    ``rated`` are the movies that the row's user has rated, ``raters`` the users that have rated its movie, of the
    training ratings the newest ones.
    """
    tokens = ("userId", "movieId", "year")
    lists = {"genres": 10, "rated": LONGEST_LIST, "raters": LONGEST_LIST}
    spec = FeatureSpec(
        (*map(Categorical, tokens), *(MultiValued(name, max_length=length) for name, length in lists.items())),
        Label("rating", kind="numeric"),
        keys=("row",),
    )
    rated = train.groupby("userId")["movieId"].agg(list)
    raters = train.groupby("movieId")["userId"].agg(list)
    tables = [
        table.assign(rated=table["userId"].map(rated), raters=table["movieId"].map(raters)) for table in (train, others)
    ]
    vocabularies = {name: vocabulary_of(train[name].astype("string")) for name in tokens}
    vocabularies |= {name: vocabulary_of(tables[0][name].explode().astype("string")) for name in lists}
    fitted = FittedFeatures(spec, vocabularies, {"rating": statistics_of(train["rating"])})
    return fitted, _rows(fitted, tables[0], lists), _rows(fitted, tables[1], lists)


def _rows(fitted: FittedFeatures, table: pd.DataFrame, lists: Mapping[str, int]) -> Rows:
    inputs: dict[str, np.ndarray] = {}
    for feature in fitted.spec.features:
        vocabulary, column = fitted.vocabularies[feature.name], table[feature.name]
        if feature.name not in lists:
            inputs[feature.name] = vocabulary.ids(pa.array(column.astype("string"), pa.string(), from_pandas=True))
            continue
        newest = column.map(lambda of, length=lists[feature.name]: of[-length:] if isinstance(of, list) else [])
        counts = newest.map(len).to_numpy()
        ids = np.zeros((len(table), lists[feature.name]), np.int64)
        flat = newest.explode().dropna().astype("string")
        ids[np.arange(ids.shape[1]) < counts[:, None]] = vocabulary.ids(pa.array(flat, pa.string()))
        inputs[feature.name] = ids
    return Rows(inputs, table["rating"].to_numpy(np.float32))


def trained(
    fitted: FittedFeatures, train: Rows, others: Rows, seed: int, given: argparse.Namespace, *, told: bool
) -> tuple[float, float]:
    """Train, and return the RMSE and the mean absolute error of the other rows; ``told`` prints those of each epoch."""
    tf_keras.utils.set_random_seed(seed)
    model = regression.build(regression.Settings(**OPTIONS | given.options), fitted, seed)
    optimizer = OptimizerSettings("adamw", given.rate, weight_decay=given.decay)
    compile_model(model, "regression", build_optimizer(optimizer), steps_per_execution=16)

    def errors() -> tuple[float, float]:
        blocks = tf.data.Dataset.from_tensor_slices(dict(others.inputs)).batch(4096)
        stars = np.clip(np.concatenate([regression.predict(model, block)["score"] for block in blocks]), *_STARS)
        return float(np.sqrt(np.mean((stars - others.labels) ** 2))), float(np.mean(np.abs(stars - others.labels)))

    tell = tf_keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: print(epoch + 1, f"{logs['rmse']:.4f}", *map("{:.4f}".format, errors()))
    )
    inputs = dict(train.inputs)
    model.fit(
        inputs, train.labels, given.batch, given.epochs, verbose=0, callbacks=[tell] if told else [], shuffle=True
    )
    return errors()


def biases_rmse(ratings: pd.DataFrame, is_test: np.ndarray) -> float:
    """Return the test RMSE of a mean and a shrunk bias of each user and movie, which is what the model has to beat."""
    user, movie = (pd.factorize(ratings[name])[0] for name in ("userId", "movieId"))
    stars = ratings["rating"].to_numpy()
    of_user, of_movie, mean = np.zeros(user.max() + 1), np.zeros(movie.max() + 1), stars[~is_test].mean()
    for _ in range(15):
        for ids, biases, others, shrinkage in (
            (movie, of_movie, of_user[user], 3),
            (user, of_user, of_movie[movie], 5),
        ):
            known = ids[~is_test]
            sums = np.bincount(known, (stars - mean - others)[~is_test], len(biases))
            biases[:] = sums / (np.bincount(known, minlength=len(biases)) + shrinkage)
    predicted = np.clip(mean + of_user[user] + of_movie[movie], *_STARS)
    return float(np.sqrt(np.mean((predicted - stars)[is_test] ** 2)))


def main() -> None:
    """Measure the folds, or choose."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of folds and models")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=0.003)
    parser.add_argument("--decay", type=float, default=0.3)
    parser.add_argument("--options", type=ast.literal_eval, default={})
    given = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(2)
    ratings = read_ratings(given.folder)
    if given.choose:
        rng = np.random.default_rng(0)
        is_known, is_held = rng.permutation(len(ratings)) % FOLDS != 0, rng.random(len(ratings)) < 0.1
        known, held = ratings[is_known], is_held[is_known]
        trained(*fitted_rows(known[~held], known[held]), given.seeds[0], given, told=True)
        return
    print_titles("model", "seed", "RMSE", "mean absolute error", "lowest and highest fold", "epochs", "seconds")
    of_seeds = []
    for seed in given.seeds:
        began, fold = time.monotonic(), np.random.default_rng(seed - 1).permutation(len(ratings)) % FOLDS
        found = [
            trained(*fitted_rows(ratings[fold != number], ratings[fold == number]), seed, given, told=False)
            for number in range(FOLDS)
        ]
        of_seeds.append([*np.mean(found, axis=0), _biases_of(ratings, fold)])
        ends = " to ".join(f"{end(one for one, _ in found):.4f}" for end in (min, max))
        errors = (f"{error:.4f}" for error in of_seeds[-1][:2])
        print_cells("factors", seed, *errors, ends, given.epochs, f"{time.monotonic() - began:.0f}")
    rmse, mae, biases = np.mean(of_seeds, axis=0)
    print_cells("factors", "mean", f"{rmse:.4f}", f"{mae:.4f}", "", given.epochs, "")
    print_cells("biases alone", "mean", f"{biases:.4f}", "", "", "", "")


def _biases_of(ratings: pd.DataFrame, fold: np.ndarray) -> float:
    return float(np.mean([biases_rmse(ratings, fold == number) for number in range(FOLDS)]))


if __name__ == "__main__":
    main()
