"""Ratings of a retrieval model with two tasks, as a model of their own."""

import shutil
from dataclasses import replace
from pathlib import Path

from mirrorspark.models.serving import signatures
from mirrorspark.scoring.backends import protocol
from mirrorspark.scoring.embedding import ENCODERS_FOLDER
from mirrorspark.scoring.model.folder import (
    FEATURES_FOLDER,
    SAVED_MODEL_FOLDER,
    ModelDescription,
    ModelDirectory,
    ModelDirectoryError,
    new_model_folder,
)
from mirrorspark.scoring.model.loading import LoadedModel
from mirrorspark.scoring.model.stored import PinnedModel, pinned_model


def rating_model(model: str | Path | PinnedModel, folder: str | Path, *, tracking_uri: str | None = None) -> Path:
    """Write the second task of a retrieval model into ``folder``: a model that rates pairs of a query and a candidate.

    It reads the columns of the query and the candidate's own, in the column of its feature, and gives ``rating``, in
    the unit of the training. All entry points take the folder as they take any model; it can rank the candidates of
    :func:`recommending.reranking.rank_candidates` or of a router's cascade (``output="rating"``).

    Args:
        model: URI of a retrieval model whose label had a rating, or the result of
            :func:`scoring.model.stored.resolve`; of a refreshed one, candidates of its new catalogue are rated, too.
        folder: The new folder.
        tracking_uri: Address of the MLflow store.

    Returns:
        The folder.

    Raises:
        ModelNotFoundError: The URI leads to no model.
        ModelDirectoryError: The model predicts no ratings, or ``folder`` is not empty.
    """
    pinned = pinned_model(model, tracking_uri)
    directory = ModelDirectory.open(pinned.path)
    description = directory.description
    if not isinstance(description, ModelDescription) or description.task != "retrieval":
        raise ModelDirectoryError(f"{pinned.label} is not a retrieval model; its own scores are its predictions")
    if directory.features.spec.label.rating is None:
        raise ModelDirectoryError(
            f"{pinned.label} predicts no ratings: train a two_tower model whose label has a rating "
            f"(label: {{name: ..., kind: candidate, rating: ...}})"
        )
    with new_model_folder(Path(folder)) as whole:
        for name in (SAVED_MODEL_FOLDER, FEATURES_FOLDER, ENCODERS_FOLDER):
            if (pinned.path / name).is_dir():
                shutil.copytree(pinned.path / name, whole / name)
        rates = replace(
            description,
            task="regression",
            outputs={signatures.RATING: "float"},
            signature=signatures.RATING_ENCODED,
            indexes={},
            catalogue={},
        )
        rates.with_columns(directory.features, whole).save(whole)
        try:
            LoadedModel(whole)
        except protocol.ModelOutputError as error:
            raise ModelDirectoryError(
                f"{pinned.label}, a {description.architecture} model, predicts no ratings, or an earlier version "
                f"exported it; train a two_tower model, or export it again"
            ) from error
    return Path(folder)
