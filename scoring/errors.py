"""The general error of scoring; more specific ones are defined next to the code that raises them."""

from mirrorspark.clear_error import ClearError


class ScoringError(ClearError, ValueError):
    """Raised for a table or a call that the model cannot score; the message names the column and the remedy."""
