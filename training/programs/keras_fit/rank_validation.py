"""Recall and NDCG of a retrieval model on the validation split, after every epoch of its training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.collectives import gather_over_ranks, local_replicas
from mirrorspark.data_pipelines.dataset import block_format
from mirrorspark.data_pipelines.features import rows_at
from mirrorspark.data_pipelines.reading import Dataset, held_back_candidates, query_digests
from mirrorspark.models.index import Best, ExactTopK, Queries
from mirrorspark.models.retrieval import list_values
from mirrorspark.models.serving import candidate_embeddings, input_tensors
from mirrorspark.training.protocol.outcomes import Activity

_SPLIT = "validation"


class RankValidation(tf_keras.callbacks.Callback):
    """Adds ``val_recall_at_K`` and ``val_ndcg_at_K`` to the logs of every epoch.

    Every query of the validation split ranks all candidates but those that it excludes; equal scores are ranked by the
    lower id, as the exact index does. Rows with the same query are one: all candidates that they hold back are
    relevant. A row whose label is a list is a query of its own. The metrics are means over the queries, of which each
    rank takes an equal share. They depend on the weights alone, so a resumed training has the same.

    List it before the callbacks that read the logs of an epoch. It keeps at most 24 bytes for each row of its share;
    the first epoch takes some 60 for each row of the split. In addition, a block of rows, the scores of one search
    (64 MB) and a copy of the candidates' vectors are in memory.

    Args:
        predict: The model's ``predict`` as a graph, from a query's features to its vector.
        dataset: The dataset of the training.
        k: Length of the lists.
        rank: This rank.
        workers: Number of ranks.
        activity: Counts every block as progress.
        most_queries: Most queries to rank, drawn once for the whole training; None for all.
    """

    def __init__(
        self,
        predict: Callable[[Any], tf.Tensor],
        dataset: Dataset,
        *,
        k: int,
        rank: int,
        workers: int,
        activity: Activity,
        most_queries: int | None = None,
    ) -> None:
        """Keep the arguments."""
        super().__init__()
        self._predict, self._dataset, self._k = predict, dataset, k
        self._rank, self._workers, self._most_queries = rank, workers, most_queries
        self._activity = activity
        self._share: RankedQueries | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the metrics to ``logs``, which Keras gives to all callbacks; every rank has to call this."""
        with self._activity.within("validation"):
            sums = self._sums()
            # The first of this rank's replicas carries its sums.
            rows = np.zeros((local_replicas(self.model.distribute_strategy), len(sums)))
            rows[0] = sums
            recall, ndcg, queries = gather_over_ranks(self.model.distribute_strategy, rows).sum(axis=0)
        if logs is not None:
            logs |= {
                f"val_recall_at_{self._k}": float(recall / queries),
                f"val_ndcg_at_{self._k}": float(ndcg / queries),
            }

    def _sums(self) -> tuple[float, float, float]:
        """Return the sums of recall and NDCG over this rank's queries, and their number."""
        if self._share is None:
            self._share = self._read_share()
        share, k = self._share, self._k
        recall = ndcg = 0.0
        if not len(share.first_rows):
            return recall, ndcg, 0.0
        index = ExactTopK(candidate_embeddings(self.model, lambda done, total: self._activity.beat()), is_saved=False)
        offsets, row = index.offsets(), 0
        for block in self._dataset.blocks(_SPLIT, keys=True):
            first, last = np.searchsorted(share.first_rows, [row, row + block.rows])
            if first < last:
                queries = self._queries(block, share.first_rows[first:last] - row)
                found = index.search(queries, k, offsets)
                values = list_values(_ids(found), *share.relevant_to(first, last), (k,))
                recall += float(values[f"recall_at_{k}"].sum())
                ndcg += float(values[f"ndcg_at_{k}"].sum())
            row += block.rows
            self._activity.beat()
        return recall, ndcg, float(len(share.first_rows))

    def _read_share(self) -> "RankedQueries":
        digests, candidates, counts = [], [], []
        spec, rows = self._dataset.spec, 0
        for block in self._dataset.blocks(_SPLIT, keys=True):
            digests.append(query_digests(block, spec, rows))
            rows += block.rows
            held_back = held_back_candidates(block, spec)
            candidates.append(held_back.values)
            counts.append(held_back.row_lengths)
            self._activity.beat()
        return share_of_queries(
            np.concatenate(digests),
            np.concatenate(candidates),
            np.concatenate(counts),
            self._rank,
            self._workers,
            self._most_queries,
        )

    def _queries(self, block: block_format.Block, rows: npt.NDArray[np.int64]) -> Queries:
        """Return the queries of some rows of a block."""
        features = self._dataset.spec.query_features
        columns = {feature.name: rows_at(block.features[feature.name], rows) for feature in features}
        excluded = np.zeros((len(rows), 0), np.int64) if block.excluded is None else block.excluded[rows]
        return Queries(self._predict(input_tensors(features, columns)), tf.constant(excluded))


@dataclass(frozen=True)
class RankedQueries:
    """The queries that a rank measures, in the order of their first rows in the split.

    Attributes:
        first_rows: int64 ``[queries]``, the first row of each query.
        starts: int64 ``[queries + 1]``, where the relevant candidates of each query begin.
        relevant: int64, the ids of the relevant candidates of all queries.
    """

    first_rows: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    relevant: npt.NDArray[np.int64]

    def relevant_to(self, first: int, last: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the relevant candidates of the queries from ``first`` to before ``last``: query from 0, and id."""
        counts = np.diff(self.starts[first : last + 1])
        return np.repeat(np.arange(last - first), counts), self.relevant[self.starts[first] : self.starts[last]]


def share_of_queries(
    digests: npt.NDArray[np.uint64],
    candidates: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    rank: int,
    workers: int,
    most_queries: int | None = None,
) -> RankedQueries:
    """Return a rank's share of the queries of a split; those of all ranks are the queries, each once.

    Args:
        digests: uint64 ``[rows]``, equal for the rows of a query.
        candidates: int64, the candidates that the rows hold back, one row after the other.
        counts: int64 ``[rows]``, the number of those of each row.
        rank: The rank.
        workers: Number of ranks.
        most_queries: Most queries of all ranks together: those with the lowest digests, which is a random sample.
    """
    _, first, query = np.unique(digests, return_index=True, return_inverse=True)
    # Equally many per rank, and of neighbouring rows: a rank then uses few of the blocks.
    mine = np.array_split(np.sort(first[:most_queries]), workers)[rank]
    place = np.full(len(first), -1)
    place[query[mine]] = np.arange(len(mine))
    places = np.repeat(place[query], counts)
    kept = np.argsort(places, kind="stable")[np.count_nonzero(places < 0) :]
    starts = np.searchsorted(places[kept], np.arange(len(mine) + 1))
    return RankedQueries(mine, starts, candidates[kept])


def _ids(found: Best) -> npt.NDArray[np.int64]:
    """Return the ids of the lists, int64 ``[queries, k]``, with -1 in unfilled places."""
    scores = found.scores.numpy()
    return np.where(scores > np.finfo(np.float32).min, found.ids.numpy(), -1)
