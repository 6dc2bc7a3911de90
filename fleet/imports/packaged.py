"""Models of any kind that the scorer loads, packed into a fleet as they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.imports.imported_model import ImportedModel, fleet_of
from mirrorspark.fleet.packages import packed, single_output
from mirrorspark.scoring.model.folder import ModelDirectory
from mirrorspark.scoring.model.stored import PinnedModel, pinned_model


def fleet_from_models(
    models: Mapping[str, str | Path | PinnedModel],
    *,
    output: str | None = None,
    tracking_uri: str | None = None,
    group: str = "",
    thresholds: Mapping[str, float] | None = None,
    cut_points: Mapping[str, Sequence[float]] | None = None,
) -> Fleet:
    """Return the fleet of models that ``score`` takes and no other ``fleet_from_`` function reads.

    The fleet holds the files of each. They are read in the one pass over the rows, and called one after the other by
    their own libraries, which executors need: slower than models that a fleet computes itself. A row that a model
    cannot score, such as one with a null that it does not take, has null outputs.

    Args:
        models: By name, an MLflow URI, a folder (an exported or packaged model, any MLflow model), or the result of
            :func:`scoring.model.stored.resolve`.
        output: Which output of the models is the score; by default the only number that they give.
        tracking_uri: Address of the MLflow store.
        group: The group of all models.
        thresholds: By name, the score from which on ``binary`` is 1.
        cut_points: By name, ascending scores between the ranks.

    Raises:
        ModelNotFoundError: A URI leads to no model.
        ModelDirectoryError: The files there are no model.
        FleetError: A model gives lists or several numbers per row, or is larger than half a gigabyte; ``thresholds`` or
            ``cut_points`` name other models.
    """
    found = {name: _imported(name, pinned_model(model, tracking_uri), output) for name, model in models.items()}
    return fleet_of(found, group, thresholds, cut_points)


def _imported(name: str, pinned: PinnedModel, output: str | None) -> ImportedModel:
    directory = ModelDirectory.open(pinned.path)
    chosen, columns = single_output(directory, f"'{name}' ({pinned.label})", output), directory.inputs.columns
    return ImportedModel("identity", columns, np.ones(len(columns)), package=(packed(pinned.path, name), chosen))
