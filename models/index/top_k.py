"""The base of all indexes: TensorFlow Recommenders' layer for the best candidates, which asks a search of ours."""

from typing import TYPE_CHECKING, Any

import tensorflow as tf

from mirrorspark.models.index.search import Best, Queries
from mirrorspark.models.recommenders import tfrs

if TYPE_CHECKING:
    from mirrorspark.models.index.exact import ExactTopK


class SearchTopK(tfrs.layers.factorized_top_k.TopK):
    """An index of this package that is one of TensorFlow Recommenders', for example in its ``FactorizedTopK``.

    Subclasses define ``search``, as in :class:`models.index.search.Index`.
    """

    # True for an index that always finds the best candidates.
    finds_best = False

    def __init__(self, name: str, query_model: Any = None, k: int = 10) -> None:
        """Name the index.

        Args:
            name: Name of the layer.
            query_model: Makes the vectors of queries from what ``call`` is given; None if these are the vectors.
            k: Number of candidates that ``call`` returns by default.
        """
        # float32 in any precision, as scores of the same queries always are.
        super().__init__(k=k, name=name, dtype="float32")
        self.query_model = query_model

    def _init_batch_counters(self) -> None:
        """Create none of Keras's counters of steps: under a strategy a variable needs all workers."""

    @property
    def exact(self) -> "ExactTopK":
        """The exact index of the same candidates."""
        raise NotImplementedError

    def search(self, queries: Queries, k: int | tf.Tensor, offsets: tf.Tensor) -> Best:
        """Return the best ``k`` candidates of each row; see :meth:`models.index.search.Index.search`."""
        raise NotImplementedError

    def call(self, queries: Any, k: int | tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the scores of each row's best candidates, float32 ``[batch, k]``, and these, by their identifiers.

        Without identifiers (:meth:`ExactTopK.index`) they are ids of the vocabulary.

        Args:
            queries: Vectors, float32 ``[batch, dim]``, or what the query model takes.
            k: Number of candidates; all, if there are fewer.
        """
        vectors = queries if self.query_model is None else self.query_model(queries)
        best = self._best_of_all(vectors, self._k if k is None else k)
        return best.scores, self.exact.identified(best.ids)

    @tf.autograph.experimental.do_not_convert
    def _best_of_all(self, vectors: tf.Tensor, k: int | tf.Tensor) -> Best:
        nothing = tf.zeros([tf.shape(vectors)[0], 0], tf.int64)
        candidates = len(self.exact.candidate_ids)
        k = min(k, candidates) if isinstance(k, int) else tf.minimum(k, candidates)
        return self.search(Queries(vectors, nothing), k, self.exact.offsets())

    def index(self, candidates: tf.Tensor, identifiers: tf.Tensor | None = None) -> "SearchTopK":
        """Refuse: other indexes than the exact one are built from an exact one."""
        raise NotImplementedError(
            f"{type(self).__name__} is built from an ExactTopK; call index of that one, and build this index anew"
        )

    def is_exact(self) -> bool:
        """Return whether the best candidates are always found."""
        return self.finds_best
