"""Recommendation of items without a training row: MovieLens with a tenth of its movies held out entirely.

``python -m benchmarks.cold_items --data path/to/ml-latest-small`` prints the tables of docs/quality.md.

Every rating of a held-out movie is taken out of the training, of histories, too. A user's last rating of another movie
is a test row, the one before it a validation row; each rating of a held-out movie is a row that asks for it. With
``--choose`` another tenth of the movies is held out, and the ratings of the first are in no row at all.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame, SparkSession

from benchmarks.report import print_cells, print_titles
from mirrorspark.data_pipelines.conversion import convert
from mirrorspark.data_pipelines.dataset.manifest import is_published
from mirrorspark.data_pipelines.features.kinds import Feature, Text
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.reading.dataset import Dataset, ReadPlan, load_batches
from mirrorspark.data_pipelines.tables import find_tables, query, register_tables
from mirrorspark.models import catalog, two_tower
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer
from mirrorspark.models.serving import export as serving
from mirrorspark.models.serving.preprocessing import input_tensors
from mirrorspark.spark_session.start import open_session
from mirrorspark.training.configuration.config import RunConfig

K = 20
HELD_OUT = 0.1
# One title in 25 has more tokens.
MOST_SUBWORDS = 100
COLUMNS = ("interaction_id", "user_id", "movie_id", "recent_movies", "watched", "split", "is_cold")
_UNAVAILABLE = -1e9
MEASURES = (
    "validation",
    "popular",
    "known",
    "known_of_all",
    "cold_of_cold",
    "cold_of_all",
    "chance",
    "val_loss",
    "seconds",
)


@dataclass(frozen=True)
class Held:
    """A dataset and what is asked of it.

    Attributes:
        cold: Keys of the test rows whose movie is held out.
        movies: The movies that are held out.
    """

    dataset: Dataset
    cold: frozenset[str]
    movies: frozenset[str]


def main() -> None:
    """Train with each choice of item features by every seed; print a line for each, and the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of ml-latest-small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--only", nargs="+", help="names of some choices of features; by default all")
    parser.add_argument("--ngrams", type=int, nargs=2, default=[3, 5], help="characters of the parts of words")
    parser.add_argument("--hash-buckets", type=int, default=20_000)
    parser.add_argument("--choose", action="store_true", help="hold out other movies, to compare settings by")
    options = parser.parse_args()
    config = RunConfig.from_recipe("movielens_items", data=options.data)
    subwords = Text("title", max_length=MOST_SUBWORDS, hash_buckets=options.hash_buckets, ngrams=tuple(options.ngrams))
    by_name = features_by_name(config, subwords)
    with tempfile.TemporaryDirectory() as folder:
        chosen = {name: by_name[name] for name in options.only or by_name}
        print_titles("item features", "seed", *MEASURES)
        for name, held in converted(config, chosen, Path(folder), choose=options.choose).items():
            found = [measured(held, config, seed) for seed in options.seeds]
            lines = pd.DataFrame(found, index=options.seeds).reindex(columns=MEASURES)
            for seed, line in [*lines.iterrows(), ("mean", lines.mean())]:
                print_cells(name, seed, *("" if np.isnan(value) else f"{value:.4f}" for value in line))


def features_by_name(config: RunConfig, subwords: Text) -> dict[str, tuple[Feature, ...]]:
    """Return the choices of item features: none, those of the recipe, and the title alone, by words, by parts, or both.

    Next to a title's words, its parts are a column of their own, with a mean of their own: there are many more of them.
    """
    assert config.spec is not None
    assert config.spec.items is not None
    words, parts = config.spec.items.query_features, replace(subwords, name="parts")
    return {
        "ids": (),
        "items": words,
        "items, title by subwords": tuple(subwords if each.name == subwords.name else each for each in words),
        "title": tuple(each for each in words if each.name == subwords.name),
        "title by subwords": (subwords,),
        "title by words and subwords": (*(each for each in words if each.name == subwords.name), parts),
        "items and subwords": (*words, parts),
    }


def rows_of(ratings: pd.DataFrame, held_out: set[int], tests: int = 1) -> pd.DataFrame:
    """Return the rows of the table: :data:`COLUMNS`, those of the recipe and whether their movie is held out.

    Args:
        ratings: The ratings that may be in a row.
        held_out: Movies whose ratings are test rows, and in no history.
        tests: Number of a user's last ratings of other movies for testing; the one before them is for validation.
    """
    return pd.DataFrame(_rows_of(ratings, held_out, tests), columns=list(COLUMNS))


def _rows_of(ratings: pd.DataFrame, held_out: set[int], tests: int) -> Iterator[tuple[Any, ...]]:
    for user, own in ratings.sort_values(["userId", "timestamp", "movieId"]).groupby("userId"):
        known: list[str] = []
        first_test = int((~own["movieId"].isin(held_out)).sum()) - tests
        for place, movie in enumerate(own["movieId"]):
            is_cold, number = movie in held_out, len(known)
            is_test, is_validation = is_cold or number >= first_test, number == first_test - 1
            split = "test" if is_test else "validation" if is_validation else "train"
            if known:
                watched = [] if split == "train" else [*known]
                yield f"{user}-{place}", str(user), str(movie), known[-50:], watched, split, is_cold
            if not is_cold:
                known.append(str(movie))


def measured(held: Held, config: RunConfig, seed: int) -> dict[str, float]:
    """Train one model, and return its recalls."""
    began = time.perf_counter()
    model, loss = trained(held, config, seed)
    return recalls(held, model) | {"val_loss": loss, "seconds": round(time.perf_counter() - began, 1)}


def trained(held: Held, config: RunConfig, seed: int) -> tuple[Any, float]:
    """Train one model until its validation loss rises, and return it with the best one."""
    import tf_keras

    fitted = held.dataset.features
    given = {name: value for name, value in config.model.items() if name != "name"}
    tf_keras.utils.set_random_seed(seed)
    model = two_tower.build(catalog.settings("two_tower", given), fitted, seed)
    compile_model(model, two_tower.TASK, build_optimizer(OptimizerSettings("adam", config.learning_rate)))
    best, weights, since = np.inf, model.get_weights(), 0
    for epoch in range(config.epochs):
        plan = ReadPlan("train", config.global_batch_size, seed=seed, epoch=epoch)
        model.fit(load_batches(held.dataset, plan), verbose=0)
        validation = load_batches(held.dataset, ReadPlan("validation", config.global_batch_size))
        loss = model.evaluate(validation, verbose=0, return_dict=True)["loss"]
        best, weights, since = (loss, model.get_weights(), 0) if loss < best else (best, weights, since + 1)
        if since == config.patience:
            break
    model.set_weights(weights)
    return model, float(best)


def recalls(held: Held, model: Any) -> dict[str, float]:
    """Return recall at ``K`` of known movies, and of held-out ones among themselves and among all movies.

    ``popular`` is that of the most popular movies for the rows of known ones, ``chance`` that of a random order among
    the held-out ones.
    """
    vocabulary = held.dataset.features.vocabulary(held.dataset.spec.candidate)
    counts = np.concatenate([[0, 0], vocabulary.counts.to_numpy()])
    is_cold = np.array([False, False, *(token in held.movies for token in vocabulary.tokens.to_pylist())])
    candidates = serving.candidate_embeddings(model)
    found: dict[str, list[bool]] = {
        "validation": [],
        "popular": [],
        "known": [],
        "known_of_all": [],
        "cold_of_cold": [],
        "cold_of_all": [],
    }
    for split in ("validation", "test"):
        for block in held.dataset.blocks(split, keys=True):
            inputs: Mapping[str, Any] = input_tensors(held.dataset.spec.query_features, block.features)
            scores = two_tower.predict(model, inputs).numpy() @ candidates.T
            scores[:, :2] = _UNAVAILABLE
            assert block.excluded is not None
            np.put_along_axis(scores, block.excluded, _UNAVAILABLE, axis=1)
            popular = np.tile(counts.astype(np.float64), (block.rows, 1))
            np.put_along_axis(popular, block.excluded, _UNAVAILABLE, axis=1)
            wanted = np.asarray(block.features["movie_id"])
            for own, row, by_count, key in zip(wanted, scores, popular, block.keys["interaction_id"], strict=True):
                if split == "validation":
                    found["validation"].append(_is_found(row, own, counts > 0))
                elif key not in held.cold:
                    found["popular"].append(_is_found(by_count, own, counts > 0))
                    found["known"].append(_is_found(row, own, counts > 0))
                    found["known_of_all"].append(_is_found(row, own, np.ones_like(is_cold)))
                elif is_cold.any():
                    found["cold_of_cold"].append(_is_found(row, own, is_cold))
                    found["cold_of_all"].append(_is_found(row, own, np.ones_like(is_cold)))
    by_chance = {"chance": K / is_cold.sum()} if is_cold.any() else {}
    return {name: float(np.mean(hits)) for name, hits in found.items() if hits} | by_chance


def _is_found(scores: np.ndarray, own: int, among: np.ndarray) -> bool:
    return bool(own > 1 and among[own] and (scores[among] > scores[own]).sum() < K)


def converted(
    config: RunConfig, by_name: Mapping[str, tuple[Feature, ...]], folder: Path, *, choose: bool = False
) -> dict[str, Held]:
    """Return a dataset for each choice of item features, all with the same rows."""
    spark = open_session(None, 2)
    ratings, movies, items = read_tables(config, spark, folder / "sources")
    ratings, chosen = held_out_movies(ratings, movies, choose=choose)
    rows = rows_of(ratings, chosen)
    table = spark.createDataFrame(rows.drop(columns="is_cold"))
    cold, tokens = frozenset(rows.loc[rows["is_cold"], "interaction_id"]), frozenset(map(str, chosen))
    items = items.selectExpr("*", "title AS parts")
    return {
        name: Held(dataset_of(table, config, features, items, folder / str(number)), cold, tokens)
        for number, (name, features) in enumerate(by_name.items())
    }


def read_tables(config: RunConfig, spark: SparkSession, unpacked: Path) -> tuple[pd.DataFrame, pd.Series, DataFrame]:
    """Return the ratings, the ids of all movies, and the recipe's table of items."""
    assert config.data is not None
    files = find_tables(Path(config.data), config.tables)
    register_tables(spark, files, config.tables, unpacked=unpacked, csv_null=config.csv_null)
    movies = spark.table("movies").toPandas()["movieId"]
    return spark.table("ratings").toPandas(), movies, query(spark, config.items["sql"], "the sql of items")


def held_out_movies(ratings: pd.DataFrame, movies: pd.Series, *, choose: bool = False) -> tuple[pd.DataFrame, set[int]]:
    """Return the ratings that may be in rows, and the movies that are held out; see the module."""
    count = int(len(movies) * HELD_OUT)
    chosen = np.random.default_rng(11).choice(movies.to_numpy(), count, replace=False)
    if choose:
        ratings = ratings[~ratings["movieId"].isin(chosen)]
        chosen = np.random.default_rng(12).choice(np.setdiff1d(movies, chosen), count, replace=False)
    return ratings, set(chosen.tolist())


def dataset_of(
    table: DataFrame, config: RunConfig, features: tuple[Feature, ...], items: DataFrame, path: Path
) -> Dataset:
    """Return the dataset in ``path``, converted if it is not there yet, with these features of the items."""
    if is_published(path):
        return Dataset.open(path)
    assert config.spec is not None
    own = FeatureSpec.of_items(config.items["key"], features) if features else None
    return convert(table, replace(config.spec, items=own), path, items=items if features else None)


if __name__ == "__main__":
    main()
