"""The best candidates of the test rows by classical recommenders, under the protocol that models are measured by."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from pyspark.sql import SparkSession

from mirrorspark.data_pipelines.features import kinds
from mirrorspark.models import classical
from mirrorspark.scoring.output import keep_best
from mirrorspark.training.programs.recommenders.fitting import Scores, fit, scores_of
from mirrorspark.training.programs.recommenders.interactions import Interactions
from mirrorspark.training.programs.recommenders.popularity import popularity

# Most scores in memory at a time, unless one row has more: 64 MB.
TILE_SCORES = 1 << 24

RowScores = Callable[[slice], npt.NDArray[np.float32]]
"""From some rows of a block to the scores of all items, float32 ``[rows, items]``."""

UNFILLED_ID = -1
"""The id in the unfilled places of a list that has fewer candidates than places."""


def recommended(
    asked: classical.Recommender,
    interactions: Interactions,
    k: int,
    seed: int,
    spark: SparkSession,
    split: str = "test",
) -> npt.NDArray[np.int64]:
    """Return the ids of the best ``k`` candidates of every row of a split, int64 ``[rows, k]``, best first.

    All candidates are ranked but those that the row excludes; of equal scores the lower id, the more frequent one,
    comes first.

    Args:
        asked: The recommender, which is fitted on the training rows.
        interactions: The users' items in the training rows, and the histories of the rows.
        k: Length of the lists; short ones end with :data:`UNFILLED_ID`.
        seed: Fixes what the recommender draws.
        spark: The session for recommenders that Spark fits.
        split: The rows to recommend to.
    """
    if asked.name == "popularity":
        return _most_popular(interactions, k, split)
    scores = scores_of(asked.name, asked.settings, fit(asked, interactions, seed, spark))
    lists = []
    for block in interactions.dataset.blocks(split, keys=True):
        histories = interactions.histories(block, asked.settings.last_items)
        lists.append(best(scores, histories, block.excluded, k)[0])
    return np.concatenate(lists)


def _most_popular(interactions: Interactions, k: int, split: str) -> npt.NDArray[np.int64]:
    dataset = interactions.dataset
    blocks = list(dataset.blocks(split, keys=True))
    first, seen = kinds.FIRST_VOCABULARY_ID, None
    if dataset.spec.exclude is not None:
        excluded = [row for block in blocks for row in (() if block.excluded is None else block.excluded)]
        seen = [row[row > 0] - first for row in excluded]
    ranked = popularity(interactions.counts, k=k, seen=seen)
    ranked = np.where(ranked < 0, UNFILLED_ID, ranked + first)
    return np.broadcast_to(ranked, (sum(block.rows for block in blocks), k))


def best(
    scores: Scores, histories: Any, excluded: npt.NDArray[np.int64] | None, k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the ids of the best ``k`` candidates of every row and their scores; see :func:`recommended`.

    Args:
        scores: Scores all items.
        histories: Sparse ``[rows, items]``.
        excluded: int64 ``[rows, any]``, ids that are not candidates for the row; None to exclude none.
        k: Length of the lists; an empty place has :data:`UNFILLED_ID` and minus infinity.
    """
    return best_of_rows(lambda part: scores(histories[part]), histories.shape, excluded, k)


def best_of_rows(
    scores: RowScores, shape: tuple[int, int], excluded: npt.NDArray[np.int64] | None, k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the same as :func:`best` by scores of any origin, for ``shape``, the numbers of rows and items."""
    rows, items = shape
    ids, values = np.empty((rows, k), np.int64), np.empty((rows, k), np.float32)
    for part in tiles(rows, items):
        ids[part], values[part] = best_of_scores(scores(part), None if excluded is None else excluded[part], k)
    return ids, values


def best_of_scores(
    scores: npt.NDArray[np.float32], excluded: npt.NDArray[np.int64] | None, k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the same as :func:`best` by the scores of all items, float32 ``[rows, items]``, in memory."""
    tile = np.array(scores, np.float32, order="C")
    rows, items = tile.shape
    if excluded is not None:
        row, place = np.nonzero(excluded >= kinds.FIRST_VOCABULARY_ID)
        # The kernel passes over NaN.
        tile[row, excluded[row, place] - kinds.FIRST_VOCABULARY_ID] = np.nan
    places, counts = np.zeros((rows, k), np.int64), np.zeros(rows, np.int64)
    keep_best(tile.ravel(), np.arange(rows + 1) * items, places, counts)
    is_found = np.arange(k) < counts[:, None]
    ids = np.where(is_found, places % items + kinds.FIRST_VOCABULARY_ID, UNFILLED_ID)
    return ids, np.where(is_found, tile.ravel()[places], np.float32(-np.inf))


def tiles(rows: int, items: int) -> Iterator[slice]:
    """Yield parts of the rows whose scores fit into memory together."""
    tile_rows = max(1, TILE_SCORES // max(items, 1))
    return (slice(start, start + tile_rows) for start in range(0, rows, tile_rows))
