"""The model of the benchmark of recommendations: two towers whose vectors lie in clusters, as trained ones do."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import FIRST_VOCABULARY_ID, Categorical, Label
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary

DIM = 64
SAMPLE = 1_000
"""So many queries set the recall of the approximate indexes."""

_CLUSTERS = 1_000
_ITEM_NOISE, _QUERY_NOISE = 0.8, 1.0
# Popular items have longer vectors.
_SPREAD_OF_NORMS = 0.25


def clustered_vectors(items: int, users: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 ``[items, DIM]`` and ``[users, DIM]`` around the same centres, of which some have many more."""
    random = np.random.default_rng(1)
    centres = _directions(random.normal(size=(_CLUSTERS, DIM)))
    shares = random.dirichlet(np.full(_CLUSTERS, 0.5))

    def around(count: int, noise: float) -> np.ndarray:
        chosen = centres[random.choice(_CLUSTERS, count, p=shares)]
        return _directions(chosen + noise / np.sqrt(DIM) * random.normal(size=(count, DIM)))

    norms = random.lognormal(0.0, _SPREAD_OF_NORMS, (items, 1))
    return (around(items, _ITEM_NOISE) * norms).astype(np.float32), around(users, _QUERY_NOISE).astype(np.float32)


def export_recommender(folder: Path, items: np.ndarray, users: np.ndarray, k: int, *, scann: bool = True) -> Path:
    """Export a ``two_tower`` model whose towers give these vectors for the tokens 0, 1, 2, ..., and return its folder.

    Args:
        folder: Of the model.
        items: float32 ``[items, DIM]``.
        users: float32 ``[users, DIM]``.
        k: Candidates per row.
        scann: Whether the folder has that index too.
    """
    from mirrorspark.models import two_tower
    from mirrorspark.models.serving.export import build_indexes, recalls, save_retrieval
    from mirrorspark.scoring.model.directory import FEATURES_FOLDER, OUTPUTS, SAVED_MODEL_FOLDER, ModelDescription

    spec = FeatureSpec((Categorical("user"), Categorical("item")), Label("item", kind="candidate"), ("user",))
    fitted = FittedFeatures(spec, {"user": _vocabulary(len(users)), "item": _vocabulary(len(items))}, {})
    model = two_tower.build(two_tower.Settings(embedding_dim=DIM, hidden_units=()), fitted, seed=1)
    reserved = np.zeros((FIRST_VOCABULARY_ID, DIM), np.float32)
    model.candidate_tower.set_weights([np.concatenate([reserved, items])])
    model.query_tower.set_weights([np.concatenate([reserved, users]), np.eye(DIM), np.zeros(DIM)])
    indexes = build_indexes(model, k, scann=scann, sample=users[:SAMPLE])
    save_retrieval(two_tower, model, fitted, k, indexes, folder / SAVED_MODEL_FOLDER)
    fitted.save(folder / FEATURES_FOLDER)
    found = recalls(indexes, k, users[:SAMPLE])
    ModelDescription("retrieval", "two_tower", fitted.hash, OUTPUTS["retrieval"], {}, found).save(folder)
    return folder


def _directions(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _vocabulary(count: int) -> Vocabulary:
    return Vocabulary(pa.array(map(str, range(count))), pa.array(np.arange(count, 0, -1)))
