"""Quality of several models together on MovieLens: a hybrid next to each of its parts, also on movies without ratings.

``python -m benchmarks.quality_hybrid --data path/to/ml-latest-small`` prints tables of docs/quality.md: for each user's
last movie, and for the movies that ``cold_items`` holds out. The parts are trained, exported and registered as
``mirrorspark train`` does it, and all lists come from ``recommend``.

``--choose`` looks at no test row of either table: neither a user's last movie nor any rating of a held-out movie is in
its rows, and the four movies before a user's last one are asked for. It prints every part, scored from the whole
history and from its last movies, and blends of the best ones with equal weights; ``HYBRID`` and ``FUSION`` are its
choice. With ``--output`` a second call finds what the first has trained.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import expr

from benchmarks.cold_items import dataset_of, held_out_movies, read_tables, rows_of
from benchmarks.report import print_cells, print_titles
from mirrorspark.callbacks.mlflow.tracking_store import own_store
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.models.index.ranked_lists import CANDIDATES, SCORES
from mirrorspark.models.retrieval.list_metrics import ranking_values
from mirrorspark.recommending.recommendations import recommend
from mirrorspark.recommending.routing.blend import ListFusion, as_arrays, blended
from mirrorspark.recommending.routing.package import package_router
from mirrorspark.recommending.routing.router import Cascade, Route, Router
from mirrorspark.scoring.model.stored import PinnedModel
from mirrorspark.spark_session.start import open_session
from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.entry_points.train_dataset import train

K, DEPTH = 20, 200
CLASSICAL, CONTENT = ("ease", "item_knn", "als"), "two_tower"
# Those whose result depends on the seed.
SEEDED = ("als", CONTENT)
LENGTHS = (0, 15, 10, 5)
# Movies of each user that `--choose` asks for.
CHOSEN_BY = 4
METRICS = (f"recall_at_{K}", f"ndcg_at_{K}")
_KEYS = ("interaction_id", "user_id", "movie_id")


@dataclass(frozen=True)
class Part:
    """A model, and how many of the history's last movies it is scored from; 0 is all 50 of the recipe."""

    model: str
    last_items: int = 0

    def __str__(self) -> str:
        return f"{self.model}, last {self.last_items}" if self.last_items else self.model


# The choice of `--choose`.
HYBRID: tuple[Part, ...] = (Part("ease", 5), Part("ease", 10), Part("als", 5), Part(CONTENT))
FUSION: ListFusion = "scores"
# Parts with vectors, which one search can take; the table shows their fused lists next to it.
PAIR: tuple[Part, ...] = (Part("als", 5), Part(CONTENT))
# The best of the classical recommenders in docs/quality.md, shown next to the parts.
BEST_ALONE = Part("ease", 15)


@dataclass(frozen=True)
class Lists:
    """Lists of candidates for rows, in the order of their keys.

    Attributes:
        users: User of each row, int64.
        wanted: Movie of each row, int64.
        found: ``[rows, places]`` by output.
    """

    users: np.ndarray
    wanted: np.ndarray
    found: Mapping[str, np.ndarray]

    @classmethod
    def of(
        cls, rows: DataFrame, model: PinnedModel | Path, k: int = K, available: Sequence[str] | None = None
    ) -> "Lists":
        """Recommend ``k`` movies to every row."""
        table = recommend(rows, model, keys=_KEYS, k=k, available=available).toArrow().sort_by(_KEYS[0])
        (batch,) = table.combine_chunks().to_batches()
        users, wanted = (table[name].cast(pa.int64()).to_numpy() for name in _KEYS[1:])
        return cls(users, wanted, as_arrays(batch.column(CANDIDATES), batch.column(SCORES), k))

    @cached_property
    def values(self) -> np.ndarray:
        """Recall and NDCG of each row, float64 ``[2, rows]``."""
        return values_of(self.found, self.wanted)


def values_of(found: Mapping[str, np.ndarray], wanted: np.ndarray) -> np.ndarray:
    """Return recall and NDCG at ``K`` of each row, float64 ``[2, rows]``."""
    movies = found[CANDIDATES][:, :K]
    ids = np.where(movies == b"", b"-1", movies).astype("S").astype(np.int64)
    metrics = ranking_values(ids, wanted, (K,))
    return np.stack([metrics[name] for name in METRICS])


def difference(values: np.ndarray, others: np.ndarray, users: np.ndarray) -> str:
    """Return by how much the mean over rows is above that of others, with its standard error over users."""
    above = values - others
    of_users = np.bincount(np.unique(users, return_inverse=True)[1], above - above.mean())
    return f"{above.mean():+.4f} ± {np.sqrt((of_users**2).sum()) / len(above):.4f}"


@dataclass(frozen=True)
class Asked:
    """Rows that are asked for, and the datasets that models are trained on.

    Attributes:
        name: Name of its folders and models.
        rows: Columns of ``cold_items``, of test rows alone.
        datasets: Datasets of all rows, for models that read the features of items (True) and for others.
        movies: ``movie_id`` of all movies, and whether one ``is_new``: ``yes`` without a training row, else ``no``.
    """

    name: str
    rows: pd.DataFrame
    datasets: Mapping[bool, Dataset]
    movies: pd.DataFrame


@dataclass(frozen=True)
class Bench:
    """Folders and session of a call."""

    data: str
    output: Path
    spark: SparkSession

    @cached_property
    def tables(self) -> tuple[pd.DataFrame, pd.Series, DataFrame]:
        """The ratings, the ids of all movies, and the table of items."""
        return read_tables(self.config(Part(CONTENT)), self.spark, self.output / "sources")

    def config(self, part: Part, asked: str = "hybrid", seed: int = 1) -> RunConfig:
        """Return the configuration of a part; a run of its date is trained once."""
        given = {
            "data": self.data,
            "output": str(self.output),
            "tracking_uri": own_store(self.output),
            "name": f"{asked}-{part.model}-{part.last_items}",
            "run_date": "2026-01-01",
            "seed": seed if part.model in SEEDED else 1,
            "baseline": "none",
            "explain": False,
        }
        if part.model == CONTENT:
            return RunConfig.from_recipe("movielens_items", **given)
        model = {"name": part.model, "last_items": part.last_items}
        return RunConfig.from_recipe("movielens", model=model, **given)

    def asked(self, name: str, rows: pd.DataFrame) -> Asked:
        """Return the rows of ``cold_items`` with datasets of them."""
        config, table = self.config(Part(CONTENT)), self.spark.createDataFrame(rows.drop(columns="is_cold"))
        assert config.spec.items is not None
        _, movies, items = self.tables
        folder, features = self.output / "tables", config.spec.items.query_features
        datasets = {
            True: dataset_of(table, config, features, items, folder / f"{name}-with-items"),
            False: dataset_of(table, config, (), items, folder / name),
        }
        tokens, known = movies.astype(str), rows.loc[rows["split"] == "train", "movie_id"]
        about = pd.DataFrame({"movie_id": tokens, "is_new": np.where(tokens.isin(known), "no", "yes")})
        return Asked(name, rows[rows["split"] == "test"], datasets, about)

    def trained(self, part: Part, asked: Asked, seed: int) -> tuple[PinnedModel, float]:
        """Return a part, and the seconds that its training, export, evaluation and registration took."""
        config = self.config(part, asked.name, seed)
        trained = train(asked.datasets[part.model == CONTENT], config, self.spark)
        return trained.model, sum(trained.seconds.values())

    def hybrids(self, models: Mapping[Part, PinnedModel], movies: pd.DataFrame) -> dict[str, Path]:
        """Return the packaged hybrids: of all parts, with a place of every list for a new movie, and of two parts."""
        blends = {"parts": {str(part): 1.0 for part in HYBRID}}
        pair = {"parts": {str(part): 1.0 for part in PAIR}}
        one_new = {"category": "is_new", "at_least": {"yes": 1}}
        cascades = {"shown": Cascade("parts", "movie_id", rerank=one_new, depth=DEPTH, k=K)}
        routers = {
            "hybrid": Router((Route("parts"),), blends, blend_depth=DEPTH, fusion=FUSION),
            "hybrid, a new movie in every list": Router((Route("shown"),), blends, fusion=FUSION, cascades=cascades),
            "als and two_tower, lists by their scores": Router((Route("parts"),), pair, fusion=FUSION),
            "als and two_tower, one search by cosine": Router((Route("parts"),), pair, fusion="cosine"),
        }
        by_name = {str(part): model for part, model in models.items()}
        folder = Path(tempfile.mkdtemp(dir=self.output))
        return {
            name: package_router(
                router,
                folder / str(number),
                models={part: by_name[part] for part in router.models},
                items=movies if router.cascades else None,
            )
            for number, (name, router) in enumerate(routers.items())
        }


def main() -> None:
    """Print the tables, or choose."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of ml-latest-small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", choices=("users", "held-out"), help="one of the tables")
    parser.add_argument("--choose", action="store_true", help="compare parts and blends without any user's last movie")
    parser.add_argument("--output", help="folder for what is trained; by default one that is removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(options.output or folder).absolute()
        output.mkdir(parents=True, exist_ok=True)
        bench = Bench(str(Path(options.data).absolute()), output, open_session(None, 2))
        if options.choose:
            choose(bench, options.seeds[0])
            return
        for name, table in {"users": measure_users, "held-out": measure_held_out}.items():
            if options.only in (None, name):
                table(bench, options.seeds)


def choose(bench: Bench, seed: int) -> None:
    """Print the metrics of all parts and blends for the movies before each user's last one."""
    asked = bench.asked("choose", rows_of(without_test_rows(*bench.tables[:2]), set(), CHOSEN_BY))
    rows = bench.spark.createDataFrame(asked.rows).cache()
    lists: dict[Part, Lists] = {}
    print_titles("part", "seed", "recall@20", "NDCG@20", "seconds to train")
    for name in (*CLASSICAL, CONTENT):
        model, seconds = bench.trained(Part(name), asked, seed)
        for length in LENGTHS if name in CLASSICAL else (0,):
            part = Part(name, length)
            lists[part] = Lists.of(shortened(rows, length), model, DEPTH)
            print_cells(part, seed, *_means(lists[part].values), f"{seconds:.0f}")
    order = sorted(lists, key=lambda part: -worth(lists[part].values, lists[BEST_ALONE].values))
    print(f"parts, the best first: {'; '.join(map(str, order))}")
    best = lists[order[0]]
    choices: dict[str, float] = {}
    print_titles("parts", "fusion", "recall@20", "NDCG@20", f"recall above {order[0]}", "NDCG")
    for parts, fusion in itertools.product(candidates(order), get_args(ListFusion)):
        found = {str(part): dict(lists[part].found) for part in parts}
        values = values_of(blended(found, dict.fromkeys(found, 1.0), fusion), best.wanted)
        above = [difference(*pair, best.users) for pair in zip(values, best.values, strict=True)]
        choice = f"{'; '.join(found)} | {fusion}"
        choices[choice] = worth(values, best.values)
        print_cells(choice, *_means(values), *above)
    print(f"of {len(choices)} choices the best: {max(choices, key=lambda choice: choices[choice])}")


def without_test_rows(ratings: pd.DataFrame, movies: pd.Series) -> pd.DataFrame:
    """Return the ratings that neither table asks for: no user's last one, and none of a held-out movie."""
    in_order = ratings.sort_values(["userId", "timestamp", "movieId"])
    known, held_out = held_out_movies(in_order.drop(in_order.groupby("userId").tail(1).index), movies)
    return known[~known["movieId"].isin(held_out)]


def shortened(rows: DataFrame, last_items: int) -> DataFrame:
    """Return rows with the last movies of their histories, from which a model then is scored; 0 keeps all."""
    if not last_items:
        return rows
    first = f"greatest(size(recent_movies) - {last_items - 1}, 1)"
    return rows.withColumn("recent_movies", expr(f"slice(recent_movies, {first}, {last_items})"))


def worth(values: np.ndarray, others: np.ndarray) -> float:
    """Return the sum of recall and NDCG, each divided by that of others."""
    return float((values.mean(axis=1) / others.mean(axis=1)).sum())


def candidates(order: Sequence[Part]) -> list[tuple[Part, ...]]:
    """Return the blends to compare: the content model with the best other parts, or with the best of each other model.

    Without the content model nothing would list a movie without ratings.

    Args:
        order: All parts, the best first.
    """
    (content,) = (part for part in order if part.model == CONTENT)
    others = [part for part in order if part.model != CONTENT]
    best = [next(part for part in others if part.model == model) for model in {part.model: None for part in others}]
    found = [(*some[:count], content) for some in (others, best) for count in range(1, len(CLASSICAL) + 1)]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Group:
    """Rows of a table that are measured together.

    Attributes:
        are_cold: Whether they are those whose movies are held out, of which models without item features list none.
        available: The movies that may be listed; None for all.
    """

    name: str
    are_cold: bool = False
    available: tuple[str, ...] | None = None


def measure_users(bench: Bench, seeds: Sequence[int]) -> None:
    """Print every part and the hybrids for each user's last movie."""
    asked = bench.asked("users", rows_of(bench.tables[0], set()))
    measure(bench, asked, [Group("all users")], seeds)


def measure_held_out(bench: Bench, seeds: Sequence[int]) -> None:
    """Print the same with a tenth of the movies held out, and for each rating of one of these."""
    ratings, movies, _ = bench.tables
    ratings, held_out = held_out_movies(ratings, movies)
    asked = bench.asked("held-out", rows_of(ratings, held_out))
    groups = [
        Group("known movies"),
        Group("held-out among all", are_cold=True),
        Group("held-out among themselves", are_cold=True, available=tuple(map(str, sorted(held_out)))),
    ]
    measure(bench, asked, groups, seeds)


def measure(bench: Bench, asked: Asked, groups: Sequence[Group], seeds: Sequence[int]) -> None:
    """Print recall and NDCG of the parts and hybrids in each group, by seed, then their means."""
    rows = {
        are_cold: bench.spark.createDataFrame(asked.rows[asked.rows["is_cold"] == are_cold]).cache()
        for are_cold in {group.are_cold for group in groups}
    }
    found: dict[str, dict[Group, list[np.ndarray]]] = {}
    users: dict[Group, np.ndarray] = {}
    print_titles("model", "seed", *_columns(groups), "seconds to train", "seconds of lists")
    for seed in seeds:
        trained = {part: bench.trained(part, asked, seed) for part in dict.fromkeys([*HYBRID, BEST_ALONE])}
        hybrids = bench.hybrids({part: model for part, (model, _) in trained.items()}, asked.movies)
        shown: dict[str, tuple[PinnedModel | Path, bool, str]] = {
            str(part): (model, part.model == CONTENT, f"{seconds:.0f}") for part, (model, seconds) in trained.items()
        }
        shown |= {name: (folder, True, "") for name, folder in hybrids.items()}
        for name, (model, lists_cold, seconds) in shown.items():
            began = time.perf_counter()
            cells: list[str] = []
            for group in groups:
                values = np.zeros((len(METRICS), rows[group.are_cold].count()))
                if lists_cold or not group.are_cold:
                    lists = Lists.of(rows[group.are_cold], model, available=group.available)
                    values, users[group] = lists.values, lists.users
                found.setdefault(name, {}).setdefault(group, []).append(values)
                cells += _means(values)
            print_cells(name, seed, *cells, seconds, f"{time.perf_counter() - began:.0f}")
    tell_means(found, users, list(hybrids))


def tell_means(
    found: Mapping[str, Mapping[Group, Sequence[np.ndarray]]], users: Mapping[Group, np.ndarray], hybrids: Sequence[str]
) -> None:
    """Print the means over the seeds, and by how much the hybrids are above the best part.

    Args:
        found: By model and group, for each seed recall and NDCG of the rows, ``[2, rows]``.
        users: User of each row of a group.
        hybrids: The models that are not parts.
    """
    of_rows = {name: {group: np.mean(of, axis=0) for group, of in groups.items()} for name, groups in found.items()}
    print_titles("model, mean of the seeds", *_columns(users))
    for name, groups in of_rows.items():
        print_cells(name, *(cell for group in users for cell in _means(groups[group])))
    for name in hybrids:
        above = []
        for group, of_users in users.items():
            for metric, values in enumerate(of_rows[name][group]):
                parts = [groups[group][metric] for other, groups in of_rows.items() if other not in hybrids]
                above.append(difference(values, max(parts, key=lambda of: float(of.mean())), of_users))
        print_cells(f"{name}, above the best part", *above)


def _columns(groups: Iterable[Group]) -> list[str]:
    return [f"{group.name}, {metric}" for group in groups for metric in (f"recall@{K}", f"NDCG@{K}")]


def _means(values: np.ndarray) -> list[str]:
    return [f"{mean:.4f}" for mean in values.mean(axis=1)]


if __name__ == "__main__":
    main()
