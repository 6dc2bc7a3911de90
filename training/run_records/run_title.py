"""The names that runs have in MLflow's pages, by which those of one experiment can be distinguished."""

from collections.abc import Sequence
from datetime import UTC, datetime

from mirrorspark.training.configuration import TrainingConfig

# MLflow's own limit is higher, but its tables show no more.
_MOST_CHARACTERS = 120


def run_title(name: str, settings: Sequence[str] = (), *, began: datetime | None = None) -> str:
    """Return a run's name, its settings and when it began: ``flights · lr 0.001 · batch 512 · 2026-11-29 01:55``.

    Args:
        name: The configuration's; empty where the experiment has that name. MLflow's tables show some 20 letters.
        settings: Settings in words.
        began: By default now, in UTC, as in the names of run folders.
    """
    when = f"{began or datetime.now(UTC):%Y-%m-%d %H:%M}"
    parts = [*(part for part in (name, *settings) if part), when]
    while len(" · ".join(parts)) > _MOST_CHARACTERS and len(parts) > 2:
        del parts[-2]
    return " · ".join(parts)


def settings_in_words(config: TrainingConfig) -> list[str]:
    """Return the step size, the batch and the model of a training, and its seed where one is chosen."""
    words = [] if config.is_fitted else [f"lr {config.learning_rate:g}", f"batch {config.global_batch_size}"]
    seed = [f"seed {config.seed}"] if config.seed != TrainingConfig.seed else []
    return [*words, str(config.model["name"]), *seed]
