"""The catalogue of a retrieval model whose items have features: its date, its digest and where it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from mirrorspark.data_pipelines.features.fitted import FittedFeatures

# Beside the SavedModel: the towers for later catalogues, and queries to measure the recall of their indexes.
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
