"""One search with the vectors of several retrieval models: a candidate's score is the weighted sum of their products.

Unlike a fusion of lists it ranks all candidates, also those that no model has among its best. This module does not
import Spark or TensorFlow.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.features import kinds
from mirrorspark.models.index import CANDIDATES, SCORES, UNFILLED
from mirrorspark.scoring.model.loading import CandidateVectors

# Most scores in memory at a time, unless one row has more: 64 MB.
_TILE_SCORES = 1 << 24


class VectorModel(Protocol):
    """A loaded retrieval model whose scores are products of vectors."""

    @property
    def unavailable_ids(self) -> np.ndarray:
        """int64 ``[any]``: candidates that must not be found."""

    def vectors(self) -> CandidateVectors:
        """Return the vectors of its candidates."""

    def query_vectors(self, batch: pa.RecordBatch) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the vectors of rows, ``[some rows, dim]``, and the ids that each excludes, ``[some rows, any]``."""


class VectorSearch:
    """All candidates of several models, each with the vectors of all models side by side; thread-safe.

    A model adds nothing for a candidate that it does not know, and nothing for a row without a vector, such as that of
    ALS for a user without a history.
    """

    def __init__(self, models: Mapping[str, VectorModel], weights: Mapping[str, float], *, cosine: bool) -> None:
        """Read the vectors of the candidates.

        Args:
            models: The models by name.
            weights: Weight by model.
            cosine: Whether all vectors get length 1, so that scores are weighted sums of cosines.

        Raises:
            ModelOutputError: The scores of a model are not products of vectors.
        """
        self._weights, self._cosine = weights, cosine
        of_models = {name: model.vectors() for name, model in models.items()}
        place: dict[bytes, int] = {}
        # By model, the place of each of its candidates among all of them.
        self._places = {
            name: np.array([place.setdefault(token, len(place)) for token in of.tokens], np.int64)
            for name, of in of_models.items()
        }
        self._tokens = np.array(list(place), object)
        self._vectors = np.zeros((len(place), sum(of.vectors.shape[1] for of in of_models.values())), np.float32)
        start = 0
        for name, of in of_models.items():
            end = start + of.vectors.shape[1]
            self._vectors[self._places[name], start:end] = self._scaled(of.vectors)
            start = end

    def found(self, models: Mapping[str, VectorModel], batch: pa.RecordBatch, most: int) -> dict[str, np.ndarray]:
        """Return the best ``most`` candidates of every row, ``[rows, most]`` by output, with empty places at the end.

        A list has no candidate that any model excludes for the row, and none that is unavailable in every model that
        knows it. Ties go to the candidate of the earlier model, then to the lower id.

        Args:
            models: The models with their searches; they are those that this was made of.
            batch: Rows with the columns of all models.
            most: Length of the lists.
        """
        queries = np.zeros((batch.num_rows, self._vectors.shape[1]), np.float32)
        excluded: list[tuple[np.ndarray, np.ndarray]] = []
        start = 0
        for name, model in models.items():
            first = 0
            for vectors, ids in model.query_vectors(batch):
                rows = slice(first, first + len(vectors))
                queries[rows, start : start + vectors.shape[1]] = self._weights[name] * self._scaled(vectors)
                row, column = np.nonzero(ids >= kinds.FIRST_VOCABULARY_ID)
                excluded.append((first + row, self._places[name][ids[row, column] - kinds.FIRST_VOCABULARY_ID]))
                first, width = rows.stop, vectors.shape[1]
            start += width
        rows_and_places = [np.concatenate(parts) for parts in zip(*excluded, strict=True)]
        return self._best(queries, rows_and_places[0], rows_and_places[1], self._unavailable(models), most)

    def _best(
        self, queries: np.ndarray, rows: np.ndarray, places: np.ndarray, unavailable: np.ndarray, most: int
    ) -> dict[str, np.ndarray]:
        # Numba, which other processes that score do without.
        from mirrorspark.scoring.output import keep_best

        items, order = len(self._tokens), np.argsort(rows, kind="stable")
        rows, places = rows[order], places[order]
        candidates = np.full((len(queries), most), UNFILLED.encode(), object)
        scores = np.full((len(queries), most), np.finfo(np.float32).min, np.float32)
        tile_rows = max(1, _TILE_SCORES // max(items, 1))
        for first in range(0, len(queries), tile_rows):
            tile = queries[first : first + tile_rows] @ self._vectors.T
            # The kernel passes over NaN.
            tile[:, unavailable] = np.nan
            begin, end = np.searchsorted(rows, (first, first + len(tile)))
            tile[rows[begin:end] - first, places[begin:end]] = np.nan
            found, counts = np.zeros((len(tile), most), np.int64), np.zeros(len(tile), np.int64)
            keep_best(tile.ravel(), np.arange(len(tile) + 1) * items, found, counts)
            row, place = np.nonzero(np.arange(most) < counts[:, None])
            at = found[row, place]
            candidates[first + row, place] = self._tokens[at % items]
            scores[first + row, place] = tile.ravel()[at]
        return {CANDIDATES: candidates, SCORES: scores}

    def _unavailable(self, models: Mapping[str, VectorModel]) -> np.ndarray:
        """Return the places of candidates that no model may find that knows them."""
        knowing, refusing = np.zeros(len(self._tokens), np.int64), np.zeros(len(self._tokens), np.int64)
        for name, model in models.items():
            knowing[self._places[name]] += 1
            refusing[self._places[name][model.unavailable_ids - kinds.FIRST_VOCABULARY_ID]] += 1
        return np.flatnonzero(knowing == refusing)

    def _scaled(self, vectors: np.ndarray) -> Any:
        if not self._cosine:
            return vectors
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
