"""The catalogue of a retrieval model whose items have features: its date, its digest and where it comes from."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from mirrorspark.data_pipelines.features import FittedFeatures
from mirrorspark.scoring.model.folder import ModelDescription, ModelDirectory, PackagedDescription
from mirrorspark.scoring.model.loading import composite_of

_LOGGER = logging.getLogger(__name__)

# Next to the SavedModel: the towers for later catalogues, and queries to measure the recall of their indexes.
TOWERS_FOLDER = "towers"
SAMPLE_FILE = "query_sample.npy"

_DAY_SECONDS = 24 * 60 * 60


@dataclass(frozen=True)
class Catalogue:
    """The items that a model recommends.

    Attributes:
        digest: SHA-256 of the table of items, in the order of the candidates' ids.
        date: Time of the export or of the refresh, in UTC.
        trained: Number of candidates at training, whose ids never change.
        top_k: Usual number of candidates per query.
        new: Candidates that the catalogue before lacked.
        removed: Candidates of the catalogue before that are not recommended any more.
        changed: Candidates of both whose features differ.
        refreshed_from: Digest of the model with the catalogue before; empty after a training.
        trained_model: URI of the model as it was trained; empty for that model itself.
    """

    digest: str
    date: str
    candidates: int
    trained: int
    top_k: int
    new: int = 0
    removed: int = 0
    changed: int = 0
    refreshed_from: str = ""
    trained_model: str = ""

    @classmethod
    def of_training(cls, fitted: FittedFeatures, top_k: int, now: datetime) -> "Catalogue":
        """Return the catalogue of a model as it was trained, with items."""
        assert fitted.items is not None  # noqa: S101 - the caller has a model with items
        candidates = len(fitted.vocabulary(fitted.spec.candidate))
        return cls(fitted.items.digest, utc_text(now), candidates, trained=candidates, top_k=top_k)

    @classmethod
    def of_description(cls, document: Mapping[str, Any]) -> "Catalogue | None":
        """Return the catalogue in a model's description; None for a model that cannot be refreshed."""
        return cls(**{one.name: document[one.name] for one in fields(cls)}) if document else None

    def age_days(self, now: datetime) -> float:
        """Return the age in days."""
        return (now - datetime.fromisoformat(self.date)).total_seconds() / _DAY_SECONDS


def utc_text(now: datetime) -> str:
    """Return a time as text, to the second."""
    return now.astimezone(UTC).isoformat(timespec="seconds")


def catalogues_of(directory: ModelDirectory, label: str) -> dict[str, Catalogue]:
    """Return the catalogues of a model, or of the models of a composite, by the name that messages have for each."""
    description = directory.description
    composite = composite_of(description)
    if composite is not None and isinstance(description, PackagedDescription):
        members = composite.members(directory.path / description.file)
        parts = {f"{name} of {label}": ModelDirectory.open(folder) for name, folder in members.items()}
    else:
        parts = {label: directory}
    found = {}
    for name, part in parts.items():
        description = part.description
        catalogue = (
            Catalogue.of_description(description.catalogue) if isinstance(description, ModelDescription) else None
        )
        if catalogue is not None:
            found[name] = catalogue
    return found


def log_ages(directory: ModelDirectory, label: str, now: datetime) -> None:
    """Log how old the catalogues of a model are, since items that are younger cannot be in its lists."""
    for name, catalogue in catalogues_of(directory, label).items():
        days = catalogue.age_days(now)
        _LOGGER.info("%s has %d candidates of %s, %.1f days ago", name, catalogue.candidates, catalogue.date, days)


def warn_if_stale(catalogue: Catalogue, label: str, now: datetime, stale_after_days: float | None) -> None:
    """Warn if the age of a catalogue is above a limit."""
    days = catalogue.age_days(now)
    if stale_after_days is not None and days > stale_after_days:
        _LOGGER.warning(
            "the catalogue of %s is %.1f days old, more than %g: newer items are not recommended; refresh_index makes "
            "a new one",
            *(label, days, stale_after_days),
        )
