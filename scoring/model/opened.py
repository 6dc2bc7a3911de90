"""The model of a scoring call: pinned, its folder open, its code with consent."""

from datetime import UTC, datetime
from pathlib import Path

from mirrorspark.scoring.model.catalogue import log_ages
from mirrorspark.scoring.model.folder import ModelDescription, ModelDirectory
from mirrorspark.scoring.model.stored import PinnedModel, check_consent, pinned_folder, resolve


def opened_model(
    model: str | Path | PinnedModel, tracking_uri: str | None = None, *, trust: bool = False
) -> tuple[PinnedModel, ModelDirectory]:
    """Pin the model, open its folder, and ask for consent to its code.

    Args:
        model: Its URI, or the result of :func:`scoring.model.stored.resolve`.
        tracking_uri: Address of the MLflow store; by default the one that MLflow is configured with.
        trust: Whether Python code that the model brings may run.

    Raises:
        ModelNotFoundError: The URI does not lead to a model.
        UntrustedModelError: The model brings code that may not run.
    """
    pinned = model if isinstance(model, PinnedModel) else pinned_folder(model) or resolve(model, tracking_uri)
    directory = ModelDirectory.open(pinned.path)
    # Most models were trained here: they bring no code and have no catalogue, and scoring them enters no module to find
    # that out.
    description = directory.description
    if not trust and not isinstance(description, ModelDescription):
        check_consent(directory, pinned.label)
    if not isinstance(description, ModelDescription) or description.catalogue:
        log_ages(directory, pinned.label, datetime.now(UTC))
    return pinned, directory
