"""Quality of the item-based recommenders on Gowalla, under the protocol of LightGCN: every user's test items at once.

``python -m benchmarks.quality_gowalla FOLDER`` prints rows of ``docs/quality.md``. FOLDER has ``train.txt``,
``valid.txt`` and ``test.txt`` of lines ``user item item ...``. Training is on both of the first; all items are ranked
but those of the user's training, and the metrics are means over users. ``--choose`` trains on ``train.txt`` alone,
measures on ``valid.txt``, and looks at no test row.
"""

import argparse
import ast
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array  # type: ignore[import-untyped]

from benchmarks.printed import print_cells, print_titles
from mirrorspark.data_pipelines.features.kinds import FIRST_VOCABULARY_ID
from mirrorspark.models.classical import Recommender
from mirrorspark.models.retrieval.ranking_metrics import ranking_metrics
from mirrorspark.training.recommenders.fitting import fit, scores_of
from mirrorspark.training.recommenders.lists import best

K = 20
USERS_AT_ONCE = 1024
SETTINGS: tuple[dict[str, Any], ...] = ({"name": "popularity"}, {"name": "item_knn"}, {"name": "bspm"})


class Checkins:
    """What a recommender is fitted on: a sparse matrix of users and items, and the items' counts."""

    def __init__(self, users: np.ndarray, items: np.ndarray, shape: tuple[int, int]) -> None:
        """Store each pair once."""
        self.matrix = csr_array((np.ones(len(users), np.float32), (users, items)), shape)
        self.counts = np.bincount(items, minlength=shape[1]).astype(np.float32)


def read(path: Path) -> np.ndarray:
    """Return the users and items of a file, int64 ``[2, pairs]``."""
    rows = [np.array(line.split(), np.int64) for line in path.read_text().splitlines()]
    return np.stack(
        [np.repeat([row[0] for row in rows], [len(row) - 1 for row in rows]), np.concatenate([row[1:] for row in rows])]
    )


def measure(asked: Recommender, train: Checkins, held: np.ndarray, seed: int) -> dict[str, float]:
    """Return the metrics over the users of the held-back pairs, and the seconds of fit and lists."""
    began = time.perf_counter()
    spark: Any = None
    interactions: Any = train
    scores = scores_of(asked.name, asked.settings, fit(asked, interactions, seed, spark))
    fitted = time.perf_counter()
    users = np.unique(held[0])
    lists = []
    for start in range(0, len(users), USERS_AT_ONCE):
        rows = train.matrix[users[start : start + USERS_AT_ONCE]]
        counts = np.diff(rows.indptr)
        had = np.zeros((len(counts), counts.max()), np.int64)
        had[np.arange(had.shape[1]) < counts[:, None]] = rows.indices + FIRST_VOCABULARY_ID
        lists.append(best(scores, rows, had, K)[0])
    found = recall_and_ndcg(np.concatenate(lists), users, held)
    return found | {"fit": fitted - began, "lists": time.perf_counter() - fitted}


def recall_and_ndcg(lists: np.ndarray, users: np.ndarray, held: np.ndarray) -> dict[str, float]:
    """Return the means over users of recall and NDCG at ``K``.

    Args:
        lists: Ids of items, best first, int64 ``[users, K]``.
        users: Their users in rising order, all of those in ``held``.
        held: The pairs to find, int64 ``[2, pairs]``.
    """
    of_pair = lists[np.searchsorted(users, held[0])]
    found = ranking_metrics(of_pair, held[1] + FIRST_VOCABULARY_ID, (K,), queries=held[0])
    return {name: found[f"{name}_at_{K}"] for name in ("recall", "ndcg")}


def known_and_held(folder: Path, *, choose: bool) -> tuple[Checkins, np.ndarray]:
    """Return what to train on, and the pairs to find, int64 ``[2, pairs]``; see the module."""
    train, valid, test = (read(folder / f"{split}.txt") for split in ("train", "valid", "test"))
    users, items = np.concatenate([train, valid, test], axis=1).max(axis=1) + 1
    known, held = (train, valid) if choose else (np.concatenate([train, valid], axis=1), test)
    return Checkins(known[0], known[1], (int(users), int(items))), held


def main() -> None:
    """Print a row for each recommender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--settings", type=ast.literal_eval, nargs="+", default=SETTINGS)
    given = parser.parse_args()
    checkins, held = known_and_held(given.folder, choose=given.choose)
    print_titles("recommender", f"recall@{K}", f"NDCG@{K}", "seconds to fit", "seconds of lists")
    for settings in given.settings:
        asked = Recommender.parse(settings)
        found = measure(asked, checkins, held, given.seed)
        metrics, seconds = ([found[name] for name in names] for names in (("recall", "ndcg"), ("fit", "lists")))
        print_cells(asked.label, *map("{:.4f}".format, metrics), *map("{:.0f}".format, seconds))


if __name__ == "__main__":
    main()
