"""Quality of recommenders that read the features of items, next to behaviour and content alone, on MovieLens.

``python -m benchmarks.quality_item_features --data path/to/ml-latest-small`` prints the tables of docs/quality.md: with
a tenth of the movies held out, as in ``cold_items``, and with a tenth of the users held out, who have no training row,
and whose last ten movies are each to be found from those before.

``--choose`` looks at no test row of either: neither a user's last movie nor any rating of a held-out movie is in its
rows, another tenth of the movies is held out, and the four movies before a user's last one are asked for.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from benchmarks.cold_items import Held, dataset_of, held_out_movies, read_tables, rows_of, trained
from benchmarks.quality_hybrid import CHOSEN_BY, without_test_rows
from benchmarks.report import print_cells, print_titles
from mirrorspark.data_pipelines.dataset.block_format import Block
from mirrorspark.data_pipelines.features import kinds
from mirrorspark.models import two_tower
from mirrorspark.models.classical import Recommender
from mirrorspark.models.retrieval.list_metrics import ranking_values
from mirrorspark.models.serving import export as serving
from mirrorspark.models.serving.preprocessing import input_tensors
from mirrorspark.spark_session.start import open_session
from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.programs.recommenders.fitting import Scores, fit, scores_of
from mirrorspark.training.programs.recommenders.interactions import Interactions
from mirrorspark.training.programs.recommenders.lists import RowScores, best_of_rows

K, LAST = 20, 10
METRICS = (f"recall_at_{K}", f"ndcg_at_{K}")
ALONE: Mapping[str, Any] = {"new_item_weight": 0}
RECOMMENDERS: Sequence[Mapping[str, Any]] = (
    {"name": "ease", "last_items": 10, "content_weight": 0, **ALONE},
    {"name": "slit", "last_items": 10, **ALONE},
    {"name": "ease", "last_items": 10},
    {"name": "slit", "last_items": 10},
)

Model = Callable[[Block], RowScores]
"""From the rows of a block to the scores of all items for some of them."""


def main() -> None:
    """Fit every model on the rows of each table, and print what it finds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of ml-latest-small")
    parser.add_argument("--choose", action="store_true", help="other movies, and the movies before each user's last")
    parser.add_argument("--only", choices=("movies", "users"), help="one of the tables")
    parser.add_argument("--recommenders", help="YAML list of classical recommenders in the place of the compared ones")
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=[1, 2, 3], help="those of two_tower; none leaves it out"
    )
    options = parser.parse_args()
    asked = [Recommender.parse(one) for one in yaml.safe_load(options.recommenders or "null") or RECOMMENDERS]
    config = RunConfig.from_recipe("movielens_items", data=str(Path(options.data).absolute()))
    with tempfile.TemporaryDirectory() as folder:
        spark = open_session(None, 2)
        ratings, movies, items = read_tables(config, spark, Path(folder) / "sources")

        def converted(rows: pd.DataFrame, name: str) -> Held:
            assert config.spec is not None
            assert config.spec.items is not None
            table = spark.createDataFrame(rows.drop(columns="is_cold"))
            dataset = dataset_of(table, config, config.spec.items.query_features, items, Path(folder) / name)
            cold = rows.loc[rows["is_cold"]]
            return Held(dataset, frozenset(cold["interaction_id"]), frozenset(cold["movie_id"]))

        known = without_test_rows(ratings, movies) if options.choose else ratings
        if options.only != "users":
            kept, held_out = held_out_movies(known, movies, choose=options.choose)
            held = converted(rows_of(kept, held_out, CHOSEN_BY if options.choose else 1), "movies")
            tell(measured(held, config, asked, options.seeds))
        if options.only != "movies":
            held = converted(without_users(known), "users")
            tell(measured(held, config, asked, options.seeds))


def without_users(ratings: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of nine tenths of the users but their test rows, and the test rows of the others."""
    users = ratings["userId"].unique()
    held_out = np.random.default_rng(13).choice(users, len(users) // 10, replace=False)
    parts = []
    for is_held_out in (False, True):
        rows = rows_of(ratings[ratings["userId"].isin(held_out) == is_held_out], set(), LAST if is_held_out else 1)
        parts.append(rows[(rows["split"] == "test") == is_held_out])
    return pd.concat(parts, ignore_index=True)


def measured(
    held: Held, config: RunConfig, asked: Sequence[Recommender], seeds: Sequence[int]
) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    """Yield the values of content alone, of each recommender, and of two towers by their seeds."""
    interactions = Interactions(held.dataset)
    assert interactions.content is not None
    cosines = interactions.content.cosines(slice(None))
    np.fill_diagonal(cosines, 0)
    yield "content alone, last 10", values_of(held, classical(interactions, lambda histories: histories @ cosines, 10))
    for one in asked:
        scores = scores_of(one.name, one.settings, fit(one, interactions, seed=1))
        yield one.label, values_of(held, classical(interactions, scores, one.settings.last_items))
    for seed in seeds:
        network, _ = trained(held, config, seed)
        yield f"two_tower, seed {seed}", values_of(held, towers(held, network))


def classical(interactions: Interactions, scores: Scores, last_items: int) -> Model:
    """Return a model that scores from the last items of histories."""

    def model(block: Block) -> RowScores:
        histories = interactions.histories(block, last_items)
        return lambda part: scores(histories[part])

    return model


def towers(held: Held, network: Any) -> Model:
    """Return the model of a trained network."""
    candidates = serving.candidate_embeddings(network)[kinds.FIRST_VOCABULARY_ID :].T

    def model(block: Block) -> RowScores:
        inputs = input_tensors(held.dataset.spec.query_features, block.features)
        queries = two_tower.predict(network, inputs).numpy()
        return lambda part: np.asarray(queries[part] @ candidates)

    return model


def values_of(held: Held, model: Model) -> dict[str, np.ndarray]:
    """Return recall and NDCG, float64 ``[2, rows]``, of known movies, and new ones among all and themselves."""
    tokens = held.dataset.features.vocabulary(held.dataset.spec.candidate).tokens.to_pylist()
    is_new = np.array([token in held.movies for token in tokens])
    found: dict[str, list[np.ndarray]] = {}
    for block in held.dataset.blocks("test", keys=True):
        is_cold = np.array([key in held.cold for key in block.keys["interaction_id"]])
        scores = model(block)

        def of_new(part: slice, scores: RowScores = scores) -> np.ndarray:
            # The lists pass over NaN.
            return np.where(is_new, scores(part), np.float32(np.nan))

        groups = {"known": (scores, ~is_cold)}
        if held.cold:
            groups |= {"new among all": (scores, is_cold), "new among themselves": (of_new, is_cold)}
        for name, (of_rows, is_asked) in groups.items():
            lists = best_of_rows(of_rows, (block.rows, len(tokens)), block.excluded, K)[0][is_asked]
            metrics = ranking_values(lists, np.asarray(block.features["movie_id"])[is_asked], (K,))
            found.setdefault(name, []).append(np.stack([metrics[metric] for metric in METRICS]))
    return {name: np.concatenate(parts, axis=1) for name, parts in found.items()}


def tell(found: Iterable[tuple[str, Mapping[str, np.ndarray]]]) -> None:
    """Print the means of each model's values, as they come."""
    for number, (name, values) in enumerate(found):
        if not number:
            print_titles("model", *(f"{group} {metric}" for group in values for metric in METRICS))
        print_cells(name, *(f"{mean:.4f}" for of_group in values.values() for mean in of_group.mean(axis=1)))


if __name__ == "__main__":
    main()
