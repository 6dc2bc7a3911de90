"""States of ranks and attempts: activity, causes of failures, and their description in words."""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.protocol.outcomes import timing
    from mirrorspark.training.protocol.outcomes.activity import Activity, Phase
    from mirrorspark.training.protocol.outcomes.cause import SESSION_LOST, Attempt, Cause, RankError, Stop, known_errors
    from mirrorspark.training.protocol.outcomes.rounds import Every, every
    from mirrorspark.training.protocol.outcomes.words import findings_in_words, numbers_in_words, ranks_in_words
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "SESSION_LOST",
    "Activity",
    "Attempt",
    "Cause",
    "Every",
    "Phase",
    "RankError",
    "Stop",
    "every",
    "findings_in_words",
    "known_errors",
    "numbers_in_words",
    "ranks_in_words",
    "timing",
]
