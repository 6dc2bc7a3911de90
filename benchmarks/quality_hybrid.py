"""Quality of several models together on MovieLens: every part alone, and the best hybrid by the validation rows.

``python -m benchmarks.quality_hybrid --data path/to/ml-latest-small`` prints the rows of docs/quality.md. The parts
are trained, exported and registered as ``mirrorspark train`` does it, and all lists come from ``recommend``. Weights
and fusion are chosen by the validation rows: NDCG and recall, each divided by that of the first part, are added. With
``--output`` a second call finds what the first has trained.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from mirrorspark.callbacks.mlflow.store import own_store
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.models.index.ranked_lists import CANDIDATES, SCORES
from mirrorspark.models.retrieval.ranking_metrics import ranking_metrics
from mirrorspark.scoring.model.directory import PinnedModel
from mirrorspark.scoring.recommend import recommend
from mirrorspark.scoring.routing.blend import Fusion, as_arrays, blended
from mirrorspark.scoring.routing.package import package_router
from mirrorspark.scoring.routing.router import Route, Router
from mirrorspark.training.config import RunConfig
from mirrorspark.training.sources import Sources
from mirrorspark.training.spark_session import open_session
from mirrorspark.training.train import train

K, DEPTH = 20, 200
# Recipe and model of each part; the first is the one whose weight is 1.
PARTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ease": ("movielens", {"name": "ease", "last_items": 15}),
    "item_knn": ("movielens", {"name": "item_knn", "last_items": 15}),
    "als": ("movielens", {"name": "als", "last_items": 15}),
    "content": ("movielens_items", {}),
}
WEIGHTS = (0.0, 0.3, 1.0)
_KEYS = ("interaction_id", "split", "movie_id")


@dataclass(frozen=True)
class Lists:
    """Lists of a table's rows, in the order of their keys.

    Attributes:
        split: Split of each row.
        wanted: The movie of each row, int64.
        found: ``[rows, places]`` by output.
    """

    split: np.ndarray
    wanted: np.ndarray
    found: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, rows: DataFrame, model: PinnedModel | Path, k: int, **options: Any) -> "Lists":
        """Recommend ``k`` movies to every row."""
        table = recommend(rows, model, keys=_KEYS, k=k, **options).toArrow().sort_by(_KEYS[0]).combine_chunks()
        (batch,) = table.to_batches()
        found = as_arrays(batch.column(CANDIDATES), batch.column(SCORES), k)
        return cls(table["split"].to_numpy(), table["movie_id"].cast(pa.int64()).to_numpy(), found)

    def only(self, split: str) -> "Lists":
        """Return those of a split."""
        of_split = self.split == split
        found = {output: values[of_split] for output, values in self.found.items()}
        return Lists(self.split[of_split], self.wanted[of_split], found)

    def measured(self) -> np.ndarray:
        """Return recall and NDCG at ``K``."""
        movies = self.found[CANDIDATES][:, :K]
        ids = np.where(movies == b"", b"-1", movies).astype("S").astype(np.int64)
        metrics = ranking_metrics(ids, self.wanted, (K,))
        return np.array([metrics[f"recall_at_{K}"], metrics[f"ndcg_at_{K}"]])


@dataclass(frozen=True)
class Bench:
    """Folders, seed and session of a call."""

    data: str
    output: Path
    seed: int
    spark: SparkSession

    def config(self, name: str) -> RunConfig:
        """Return the configuration of a part; a run of its date is trained once."""
        recipe, model = PARTS[name]
        own = {"model": dict(model)} if model else {}
        places = {"data": self.data, "output": str(self.output), "tracking_uri": own_store(self.output)}
        once = {"name": name, "run_date": "2026-01-01", "seed": self.seed}
        return RunConfig.from_recipe(recipe, **own, **places, **once, baseline="none", explain=False)

    def trained(self, name: str, dataset: Dataset) -> PinnedModel:
        """Return a part, trained on the dataset."""
        began = time.perf_counter()
        model = train(dataset, self.config(name), self.spark).model
        print(f"{name} | trained, exported and registered in {time.perf_counter() - began:.0f} s", flush=True)
        return model

    def packaged(self, router: Router, models: Mapping[str, PinnedModel]) -> Path:
        """Return a router with its models."""
        folder = Path(tempfile.mkdtemp(dir=self.output)) / "hybrid"
        return package_router(router, folder, models={each: models[each] for each in router.models})


def main() -> None:
    """Print a line for each part and hybrid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of ml-latest-small")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", help="folder for what is trained; by default one that is removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(options.output or folder).absolute()
        output.mkdir(parents=True, exist_ok=True)
        bench = Bench(str(Path(options.data).absolute()), output, options.seed, open_session(None, 2))
        compare(bench)


def compare(bench: Bench) -> None:
    """Print recall and NDCG of the parts and of the best hybrid by each fusion."""
    models: dict[str, PinnedModel] = {}
    for name in PARTS:
        # Parts of the same recipe share a dataset, whose folder has its name.
        config = replace(bench.config(name), name=PARTS[name][0])
        sources = Sources.find(config)
        table = sources.table(bench.spark, config)
        models[name] = bench.trained(name, sources.dataset(table, config)[0])
    # Both recipes have the same rows.
    rows = table.where("split <> 'train'").cache()
    parts = {name: Lists.of(rows, model, DEPTH) for name, model in models.items()}
    for name, lists in parts.items():
        _print(name, lists)
    tried = compared({name: lists.only("validation") for name, lists in parts.items()})
    print(f"{len(tried)} choices were compared by the validation rows")
    for fusion in get_args(Fusion):
        chosen = next(choice for choice in tried if choice[0] == fusion)
        router = Router((Route("hybrid"),), {"hybrid": chosen[1]}, blend_depth=DEPTH, fusion=fusion)
        shown = Lists.of(rows, bench.packaged(router, models), K)
        _print(f"hybrid by {fusion}, {chosen[1]}{', chosen' if chosen == tried[0] else ''}", shown)


def compared(parts: Mapping[str, Lists]) -> list[tuple[Fusion, dict[str, float]]]:
    """Return all choices, the best first, by lists of the same rows."""
    first = next(iter(parts.values()))
    worth = []
    for fusion, weights in choices():
        found = blended({name: dict(parts[name].found) for name in weights}, weights, fusion)
        metrics = replace(first, found=found).measured()
        worth.append(((metrics / first.measured()).sum(), fusion, weights))
    return [(fusion, weights) for _, fusion, weights in sorted(worth, key=lambda one: -one[0])]


def choices() -> Iterator[tuple[Fusion, dict[str, float]]]:
    """Yield fusions and weights; the weight of the first part is 1, and parts of weight 0 are left out."""
    first, *others = PARTS
    for fusion in get_args(Fusion):
        for weights in itertools.product(WEIGHTS, repeat=len(others)):
            given = {first: 1.0, **dict(zip(others, weights, strict=True))}
            yield fusion, {name: weight for name, weight in given.items() if weight}


def _print(name: str, lists: Lists) -> None:
    values = [value for split in ("validation", "test") for value in lists.only(split).measured()]
    print(" | ".join([name, *(f"{value:.4f}" for value in values)]), flush=True)


if __name__ == "__main__":
    main()
