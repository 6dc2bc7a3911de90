"""The towers of a retrieval model whose items have features, saved for catalogues that come after the training.

They are SavedModels of their own, which scoring never loads. A refresh of the index loads them without the code of the
model: the query tower becomes part of the new SavedModel, the candidate tower embeds the new table of items.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from mirrorspark.data_pipelines.features import FeatureSpec, FittedFeatures, item_rows, kinds, plain_name, rows_at
from mirrorspark.models.layers.input import lists_of_any_length
from mirrorspark.models.retrieval.rating import RatingTask, SavedRating, rating_task, save_rating
from mirrorspark.models.serving import (
    concrete,
    encoded_signature,
    encoded_tensors,
    input_tensors,
    model_inputs,
    save_functions,
    signatures,
    state,
)

_QUERY, _CANDIDATE = "query", "candidate"


def has_item_tower(model: Any) -> bool:
    """Return whether the candidate tower of ``model`` can embed items that come after the training."""
    from mirrorspark.models.retrieval.item_tower import ItemTower

    return isinstance(getattr(model, "candidate_tower", None), ItemTower)


def save_towers(architecture: ModuleType, model: Any, fitted: FittedFeatures, folder: Path) -> None:
    """Write both towers of a model with an item tower below ``folder``, and its net of ratings, a SavedModel each.

    The ids of later candidates mean nothing to the towers: in a history they are out of vocabulary, and as a candidate
    such an item has no id embedding.
    """
    assert fitted.items is not None  # noqa: S101 - the candidate tower reads items
    id_count = fitted.id_count(fitted.spec.candidate)
    queries, items = fitted.spec.query_features, fitted.items.features.spec
    known_queries = partial(_known, fitted.spec, queries, fitted.spec.candidate, id_count)
    known_items = partial(_known, items, items.features, items.candidate, id_count)
    key = items.candidate.name

    def query(encoded: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {signatures.VECTORS: architecture.predict(model, model_inputs(queries, known_queries(encoded)))}

    def candidate(encoded: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        known = known_items(encoded)
        rows = model_inputs(items.query_features, known)
        return {signatures.VECTORS: model.candidate_tower.embedded(known[key], rows, training=False)}

    any_length = lists_of_any_length(getattr(model, "query_tower", model))
    _save(query, encoded_signature(queries, any_length), getattr(model, "query_tower", model), folder / _QUERY)
    _save(candidate, encoded_signature(items.features), model.candidate_tower, folder / _CANDIDATE)
    task = rating_task(model)
    if isinstance(task, RatingTask):
        save_rating(task, model.query_tower.output_shape[-1], folder / signatures.RATING)


def _save(function: Any, specs: Mapping[str, tf.TensorSpec], tower: Any, folder: Path) -> None:
    module = tf.Module(name=folder.name)
    module.state = state(tower)
    save_functions(module, {signatures.TOWER_SIGNATURE: concrete(function, specs)}, folder)


def _known(
    spec: FeatureSpec,
    features: Iterable[kinds.Feature],
    candidate: kinds.TokenFeature,
    id_count: int,
    encoded: Mapping[str, tf.Tensor],
) -> dict[str, tf.Tensor]:
    """Return ``encoded`` with the candidates' ids from ``id_count`` on out of vocabulary."""
    own = spec.vocabulary_name(candidate)
    named = {one.name for one in features if isinstance(one, kinds.TokenFeature) and spec.vocabulary_name(one) == own}
    unknown = tf.constant(kinds.OUT_OF_VOCABULARY_ID, tf.int64)
    return {
        name: tf.where(value < id_count, value, unknown) if name in named else value for name, value in encoded.items()
    }


def _with_plain_names(inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {plain_name(name): tensor for name, tensor in inputs.items()}


@dataclass(frozen=True)
class KnownVectors:
    """The vectors of candidates that need not be embedded.

    Attributes:
        ids: int64 ``[known]``, their ids.
        vectors: float32 ``[known, dim]``.
    """

    ids: np.ndarray
    vectors: np.ndarray


class SavedTowers(tf.Module):
    """Towers from :func:`save_towers` with a later table of items: a model for ``build_indexes`` and the export."""

    def __init__(self, folder: Path, fitted: FittedFeatures, known: KnownVectors | None = None) -> None:
        """Load the towers below ``folder``, for features with the later items, of which some have vectors already."""
        super().__init__(name="towers")
        self.query_tower = SavedQueryTower(folder / _QUERY, fitted.spec.query_features)
        self.candidate_tower = _SavedCandidateTower(folder / _CANDIDATE, fitted, known)
        self.rating = SavedRating(folder / signatures.RATING) if (folder / signatures.RATING).is_dir() else None


class SavedQueryTower(tf.Module):
    """A query tower from :func:`save_towers`."""

    def __init__(self, folder: Path, features: tuple[kinds.Feature, ...]) -> None:
        super().__init__(name="query_tower")
        self._loaded = tf.saved_model.load(str(folder))
        self._features = features

    @property
    def any_length(self) -> tuple[str, ...]:
        """Names of the lists that the tower accepts padded to any length."""
        specs = self._loaded.signatures[signatures.TOWER_SIGNATURE].structured_input_signature[1]
        lists = (feature.name for feature in self._features if isinstance(feature, kinds.ListFeature))
        return tuple(name for name in lists if specs[plain_name(name)].shape.as_list() == [None, None])

    def __call__(self, inputs: Mapping[str, tf.Tensor | tf.SparseTensor]) -> tf.Tensor:
        """Return the query embeddings, float32 ``[batch, dim]``."""
        tower = self._loaded.signatures[signatures.TOWER_SIGNATURE]
        return tower(**_with_plain_names(encoded_tensors(self._features, inputs)))[signatures.VECTORS]


class _SavedCandidateTower:
    """A candidate tower from :func:`save_towers`. It is not a module, so the model is saved without its weights."""

    def __init__(self, folder: Path, fitted: FittedFeatures, known: KnownVectors | None) -> None:
        assert fitted.items is not None  # noqa: S101 - the model has items
        self._tower = tf.saved_model.load(str(folder))
        spec = fitted.items.features.spec
        self._key, self._features = spec.candidate.name, spec.query_features
        self._items = item_rows.encoded_items(fitted.items, without=None if known is None else known.ids)
        self.input_dim = fitted.id_count(fitted.spec.candidate)
        self._tokens = fitted.vocabulary(fitted.spec.candidate).tokens
        self._known = known
        # The place of each id among the known ones.
        self._place = np.full(self.input_dim, -1)
        if known is not None:
            self._place[known.ids] = np.arange(len(known.ids))

    def __call__(self, ids: tf.Tensor) -> tf.Tensor:
        place = self._place[ids.numpy()]
        if self._known is None or (place < 0).all():
            return self._embedded(ids)
        vectors = self._known.vectors[place]
        if (place < 0).any():
            vectors[place < 0] = self._embedded(ids[place < 0]).numpy()
        return tf.constant(vectors)

    def _embedded(self, ids: tf.Tensor) -> tf.Tensor:
        rows = {name: rows_at(values, ids.numpy()) for name, values in self._items.items()}
        encoded = encoded_tensors(self._features, input_tensors(self._features, rows))
        tower = self._tower.signatures[signatures.TOWER_SIGNATURE]
        vectors = tower(**_with_plain_names(encoded | {self._key: ids}))[signatures.VECTORS]
        bad = ids.numpy()[~np.isfinite(vectors.numpy()).all(axis=1)]
        if len(bad):
            item = self._tokens[int(bad[0]) - kinds.FIRST_VOCABULARY_ID].as_py()
            raise ValueError(
                f"the vectors of {len(bad)} items or more are not finite, such as that of {item!r}; replace infinite "
                f"and extremely large numbers among their features"
            )
        return vectors


def predict(model: SavedTowers, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Return the query embeddings, float32 ``[batch, dim]``, as an architecture does."""
    return model.query_tower(inputs)
