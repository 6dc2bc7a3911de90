"""Users' interactions: a sparse matrix of users and items from the training rows, and the histories of other rows."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, vstack  # type: ignore[import-untyped]

from mirrorspark.data_pipelines.dataset import block_format
from mirrorspark.data_pipelines.features import kinds
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.models import classical
from mirrorspark.training.programs.recommenders.content import ItemContent, item_content

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interactions:
    """The items of users in the training rows of a dataset.

    A user is a value of :attr:`data_pipelines.features.FittedFeatures.user`; a row whose value is missing or out of
    vocabulary, or of a dataset without such a feature, is a user of its own. A user's items are the candidates of all
    these rows, and those in their histories: the lists of ids in the candidate's vocabulary.
    """

    dataset: Dataset

    @property
    def items(self) -> int:
        """The number of items; item i has the id i + 2."""
        features = self.dataset.features
        return len(features.vocabulary(features.spec.candidate))

    @cached_property
    def counts(self) -> npt.NDArray[np.float32]:
        """The number of training rows of each item, those of histories included if they count: float32 ``[items]``."""
        features = self.dataset.features
        if features.spec.label.history_items:
            return features.vocabulary(features.spec.candidate).counts.to_numpy().astype(np.float32)
        candidate = self.dataset.spec.candidate.name
        ids = np.concatenate([np.asarray(block.features[candidate]) for block in self.dataset.blocks("train")])
        known = ids[ids >= kinds.FIRST_VOCABULARY_ID] - kinds.FIRST_VOCABULARY_ID
        return np.bincount(known, minlength=self.items).astype(np.float32)

    @cached_property
    def content(self) -> ItemContent | None:
        """The content of the items by their features; None without any."""
        return item_content(self.dataset.features)

    @cached_property
    def history(self) -> str | None:
        """The feature that lists a row's items; None without any."""
        return classical.history_of(self.dataset.spec)

    @property
    def user(self) -> str | None:
        """The feature whose values are the users; None without any."""
        return self.dataset.features.user

    @cached_property
    def matrix(self) -> Any:
        """Sparse float32 ``[users, items]``: 1 where a user has had an item."""
        users = self._known_users
        # A pair is one number until it is known once: histories repeat those of earlier rows.
        pairs, rows = [np.empty(0, np.int64)], 0
        for block in self.dataset.blocks("train"):
            user = self._users(block)
            user = np.where(user < 0, users + rows + np.arange(block.rows), user)
            items = self._items(block)
            row, place = np.nonzero(items >= 0)
            pairs.append(np.unique(user[row] * self.items + items[row, place]))
            rows += block.rows
        return _matrix(np.concatenate(pairs), users + rows, self.items)

    @cached_property
    def pairs(self) -> npt.NDArray[np.int32]:
        """The ids of the known users and of the items that they have had, int32 ``[2, pairs]``, in rising order."""
        known = self.matrix[: self._known_users].tocoo()
        return np.stack([known.row, known.col]).astype(np.int32) + np.int32(kinds.FIRST_VOCABULARY_ID)

    def histories(self, block: block_format.Block, last_items: int = 0) -> Any:
        """Return the items that each row of a block is scored from, sparse float32 ``[rows, items]``.

        They are those of the row's history, or without one those of the row's user in the training rows.

        Args:
            block: Rows of any split.
            last_items: Number of the history's last items to take; 0 takes all.
        """
        if self.history is None:
            user = self._users(block)
            is_known = user >= 0
            # An unknown user has no items.
            had = self.matrix[np.where(is_known, user, 0)]
            had.data *= np.repeat(is_known, np.diff(had.indptr))
            had.eliminate_zeros()
            return had
        ids = np.asarray(block.features[self.history])
        if last_items:
            length = np.count_nonzero(ids, axis=1)
            ids = np.where(np.arange(ids.shape[1]) >= length[:, None] - last_items, ids, 0)
        row, place = np.nonzero(ids >= kinds.FIRST_VOCABULARY_ID)
        return _matrix(row * self.items + ids[row, place] - kinds.FIRST_VOCABULARY_ID, block.rows, self.items)

    def steps(self, last_items: int = 0) -> tuple[Any, Any]:
        """Return the pasts of training items and the items that follow, each sparse float32 ``[steps, items]``.

        A step is a training row with its history, and each item of the history with those before it if they count as
        training rows, too.
        """
        past, following = [], []
        for block in self.dataset.blocks("train"):
            item = np.asarray(block.features[self.dataset.spec.candidate.name])
            if self.history is not None and self.dataset.features.spec.label.history_items:
                before, after = self._steps_of_histories(np.asarray(block.features[self.history]), item, last_items)
            else:
                row = np.flatnonzero(item >= kinds.FIRST_VOCABULARY_ID)
                after = _matrix(row * self.items + item[row] - kinds.FIRST_VOCABULARY_ID, block.rows, self.items)
                before = self.histories(block, last_items)
            past.append(before)
            following.append(after)
        return vstack(past, format="csr"), vstack(following, format="csr")

    def _steps_of_histories(self, history: Ids, item: Ids, last_items: int) -> tuple[Any, Any]:
        """Return the steps of all positions of histories ``[rows, width]``, and of the items ``[rows]`` after them."""
        sequences = np.concatenate([history, np.zeros((len(item), 1), history.dtype)], axis=1)
        sequences[np.arange(len(item)), np.count_nonzero(history, axis=1)] = item
        row, place = np.nonzero(sequences >= kinds.FIRST_VOCABULARY_ID)
        step = np.arange(len(row))
        after = _matrix(step * self.items + sequences[row, place] - kinds.FIRST_VOCABULARY_ID, len(step), self.items)
        pairs = []
        for back in range(1, min(last_items or history.shape[1], history.shape[1]) + 1):
            ids = sequences[row, np.maximum(place - back, 0)]
            is_known = (place >= back) & (ids >= kinds.FIRST_VOCABULARY_ID)
            pairs.append(step[is_known] * self.items + ids[is_known] - kinds.FIRST_VOCABULARY_ID)
        return _matrix(np.concatenate([np.empty(0, np.int64), *pairs]), len(step), self.items), after

    @property
    def _known_users(self) -> int:
        if self.user is None:
            return 0
        spec = self.dataset.spec
        feature = next(of for of in spec.query_features if of.name == self.user)
        return self.dataset.features.id_count(feature) - kinds.FIRST_VOCABULARY_ID  # type: ignore[arg-type]

    def _users(self, block: block_format.Block) -> Ids:
        """Return the number of each row's user, negative where that is not known."""
        if self.user is None:
            return np.full(block.rows, -1)
        return np.asarray(block.features[self.user]) - kinds.FIRST_VOCABULARY_ID

    def _items(self, block: block_format.Block) -> Ids:
        """Return the items of training rows, ``[rows, any]``, negative where there is none."""
        ids = np.asarray(block.features[self.dataset.spec.candidate.name])[:, None]
        if self.history is not None:
            ids = np.concatenate([ids, np.asarray(block.features[self.history])], axis=1)
        return ids - kinds.FIRST_VOCABULARY_ID


def _matrix(pairs: Ids, rows: int, items: int) -> Any:
    """Return ones at the places row * items + item, each once, in sorted sparse rows."""
    row, item = np.divmod(np.unique(pairs), max(items, 1))
    ends = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))])
    return csr_array((np.ones(len(item), np.float32), item.astype(np.int32), ends.astype(np.int64)), (rows, items))
