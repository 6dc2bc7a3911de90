"""Quality of the classical recommenders on MovieLens, under the protocol of the recipe ``movielens``.

``python -m benchmarks.quality_recommenders --data path/to/ml-latest-small`` prints a line for each row of
docs/quality.md. Settings are to be chosen by the validation rows; the test rows are for the last look.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.report import print_cells, print_titles
from mirrorspark.models.classical import Recommender
from mirrorspark.models.retrieval.list_metrics import ranking_metrics
from mirrorspark.spark_session.kinds import session_of
from mirrorspark.spark_session.start import open_session
from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.job.source_tables import SourceTables
from mirrorspark.training.programs.recommenders.interactions import Interactions
from mirrorspark.training.programs.recommenders.lists import recommended

K = 20
ROWS = (
    {"name": "popularity"},
    *({"name": name} | last for name in ("item_knn", "bspm", "als", "ease") for last in ({}, {"last_items": 15})),
)


def main() -> None:
    """Fit every recommender on the training rows, and print what it finds for the users' last movies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of ml-latest-small")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig.from_recipe("movielens", data=str(Path(options.data).absolute()), output=folder)
        sources, spark = SourceTables.find(config), open_session(None, 2)
        session_of(spark).give_checkpoints(Path(folder) / "spark")
        dataset, _ = sources.dataset(sources.table(spark, config), config)
        interactions, candidate = Interactions(dataset), dataset.spec.candidate.name
        of_splits = (f"{split} {metric}@{K}" for split in ("validation", "test") for metric in ("recall", "NDCG"))
        print_titles("recommender", *of_splits, "seconds")
        for row in ROWS:
            asked, cells = Recommender.parse(row), []
            began = time.perf_counter()
            for split in ("validation", "test"):
                held_back = np.concatenate([block.features[candidate] for block in dataset.blocks(split)])
                lists = recommended(asked, interactions, K, options.seed, spark, split)
                found = ranking_metrics(lists, held_back, (K,))
                cells += [f"{found[f'{metric}_at_{K}']:.4f}" for metric in ("recall", "ndcg")]
            # Each split is a fit of its own.
            seconds = (time.perf_counter() - began) / 2
            print_cells(asked.label, *cells, f"{seconds:.0f}")


if __name__ == "__main__":
    main()
